"""Seconds from the start of a training process to the end of its first step, without and with compiled programs.

    python -m benchmarks.startup [--config=configs/bench_cpu.py] [--warm=5] [--json=FILE] [--config.model.ch=64 ...]

makes a little data in a temporary folder, then runs ``threedim.main`` with ``--mode=train`` for one step, each time in
a process of its own that looks on: once with
an empty compilation cache (cold), then with the programs that the first run left there (warm), each time in a new
workdir. Every process is split into phases, which add up to its total:

* ``imports``: the interpreter and the modules that training needs;
* ``data``: finding and opening the records, and the first batch;
* ``trace``: Python to jaxpr, and jaxpr to the compiler's language;
* ``compile``: compiling, or loading what the cache has;
* ``step``: the first step, until its loss is on the host;
* ``rest``: all else, such as drawing the first parameters and opening the workdir.

CPU seconds (user and system, all threads) stand beside the total: on a machine that does other things they say more.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable

# Threedim and JAX are not imported here: in the observed process their import is measured.

PHASES = ("imports", "data", "trace", "compile", "step", "rest")
DATA = {"num_train_objects": 2, "num_test_objects": 0, "views": 4, "samples": 1, "size": 32}
SETTINGS = ("num_steps=1", "num_workers=0", "sample_every=0")

Span = tuple[float, float]


def covered(spans: Iterable[Span]) -> float:
    """Seconds that lie in at least one of the spans (begin, end): a trace within a trace counts once."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def split(seen: dict) -> dict[str, float]:
    """Seconds of each phase and of all together, of what ``observe`` has seen.

    A second that lies in the spans of several phases counts for the first of compile, trace, data and step.
    """
    end, taken, found = seen["end"], [], {}
    for phase in ("compile", "trace", "data", "step"):
        spans = [(max(begin, seen["imported"]), min(stop, end)) for begin, stop in seen["spans"][phase]]
        before = covered(taken)
        taken += [span for span in spans if span[0] < span[1]]
        found[phase] = covered(taken) - before
    found["imports"] = seen["imported"] - seen["launched"]
    total = end - seen["launched"]
    found["rest"] = total - sum(found.values())
    return {"seconds": total, "cpu_seconds": seen["cpu_seconds"]} | {phase: found[phase] for phase in PHASES}


def observe(path: str, launched: float, arguments: list[str]) -> None:
    """Runs ``threedim.main`` in this process, and writes to ``path`` when things began and ended.

    Args:
      path: JSON file to write.
      launched: when the process was started, seconds since 1970.
      arguments: of ``threedim.main``, for training.
    """
    seen = {"launched": launched, "spans": {phase: [] for phase in ("compile", "trace", "data", "step")}, "events": {}}
    spans = seen["spans"]

    from threedim import main
    from threedim.data import pipeline, sources
    from threedim.training import loop, metrics, watch

    seen["imported"] = time.time()

    import jax

    from threedim import provenance

    kinds = {
        "/jax/core/compile/jaxpr_trace_duration": "trace",
        "/jax/core/compile/jaxpr_to_mlir_module_duration": "trace",
        "/jax/core/compile/backend_compile_duration": "compile",
    }

    def on_duration(event: str, seconds: float, **_) -> None:
        if event in kinds:
            spans[kinds[event]].append((time.time() - seconds, time.time()))

    def on_event(event: str, **_) -> None:
        seen["events"][event] = seen["events"].get(event, 0) + 1

    jax.monitoring.register_event_duration_secs_listener(on_duration)
    jax.monitoring.register_event_listener(on_event)

    def timed(owner: object, name: str) -> None:
        function = getattr(owner, name)

        @functools.wraps(function)
        def run(*args, **kwargs):
            began = time.time()
            try:
                return function(*args, **kwargs)
            finally:
                spans["data"].append((began, time.time()))

        setattr(owner, name, run)

    timed(sources, "prepare_from_config")
    timed(sources, "open_from_config")
    timed(pipeline, "train_batches")
    timed(pipeline.Batches, "__next__")

    before(watch.Trace, "before_step", lambda: seen.setdefault("step_began", time.time()))

    def first_logged() -> None:
        if "end" not in seen:
            seen["end"], seen["cpu_seconds"] = time.time(), time.process_time()
            spans["step"].append((seen["step_began"], seen["end"]))

    # The loop logs when the first step's loss is on the host.
    before(metrics.MetricWriter, "scalars", first_logged)
    assert loop.MetricWriter is metrics.MetricWriter
    sys.argv = ["threedim.main", *arguments]
    try:
        main.run()
    except SystemExit as ended:
        if ended.code:
            raise
    if "end" not in seen:
        sys.exit("training ended before its first step")
    hits, misses = (f"/jax/compilation_cache/cache_{what}" for what in ("hits", "misses"))
    result = split(seen) | {
        "programs": len(spans["compile"]),
        "cache_hits": seen["events"].get(hits, 0),
        "cache_misses": seen["events"].get(misses, 0),
        "device": provenance.device(),
    }
    pathlib.Path(path).write_text(json.dumps(result))


