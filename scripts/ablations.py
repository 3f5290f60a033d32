"""The paper's ablations [3.2, 4]: trains, samples and scores its four rows and writes one table.

    python -m scripts.ablations --config=configs/shapes16.py --out=runs/ablations

The rows are 3DiM, the same weights always conditioned on the input view ("image-to-image"), regression, and Concat-UNet
(configs/ablations), each with several sampling seeds and with 3D consistency scores. Every command that runs is printed
and can be run by hand; ``--dry_run`` only prints them. After an interruption the same command resumes: commands listed
in ``commands.json`` are finished. The folder gets ``ROW/seed_S`` (as ``--mode=evaluate`` writes it), ``consistency``,
``real_data/views``, ``ablations.md``, ``ablations.json`` and ``ablations.png``. What follows ``--`` goes to every call
of threedim.main:

    python -m scripts.ablations ... -- --config.train.num_steps=2000 --config.sample.preset=fast
"""

from __future__ import annotations

import argparse
import json
import runpy
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

import jax
import ml_collections
from etils import epath

from scripts import ablations_table
from scripts.ablations_table import REAL_DATA, ROWS
from threedim import errors, files
from threedim.consistency.field import FieldSettings
from threedim.data import sources, srn
from threedim.errors import MissingError, UserError
from threedim.files import read_json
from threedim.settings import check_claim
from threedim.trained import open_run

# Names of the data in configs/ablations, by the config file of the whole model.
DATA = {"srn_cars": "cars", "srn_chairs_star": "chairs_star", "demo": "demo"}
DATA |= {name: name for name in ("shapes16", "shapes32", "gpu64")}
# Files of weights that scores need, by their flags.
_WEIGHTS = ("inception", "lpips_backbone", "lpips_lin")
# A regression is sampled in one step without guidance, and has a prediction of its own.
_SAMPLER = "preset num_steps solver eta spacing logsnr_range guidance_interval guidance_weight fresh_uncond_noise"
_NOT_FOR_REGRESSION = ["diffusion.prediction", "train.sample_steps", "train.uncond_prob"]
_NOT_FOR_REGRESSION += [f"sample.{name}" for name in _SAMPLER.split()]
# Set here for each row, or by a flag before ``--``.
_SET_HERE = ["config", "mode", "workdir", "model.network", "diffusion.regression"]
_SET_HERE += [f"sample.{name}" for name in ("seed", "conditioning", "out")]
_SET_HERE += [f"evaluate.{name}" for name in ("out", "views", "max_objects", *_WEIGHTS)]


def commands(given: argparse.Namespace, flags: Sequence[str]) -> list[list[str]]:
    """Arguments of `python` for each command, in order; the last one is the 3D consistency score."""
    out, config, workdirs = epath.Path(given.out), epath.Path(given.config), _workdirs(given)
    found, views = [], []
    for row in ROWS:
        variant = f"{config.parent}/ablations/{row.trained_as}.py:{DATA[config.stem]}"
        file, workdir = given.config if row.trained_as == "3dim" else variant, workdirs[row.trained_as]
        own = [flag for flag in flags if row.key != "regression" or _field(flag) not in _NOT_FOR_REGRESSION]
        main = ["-m", "threedim.main", f"--config={file}", f"--workdir={workdir}", *own]
        if workdir == str(out / "runs" / row.key):
            found.append([*main, "--mode=train"])
        for seed in range(given.seeds):
            folder = out / row.key / f"seed_{seed}"
            sample = [*row.flags, f"--config.sample.seed={seed}", f"--config.evaluate.out={folder}"]
            sample += [f"--config.evaluate.max_objects={given.max_objects}"] if given.max_objects else []
            sample += [f"--config.evaluate.{name}={file}" for name in _WEIGHTS if (file := getattr(given, name))]
            found.append([*main, "--mode=evaluate", *sample])
            if given.consistency_seeds is None or seed < given.consistency_seeds:
                views.append(f"--views={row.key}_seed{seed}={folder / 'views'}")
    views.append(f"--views={REAL_DATA}={out / REAL_DATA / 'views'}")
    score = ["-m", "threedim.evaluation.consistency", *views, f"--out={out / 'consistency'}"]
    score += [f"--max_objects={given.consistency_objects}"] if given.consistency_objects else []
    score += [f"--objects_at_once={given.consistency_at_once}"] if given.consistency_at_once > 1 else []
    score += [f"--inception={given.inception}"] if given.inception else []
    return [*found, [*score, *(f"--set={change}" for change in given.consistency_set)]]


