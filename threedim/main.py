"""Command line of threedim.

    python -m threedim.main --config=configs/demo.py --mode=train --workdir=runs/demo

or ``threedim --config=demo ...``, which works from any folder: a config is a file, or the name of a packaged one.

Modes:
  prepare  read or render the data and convert it to records (train does this when needed)
  train    train, resuming from the newest checkpoint in --workdir if there is one
  sample   sample novel views with the averaged weights in --workdir, or those of --config.sample.weights
  evaluate sample the views of the test objects as the paper does, score them, and write results.json and report.html
  status   print how the run in --workdir stands, also while it trains, and draw its curves; needs no --config

Any field of the config can be set: --config.train.batch_size=64. See configs/base.py for all of them.
"""

from __future__ import annotations

import contextlib
import gc
import os
import pathlib
import re
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from typing import Any, TextIO

import jax
import ml_collections
from absl import app, flags, logging
from etils import epy
from ml_collections import config_flags

from threedim import compilation_cache, cpu, distributed, files, provenance
from threedim import config as config_lib
from threedim.errors import MissingError, UserError, disk_errors, one_line

# Imported on first use: a training run that restarts does not wait for what samples and scores.
with epy.lazy_imports():
    from threedim import sample
    from threedim.data import sources
    from threedim.evaluation import protocol
    from threedim.output import object_folder, page
    from threedim.training import checkpoints, loop, status

MODES = ("prepare", "train", "sample", "evaluate", "status")
# What helps when the devices' memory does not suffice.
_LESS_MEMORY = {
    "train": "raise train.microbatches, set train.remat to blocks or all, or lower train.batch_size: what fits, "
    "python -m benchmarks.step --largest_batch --config=… finds out",
    "sample": "lower sample.batch_size, or set it to 0",
}
_FIXED = {"jax_enable_x64": False, "jax_threefry_partitionable": True, "jax_default_prng_impl": "threefry2x32"}
_LESS_MEMORY["evaluate"] = _LESS_MEMORY["sample"]

