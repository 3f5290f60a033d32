"""The table of the ablations: figures with errors, which of the paper's orderings hold, and a picture."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
import scipy.stats
from etils import epath

from scripts.tables import number, table
from threedim import config as config_lib
from threedim import files, pixels, provenance
from threedim.data.objects import read_object
from threedim.errors import MissingError, UserError
from threedim.evaluation import published
from threedim.evaluation.bootstrap import estimate
from threedim.files import read_json
from threedim.output import sheets
from threedim.training.step import abstract_params

REAL_DATA = "real_data"  # the folder of the true views
_OF_VIEWS = ("psnr", "ssim", "lpips", "patch_distance")  # figures of each object in results.json
_WORST_FIRST = ("does not hold", "not measured", "undecided", "holds")
_OBJECTS, _VIEWS = 4, 3  # in the picture


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of the table."""

    key: str  # names its folder
    title: str
    trained_as: str  # row whose training run it uses; the name in --workdir, and but for "3dim" in configs/ablations
    flags: tuple[str, ...]  # for sampling
    published: str  # name in `published.TABLES`


_INPUT_ONLY = ("--config.sample.conditioning=input",)
ROWS = (
    Row("3dim", "3DiM", "3dim", (), "3DiM, 471M"),
    Row("image_to_image", "image-to-image", "3dim", _INPUT_ONLY, "3DiM, always from the input view"),
    Row("regression", "regression", "regression", (), "Regression"),
    Row("concat_unet", "Concat-UNet", "concat_unet", (), "Concat-UNet"),
)

# Key: (title, unit, decimals, +1 if high is good else -1).
MEASURES = {
    "psnr": ("PSNR", " dB", 2, 1),
    "ssim": ("SSIM", "", 3, 1),
    "fid": ("FID", "", 2, -1),
    "lpips": ("LPIPS", "", 3, -1),
    "patch_distance": ("patch distance per object", "", 2, -1),
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


def figure(values: Sequence[float], objects: dict[str, float] | None = None) -> dict[str, Any] | None:
    """A cell of the table; None without values.

    Args:
      values: one for each sampling seed.
      objects: the mean over seeds for each object, if there is such a figure. The mean is then theirs, and the standard
        error that of other objects; else that of other sampling seeds.
    """
    if objects:
        found = estimate(list(objects.values()))
        return {"mean": found.mean, "standard_error": found.standard_error, "n": len(values), "objects": objects}
    if not values:
        return None
    error = float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "standard_error": error, "n": len(values)}


def verdict(low: float | None, high: float | None) -> str:
    """Where the 95 % interval of a difference lies: "holds" above zero, "does not hold" below, or "undecided"."""
    if low is None or low <= 0 <= high:
        return "undecided"
    return "holds" if low > 0 else "does not hold"


def compared(one: dict[str, Any], other: dict[str, Any], sign: int) -> dict[str, Any]:
    """The difference of two cells in favor of the first, with its 95 % interval.

    On the same objects if they have figures for each (a paired bootstrap), with the share of resampled sets of objects
    in which it is positive; else by Student's t from the errors over sampling seeds.
    """
    if one.get("objects") and other.get("objects"):
        names = sorted(one["objects"].keys() & other["objects"].keys())
        found = estimate([sign * (one["objects"][name] - other["objects"][name]) + 0.0 for name in names])  # not -0.0
        part = {"difference": found.mean, "low": found.low, "high": found.high, "certainty": found.positive}
        return part | {"objects": len(names), "verdict": verdict(found.low, found.high)}
    difference = sign * (one["mean"] - other["mean"]) + 0.0
    both = (one["standard_error"], other["standard_error"])
    spread = None if None in both else scipy.stats.t.ppf(0.975, one["n"] + other["n"] - 2) * math.hypot(*both)
    low, high = (None, None) if spread is None else (difference - spread, difference + spread)
    return {"difference": difference, "low": low, "high": high, "certainty": None, "verdict": verdict(low, high)}


