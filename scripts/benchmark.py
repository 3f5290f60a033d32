"""A whole suite of runs from one command: trained, drawn, scored, and put into one table.

    python -m scripts.benchmark --suite=ablations --config=configs/shapes16.py --out=runs/ablations

The suite "ablations" is the paper's table of them [3.2], with 3D consistency scores [4] beside it: 3DiM, the same
weights always seeing the input view ("image-to-image"), regression, and Concat-UNet, each drawn with several sampling
seeds. The commands that are run are those that one can type, and are printed. The same command goes on after an
interruption, and does nothing again that is done. The folder gets ``ablations.md``, ``ablations.json``,
``ablations.png``, and what they are made of (see `ablations`). What comes after ``--`` goes to every call of
threedim.main:

    python -m scripts.benchmark ... -- --config.train.num_steps=2000 --config.sample.preset=fast
"""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import ml_collections
from etils import epath

from scripts import ablations, ablations_page
from scripts.ablations import REAL_DATA, TRAINED, VARIANTS
from scripts.benchmark_plan import DATA, FIELDS, WEIGHTS, Job, Plan, check, jobs
from threedim import files
from threedim.consistency import results
from threedim.consistency.held_out import load_json
from threedim.data import sources, srn
from threedim.output import images as images_lib
from threedim.progress import progress
from threedim.training import checkpoints, run_info

SUITES = ("ablations",)

# Runs `python` with these arguments and returns its exit code.
Runner = Callable[[Sequence[str]], int]


class CommandError(RuntimeError):
    """A command ended with another exit code than 0."""


class Stopped(RuntimeError):
    """Ctrl-C or SIGTERM came while a command ran."""

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}; the same command goes on from there")
        self.exit_code = 128 + number


# ------------------------------------------------------------------------------------------------------------- running


def run_python(arguments: Sequence[str]) -> int:
    """Runs `python` with these arguments, its output as it is, and returns its exit code.

    Raises:
      Stopped: if Ctrl-C or SIGTERM came meanwhile; the command, which had it as well, has ended.
    """
    process, received = None, []

    def note(number: int, frame: Any) -> None:
        received.append(number)
        # A terminal gives Ctrl-C to all of its processes, so that the command has had it.
        if number == signal.SIGTERM and process is not None:
            process.terminate()

    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        process = subprocess.Popen([sys.executable, *arguments])
        if signal.SIGTERM in received:
            process.terminate()
        code = process.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if received:
        raise Stopped(received[0])
    return code


def run(plan: Plan, command: str, runner: Runner = run_python) -> None:
    """Runs every command that is not done, one after another.

    Args:
      plan: what is asked for.
      command: with which it was asked for, to be kept.
      runner: what runs `python`.

    Raises:
      As `check`; CommandError, Stopped, ValueError where a training ended before its last step.
    """
    check(plan)
    claimed = {
        "config": plan.config,
        "workdirs": {row: plan.workdir(row) for row in TRAINED},
        "flags": [flag for flag in plan.flags if flag.startswith("--config.")],
    }
    results.claim(plan.out / "settings.json", claimed, "was made otherwise")
    asked = {"what": "benchmark", "command": command, "seconds": 0.0, "finished": True}
    _write_commands(plan, {"benchmark": asked} | _commands(plan) | {"benchmark": asked})
    todo = jobs(plan)
    for number, job in enumerate(todo, start=1):
        if job is todo[-1]:
            write_real_data(plan)
        print(f"[{number}/{len(todo)}] {job.what}\n{job.text}", flush=True)
        if _is_done(plan, job):
            print("done before", flush=True)
            continue
        # Beforehand, too: what is cut off is not done.
        _record(plan, job, 0.0, finished=False)
        began, code = time.monotonic(), None
        try:
            code = runner(job.arguments)
        finally:
            _record(plan, job, time.monotonic() - began, finished=code == 0)
        if code:
            raise CommandError(f"exit code {code} from: {job.text}")
        if job.what.startswith("train "):
            _check_trained(job)


