"""The paper's ablations [3.2, 4] as one folder of results: what the rows are, their figures, and which orderings hold.

A folder holds ``ROW/seed_S`` (as ``--mode=evaluate`` writes it), ``consistency`` (as `consistency` writes it, a row
``ROW_seedS`` for each of them and one for the true views), ``real_data/views``, ``settings.json`` and
``commands.json``. See `benchmark`, which fills it.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import platform
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath

from threedim import config as config_lib
from threedim import provenance
from threedim.consistency.held_out import load_json
from threedim.evaluation import published
from threedim.training.step import abstract_params

REAL_DATA = "real_data"
# A difference of so many standard errors decides.
_DECIDES = 2.0


@dataclasses.dataclass(frozen=True)
class Variant:
    """One row of the table.

    Attributes:
      key: names folders and flags.
      title: for people.
      weights: the row whose training run it draws with.
      config: of that run, a file in the folder ``ablations`` beside the whole model's config; "" is that one itself.
      flags: how drawing differs from that config.
      published: the row in `published.TABLES`.
    """

    key: str
    title: str
    weights: str
    config: str
    flags: tuple[str, ...]
    published: str


VARIANTS = (
    Variant("3dim", "3DiM", "3dim", "", (), "3DiM, 471M"),
    Variant(
        "image_to_image",
        "image-to-image",
        "3dim",
        "",
        ("--config.sample.conditioning=input",),
        "3DiM, always from the input view",
    ),
    Variant("regression", "regression", "regression", "regression.py", (), "Regression"),
    Variant("concat_unet", "Concat-UNet", "concat_unet", "concat_unet.py", (), "Concat-UNet"),
)
TRAINED = tuple(variant.key for variant in VARIANTS if variant.weights == variant.key)


@dataclasses.dataclass(frozen=True)
class Measure:
    """A figure of a row: its key in the results, its name for people, unit, decimals, and which direction is good."""

    key: str
    title: str
    unit: str
    decimals: int
    sign: int


MEASURES = (
    Measure("psnr", "PSNR", " dB", 2, 1),
    Measure("ssim", "SSIM", "", 3, 1),
    Measure("fid", "FID", "", 2, -1),
    Measure("lpips", "LPIPS", "", 3, -1),
    Measure("patch_distance", "patch distance", "", 2, -1),
    Measure("consistency_psnr", "3D consistency PSNR", " dB", 2, 1),
    Measure("consistency_ssim", "3D consistency SSIM", "", 3, 1),
    Measure("consistency_fid", "3D consistency FID", "", 2, -1),
)
BY_KEY = {measure.key: measure for measure in MEASURES}


@dataclasses.dataclass(frozen=True)
class Claim:
    """An ordering in the paper: ``better`` is better than ``worse`` in all of ``measures``.

    Of several measures joined by "/", the first counts that both rows have.
    """

    text: str
    better: str
    worse: str
    measures: tuple[str, ...]


CLAIMS = (
    Claim(
        "stochastic conditioning is more consistent than image-to-image",
        "3dim",
        "image_to_image",
        ("consistency_psnr",),
    ),
    Claim("but its PSNR is lower", "image_to_image", "3dim", ("psnr",)),
    Claim("X-UNet is better than Concat-UNet", "3dim", "concat_unet", ("psnr", "ssim", "fid/patch_distance")),
    Claim("regression is blurrier than 3DiM", "3dim", "regression", ("fid/patch_distance",)),
)


def figure(values: Sequence[float]) -> dict[str, float | int | None] | None:
    """Mean, standard error of the mean and number of values; no error of one value, nothing of none."""
    if not values:
        return None
    error = float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "standard_error": error, "n": len(values)}


def verdict(difference: float, error: float | None) -> str:
    """ "holds", "does not hold" or "undecided", by whether a difference is more than two standard errors from zero."""
    if error is None or abs(difference) <= _DECIDES * error:
        return "undecided"
    return "holds" if difference > 0 else "does not hold"


def orderings(rows: dict[str, Any]) -> list[dict[str, Any]]:
    """Which of `CLAIMS` hold.

    Args:
      rows: from `read`, or alike: {row: {"figures": {measure: `figure`}}}.

    Returns:
      For each claim its "text", its "verdict" and its "parts": for every measure the "difference" in favor of the claim
      (positive supports it, whichever direction is good), its "standard_error" and "verdict". A claim holds where all
      parts hold, and does not where one does not. A measure that is missing is "not measured", as is a claim that lacks
      one and is not refuted by another.
    """
    found = []
    for claim in CLAIMS:
        better, worse = (rows.get(key, {}).get("figures", {}) for key in (claim.better, claim.worse))
        parts = []
        for names in claim.measures:
            choice = names.split("/")
            name = next((one for one in choice if better.get(one) and worse.get(one)), None)
            if name is None:
                parts.append({"measure": choice[-1], "verdict": "not measured"})
                continue
            one, other = better[name], worse[name]
            difference = BY_KEY[name].sign * (one["mean"] - other["mean"]) + 0.0  # not -0.0
            errors = (one["standard_error"], other["standard_error"])
            error = None if None in errors else math.hypot(*errors)
            parts.append(
                {
                    "measure": name,
                    "difference": difference,
                    "standard_error": error,
                    "verdict": verdict(difference, error),
                }
            )
        verdicts = [part["verdict"] for part in parts]
        # The worst of them.
        worst = ("does not hold", "not measured", "undecided", "holds")
        overall = next(each for each in worst if each in verdicts)
        found.append(
            {"text": claim.text, "better": claim.better, "worse": claim.worse, "verdict": overall, "parts": parts}
        )
    return found


def published_difference(table: str, claim: dict[str, Any], measure: str) -> float | None:
    """A difference of `orderings` in the paper's table of that name; None where it has none."""
    source = published.CONSISTENCY if measure.startswith("consistency_") else published.TABLES
    if table not in source:
        return None
    rows = {row.name: row for row in source[table].rows}
    names = {variant.key: variant.published for variant in VARIANTS}
    values = []
    for key in (claim["better"], claim["worse"]):
        row = rows.get(names[key])
        values.append(getattr(row, measure.removeprefix("consistency_"), None) if row else None)
    return None if None in values else BY_KEY[measure].sign * (values[0] - values[1])