_CONFIG = config_flags.DEFINE_config_file("config", None, "A config: configs/demo.py, or demo.")
_MODE = flags.DEFINE_enum("mode", None, MODES, "What to do.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints, logs, samples. Local or gs://.")
_ALLOW_CHANGE = flags.DEFINE_bool(
    "allow_change", False, "Resume a run although its architecture, seed, batch size or data have changed."
)
_CACHE = flags.DEFINE_string(
    "compilation_cache", "~/.cache/threedim/xla", "Folder that keeps compiled programs between runs; empty for none."
)
_OPEN = flags.DEFINE_bool("open", False, "Show the page of sampled views or scores in a browser, if on a desktop.")
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Run as one of several processes.")
_COORDINATOR = flags.DEFINE_string(
    "coordinator_address", None, "host:port of process 0; detected automatically on TPU, GKE, Slurm and Open MPI."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of processes; detected automatically as above.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Index of this process; detected automatically as above.")
_TIMEOUT = flags.DEFINE_integer("connect_timeout", 300, "Seconds to wait for the other processes.", lower_bound=1)
flags.mark_flag_as_required("mode")
flags.register_multi_flags_validator(
    ["config", "mode"], lambda given: given["config"] or given["mode"] == "status", "--config=FILE is missing"
)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    if not any("verbosity" in argument for argument in sys.argv):
        # Libraries log a lot at level INFO, across the progress bar. --verbosity=0 brings it back.
        logging.set_verbosity(logging.WARNING)
    config, mode = _CONFIG.value, _MODE.value
    if not _WORKDIR.value and mode != "prepare" and not (mode == "sample" and config.sample.weights):
        raise app.UsageError(f"--mode={mode} needs --workdir=FOLDER")
    if mode == "status":  # first: the devices may belong to the run
        with one_line():
            print(status.report(files.path(_WORKDIR.value)))
        return
    try:
        config_lib.expand_paths(config)
        flags.FLAGS.workdir = files.path(_WORKDIR.value)
        _use_cache()
        config_lib.check_seeds(config)
        cpu.split(config.mesh.cpu_devices)
        _join_processes()
        _check_jax()
        # Tracing makes many objects that stay: looking for garbage less often saves time.
        gc.set_threshold(50_000, 20, 20)
        with disk_errors(), _out_of_memory(mode):
            _run_mode(config, mode)
    except KeyboardInterrupt:
        print(f"interrupted{_last_checkpoint() if mode == 'train' else ''}", file=sys.stderr, flush=True)
        sys.exit(128 + signal.SIGINT)
    except (UserError, jax.errors.JaxRuntimeError) as error:
        lost = isinstance(error, jax.errors.JaxRuntimeError)
        if logging.level_debug() or (lost and not _DISTRIBUTED.value):
            raise
        who = f"process {_PROCESS_ID.value}: " if _PROCESS_ID.value is not None else ""
        hint = " (if another process was lost, restart all of them: the run resumes from its last checkpoint)"
        print(f"error: {who}{error}{hint if lost else ''}", file=sys.stderr, flush=True)
        if _DISTRIBUTED.value:
            # Not through JAX's shutdown, which waits for the other processes, which may wait for this one.
            sys.stdout.flush()
            os._exit(1)
        sys.exit(1)


def _run_mode(config: ml_collections.ConfigDict, mode: str) -> None:
    if jax.process_count() > 1:
        # What may differ between machines without changing results. The content of the data is compared later.
        common = config.copy_and_resolve_references()
        with common.unlocked():
            del common.data.dir, common.data.source, common.train.num_workers
        code = {"commit": provenance.commit(), "versions": provenance.versions()}
        distributed.check_same_settings({"mode": mode, "workdir": _WORKDIR.value, "config": common.to_dict()} | code)
        if mode != "prepare" and _WORKDIR.value:
            distributed.check_shared(_WORKDIR.value)
    if mode == "train":
        loop.train(config, _WORKDIR.value, allow_change=_ALLOW_CHANGE.value)
        return
    distributed.end_on_sigterm()
    if mode == "prepare":
        distributed.lead_first(lambda: sources.prepare_from_config(config.data))
        return
    if mode == "sample":
        shown = object_folder.page_of(sample.sample(config, _WORKDIR.value))
    else:
        shown = protocol.evaluate(config, _WORKDIR.value) / "report.html"
    if _OPEN.value and distributed.is_lead():
        page.open_in_browser(shown)


def _use_cache() -> None:
    """Keeps compiled programs in the flag's folder, unless the environment names another one."""
    is_chosen = _CACHE.present or "JAX_COMPILATION_CACHE_DIR" not in os.environ
    compilation_cache.use(files.path(_CACHE.value) if is_chosen else "")


def _check_jax() -> None:
    # The environment may set them; they would change the random numbers, or the numbers' precision.
    for name, value in _FIXED.items():
        jax.config.update(name, value)
    if jax.config.jax_disable_jit:
        raise UserError("JAX_DISABLE_JIT is set, without compiling a step takes minutes: unset it")
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # an AssertionError if none of JAX_PLATFORMS has a device
        wanted = os.environ.get("JAX_PLATFORMS", "any")
        hint = 'is there one, and is JAX installed for it? See "Install" in README.md'
        raise UserError(
            f"JAX finds no device of the platform {wanted} (JAX_PLATFORMS): {str(error) or hint}"
        ) from error


def _last_checkpoint() -> str:
    try:
        return f"; the last checkpoint in {_WORKDIR.value} is that of step {checkpoints.find_step(_WORKDIR.value)}"
    except MissingError:
        return f"; there is no checkpoint in {_WORKDIR.value}"


@contextlib.contextmanager
def _out_of_memory(mode: str) -> Iterator[None]:
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) or mode not in _LESS_MEMORY:
            raise
        asked = str(error).removeprefix("RESOURCE_EXHAUSTED: ").partition("\n")[0]
        raise UserError(f"the devices' memory does not suffice: {asked}. To use less, {_LESS_MEMORY[mode]}") from error


