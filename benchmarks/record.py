"""The JSON files that benchmarks write: where the figures come from, then the figures."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable
from importlib import metadata
from typing import Any

import jax
from absl import app, flags, logging
from etils import epath

from threedim import errors, files, provenance
from threedim.errors import MissingError, UserError
from threedim.training import hardware

HEAD = ("machine", "versions", "commit", "command")
# Recorded where installed, in addition to what `provenance.versions` lists.
_PACKAGES = ("array_record", "embreex", "grain", "libtpu", "trimesh", "jax-cuda13-plugin", "nvidia-cudnn-cu13")
# Environment variables that change how programs are compiled or run.
_ENVIRONMENT = ("GLIBC_TUNABLES", "JAX_DISABLE_MOST_OPTIMIZATIONS", "JAX_PLATFORMS", "XLA_FLAGS")
_ENVIRONMENT += ("XLA_PYTHON_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_PREALLOCATE")


def run(
    benchmark: str,
    measure: Callable[[flags.FlagValues], dict[str, Any]],
    report: Callable[[dict[str, Any]], str],
    *,
    devices: bool = True,
) -> None:
    """Runs a benchmark's command line: measures, prints, and writes the file that ``--json`` names.

    With ``devices=False``, for benchmarks that do not use JAX, no accelerator is claimed.
    """

    def main(argv: list[str]) -> None:
        if len(argv) > 1:
            raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
        logging.set_verbosity(logging.WARNING)
        with errors.one_line():
            before = head(benchmark)
            figures = measure(flags.FLAGS)
            if devices:
                memory = {"memory_bytes": hardware.device_memory(jax.local_devices()[0])}
                before["machine"]["device"] = provenance.device() | memory
        print(report(figures))
        if flags.FLAGS.json:
            write(flags.FLAGS.json, benchmark, before, figures)

    flags.DEFINE_string("json", None, "Also write the figures to this file.")
    app.run(main)


def head(benchmark: str) -> dict[str, Any]:
    """Machine, versions, commit and command of this process, without the devices that JAX uses."""
    installed = {each.name: each.version for each in metadata.distributions() if each.name in _PACKAGES}
    return {
        "machine": provenance.processor() | {"device": None},
        "versions": provenance.versions() | installed,
        "commit": provenance.commit(),
        "command": command(benchmark, sys.argv[1:]),
    }


def command(benchmark: str, arguments: list[str]) -> str:
    """The command line with relevant environment variables, and without ``--json=FILE``."""
    kept = [argument for argument in arguments if not argument.startswith("--json=")]
    settings = [f"{name}={shlex.quote(os.environ[name])}" for name in _ENVIRONMENT if os.environ.get(name)]
    return " ".join([*settings, f"python -m benchmarks.{benchmark}", *map(shlex.quote, kept)])


def write(path: epath.PathLike, benchmark: str, head: dict[str, Any], figures: dict[str, Any]) -> None:
    """Writes a file of figures. Missing folders are created, an existing file is replaced."""
    content = {"benchmark": benchmark, **head, "figures": figures}
    files.write_atomically(epath.Path(path), json.dumps(content, indent=1) + "\n")


def read(path: epath.PathLike) -> dict[str, Any]:
    """Reads a file of figures.

    Raises:
      MissingError: if it does not exist.
      UserError: if it is not a file of figures.
    """
    path = epath.Path(path)
    if not path.exists():
        raise MissingError(f"{path} does not exist")
    try:
        content = json.loads(path.read_text())
    except (ValueError, IsADirectoryError) as error:
        raise UserError(f"{path} is not a JSON file: {error}") from error
    missing = {"benchmark", *HEAD, "figures"} - set(content if isinstance(content, dict) else ())
    if missing:
        raise UserError(f"{path} is not a file of benchmark figures: no {', '.join(sorted(missing))}")
    return content
