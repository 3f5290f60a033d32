"""The ablations for people: a table in the paper's form, which of its orderings hold, and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from scripts import ablations
from scripts.ablations import BY_KEY, MEASURES, REAL_DATA, VARIANTS
from threedim.consistency.held_out import load_json
from threedim.data import srn
from threedim.evaluation import published
from threedim.output import images as images_lib

_OBJECTS, _VIEWS = 4, 3
_NOTHING = "–"
_NAME_LETTERS = 12  # SRN's names have 32
# Of the paper's tables, where a data set has none of its own.
_DEFAULT_PAPER = "cars"


def markdown(results: dict[str, Any]) -> str:
    """The page of what `ablations.read` gives."""
    rows = results["rows"]
    shown = [measure for measure in MEASURES if any(row["figures"][measure.key] for row in rows.values())]
    if any(row["figures"]["fid"] for row in rows.values()):
        # The patch distance stands in for it.
        shown.remove(BY_KEY["patch_distance"])
    parts = [
        f"# Ablations, {results['config']}",
        _about(results),
        _table(results, shown),
        "## Which of the paper's orderings hold",
        _orderings(results),
    ]
    paper = _paper(results["published"])
    if paper:
        parts += ["## In the paper", paper]
    parts += ["## Made by", _made_by(results)]
    return "\n\n".join(parts) + "\n"


def _about(results: dict[str, Any]) -> str:
    seeds = sorted({len(row["seeds"]) for row in results["rows"].values()})
    lines = [
        f"{results['num_objects']} test objects, {results['num_views']:,} views of them drawn from view "
        f"{results['protocol']['input_view']} at {results['protocol']['image_size']} px, with each of "
        f"{' or '.join(map(str, seeds))} sampling seeds: mean ± standard error over the seeds. The error says nothing "
        "about other objects or other trainings.",
    ]
    fitted = results["consistency"]["num_objects"]
    if fitted:
        lines.append(
            f"3D consistency: {' or '.join(map(str, fitted))} object(s), one neural field each; compare only rows of "
            "one table."
        )
        if changed := results["consistency"]["not_the_frozen_settings"]:
            settings = ", ".join(f"{name} {value}" for name, value in changed.items())
            lines.append(f"The field differs from the frozen one: {settings}.")
    rows = results["rows"].values()
    for what, name in (("training steps", "training_steps"), ("batch sizes", "batch_size")):
        if len({row[name] for row in rows}) > 1:
            lines.append(f"**The rows' {what} differ**, so they had no equal budget.")
    return " ".join(lines)


def _table(results: dict[str, Any], shown: Sequence[ablations.Measure]) -> str:
    head = ["", *(_heading(measure) for measure in shown), "parameters", "training steps", "training, s"]
    lines = [[*head, "drawing and scoring, s per seed"]]
    titles = {variant.key: variant.title for variant in VARIANTS}
    for key, row in results["rows"].items():
        own = row["trained_by"] == key
        lines.append(
            [
                row["title"],
                *(_cell(measure, row["figures"][measure.key], len(row["seeds"])) for measure in shown),
                f"{row['parameters']:,}",
                f"{row['training_steps']:,}",
                _number(row["training_seconds"], 0) if own else f"as {titles[row['trained_by']]}",
                _number(row["drawing_and_scoring_seconds"], 0),
            ]
        )
    if results[REAL_DATA]:
        figures = [_number(results[REAL_DATA].get(measure.key), measure.decimals) for measure in shown]
        lines.append(["real data", *figures, *[_NOTHING] * 4])
    return _grid(lines)


def _heading(measure: ablations.Measure) -> str:
    return f"{measure.title}{measure.unit and f', {measure.unit.strip()}'} {'↑' if measure.sign > 0 else '↓'}"


def _cell(measure: ablations.Measure, figure: dict[str, Any] | None, seeds: int) -> str:
    if figure is None:
        return _NOTHING
    text = _number(figure["mean"], measure.decimals)
    if figure["standard_error"] is not None:
        text += f" ± {figure['standard_error']:.{measure.decimals}f}"
    return text if figure["n"] == seeds else f"{text} (n {figure['n']})"


def _number(value: float | None, decimals: int) -> str:
    return _NOTHING if value is None else f"{value:,.{decimals}f}"


def _orderings(results: dict[str, Any]) -> str:
    table = results["published"] if results["published"] in published.CONSISTENCY else _DEFAULT_PAPER
    lines = [["the paper says", "", "measure", "difference", "", f"in the paper, {published.TABLES[table].title}"]]
    for claim in results["orderings"]:
        several = len(claim["parts"]) > 1
        for place, part in enumerate(claim["parts"]):
            measure = BY_KEY[part["measure"]]
            difference = part.get("difference")
            text = _NOTHING
            if difference is not None:
                error = part["standard_error"]
                text = f"{difference:+.{measure.decimals}f}"
                text += f" ± {error:.{measure.decimals}f}" if error is not None else ""
                text += measure.unit
            theirs = ablations.published_difference(table, claim, measure.key)
            first = place == 0
            lines.append(
                [
                    claim["text"] if first else "",
                    f"**{claim['verdict']}**" if first else "",
                    measure.title,
                    text,
                    part["verdict"] if several else "",
                    _NOTHING if theirs is None else f"{theirs:+.{measure.decimals}f}{measure.unit}",
                ]
            )
    return (
        _grid(lines)
        + "\n\nA positive difference is in favor of what the paper says, also in measures where low is good. It holds "
        "where the difference is more than two standard errors above zero, does not hold where it is as far below, and "
        "is undecided between. One seed has no error and decides nothing."
    )


def _paper(name: str) -> str:
    """The paper's own rows on that data; nothing where it has none."""
    if name not in published.CONSISTENCY:
        return ""
    table, consistency = published.TABLES[name], published.CONSISTENCY[name]
    quality, fields = ({row.name: row for row in each.rows} for each in (table, consistency))
    lines = [
        [table.title, "PSNR ↑", "SSIM ↑", "FID ↓", *(f"3D consistency {m}" for m in ("PSNR ↑", "SSIM ↑", "FID ↓"))]
    ]
    for title, key in [*((each.title, each.published) for each in VARIANTS), ("real data", "Real data")]:
        cells = [title]
        for row in (quality.get(key), fields.get(key)):
            cells += [_number(row and getattr(row, each), 2) for each in ("psnr", "ssim", "fid")]
        lines.append(cells)
    notes = dict.fromkeys([*table.sources[:1], *consistency.notes])
    return _grid(lines) + "\n\n" + " ".join(f"{note.rstrip('.')}." for note in notes)


