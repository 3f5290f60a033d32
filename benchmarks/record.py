"""The JSON files that benchmarks write: where the figures come from, then the figures."""

from __future__ import annotations

import json
import os
import shlex
import sys
import threading
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
    partial: Callable[[], dict[str, Any]] | None = None,
) -> None:
    """Runs a benchmark's command line: measures, prints, and writes the file that ``--json`` names.

    With ``devices=False``, for benchmarks that do not use JAX, no accelerator is claimed. ``partial`` returns what was
    measured so far: what a benchmark with a flag ``--time_limit`` then prints and writes.
    """

    def finish(before: dict[str, Any], figures: dict[str, Any]) -> None:
        if devices:
            memory = {"memory_bytes": hardware.device_memory(jax.local_devices()[0])}
            before["machine"]["device"] = provenance.device() | memory
        print(report(figures), flush=True)
        if flags.FLAGS.json:
            write(files.path(flags.FLAGS.json), benchmark, before, figures)

    def stop(before: dict[str, Any]) -> None:
        try:
            print(f"stopped after --time_limit={flags.FLAGS.time_limit:g} s; measured so far:", flush=True)
            finish(before, partial())
        finally:
            os._exit(124)  # the compiler cannot be interrupted

    def main(argv: list[str]) -> None:
        if len(argv) > 1:
            raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
        logging.set_verbosity(logging.WARNING)
        with errors.one_line():
            before = head(benchmark)
            timer = None
            if partial is not None and flags.FLAGS.time_limit:
                timer = threading.Timer(flags.FLAGS.time_limit, stop, [before])
                timer.daemon = True
                timer.start()
            figures = measure(flags.FLAGS)
            if timer is not None:
                timer.cancel()
            finish(before, figures)

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