def _workdirs(given: argparse.Namespace) -> dict[str, str]:
    trained = {row.trained_as: str(epath.Path(given.out) / "runs" / row.trained_as) for row in ROWS}
    return trained | {row: files.path(folder) for row, folder in (text.split("=", 1) for text in given.workdir)}


def _field(flag: str) -> str:
    """FIELD of ``--config.FIELD=VALUE``; NAME of ``--NAME=VALUE``."""
    return flag.lstrip("-").partition("=")[0].removeprefix("config.")


def check(given: argparse.Namespace, flags: Sequence[str]) -> None:
    """Raises `UserError` for mistakes that would otherwise show after days of training."""
    path, trained = epath.Path(given.config), {row.trained_as for row in ROWS}
    if path.stem not in DATA or not path.is_file():
        raise UserError(f"--config={path}: expected an existing file, one of configs/{{{','.join(DATA)}}}.py")
    if given.seeds < 1:
        raise UserError(f"--seeds must be at least 1, got {given.seeds}")
    if not given.minutes >= 0:
        raise UserError(f"--minutes must not be negative, got {given.minutes}")
    for text in given.workdir:
        row, _, folder = text.partition("=")
        if row not in trained or not folder:
            raise UserError(f"--workdir={text}: expected ROW=DIR with ROW one of {', '.join(sorted(trained))}")
        open_run(files.path(folder))
    for name in _WEIGHTS:
        if (file := getattr(given, name)) and not epath.Path(file).is_file():
            raise MissingError(f"--{name}={file}: no such file")
    if bool(given.lpips_backbone) != bool(given.lpips_lin):
        raise UserError("--lpips_backbone and --lpips_lin must both be set, or neither")
    known = FieldSettings.__dataclass_fields__
    for change in given.consistency_set:
        if change.partition("=")[0] not in known or "=" not in change:
            raise UserError(f"--consistency_set={change}: expected NAME=VALUE with NAME one of {', '.join(known)}")
    for flag in flags:
        if not flag.startswith("--"):
            raise UserError(f"after --, expected --NAME=VALUE, got {flag!r}")
        if _field(flag) in _SET_HERE:
            raise UserError(f"after --, {flag} is set for each row; see --help for the flags before --")
    data = runpy.run_path(path)["get_config"]().data
    count = data.num_test_objects if data.source else data.procedural.num_test_objects
    if not data.test_split and not count and not any("num_test_objects" in flag for flag in flags):
        field = f"--config.data.{'' if data.source else 'procedural.'}num_test_objects"
        raise UserError(f"{path} has no test objects; add, after --, {field}=N --config.data.dir=FOLDER")


def run(given: argparse.Namespace, flags: Sequence[str]) -> None:
    """Runs the commands that have not finished; `UserError` if one fails, stops early, or settings have changed."""
    out, todo = epath.Path(given.out), commands(given, flags)
    path, log = out / "settings.json", out / "commands.json"
    settings = {"config": given.config, "workdirs": _workdirs(given), "flags": list(flags)}
    check_claim(path, read_json(path) if path.exists() else None, settings, "ablations with", "--out")
    files.write_atomically(path, json.dumps(settings, indent=2) + "\n")
    finished = read_json(log) if log.exists() else {}
    for place, arguments in enumerate(todo, start=1):
        command, began = shlex.join(["python", *arguments]), time.monotonic()
        last, values = place == len(todo), dict(text.partition("=")[::2] for text in arguments)
        if last:
            write_true_views(out)
        print(f"[{place}/{len(todo)}] {command}", flush=True)
        # The score depends on what the commands before it wrote, and skips finished fits by itself.
        if command in finished and not last and _is_current(values):
            print("already finished", flush=True)
            continue
        training = values.get("--mode") == "train"
        try:
            run_at_most([sys.executable, *arguments], given.minutes if training else 0)
        except subprocess.CalledProcessError as error:
            if training and given.minutes and error.returncode == -signal.SIGTERM:
                said = f"--minutes={given.minutes:g} ended before the first step; prepared data stays"
                raise UserError(said) from error
            raise UserError(f"exit code {error.returncode} from: {shlex.join(error.cmd)}") from error
        if training:
            # A signal stops a training run with exit code 0.
            trained = open_run(values["--workdir"])
            if trained.step < (steps := trained.config.train.num_steps):
                raise UserError(f"{trained.name} stopped at step {trained.step} of {steps}; run this command again")
        finished[command] = round(time.monotonic() - began, 1)
        files.write_atomically(log, json.dumps(finished, indent=2) + "\n")