# ------------------------------------------------------------------------------------------------------------- reading


def seed_folders(out: epath.Path, row: str) -> dict[int, epath.Path]:
    """Folders of a row that have scores, by sampling seed."""
    folders = {}
    for path in (out / row).glob("seed_*/results.json"):
        number = path.parent.name.removeprefix("seed_")
        if number.isdecimal():
            folders[int(number)] = path.parent
    return dict(sorted(folders.items()))


def read(out: epath.PathLike) -> dict[str, Any]:
    """All figures that a folder has: the content of ``ablations.json``.

    Raises:
      FileNotFoundError: if it is no folder of a benchmark, or has no scores yet.
      ValueError: if rows are of different objects or protocols, or a row's seeds of different checkpoints.
    """
    out = epath.Path(out)
    if not (out / "settings.json").exists():
        raise FileNotFoundError(f"{out / 'settings.json'} is missing: is {out} the --out of a benchmark?")
    settings = load_json(out / "settings.json")
    results = {
        variant.key: {
            seed: load_json(folder / "results.json") for seed, folder in seed_folders(out, variant.key).items()
        }
        for variant in VARIANTS
    }
    every = [(f"{row}/seed_{seed}", one) for row, seeds in results.items() for seed, one in seeds.items()]
    if not every:
        raise FileNotFoundError(f"{out} has no scores yet: nothing like {out / VARIANTS[0].key}/seed_0/results.json")
    _check_comparable(out, every)
    consistency = {"rows": {}, "settings": None, "not_the_frozen_settings": None}
    if (out / "consistency/results.json").exists():
        consistency = load_json(out / "consistency/results.json")
    commands = load_json(out / "commands.json") if (out / "commands.json").exists() else []
    seconds = {one["what"]: one["seconds"] for one in commands}
    rows = {
        variant.key: _row(variant, results[variant.key], consistency["rows"], settings["workdirs"], seconds)
        for variant in VARIANTS
        if results[variant.key]
    }
    first = every[0][1]
    true_views = consistency["rows"].get(REAL_DATA)
    return {
        "suite": "ablations",
        "config": settings["config"],
        "flags": settings["flags"],
        "protocol": first["protocol"],
        "num_objects": first["num_objects"],
        "num_views": first["num_views"],
        "published": first["published"],
        "rows": rows,
        REAL_DATA: _consistency_figures(true_views) if true_views else None,
        "orderings": orderings(rows),
        "consistency": {
            "num_objects": sorted({one["num_objects"] for one in consistency["rows"].values()}),
            "settings": consistency["settings"],
            "not_the_frozen_settings": consistency["not_the_frozen_settings"],
        },
        "commands": commands,
        "commit": provenance.commit(),
        "versions": provenance.versions(),
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "cpu_cores": os.cpu_count(),
            "devices": _distinct([one["device"] for _, one in every]),
        },
    }


