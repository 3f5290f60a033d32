"""The paper's ablations [3.2, 4]: trains, samples and scores its four rows and writes one table.

    python -m scripts.ablations --config=configs/shapes16.py --out=runs/ablations

The rows are 3DiM, the same weights always conditioned on the input view ("image-to-image"), regression, and Concat-UNet
(configs/ablations), each with several sampling seeds, with 3D consistency scores beside them. The commands that it runs
are printed, and are those of the README; ``--dry_run`` only prints them. The same command resumes after an
interruption. The folder gets ``ROW/seed_S`` (as ``--mode=evaluate`` writes it), ``real_data/views``, ``consistency``,
``ablations.md``, ``ablations.json`` and ``ablations.png``. What follows ``--`` goes to every call of threedim.main:

    python -m scripts.ablations ... -- --config.train.num_steps=2000 --config.sample.preset=fast
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import pathlib
import shlex
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import ml_collections
import numpy as np
from etils import epath

from scripts.tables import number, table
from threedim import errors, files, pixels, provenance
from threedim.data import sources, srn
from threedim.errors import MissingError, UserError
from threedim.evaluation import published
from threedim.output import sheets
from threedim.output.claim import check_claim, read_json
from threedim.trained import open_run

REAL_DATA = "real_data"
# Names of the data in configs/ablations, by the config file of the whole model.
DATA = {"srn_cars": "cars", "srn_chairs_star": "chairs_star", "demo": "demo", "shapes16": "shapes16"}
# Standard errors by which a difference must exceed zero.
_DECIDES = 2.0
# A regression is sampled in one step without guidance, and has a prediction of its own.
_NOT_FOR_REGRESSION = (
    "config.sample.",
    "config.diffusion.prediction",
    "config.train.uncond_prob",
    "config.train.sample_",
)
_OBJECTS, _VIEWS = 4, 3  # of the picture


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of the table."""

    key: str  # name of folders and in --workdir
    title: str
    trained_as: str  # key of the row whose training run it uses
    config: str  # in configs/ablations; "" for that of the whole model
    flags: tuple[str, ...]  # for sampling
    published: str  # name in `published.TABLES`


_INPUT_ONLY = ("--config.sample.conditioning=input",)
ROWS = (
    Row("3dim", "3DiM", "3dim", "", (), "3DiM, 471M"),
    Row("image_to_image", "image-to-image", "3dim", "", _INPUT_ONLY, "3DiM, always from the input view"),
    Row("regression", "regression", "regression", "regression", (), "Regression"),
    Row("concat_unet", "Concat-UNet", "concat_unet", "concat_unet", (), "Concat-UNet"),
)

# Key: (title, unit, decimals, +1 if high is good else -1).
MEASURES = {
    "psnr": ("PSNR", " dB", 2, 1),
    "ssim": ("SSIM", "", 3, 1),
    "fid": ("FID", "", 2, -1),
    "lpips": ("LPIPS", "", 3, -1),
    "patch_distance": ("patch distance", "", 2, -1),
    "consistency_psnr": ("3D consistency PSNR", " dB", 2, 1),
    "consistency_ssim": ("3D consistency SSIM", "", 3, 1),
    "consistency_fid": ("3D consistency FID", "", 2, -1),
}

# What the paper finds: (text, better row, worse row, measures). Of "a/b" the first one that both rows have counts.
CLAIMS = (
    ("stochastic conditioning is more consistent than image-to-image", "3dim", "image_to_image", ("consistency_psnr",)),
    ("but its PSNR is lower", "image_to_image", "3dim", ("psnr",)),
    ("X-UNet is better than Concat-UNet", "3dim", "concat_unet", ("psnr", "ssim", "fid/patch_distance")),
    ("regression is blurrier than 3DiM", "3dim", "regression", ("fid/patch_distance",)),
)


# ---------------------------------------------------------------------------------------------------------------------
# Running