def run_at_most(command: list[str], minutes: float) -> None:
    """Runs a command; after so many minutes, if not 0, it gets the signal to save and end, and is waited for.

    Raises `subprocess.CalledProcessError` if it fails.
    """
    with subprocess.Popen(command) as process:
        try:
            process.wait(60 * minutes if minutes else None)
        except subprocess.TimeoutExpired:
            process.terminate()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)


def _is_current(flags: dict[str, str]) -> bool:
    """Whether scores are of the run's newest checkpoint."""
    if flags["--mode"] == "train":
        return True
    results = read_json(epath.Path(flags["--config.evaluate.out"]) / "results.json")
    return results["checkpoint_step"] == open_run(flags["--workdir"]).step


def write_true_views(out: epath.Path) -> None:
    """Writes the true views of the evaluated objects in SRN format, for the reference row of the consistency score."""
    results = read_json(out / ROWS[0].key / "seed_0/results.json")
    dataset = sources.open_from_config(ml_collections.ConfigDict(results["config"]).data, "test")
    for name in results["objects"]:
        folder, index = out / REAL_DATA / "views" / name, dataset.names.index(name)
        if not folder.exists():
            count, size = dataset.num_views(index), results["protocol"]["image_size"]
            srn.write_object(folder, *dataset.views(index, range(count), size))


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    place = arguments.index("--") if "--" in arguments else len(arguments)
    parser = argparse.ArgumentParser("python -m scripts.ablations", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--config", type=files.path, required=True, help=f"Config of the whole model: configs/{{{','.join(DATA)}}}.py.")
    add("--out", type=files.path, required=True, help="Output folder.")
    add("--seeds", type=int, default=3, help="Number of sampling seeds.")
    add("--workdir", action="append", default=[], metavar="ROW=DIR", help="A trained run to use; repeatable.")
    add("--minutes", type=float, default=0.0, help="Stop a training after so many, saved; the same command goes on.")
    add("--max_objects", type=int, default=0, help="Number of test objects; 0 for the config's.")
    add(
        "--inception",
        type=files.path,
        default="",
        help="Weights of the FID's network; without them the FID is left out.",
    )
    add(
        "--lpips_backbone",
        type=files.path,
        default="",
        help="Weights of LPIPS's network; without them LPIPS is left out.",
    )
    add("--lpips_lin", type=files.path, default="", help="Weights of LPIPS's linear layers.")
    add("--consistency_objects", type=int, default=0, help="Number of objects with neural fields; 0 for all.")
    add("--consistency_seeds", type=int, help="Number of sampling seeds with neural fields; defaults to all.")
    add("--consistency_set", action="append", default=[], metavar="NAME=VALUE", help="Change a setting of the field.")
    add("--consistency_at_once", type=int, default=1, help="Objects fitted side by side on an accelerator.")
    add("--dry_run", action="store_true", help="Print the commands without running them.")
    add("--table", action="store_true", help="Write the table of what is there without running anything.")
    given, flags = parser.parse_args(arguments[:place]), arguments[place + 1 :]
    # The accelerator's memory belongs to the commands.
    jax.config.update("jax_platforms", "cpu")
    with errors.one_line():
        if not given.table:
            check(given, flags)
        if given.dry_run:
            print("\n".join(shlex.join(["python", *each]) for each in commands(given, flags)))
            return
        if not given.table:
            run(given, flags)
        print(ablations_table.write(epath.Path(given.out)))


if __name__ == "__main__":
    main()