def orderings(rows: dict[str, Any]) -> list[dict[str, Any]]:
    """Which of `CLAIMS` hold by {row: {"figures": {measure: `figure`}}}: those all of whose parts hold.

    A part is what `compared` returns for one measure.
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
            parts.append({"measure": name} | compared(one[name], other[name], MEASURES[name][3]))
        overall = min((part["verdict"] for part in parts), key=_WORST_FIRST.index)
        found.append({"text": text, "better": better, "worse": worse, "verdict": overall, "parts": parts})
    return found


def collect(out: epath.Path) -> dict[str, Any]:
    """The content of ``ablations.json``.

    `UserError` if there are no scores, or scores of different objects, protocols, or checkpoints of a training run.
    """
    path = out / "consistency/results.json"
    fields = read_json(path)["rows"] if path.exists() else {}
    rows, first, steps = {}, None, {}
    for row in ROWS:
        seeds = {p.parent.name: read_json(p) for p in sorted((out / row.key).glob("seed_*/results.json"))}
        for name, one in seeds.items():
            first, step = first or one, one["checkpoint_step"]
            if (one["protocol"], sorted(one["objects"])) != (first["protocol"], sorted(first["objects"])):
                raise UserError(f"{out / row.key / name} has another protocol or other objects; move it away")
            if steps.setdefault(row.trained_as, step) != step:
                others = f"others of step {steps[row.trained_as]}"
                raise UserError(f"{out / row.key / name} is of step {step}, {others}; move one away")
        if not seeds:
            continue
        scored, objects = [], {}
        for name, one in seeds.items():
            field = fields.get(f"{row.key}_{name.replace('_', '')}", {})
            scored.append(one["dataset"] | {f"consistency_{key}": value for key, value in field.items()})
            for prefix, source, measures in (("", one, _OF_VIEWS), ("consistency_", field, ("psnr", "ssim"))):
                for each, (key, found) in itertools.product(measures, source.get("objects", {}).items()):
                    if found.get(each) is not None:
                        objects.setdefault(prefix + each, {}).setdefault(key, []).append(found[each])
            if any("patch_distance" not in each for each in one["objects"].values()):
                raise UserError(f"{out / row.key / name} was scored by an earlier version; evaluate again")
        means = {m: {key: float(np.mean(values)) for key, values in each.items()} for m, each in objects.items()}
        config = ml_collections.ConfigDict(next(iter(seeds.values()))["config"])
        params = jax.tree.leaves(abstract_params(config_lib.network(config)))
        rows[row.key] = {
            "title": row.title,
            "parameters": sum(leaf.size for leaf in params),
            "training_steps": steps[row.trained_as],
            "batch_size": config.train.batch_size,
            "seeds": len(seeds),
            "figures": {
                m: figure([each[m] for each in scored if each.get(m) is not None], means.get(m)) for m in MEASURES
            },
        }
    if first is None:
        raise MissingError(f"{out} has no scores yet, such as {out / ROWS[0].key}/seed_0/results.json")
    real, log = fields.get(REAL_DATA), out / "commands.json"
    return {
        **{name: first[name] for name in ("protocol", "num_objects", "num_views", "published")},
        "rows": rows,
        REAL_DATA: real and {f"consistency_{name}": real[name] for name in ("psnr", "ssim", "fid")},
        "orderings": orderings(rows),
        "seconds_by_command": read_json(log) if log.exists() else {},
        "device": first["device"],
        "commit": provenance.commit(),
        "versions": provenance.versions(),
    }


def markdown(results: dict[str, Any]) -> str:
    """The page with the table, the orderings, and the paper's differences."""
    rows = results["rows"]
    shown = [measure for measure in MEASURES if any(row["figures"][measure] for row in rows.values())]
    head = [f"{MEASURES[m][0]}{MEASURES[m][1]} {'↑' if MEASURES[m][3] > 0 else '↓'}" for m in shown]
    lines = [["", *head, "parameters", "training"]]
    for row in rows.values():
        cells = []
        for measure in shown:
            one = row["figures"][measure] or {"mean": None, "standard_error": None, "n": row["seeds"]}
            text = number(one["mean"], MEASURES[measure][2], one["standard_error"])
            cells.append(text if one["n"] == row["seeds"] else f"{text} ({one['n']} seed{'s' * (one['n'] > 1)})")
        budget = f"{row['training_steps']:,} steps of {row['batch_size']} pairs"
        lines.append([row["title"], *cells, f"{row['parameters']:,}", budget])
    if real := results[REAL_DATA]:
        lines.append(["real data", *(number(real.get(m), MEASURES[m][2]) for m in shown), "–", "–"])
    protocol, commands = results["protocol"], "\n".join(results["seconds_by_command"])
    return (
        f"# Ablations\n\n{results['num_objects']} test objects, {results['num_views']:,} views of "
        f"{protocol['image_size']} px sampled from view {protocol['input_view']}. Means over objects and sampling "
        "seeds ± bootstrapped standard errors over the objects (of FID: over the seeds). One training run per row: "
        "other runs are not covered.\n\n"
        f"{table(lines)}\n\n## Which of the paper's orderings hold\n\n{_orderings(results)}\n\n"
        "A positive difference favors the paper's finding; in brackets, its 95 % interval by a paired bootstrap over "
        "the objects, then the share of resampled sets of objects in which it is positive. FID has no figure for an "
        "object: its interval is from the sampling seeds. A finding holds if the interval is above zero, fails if it "
        "is below, and is undecided between.\n\n"
        f"## Commands\n\n```\n{commands}\n```\n"
    )