def commands(given: argparse.Namespace, flags: Sequence[str]) -> list[tuple[list[str], epath.Path | None]]:
    """Arguments of `python` for each command in order, with the file that it writes (None for a training)."""
    out, workdirs = epath.Path(given.out), dict(text.split("=", 1) for text in given.workdir)
    found, views = [], []
    for row in ROWS:
        config = given.config
        if row.config:
            config = (
                f"{epath.Path(given.config).parent}/ablations/{row.config}.py:{DATA[epath.Path(given.config).stem]}"
            )
        own = [f for f in flags if row.key != "regression" or not f.lstrip("-").startswith(_NOT_FOR_REGRESSION)]
        workdir = workdirs.get(row.trained_as, str(out / row.trained_as / "run"))
        main = ["-m", "threedim.main", f"--config={config}", f"--workdir={workdir}", *own]
        if row.trained_as == row.key and row.key not in workdirs:
            found.append(([*main, "--mode=train"], None))
        for seed in range(given.seeds):
            folder = out / row.key / f"seed_{seed}"
            sample = [*row.flags, f"--config.sample.seed={seed}", f"--config.evaluate.out={folder}"]
            sample += [f"--config.evaluate.max_objects={given.max_objects}"] if given.max_objects else []
            for name in ("inception", "lpips_backbone", "lpips_lin"):
                sample += [f"--config.evaluate.{name}={getattr(given, name)}"] if getattr(given, name) else []
            found.append(([*main, "--mode=evaluate", *sample], folder / "results.json"))
            views.append(f"--views={row.key}_seed{seed}={folder / 'views'}")
    views.append(f"--views={REAL_DATA}={out / REAL_DATA / 'views'}")
    score = ["-m", "threedim.evaluation.consistency", *views, f"--out={out / 'consistency'}"]
    score += [f"--max_objects={given.consistency_objects}"] if given.consistency_objects else []
    score += [f"--inception={given.inception}"] if given.inception else []
    score += [f"--set={change}" for change in given.consistency_set]
    return [*found, (score, out / "consistency/results.json")]


def run(given: argparse.Namespace, flags: Sequence[str]) -> None:
    """Runs every command that is not finished; an exit code other than 0 raises CalledProcessError."""
    out, todo = epath.Path(given.out), commands(given, flags)
    settings = {"config": given.config, "seeds": given.seeds, "max_objects": given.max_objects, "flags": list(flags)}
    path = out / "settings.json"
    check_claim(path, read_json(path) if path.exists() else None, settings, "ablations made with", "--out")
    files.write_atomically(path, json.dumps(settings, indent=2) + "\n")
    for place, (arguments, result) in enumerate(todo, start=1):
        if place == len(todo):
            write_true_views(out)
        print(f"[{place}/{len(todo)}] {shlex.join(['python', *arguments])}", flush=True)
        if result is not None and _is_done(arguments, result):
            print("finished before", flush=True)
            continue
        subprocess.run([sys.executable, *arguments], check=True)
        if result is None:
            _check_trained(arguments)


def _workdir(arguments: Sequence[str]) -> str:
    return next(a.partition("=")[2] for a in arguments if a.startswith("--workdir="))


def _is_done(arguments: Sequence[str], result: epath.Path) -> bool:
    """Whether an evaluation has been made of the run's newest checkpoint. Consistency scores resume by themselves."""
    if not result.exists() or "--mode=evaluate" not in arguments:
        return False
    return read_json(result)["checkpoint_step"] == open_run(_workdir(arguments)).step


def _check_trained(arguments: Sequence[str]) -> None:
    """A training that was stopped by a signal has exit code 0, too."""
    trained = open_run(_workdir(arguments))
    if trained.step < trained.config.train.num_steps:
        raise UserError(
            f"{trained.name} stopped at step {trained.step} of {trained.config.train.num_steps}; run the same command"
        )