def _made_by(results: dict[str, Any]) -> str:
    commit, machine = results["commit"], results["machine"]
    devices = ", ".join(f"{one['count']} {one['kind']} ({one['platform']})" for one in machine["devices"])
    where = f"{machine['system']}, {machine['cpu_cores']} CPU cores; drawn on {devices}"
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    state = f"commit {commit['hash']}{', with changes' if commit['modified'] else ''}" if commit else "no commit known"
    asked, *ran = [one["command"] for one in results["commands"]] or [""]
    listed = "\n".join(ran)
    return (
        f"{state}; {versions}; {where}.\n\n```\n{asked}\n```\n\n<details><summary>which ran</summary>\n\n"
        f"```\n{listed}\n```\n\n</details>"
    )


def _grid(lines: Sequence[Sequence[str]]) -> str:
    texts = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([texts[0], f"|{' --- |' * len(lines[0])}", *texts[1:]])


# ------------------------------------------------------------------------------------------------------------ pictures


def picture(out: epath.Path, results: dict[str, Any]) -> np.ndarray | None:
    """Input, truth, and what each row drew: the same views of objects that are evenly spaced over those of the scores.

    Args:
      out: a benchmark's folder.
      results: from `ablations.read`.

    Returns:
      (height, width, 3) uint8, or None where the true views are not there yet.
    """
    rows = results["rows"]
    # Each row's first seed.
    folders = {key: next(iter(ablations.seed_folders(out, key).values())) for key in rows}
    samples = load_json(folders[next(iter(rows))] / "samples.json")["objects"]
    names = sorted(load_json(folders[next(iter(rows))] / "results.json")["objects"])
    names = [names[len(names) * index // min(_OBJECTS, len(names))] for index in range(min(_OBJECTS, len(names)))]
    if not all((out / REAL_DATA / "views" / name).exists() for name in names):
        return None
    cells, labels = [], []
    for name in names:
        inputs, targets = samples[name]["input_views"], samples[name]["target_views"]
        count = min(_VIEWS, len(targets))
        places = [(2 * index + 1) * len(targets) // (2 * count) for index in range(count)]
        views = [targets[place] for place in places]
        truth, _ = srn.read_object(out / REAL_DATA / "views" / name).decode([inputs[0], *views])
        # A drawn object's files begin with the input views.
        drawn_places = [len(inputs) + place for place in places]
        drawn = [srn.read_object(folders[key] / "views" / name).decode(drawn_places)[0] for key in rows]
        for index, view in enumerate(views):
            cells.append(np.stack([truth[0], truth[1 + index], *(each[index] for each in drawn)]))
            labels.append(f"{_shorten(name)}, view {view}")
    titles = ["input", "truth", *(row["title"] for row in rows.values())]
    return images_lib.make_grid(np.stack(cells), row_labels=labels, col_labels=titles)


def _shorten(name: str) -> str:
    """Both ends of a long name: numbers stand at the one, kinds at the other."""
    half = _NAME_LETTERS // 2
    return name if len(name) <= _NAME_LETTERS else f"{name[:half]}…{name[-half:]}"