def before(owner: object, name: str, call: Callable[[], object]) -> None:
    """Has ``call`` run before each call of a method."""
    function = getattr(owner, name)

    @functools.wraps(function)
    def run(*args, **kwargs):
        call()
        return function(*args, **kwargs)

    setattr(owner, name, run)


def measure(config: str, settings: list[str], warm: int) -> dict:
    """Figures of one cold start, and medians of ``warm`` warm ones with all of them.

    Raises:
      RuntimeError: if a process fails; with what it said.
    """
    repository = pathlib.Path(__file__).parents[1]
    paths = [str(repository), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}

    def run(command: list[str]) -> None:
        done = subprocess.run(
            [sys.executable, *command], cwd=repository, env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")

    with tempfile.TemporaryDirectory() as folder:
        data = [f"--config.data.procedural.{name}={value}" for name, value in DATA.items()]
        arguments = [
            f"--config={config}",
            f"--config.data.dir={folder}/data",
            f"--compilation_cache={folder}/xla",
            *data,
            *(f"--config.train.{setting}" for setting in SETTINGS),
            *settings,
        ]
        run(["-m", "threedim.main", *arguments, "--mode=prepare"])

        def start(number: int) -> dict:
            path = pathlib.Path(folder) / f"{number}.json"
            train = [*arguments, "--mode=train", f"--workdir={folder}/run_{number}"]
            run(["-m", "benchmarks.startup", f"--observe={path}", f"--launched={time.time()!r}", "--", *train])
            return json.loads(path.read_text())

        cold = start(0)
        runs = [start(number + 1) for number in range(warm)]
    device = cold["device"]
    for one in (cold, *runs):
        del one["device"]
    return {
        "device": device,
        "cold": cold,
        "warm": {name: statistics.median(one[name] for one in runs) for name in cold},
        "warm_runs": runs,
    }


def report(figures: dict) -> str:
    """Cold, the warm median, the fastest and the slowest warm start, as a table of seconds."""
    runs = sorted(figures["warm_runs"], key=lambda one: one["seconds"])
    rows = {"cold": figures["cold"], "warm": figures["warm"], "warm, fastest": runs[0], "warm, slowest": runs[-1]}
    columns = ("seconds", "cpu_seconds", *PHASES, "programs", "cache_hits")
    lines = [f"{'':14}" + "".join(f"{name:>13}" for name in columns)]
    for name, row in rows.items():
        cells = (f"{row[c]:13.2f}" if isinstance(row[c], float) else f"{row[c]:13d}" for c in columns)
        lines.append(f"{name:14}" + "".join(cells))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/bench_cpu.py", help="configuration file to train with")
    parser.add_argument("--warm", type=int, default=5, help="starts with a warm cache; their median counts")
    parser.add_argument("--json", help="also write the figures to this file")
    parser.add_argument("--observe", help=argparse.SUPPRESS)
    parser.add_argument("--launched", type=float, help=argparse.SUPPRESS)
    given, rest = parser.parse_known_args()
    if given.observe:
        observe(given.observe, given.launched, rest[1:] if rest[:1] == ["--"] else rest)
        return
    if given.warm < 1:
        parser.error(f"--warm must be at least 1, got {given.warm}")
    if unknown := [argument for argument in rest if not argument.startswith("--config.")]:
        parser.error(f"unknown arguments: {' '.join(unknown)}")
    from benchmarks import record

    head = record.head("startup", devices=False)  # the device is the children's until they end
    figures = measure(given.config, rest, given.warm)
    head["machine"]["device"] = figures.pop("device")
    print(report(figures))
    if given.json:
        record.write(given.json, "startup", head, figures)


if __name__ == "__main__":
    main()