def write_true_views(out: epath.Path) -> None:
    """Writes the true views of the evaluated objects in SRN format, for the reference row of the consistency score."""
    results = read_json(out / ROWS[0].key / "seed_0/results.json")
    dataset = sources.open_from_config(ml_collections.ConfigDict(results["config"]).data, "test")
    for name in results["objects"]:
        folder, index = out / REAL_DATA / "views" / name, dataset.names.index(name)
        if not folder.exists():
            count, size = dataset.num_views(index), results["protocol"]["image_size"]
            srn.write_object(folder, *dataset.views(index, range(count), size))


# ---------------------------------------------------------------------------------------------------------------------
# Figures


def figure(values: Sequence[float]) -> dict[str, float | int | None] | None:
    """Mean, standard error of the mean, and number of values; None without values."""
    if not values:
        return None
    error = float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "standard_error": error, "n": len(values)}


def verdict(difference: float, error: float | None) -> str:
    """Whether a difference is more than two standard errors from zero: "holds", "does not hold" or "undecided"."""
    if error is None or abs(difference) <= _DECIDES * error:
        return "undecided"
    return "holds" if difference > 0 else "does not hold"


def orderings(rows: dict[str, Any]) -> list[dict[str, Any]]:
    """Which of `CLAIMS` hold.

    Takes {row: {"figures": {measure: `figure`}}}; a part has the "difference" in favor of the claim. A claim holds if
    all its parts hold, and fails if one fails.
    """
    found = []
    for text, better, worse, measures in CLAIMS:
        one, other = (rows.get(key, {}).get("figures", {}) for key in (better, worse))
        parts = []
        for choice in (names.split("/") for names in measures):
            name = next((each for each in choice if one.get(each) and other.get(each)), None)
            if name is None:
                parts.append({"measure": choice[-1], "verdict": "not measured"})
                continue
            difference = MEASURES[name][3] * (one[name]["mean"] - other[name]["mean"]) + 0.0  # not -0.0
            both = (one[name]["standard_error"], other[name]["standard_error"])
            error = None if None in both else math.hypot(*both)
            parts.append({"measure": name, "difference": difference, "standard_error": error})
            parts[-1]["verdict"] = verdict(difference, error)
        verdicts = [part["verdict"] for part in parts]
        worst = ("does not hold", "not measured", "undecided", "holds")
        overall = next(each for each in worst if each in verdicts)
        found.append({"text": text, "better": better, "worse": worse, "verdict": overall, "parts": parts})
    return found


def collect(out: epath.Path) -> dict[str, Any]:
    """The figures of a folder, the content of ``ablations.json``.

    Raises `UserError` if there are no scores, if rows are of different objects or protocols, or seeds of a row of
    different checkpoints.
    """
    path = out / "consistency/results.json"
    fields = read_json(path)["rows"] if path.exists() else {}
    rows, first = {}, None
    for row in ROWS:
        seeds = {p.parent.name: read_json(p) for p in sorted((out / row.key).glob("seed_*/results.json"))}
        for name, one in seeds.items():
            first = first or one
            if (one["protocol"], sorted(one["objects"])) != (first["protocol"], sorted(first["objects"])):
                raise UserError(
                    f"{out / row.key / name} has another protocol or other objects than the rest; move it away"
                )
        if not seeds:
            continue
        steps = sorted({one["checkpoint_step"] for one in seeds.values()})
        if len(steps) > 1:
            raise UserError(f"{out / row.key} has scores of different checkpoints: steps {steps}; move one away")
        values: dict[str, list[float]] = {measure: [] for measure in MEASURES}
        for name, one in seeds.items():
            field = fields.get(f"{row.key}_{name.replace('_', '')}", {})
            all_of_it = one["dataset"] | {f"consistency_{key}": field.get(key) for key in ("psnr", "ssim", "fid")}
            for measure in MEASURES:
                values[measure] += [all_of_it[measure]] if all_of_it.get(measure) is not None else []
        rows[row.key] = {
            "title": row.title,
            "training_steps": steps[0],
            "seeds": len(seeds),
            "figures": {measure: figure(each) for measure, each in values.items()},
        }
    if first is None:
        raise MissingError(f"{out} has no scores yet, such as {out / ROWS[0].key}/seed_0/results.json")
    real = fields.get(REAL_DATA)
    return {
        "protocol": first["protocol"],
        "num_objects": first["num_objects"],
        "num_views": first["num_views"],
        "published": first["published"],
        "rows": rows,
        REAL_DATA: real and {f"consistency_{name}": real[name] for name in ("psnr", "ssim", "fid")},
        "orderings": orderings(rows),
        "device": first["device"],
        "commit": provenance.commit(),
        "versions": provenance.versions(),
    }