def _check_comparable(out: epath.Path, every: Sequence[tuple[str, dict[str, Any]]]) -> None:
    name, first = every[0]
    for other, one in every[1:]:
        for what, values in (
            ("protocols", (first["protocol"], one["protocol"])),
            ("objects", (sorted(first["objects"]), sorted(one["objects"]))),
        ):
            if values[0] != values[1]:
                raise ValueError(
                    f"{out}: {name} and {other} are of different {what}, so they cannot stand in one table; run the "
                    "same command without --table, or move one away"
                )
    steps: dict[str, int] = {}
    weights = {variant.key: variant.weights for variant in VARIANTS}
    for name, one in every:
        run = weights[name.split("/")[0]]
        if steps.setdefault(run, one["checkpoint_step"]) != one["checkpoint_step"]:
            raise ValueError(
                f"{out / name} was drawn at step {one['checkpoint_step']} of the run {run}, others at step {steps[run]}"
                "; move one of them away and run the same command without --table"
            )


def _row(
    variant: Variant,
    results: dict[int, dict[str, Any]],
    consistency: dict[str, Any],
    workdirs: dict[str, str],
    seconds: dict[str, float],
) -> dict[str, Any]:
    seeds = {}
    for seed, one in results.items():
        fitted = consistency.get(f"{variant.key}_seed{seed}")
        figures = {measure.key: one["dataset"].get(measure.key) for measure in MEASURES}
        figures |= _consistency_figures(fitted) if fitted else {}
        took = seconds.get(f"evaluate {variant.key}, seed {seed}")
        seeds[str(seed)] = {**figures, "drawing_and_scoring_seconds": took, "commit": one["commit"]}
    first = next(iter(results.values()))
    workdir, step = workdirs[variant.weights], first["checkpoint_step"]
    took = [one["drawing_and_scoring_seconds"] for one in seeds.values()]
    config = ml_collections.ConfigDict(first["config"])
    return {
        "title": variant.title,
        "workdir": workdir,
        "trained_by": variant.weights,
        "parameters": num_parameters(config),
        "training_steps": step,
        "batch_size": config.train.batch_size,
        "training_seconds": training_seconds(workdir, step),
        "drawing_and_scoring_seconds": None if None in took else float(np.mean(took)),
        "figures": {
            measure.key: figure([one[measure.key] for one in seeds.values() if one.get(measure.key) is not None])
            for measure in MEASURES
        },
        "seeds": seeds,
    }


def _consistency_figures(row: dict[str, Any]) -> dict[str, float | None]:
    return {f"consistency_{name}": row[name] for name in ("psnr", "ssim", "fid")}


def _distinct(values: list[Any]) -> list[Any]:
    return [one for place, one in enumerate(values) if one not in values[:place]]


def num_parameters(config: ml_collections.ConfigDict) -> int:
    """Parameters of a config's network. Nothing is computed but their shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(abstract_params(config_lib.denoiser(config).network)))


def training_seconds(workdir: epath.PathLike, last_step: int) -> float | None:
    """Seconds that a run's steps took up to a step, by its metrics.jsonl; None where there is no such file.

    Neither compiling nor previews count.
    """
    path = epath.Path(workdir) / "metrics.jsonl"
    if not path.exists():
        return None
    total, before = 0.0, 0
    for text in path.read_text().splitlines(keepends=True):
        if not text.endswith("\n"):
            break  # the process was killed while it wrote this line, or is writing it
        try:
            line = json.loads(text)
            step, each = line["step"], line["seconds_per_step"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: {text[:80]!r} is not a line of metrics ({error})") from error
        if step <= last_step:
            total += each * (step - before)
            before = step
    return total