def _join_processes() -> None:
    place = (_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    if _DISTRIBUTED.value:
        distributed.initialize(*place, timeout=_TIMEOUT.value)
    elif any(value is not None for value in place):
        raise UserError("--coordinator_address, --num_processes and --process_id need --distributed")


def parse_flags(argv: list[str]) -> list[str]:
    """Parses the flags; a mistake in those of the config, or in its file, is reported in one line."""
    argv = [
        config_lib.find(each)
        if before in ("--config", "-config")
        else re.sub(r"^(--?config=)(.*)", lambda match: match[1] + config_lib.find(match[2]), each)
        for before, each in zip(["", *argv], argv, strict=False)
    ]
    if _value_of(argv, "config") is None and _value_of(argv, "mode") in ("sample", "evaluate"):
        # The weights' own.
        source = _value_of(argv, "config.sample.weights") or _value_of(argv, "workdir") or "shapes64"
        argv = [argv[0], f"--config={config_lib.find('trained')}:{files.path(source)}", *argv[1:]]
    try:
        arguments = flags.FLAGS(argv)
        # ml_collections raises on the first access if the file could not be loaded.
        _ = _CONFIG.present and _CONFIG.value.lock()
        return arguments
    except Exception as error:  # of ml_collections, which wraps some of what the file raises, or of the file
        problem = _config_problem(argv) or _unknown_field(argv)
        if problem is None and isinstance(error, flags.Error):
            problem = f"{error}; --help shows all flags"
        if problem is None:
            raise
        sys.exit(f"error: {problem}")


def _value_of(argv: list[str], flag: str) -> str | None:
    """The last value of a flag, which has not been parsed yet."""
    names = [argument.lstrip("-").partition("=") for argument in argv]
    values = [value or "".join(argv[i + 1 : i + 2]) for i, (name, _, value) in enumerate(names) if name == flag]
    return values[-1] if values else None


def _config_problem(argv: list[str]) -> str | None:
    """What is wrong with the config's file, and where in it."""
    if (given := _value_of(argv, "config")) is None:
        return None
    name, _, argument = given.partition(":")
    file = pathlib.Path(os.path.realpath(name))  # not pathlib's resolve, which raises where links lead in a circle
    if not file.is_file():
        return f"--config={name}: no such file, and no packaged config: {', '.join(config_lib.names())}"
    try:
        config = flags.FLAGS["config"].parser.parse(given)
        is_config = isinstance(config, ml_collections.ConfigDict)
        return None if is_config else f"--config={name}: get_config returns {config!r:.50}, not a ConfigDict"
    except Exception as error:  # the file may raise anything, and ml_collections wraps some of it
        chain = [error]
        while (before := chain[-1].__cause__ or chain[-1].__context__) is not None:
            chain.append(before)
        for error in reversed(chain):
            if isinstance(error, UserError):
                return f"--config: {error}"
            frames = traceback.extract_tb(error.__traceback__)
            lines = [frame.lineno for frame in frames if pathlib.Path(frame.filename).resolve() == file]
            # Python before 3.11.4 has a ValueError without a line for this mistake in the text.
            if isinstance(error, SyntaxError) or lines or "null bytes" in str(error):
                line = lines[-1] if lines else getattr(error, "lineno", None)
                where = f", line {line}" if line else ""
                return f"--config={name}{where}: {type(error).__name__}: {error}"
        return f"--config={name}: it has no function get_config that takes {repr(argument) if argument else 'nothing'}"


def _unknown_field(argv: list[str]) -> str | None:
    """The first flag that names no field of the config, and the fields that there are."""
    if (file := _value_of(argv, "config")) is None:
        return None
    config = flags.FLAGS["config"].parser.parse(file)
    for argument in argv:
        node, path = config, argument.lstrip("-").partition("=")[0].split(".")
        for depth, part in enumerate(path[1:] if path[0] == "config" else [], start=1):
            if not isinstance(node, ml_collections.ConfigDict) or part not in node:
                fields = ", ".join(sorted(node)) if isinstance(node, ml_collections.ConfigDict) else "none"
                return f"{argument}: {'.'.join(path[:depth])} has no field {part!r}; its fields are: {fields}"
            node = node[part]
    return None


class _Unbreakable:
    """A stream whose reader may go away (``| head``, a closed terminal, a full disk): the rest is dropped.

    What is printed never ends a run.
    """

    def __init__(self, stream: TextIO):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """As of a text stream."""
        with self._dropping():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """As of a text stream."""
        with self._dropping():
            self._stream.flush()

    @contextlib.contextmanager
    def _dropping(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            # What is buffered goes there as well, and what libraries write to the file descriptor.
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)


def _show_exception(kind: type[BaseException], error: BaseException, traceback: Any) -> None:
    # After a save has failed, TensorStore's threads still report to its event loop.
    of_tensorstore = threading.current_thread() is not threading.main_thread()
    if not (of_tensorstore and kind is RuntimeError and str(error) == "Event loop is closed"):
        sys.__excepthook__(kind, error, traceback)


def run() -> None:
    """Entry point."""
    # Of ml_collections, which loads config files so; it would be an error under python -W error.
    warnings.filterwarnings("ignore", r"the load_module\(\)", DeprecationWarning)
    sys.excepthook = _show_exception
    sys.stdout, sys.stderr = _Unbreakable(sys.stdout), _Unbreakable(sys.stderr)
    app.run(main, flags_parser=parse_flags)


if __name__ == "__main__":
    run()