# ---------------------------------------------------------------------------------------------------------------------
# Page and picture


def markdown(results: dict[str, Any]) -> str:
    """The page with the table, the orderings, and the paper's differences."""
    rows = results["rows"]
    shown = [measure for measure in MEASURES if any(row["figures"][measure] for row in rows.values())]
    head = [f"{MEASURES[m][0]}{MEASURES[m][1]} {'↑' if MEASURES[m][3] > 0 else '↓'}" for m in shown]
    lines = [["", *head, "training steps"]]
    for row in rows.values():
        values = [(row["figures"][m] or {"mean": None, "standard_error": None}, MEASURES[m][2]) for m in shown]
        cells = [number(value["mean"], decimals, value["standard_error"]) for value, decimals in values]
        lines.append([row["title"], *cells, f"{row['training_steps']:,}"])
    if real := results[REAL_DATA]:
        lines.append(["real data", *(number(real.get(m), MEASURES[m][2]) for m in shown), "–"])
    protocol = results["protocol"]
    return (
        f"# Ablations\n\n{results['num_objects']} test objects, {results['num_views']:,} views of "
        f"{protocol['image_size']} px sampled from view {protocol['input_view']}; mean ± standard error over the "
        "sampling seeds, which says nothing about other objects or trainings.\n\n"
        f"{table(lines)}\n\n## Which of the paper's orderings hold\n\n{_orderings(results)}\n\n"
        "A positive difference favors the paper's finding. It holds if the difference is more than two standard errors "
        "above zero, fails if it is as far below, and is undecided between; a single seed decides nothing.\n"
    )


def _orderings(results: dict[str, Any]) -> str:
    paper = results["published"] if results["published"] in published.CONSISTENCY else "cars"
    lines = [["the paper finds", "", "measure", "difference", f"in the paper, {published.TABLES[paper].title}"]]
    for claim in results["orderings"]:
        for place, part in enumerate(claim["parts"]):
            title, unit, decimals, _ = MEASURES[part["measure"]]
            error = part.get("standard_error")
            text = "–" if "difference" not in part else f"{part['difference']:+.{decimals}f}"
            text += f" ± {error:.{decimals}f}{unit}" if error is not None else ""
            theirs = published_difference(paper, claim, part["measure"])
            head = [claim["text"], f"**{claim['verdict']}**"] if place == 0 else ["", ""]
            lines.append([*head, title, text, "–" if theirs is None else f"{theirs:+.{decimals}f}{unit}"])
    return table(lines)


def published_difference(name: str, claim: dict[str, Any], measure: str) -> float | None:
    """The difference of a claim in the paper's table; None if the paper does not have it."""
    source = published.CONSISTENCY if measure.startswith("consistency_") else published.TABLES
    rows = {row.name: row for row in source[name].rows} if name in source else {}
    names = {row.key: row.published for row in ROWS}
    pair = [rows.get(names[claim[side]]) for side in ("better", "worse")]
    values = [row and getattr(row, measure.removeprefix("consistency_"), None) for row in pair]
    return None if None in values else MEASURES[measure][3] * (values[0] - values[1])