def _commands(plan: Plan) -> dict[str, dict[str, Any]]:
    """What was run, by what it does."""
    path = plan.out / "commands.json"
    return {one["what"]: one for one in load_json(path)} if path.exists() else {}


def _record(plan: Plan, job: Job, seconds: float, finished: bool) -> None:
    known = _commands(plan)
    before = known.get(job.what, {}).get("seconds", 0.0)
    if FIELDS in known:
        # Other views ask for other fields.
        known[FIELDS]["finished"] = False
    known[job.what] = {
        "what": job.what,
        "command": job.text,
        "seconds": round(before + seconds, 1),
        "finished": finished,
    }
    _write_commands(plan, known)


def _write_commands(plan: Plan, known: dict[str, dict[str, Any]]) -> None:
    files.write_atomically(plan.out / "commands.json", json.dumps(list(known.values()), indent=2) + "\n")


def _is_done(plan: Plan, job: Job) -> bool:
    """Whether the same command has been through, and what it made is there and of the run's newest checkpoint."""
    before = _commands(plan).get(job.what)
    if before is None or not before["finished"] or before["command"] != job.text:
        return False
    step = checkpoints.latest_step(job.workdir) if job.workdir else None
    if job.scores is None:
        return step is not None and step >= _last_step(job.workdir)
    if not job.scores.exists():
        return False
    return not job.workdir or load_json(job.scores)["checkpoint_step"] == step


def _last_step(workdir: str) -> int:
    return run_info.read_run_info(workdir)[0]["train"]["num_steps"]


def _check_trained(job: Job) -> None:
    """A training that was stopped by a signal ends with code 0, too."""
    step, last = checkpoints.latest_step(job.workdir), _last_step(job.workdir)
    if step is None or step < last:
        raise ValueError(f"{job.workdir} is trained to step {step} of {last}; the same command goes on from there")


def write_real_data(plan: Plan) -> None:
    """Writes the true views of the objects that were drawn, in SRN format, where they are not there yet.

    Raises:
      ValueError: if the folder holds views of other data.
    """
    results = load_json(plan.out / VARIANTS[0].key / "seed_0/results.json")
    config, protocol = ml_collections.ConfigDict(results["config"]), results["protocol"]
    folder, size = plan.out / REAL_DATA, protocol["image_size"]
    dataset = sources.open_from_config(config.data, protocol["split"])
    about = {"data_fingerprint": dataset.fingerprint, "image_size": size}
    results.claim(folder / "source.json", about, "holds the views of other data")
    todo = [name for name in results["objects"] if not (folder / "views" / name).exists()]
    with progress(len(todo), desc="true views, objects", enabled=bool(todo)) as bar:
        for name in todo:
            index = dataset.names.index(name)
            pictures, cameras = dataset.views(index, range(dataset.num_views(index)), size)
            srn.write_object(folder / "views" / name, pictures, cameras)
            bar.advance()


def write_table(out: epath.PathLike) -> None:
    """Writes ``ablations.json``, ``ablations.md`` and ``ablations.png`` from what a folder has.

    Raises:
      As `ablations.read`.
    """
    out = epath.Path(out)
    results = ablations.read(out)
    text = json.dumps(results, indent=2, ensure_ascii=False, allow_nan=False)
    files.write_atomically(out / "ablations.json", text + "\n")
    page = ablations_page.markdown(results)
    files.write_atomically(out / "ablations.md", page)
    picture = ablations_page.picture(out, results)
    if picture is not None:
        images_lib.save_png(out / "ablations.png", picture)
    print(page.partition("\n## Made by")[0])
    for what, name in (("table:", "md"), ("figures:", "json"), ("pictures:", "png")):
        there = name != "png" or picture is not None
        print(f"{what:10}{out / f'ablations.{name}' if there else 'none, as the true views are not written yet'}")


