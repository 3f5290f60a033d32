"""Command line of threedim.

    python -m threedim.main --config=configs/demo.py --mode=train --workdir=runs/demo

Modes:
  prepare  render or read the data and convert it to records (train does it where needed)
  train    train, from the newest checkpoint in --workdir if there is one
  sample   draw new views with the averaged weights in --workdir, or those of --config.sample.weights
  evaluate draw the test objects' views as the paper does, score them, and write results.json and report.html

Any field of the configuration can be set: --config.train.batch_size=64. See configs/base.py for all of them.
"""

from __future__ import annotations

import os
import runpy
import sys

import jax
import ml_collections
from absl import app, flags, logging
from etils import epath
from ml_collections import config_flags

from threedim import cpu, distributed
from threedim.errors import UserError

MODES = ("prepare", "train", "sample", "evaluate")

_CONFIG = config_flags.DEFINE_config_file("config", None, "Configuration file, such as configs/demo.py.")
_MODE = flags.DEFINE_enum("mode", None, MODES, "What to do.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints, logs, samples. Local or gs://.")
_ALLOW_CHANGE = flags.DEFINE_bool(
    "allow_change", False, "Go on with a run although architecture, seed, batch size or data differ from its beginning."
)
_CACHE = flags.DEFINE_string(
    "compilation_cache", "~/.cache/threedim/xla", "Folder that keeps compiled programs between runs; empty for none."
)
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "One of several processes; see the three flags that follow.")
_COORDINATOR = flags.DEFINE_string(
    "coordinator_address", None, "host:port of process 0; needless on TPU pods, on GKE, and under Slurm and Open MPI."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes there are; needless where that is.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0; needless where that is.")
_TIMEOUT = flags.DEFINE_integer("connect_timeout", 300, "Seconds to wait for the other processes.", lower_bound=1)
flags.mark_flags_as_required(["config", "mode"])


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    if not any("verbosity" in argument for argument in sys.argv):
        # Libraries tell much at the level of information, across the progress bar. --verbosity=0 brings it back.
        logging.set_verbosity(logging.WARNING)
    config, mode = _CONFIG.value, _MODE.value
    if mode != "prepare" and not _WORKDIR.value:
        raise app.UsageError(f"--mode={mode} needs --workdir=FOLDER")
    if _CACHE.value:
        jax.config.update("jax_compilation_cache_dir", str(epath.Path(_CACHE.value).expanduser()))
    config.lock()
    # Each mode imports what it needs: a restarted training run does not wait for what draws and scores.
    try:
        cpu.split(config.mesh.cpu_devices)
        _join()
        if mode != "train":
            distributed.end_on_sigterm()
        if mode == "prepare":
            from threedim.data import sources

            distributed.lead_first(lambda: sources.prepare_from_config(config.data))
        elif mode == "train":
            from threedim.training import loop

            loop.train(config, _WORKDIR.value, allow_change=_ALLOW_CHANGE.value)
        elif mode == "sample":
            from threedim import sample as sample_lib

            sample_lib.sample(config, _WORKDIR.value)
        else:
            from threedim.evaluation import protocol

            protocol.evaluate(config, _WORKDIR.value)
    except (UserError, jax.errors.JaxRuntimeError) as error:
        # What the user can mend is said in one line; --verbosity=1 shows where it came from.
        lost = isinstance(error, jax.errors.JaxRuntimeError)
        if logging.level_debug() or (lost and not _DISTRIBUTED.value):
            raise
        who = f"process {_PROCESS_ID.value}: " if _PROCESS_ID.value is not None else ""
        hint = " (if another process is lost, start all of them again: the run goes on from its last checkpoint)"
        print(f"error: {who}{error}{hint if lost else ''}", file=sys.stderr, flush=True)
        if _DISTRIBUTED.value:
            # Not by way of JAX's shutdown, which waits for the others, who may be waiting for this one.
            sys.stdout.flush()
            os._exit(1)
        sys.exit(1)


def _join() -> None:
    """Joins the other processes, if this is one of several."""
    place = (_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    if _DISTRIBUTED.value:
        distributed.initialize(*place, timeout=_TIMEOUT.value)
    elif any(value is not None for value in place):
        raise UserError("--coordinator_address, --num_processes and --process_id are of use with --distributed only")


def parse_flags(argv: list[str]) -> list[str]:
    """As absl does, but what is wrong with the configuration is said without a traceback."""
    if problem := _what_is_wrong(argv):
        sys.exit(f"error: {problem}")
    return app.parse_flags_with_usage(argv)


def _what_is_wrong(argv: list[str]) -> str | None:
    """Whether the configuration is there and takes its argument, or which --config.a.b names no field of it."""
    values = _flag_values(argv)
    if "config" not in values:
        return None
    name, *arguments = values["config"].split(":")
    path = epath.Path(name)
    if not path.is_file():
        known = [file for pattern in ("*.py", "*/*.py") for file in sorted(epath.Path("configs").glob(pattern))]
        known = ", ".join(str(file) for file in known if file.stem[0] != "_")
        return f"--config={path}: no such file" + (f"; there are {known}" if known else "")
    try:
        config = runpy.run_path(str(path))["get_config"](*arguments)
    except ValueError as error:
        return f"--config={values['config']}: {error}"
    for name in values:
        node, place = config, "config"
        for part in name.split(".")[1:] if name.startswith("config.") else []:
            if not isinstance(node, ml_collections.ConfigDict) or part not in node:
                known = ", ".join(sorted(node)) if isinstance(node, ml_collections.ConfigDict) else "none"
                return f"--{name}: {place} has no field {part!r}; its fields are: {known}"
            node, place = node[part], f"{place}.{part}"
    return None


def _flag_values(argv: list[str]) -> dict[str, str]:
    """Flags with a value, as --name=value or as --name value."""
    values = {}
    for argument, after in zip(argv, [*argv[1:], "-"], strict=True):
        name, equals, value = argument.partition("=")
        if name.startswith("-") and (equals or not after.startswith("-")):
            values[name.lstrip("-")] = value if equals else after
    return values


def run() -> None:
    """Entry point."""
    app.run(main, flags_parser=parse_flags)


if __name__ == "__main__":
    run()