def picture(out: epath.Path, results: dict[str, Any]) -> np.ndarray:
    """Input view, true view, and the sampled view of each row, for evenly spaced objects and views."""
    folders = [out / key / "seed_0" for key in results["rows"]]
    samples = read_json(folders[0] / "samples.json")["objects"]
    names = sorted(samples)
    names = [names[len(names) * i // min(_OBJECTS, len(names))] for i in range(min(_OBJECTS, len(names)))]
    cells, labels = [], []
    for name in names:
        inputs, targets = samples[name]["input_views"], samples[name]["target_views"]
        count = min(_VIEWS, len(targets))
        places = [(2 * i + 1) * len(targets) // (2 * count) for i in range(count)]
        views = [targets[place] for place in places]
        truth, _ = srn.read_object(out / REAL_DATA / "views" / name).decode([inputs[0], *views])
        # The files of a sampled object begin with its input views.
        files_of = [len(inputs) + place for place in places]
        sampled = [srn.read_object(folder / "views" / name).decode(files_of)[0] for folder in folders]
        for i, view in enumerate(views):
            cells.append(np.stack([truth[0], truth[1 + i], *(each[i] for each in sampled)]))
            labels.append(f"{name[-12:]}, view {view}")
    titles = ["input", "truth", *(row["title"] for row in results["rows"].values())]
    return sheets.make_grid(np.stack(cells), row_labels=labels, col_labels=titles)


def write(out: epath.Path) -> None:
    """Writes ``ablations.json``, ``ablations.md`` and ``ablations.png``."""
    results = collect(out)
    files.write_atomically(out / "ablations.json", json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    files.write_atomically(out / "ablations.md", markdown(results))
    pixels.save_png(out / "ablations.png", picture(out, results))
    print(f"{markdown(results)}\n{out / 'ablations.md'}")


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    place = arguments.index("--") if "--" in arguments else len(arguments)
    parser = argparse.ArgumentParser("python -m scripts.ablations", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--config", required=True, help=f"Config of the whole model: configs/{{{','.join(DATA)}}}.py.")
    add("--out", required=True, help="Output folder.")
    add("--seeds", type=int, default=3, help="Number of sampling seeds.")
    add("--workdir", action="append", default=[], metavar="ROW=DIR", help="A trained run to use; repeatable.")
    add("--max_objects", type=int, default=0, help="Number of test objects; 0 for all.")
    add("--inception", default="", help="Weights of the FID's network; without them the FID is left out.")
    add("--lpips_backbone", default="", help="Weights of LPIPS's network; without them LPIPS is left out.")
    add("--lpips_lin", default="", help="Weights of LPIPS's linear layers.")
    add("--consistency_objects", type=int, default=0, help="Number of objects with neural fields; 0 for all.")
    add("--consistency_set", action="append", default=[], metavar="NAME=VALUE", help="Change a setting of the field.")
    add("--dry_run", action="store_true", help="Print the commands without running them.")
    given = parser.parse_args(arguments[:place])
    with errors.one_line():
        trained = {row.trained_as for row in ROWS}
        if wrong := [text for text in given.workdir if text.partition("=")[0] not in trained or "=" not in text]:
            raise UserError(f"--workdir={wrong[0]}: expected ROW=DIR with ROW one of {', '.join(sorted(trained))}")
        if pathlib.Path(given.config).stem not in DATA or not pathlib.Path(given.config).is_file():
            raise UserError(f"--config={given.config}: expected an existing config, configs/{{{','.join(DATA)}}}.py")
        if given.seeds < 1:
            raise UserError(f"--seeds must be at least 1, got {given.seeds}")
        if given.dry_run:
            print("\n".join(shlex.join(["python", *each]) for each, _ in commands(given, arguments[place + 1 :])))
            return
        try:
            run(given, arguments[place + 1 :])
        except subprocess.CalledProcessError as error:
            raise UserError(f"exit code {error.returncode} from: {shlex.join(error.cmd)}") from error
        write(epath.Path(given.out))


if __name__ == "__main__":
    main()