# -------------------------------------------------------------------------------------------------------- command line


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m scripts.benchmark",
        description=__doc__.split("\n")[0],
        epilog="What comes after -- goes to every call of threedim.main.",
    )
    add = parser.add_argument
    add("--suite", choices=SUITES, default=SUITES[0], help="Which runs.")
    add("--config", default="", help=f"Of the whole model: configs/{{{','.join(DATA)}}}.py.")
    add("--out", required=True, help="Folder of everything that is made.")
    add("--seeds", type=int, default=3, help="How many sampling seeds, from 0.")
    add("--workdir", action="append", default=[], metavar="ROW=DIR", help=f"A trained run, which is only read; ROW is "
        f"{', '.join(TRAINED)}. May be repeated; other rows are trained.")  # fmt: skip
    add("--max_objects", type=int, default=0, help="So many test objects are drawn and scored; 0 for all.")
    add("--inception", default="", help="File with the weights of the FID's network; without it there is no FID.")
    add("--lpips_backbone", default="", help="Files with the weights of LPIPS's network,")
    add("--lpips_lin", default="", help="and of its linear layers; without them there is no LPIPS.")
    add("--consistency_objects", type=int, default=0, help="So many of them get neural fields; 0 for all.")
    add("--consistency_seeds", type=int, help="For so many of the sampling seeds; all unless given.")
    add("--consistency_set", action="append", default=[], metavar="NAME=VALUE", help="A setting of the neural field, "
        "such as num_steps=200; may be repeated.")  # fmt: skip
    add("--consistency_at_once", type=int, default=1, help="Fields fitted side by side, on an accelerator with room.")
    add("--table", action="store_true", help="Run nothing: write the table from what --out has.")
    add("--dry_run", action="store_true", help="Run nothing: print the commands.")
    return parser


def main(argv: Sequence[str] | None = None, runner: Runner = run_python) -> None:
    """Command line; see the module's docstring."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    place = arguments.index("--") if "--" in arguments else len(arguments)
    parser = _parser()
    given = parser.parse_args(arguments[:place])
    if not given.config and not given.table:
        parser.error("--config is required")
    # This process computes shapes only, and must leave an accelerator's memory to its commands.
    jax.config.update("jax_platforms", "cpu")
    try:
        if given.table:
            write_table(given.out)
            return
        plan = Plan(
            config=given.config,
            out=epath.Path(given.out),
            seeds=given.seeds,
            consistency_seeds=given.seeds if given.consistency_seeds is None else given.consistency_seeds,
            given=_given_runs(given.workdir),
            max_objects=given.max_objects,
            consistency_objects=given.consistency_objects,
            weights={name: file for name in WEIGHTS if (file := getattr(given, name))},
            consistency_set=tuple(given.consistency_set),
            objects_at_once=given.consistency_at_once,
            flags=tuple(arguments[place + 1 :]),
        )
        if given.dry_run:
            check(plan)
            *others, last = jobs(plan)
            true_views = f"# the true views of the same objects are written to {plan.out / REAL_DATA / 'views'}"
            print("\n".join([*(job.text for job in others), true_views, last.text]))
            return
        run(plan, shlex.join(["python", "-m", "scripts.benchmark", *arguments]), runner)
        write_table(plan.out)
    except Stopped as stopped:
        print(f"error: {stopped}", file=sys.stderr, flush=True)
        sys.exit(stopped.exit_code)
    except (CommandError, ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def _given_runs(texts: Sequence[str]) -> dict[str, str]:
    runs: dict[str, str] = {}
    for text in texts:
        row, equals, folder = text.partition("=")
        if not equals or not folder or row in runs:
            raise ValueError(f"--workdir={text}: expected ROW=DIR, each row once")
        runs[row] = folder
    return runs


if __name__ == "__main__":
    main()
