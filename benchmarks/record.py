"""The files that benchmarks write: where figures come from, then the figures.

A benchmark that is run once writes ``benchmark`` (its name), the head (``HEAD``) and, under ``figures``, what it
measured. A benchmark whose file grows row by row writes ``heads`` instead, one for each row: rows may come from
different machines and commits.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from importlib import metadata
from typing import Any

import jax
from etils import epath

from threedim import files, provenance
from threedim.training import hardware

HEAD = ("machine", "versions", "commit", "command")
# Beside those of every result: what reads, renders or compiles, where it is installed.
_PACKAGES = ("array_record", "embreex", "grain", "libtpu", "trimesh", "jax-cuda13-plugin", "nvidia-cudnn-cu13")
# Settings that reach the compiler without being on the command line.
_ENVIRONMENT = (
    "GLIBC_TUNABLES",
    "JAX_DISABLE_MOST_OPTIMIZATIONS",
    "JAX_PLATFORMS",
    "XLA_FLAGS",
    "XLA_PYTHON_CLIENT_MEM_FRACTION",
    "XLA_PYTHON_CLIENT_PREALLOCATE",
)


def head(benchmark: str, *, devices: bool = True) -> dict[str, Any]:
    """Machine, versions, commit and command of this process; to be taken before anything is measured.

    Args:
      benchmark: name of the module in ``benchmarks``.
      devices: False for what computes nothing by JAX, so that no accelerator is taken up: ``device`` is then None.
    """
    device = None
    if devices:
        device = provenance.device() | {"memory_bytes": device_memory(jax.local_devices()[0])}
    installed = {name: version for name in _PACKAGES if (version := _version(name))}
    return {
        "machine": provenance.processor() | {"device": device},
        "versions": provenance.versions() | installed,
        "commit": provenance.commit(),
        "command": command(benchmark, sys.argv[1:]),
    }


def command(benchmark: str, arguments: list[str]) -> str:
    """The command line, but for ``--json``: where figures go is not how they are taken."""
    kept, skip = [], False
    for argument in arguments:
        if not skip and argument.partition("=")[0] not in ("--json", "-json"):
            kept.append(argument)
        skip = argument in ("--json", "-json")
    settings = [f"{name}={shlex.quote(os.environ[name])}" for name in _ENVIRONMENT if os.environ.get(name)]
    return " ".join([*settings, f"python -m benchmarks.{benchmark}", *map(shlex.quote, kept)])


def device_memory(device: jax.Device) -> int | None:
    """Bytes that JAX may use of an accelerator, else those of its data sheet; None where neither is known (CPU)."""
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    chip = hardware.CHIPS.get(device.device_kind)
    return int(chip.memory) if chip else None


def write(path: epath.PathLike, benchmark: str, head: dict[str, Any], figures: dict[str, Any]) -> None:
    """Writes the file of a benchmark that was run once."""
    content = {"benchmark": benchmark, **head, "figures": figures}
    files.write_atomically(epath.Path(path), json.dumps(content, indent=2) + "\n")


def write_rows(
    path: epath.PathLike, benchmark: str, heads: dict[str, Any], figures: dict[str, Any], **more: Any
) -> None:
    """Writes the file of a benchmark that adds row to row; ``more`` is what holds for all of them."""
    content = {"benchmark": benchmark, **more, "heads": heads, "figures": figures}
    files.write_atomically(epath.Path(path), json.dumps(content, indent=1) + "\n")


def read(path: epath.PathLike) -> dict[str, Any]:
    """A file that a benchmark has written.

    Raises:
      FileNotFoundError: if there is none.
      ValueError: if it is something else.
    """
    content = _load(path)
    if not isinstance(content, dict) or not isinstance(content.get("benchmark"), str):
        raise ValueError(f"{path} is no file of a benchmark's figures: it does not say which benchmark it is of")
    missing = [name for name in ("figures", *(() if "heads" in content else HEAD)) if name not in content]
    if missing:
        raise ValueError(f"{path} is no whole file of a benchmark's figures: it has no {', '.join(missing)}")
    for name in ("figures", *(["heads"] if "heads" in content else [])):
        if not isinstance(content[name], dict):
            raise ValueError(f"{path} is no file of a benchmark's figures: {name} is not an object")
    return content


def read_rows(path: epath.PathLike, benchmark: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Figures and heads by row; nothing where there is no file.

    Files from before there were heads are rows and nothing else: they are read too, and their rows have no head.

    Raises:
      ValueError: if the file is not one of this benchmark.
    """
    if not epath.Path(path).exists():
        return {}, {}
    content = _load(path)
    if isinstance(content, dict) and "benchmark" not in content and all(isinstance(r, dict) for r in content.values()):
        return content, {}
    content = read(path)
    if content["benchmark"] != benchmark or "heads" not in content:
        raise ValueError(f"{path} is of benchmarks.{content['benchmark']}, not rows of benchmarks.{benchmark}")
    return content["figures"], content["heads"]


def _load(path: epath.PathLike) -> Any:
    path = epath.Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        return json.loads(path.read_text())
    except (ValueError, IsADirectoryError) as error:
        raise ValueError(f"{path} is no JSON file: {error}") from error


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