def _orderings(results: dict[str, Any]) -> str:
    paper = results["published"] if results["published"] in published.CONSISTENCY else "cars"
    lines = [["the paper finds", "", "measure", "difference", "positive", f"paper, {published.TABLES[paper].title}"]]
    for claim in results["orderings"]:
        head = [claim["text"], f"**{claim['verdict']}**"]
        for part in claim["parts"]:
            title, unit, decimals, _ = MEASURES[part["measure"]]
            ours, low, certainty = part.get("difference"), part.get("low"), part.get("certainty")
            theirs = published_difference(paper, claim, part["measure"])
            interval = "" if low is None else f" [{low:+.{decimals}f}, {part['high']:+.{decimals}f}]"
            ours = "–" if ours is None else f"{ours:+.{decimals}f}{unit}{interval}"
            share = "–" if certainty is None else f"{100 * certainty:.1f} %"
            lines.append([*head, title, ours, share, "–" if theirs is None else f"{theirs:+.{decimals}f}{unit}"])
            head = ["", ""]
    return table(lines)


def published_difference(name: str, claim: dict[str, Any], measure: str) -> float | None:
    """The difference of a claim in the paper's table; None if the paper does not have it."""
    source = published.CONSISTENCY if measure.startswith("consistency_") else published.TABLES
    theirs = {row.name: dataclasses.asdict(row) for row in source[name].rows}
    ours = {row.key: theirs.get(row.published, {}) for row in ROWS}
    values = [ours[claim[side]].get(measure.removeprefix("consistency_")) for side in ("better", "worse")]
    return None if None in values else MEASURES[measure][3] * (values[0] - values[1])


def picture(out: epath.Path, results: dict[str, Any]) -> np.ndarray:
    """Input view, true view, and the sampled view of each row, for evenly spaced objects and views."""
    folders = [out / key / "seed_0" for key in results["rows"]]
    samples = read_json(folders[0] / "samples.json")["objects"]
    names, num_objects = sorted(samples), min(_OBJECTS, len(samples))
    names = [names[len(names) * i // num_objects] for i in range(num_objects)]
    cells, labels = [], []
    for name in names:
        inputs, targets = samples[name]["input_views"], samples[name]["target_views"]
        count = min(_VIEWS, len(targets))
        places = [(2 * i + 1) * len(targets) // (2 * count) for i in range(count)]
        views = [targets[place] for place in places]
        truth, _ = read_object(out / REAL_DATA / "views" / name).decode([inputs[0], *views])
        numbers = [len(inputs) + place for place in places]  # the files begin with the input views
        sampled = [read_object(folder / "views" / name).decode(numbers)[0] for folder in folders]
        for i, view in enumerate(views):
            cells.append(np.stack([truth[0], truth[1 + i], *(each[i] for each in sampled)]))
            labels.append(f"{name[-12:]}, view {view}")
    titles = ["input", "truth", *(row["title"] for row in results["rows"].values())]
    return sheets.make_grid(np.stack(cells), row_labels=labels, col_labels=titles)


def write(out: epath.Path) -> epath.Path:
    """Writes ``ablations.json``, ``ablations.md`` and ``ablations.png``, prints the page, and returns its path."""
    results = collect(out)
    page, path = markdown(results), out / "ablations.md"
    files.write_atomically(out / "ablations.json", json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    files.write_atomically(path, page)
    if results[REAL_DATA]:
        pixels.save_png(out / "ablations.png", picture(out, results))
    print(page.partition("\n## Commands")[0])
    return path
