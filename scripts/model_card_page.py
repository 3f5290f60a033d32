"""A model card for people: the page in Markdown, and the sheet of samples."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from scripts import baselines
from threedim.evaluation import report, sampled
from threedim.output import images
from threedim.tasks import Task

# Of the sheet.
_OBJECTS, _VIEWS, _SCALE = 6, 6, 2
_NOTHING = "–"
_TITLES = {
    baselines.TRUE: "the true views",
    baselines.MEAN_IMAGE: "mean of all training views",
    baselines.INPUT_REPEATED: "input view repeated (the nearest view that is known)",
}
_COLUMNS = (("psnr", "PSNR, dB ↑", 2), ("ssim", "SSIM ↑", 3), ("fid", "FID ↓", 2), ("lpips", "LPIPS ↓", 3))
_PATCHES = ("patch_distance", "patch distance ↓", 2)


def markdown(facts: Mapping[str, Any]) -> str:
    """The page of what `model_card.write` has found."""
    name, config = facts["name"], facts["config"]
    size, kinds = config["model"]["image_size"], " and ".join(f"{kind}s" for kind in _kinds(facts))
    parts = [
        f"# {name}: {kinds} at {size} px from one view",
        f'`threedim.load("{name}")` and `--config.sample.weights={name}` take these weights. Every number here was '
        "read from the files of the run and of its evaluation; the commands are at the end.",
        f"![samples]({name}.png)",
        f"Objects evenly spaced over the {facts['results']['num_objects']} that were held out, not chosen by eye, and "
        "views evenly spaced over those drawn of each: the input view, the drawn views, and the truth beneath them.",
        "## The weights",
        _weights(facts),
        "## Data",
        _data(facts),
        "## Training",
        _training(facts),
        "## Scores on held-out objects",
        _scores(facts),
        "## Limits",
        _list(_limits(facts, kinds)),
        "## Licence",
        "Apache-2.0, as the project. The data is made by the project's own code from random numbers: it has no "
        "third-party content, and neither have the weights, which began from random numbers too.",
        "## Made again by",
        "```\n" + "\n".join(f"# {what}\n{command}" for what, command in facts["commands"]) + "\n```",
        "Training writes a checkpoint when it is stopped, and the same command goes on; it ends at the same step.",
    ]
    return "\n\n".join(parts) + "\n"


def _weights(facts: Mapping[str, Any]) -> str:
    w, m, d = facts["weights"], facts["config"]["model"], facts["config"]["diffusion"]
    return _grid(
        [
            ["", ""],
            ["parameters", f"{w['parameters']:,}, {w['dtype']}, averaged over training"],
            ["file", f"{w['bytes'] / 1e6:.2f} MB, sha256 `{w['sha256']}`"],
            ["network", _settings(m)],
            ["diffusion", _settings(d)],
            ["cameras", f"{facts['config']['data']['pose']} poses"],
            ["written by", f"commit `{w['commit']}`" if w["commit"] else "no commit known"],
        ]
    )


def _data(facts: Mapping[str, Any]) -> str:
    data, p, results = facts["data"], facts["config"]["data"]["procedural"], facts["results"]
    distance = _range(data["distance"], 2)
    return (
        f"Procedural {' and '.join(f'{kind}s' for kind in _kinds(facts))} in turn, rendered by the project's own ray "
        f"caster at {p['size']} px with {p['samples']} rays a pixel on white: {data['train_objects']:,} training "
        f"objects with {data['train_views']:,} views in all, from cameras drawn at random at a distance of {distance} "
        f"(objects have radius 1) and elevations of {_range(data['elevation'], 0)} degrees. "
        f"{results['protocol']['objects_in_split']} other objects are held out, seen from {p['test_views']} cameras "
        "on SRN's spiral from the horizon to the top. No shape is in both. Fingerprints: train "
        f"`{data['fingerprints']['train'][:12]}`, test `{data['fingerprints']['test'][:12]}`."
    )


def _training(facts: Mapping[str, Any]) -> str:
    t, c = facts["training"], facts["config"]
    seeds = (
        f"training {c['seed']}, shapes and cameras {c['data']['procedural']['seed']}, drawing "
        f"{facts['results']['config']['sample']['seed']}, evaluation {facts['results']['protocol']['seed']}"
    )
    mfu = "none logged: a CPU, or a device of unknown speed" if t["mfu"] is None else f"{100 * t['mfu']:.1f} %"
    loss = _NOTHING if t["loss"] is None else f"{t['loss']:.4f}"
    begun = []
    for earlier in facts["begun_with"]:
        e, size = earlier["training"], earlier["config"]["model"]["image_size"]
        steps = f"{earlier['steps']:,} steps of {earlier['config']['train']['batch_size']} pairs at {size} px"
        if e is None:
            text = f"the file {earlier['name']} of sha256 `{earlier['sha256']}`, the averaged weights of {steps}"
        else:
            text = (
                f"the averaged weights of {steps}: {e['pairs']:,} pairs, {_time(e['seconds'])} "
                f"({e['pairs_per_second']:.1f} pairs/s), {_dates(e)}, loss {e['loss']:.4f}"
            )
        begun.append(["before that" if begun else "begun with", text])
    pairs, _, since = _pairs_and_seconds(facts)
    names = ["learning_rate", "warmup_examples", "adam_b1", "adam_b2", "ema_half_life", "ema_rampup", "uncond_prob"]
    names += ["color_weight"] if "color_weight" in c["train"] else []  # runs from before have none
    return _grid(
        [
            ["", ""],
            ["steps", f"{t['steps']:,} of {c['train']['batch_size']} pairs: {t['pairs']:,} pairs"],
            *begun,
            ["pairs for each training view", f"{pairs / facts['data']['train_views']:.1f}{since}"],
            ["time", f"{_time(t['seconds'])} of steps ({t['pairs_per_second']:.1f} pairs/s), {_dates(t)}"],
            ["use of the accelerator", mfu],
            ["loss at the end", loss],
            ["augmentation", _settings(c["data"]["augment"])],
            ["settings", _settings({name: c["train"][name] for name in names})],
            ["seeds", seeds],
        ]
    )


def _pairs_and_seconds(facts: Mapping[str, Any]) -> tuple[int, float, str]:
    """Of all of training, together with the runs that it began with; and since when, where it began with a file."""
    runs = [facts["training"], *(run["training"] for run in facts["begun_with"] if run["training"])]
    files = [run["name"] for run in facts["begun_with"] if run["training"] is None]
    since = f" beside what went into the file {files[0]} that it began with" if files else ""
    return sum(run["pairs"] for run in runs), sum(run["seconds"] for run in runs), since


def _scores(facts: Mapping[str, Any]) -> str:
    results = facts["results"]
    rows = {
        "drawn": results["dataset"],
        baselines.INPUT_REPEATED: results["baselines"]["input view repeated"],
        baselines.MEAN_IMAGE: facts["mean_image"],
    }
    columns = [column for column in (*_COLUMNS, _PATCHES) if results["dataset"].get(column[0]) is not None]
    consistency = _consistency_rows(facts)
    rows |= {name: {} for name in consistency if name not in rows}
    heads = ["3D consistency: PSNR, dB ↑", "SSIM ↑"] if consistency else []
    lines = [["", *(title for _, title, _ in columns), *heads]]
    for name, figures in rows.items():
        title = f"**{facts['name']}**" if name == "drawn" else _TITLES.get(name, name)
        fitted = consistency.get(name, {})
        lines.append(
            [
                title,
                *(_figure(figures, key, digits) for key, _, digits in columns),
                *([_number(fitted.get("psnr"), 2), _number(fitted.get("ssim"), 3)] if consistency else []),
            ]
        )
    s, protocol = results["sampling"], results["protocol"]
    device = results["device"]
    notes = [
        f"{results['num_objects']} held-out objects, {results['num_views']:,} views of {protocol['image_size']} px, "
        f"each object from its view {protocol['input_view']} alone, by `--mode=evaluate`: {s['num_steps']} steps of "
        f"{s['solver']} with guidance {s['guidance_weight']:g}, {facts['evaluations_per_view']} network evaluations a "
        f"view, on {device['count']} {device['kind']} device(s). PSNR and SSIM are means over all views, ± the "
        "standard deviation over objects. The patch distance asks whether views look real, not whether they are "
        "right: the repeated input consists of true patches. Baselines are scored in the same way on the same views.",
        *report.caveats(results),
    ]
    if consistency:
        notes.append(_about_consistency(facts))
    return "\n\n".join([_grid(lines), " ".join(notes), _by_kind(facts)])


def _consistency_rows(facts: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    found = facts["consistency"]
    return {"drawn" if name == found["drawn"] else name: row for name, row in found["rows"].items()} if found else {}


def _about_consistency(facts: Mapping[str, Any]) -> str:
    found = facts["consistency"]
    counts = sorted({row["num_objects"] for row in found["rows"].values()})
    text = (
        f"3D consistency: of {' or '.join(map(str, counts))} object(s), one neural field each, "
        f"{found['settings']['field']['rays_per_step']} rays a step (0 is all); compare only rows of this table."
    )
    changed = found["not_the_frozen_settings"]
    return text + (f" The field differs from the project's usual one: {_settings(changed)}." if changed else "")


def _by_kind(facts: Mapping[str, Any]) -> str:
    lines = [["", "objects", "PSNR, dB", "SSIM", "input view repeated, dB"]]
    for kind in _kinds(facts):
        found = [one for name, one in facts["results"]["objects"].items() if name.startswith(f"{kind}_")]
        if found:
            figures = [_mean(found, "psnr", 2), _mean(found, "ssim", 3), _mean(found, "repeated_psnr", 2)]
            lines.append([f"{kind}s", str(len(found)), *figures])
    return _grid(lines)


def _limits(facts: Mapping[str, Any], kinds: str) -> list[str]:
    results, data, t = facts["results"], facts["data"], facts["training"]
    pairs, seconds, since = _pairs_and_seconds(facts)
    psnr = results["dataset"]["psnr"]
    others = {
        "repeating the input view": results["baselines"]["input view repeated"]["psnr"],
        "the mean of all training views": facts["mean_image"]["psnr"],
    }
    against = " and ".join(
        f"{abs(psnr - other):.2f} dB {'above' if psnr > other else '**below**'} {what}"
        for what, other in others.items()
    )
    order = sorted(results["objects"], key=lambda name: results["objects"][name]["psnr"])
    worst, best = order[0], order[-1]
    bins = results["psnr_by_angle"]
    near, far = bins[0], bins[-1]
    size = facts["config"]["model"]["image_size"]
    return [
        f"It knows nothing but procedural {kinds}, upright, on white, under lights that never move and without "
        "shadows. It has seen no photograph: expect nothing of pictures of other things.",
        f"Pictures are of {size} px. Cameras look at the object's middle from a distance of "
        f"{_range(data['distance'], 2)} and from elevations of {_range(data['elevation'], 0)} degrees; from elsewhere "
        "views are a guess.",
        f"It has seen {pairs:,} pairs in {_time(seconds)}{since}"
        + (", without an accelerator that is known to the project" if t["mfu"] is None else "")
        + ": what came out of that budget, not what the method can do.",
        f"PSNR is {against}.",
        f"What the input view does not show is made up: {near['psnr']:.2f} dB at {near['from_degrees']} to "
        f"{near['to_degrees']} degrees from it, {far['psnr']:.2f} dB at {far['from_degrees']} to {far['to_degrees']}.",
        f"Objects differ: {results['objects'][worst]['psnr']:.2f} dB ({worst}) to "
        f"{results['objects'][best]['psnr']:.2f} dB ({best}).",
        f"One training and one drawing of {results['num_objects']} objects: the scores come without errors over "
        "trainings or sampling seeds.",
        *facts["notes"],
    ]


# ------------------------------------------------------------------------------------------------------------ pictures


def sheet(evaluation: epath.PathLike, tasks: Sequence[Task], size: int) -> np.ndarray:
    """Input, drawn views, and the truth beneath: of objects evenly spaced over those that were evaluated.

    Args:
      evaluation: folder that ``--mode=evaluate`` has written.
      tasks: all of them, in the order of the data set.
      size: of the pictures, pixels.

    Returns:
      (height, width, 3) uint8.
    """
    count = min(_OBJECTS, len(tasks))
    tasks = [tasks[len(tasks) * index // count] for index in range(count)]
    paths = sampled.DrawnViews(epath.Path(evaluation) / "views").find(tasks)
    rows, labels, numbers = [], [], []
    columns = min(_VIEWS, *(len(task.target_views) for task in tasks))
    for task in tasks:
        views, total = task.load(), len(task.target_views)
        places = [(2 * index + 1) * total // (2 * columns) for index in range(columns)]
        pictures = sampled.read([paths[task.name][place] for place in places], views.targets[np.array(places)], size)
        blank = np.full_like(views.inputs[:1], 255)
        rows += [np.concatenate([views.inputs[:1], pictures]), np.concatenate([blank, views.truth[places]])]
        labels += [f"{task.name}", "truth"]
        numbers.append([f"view {task.target_views[place]}" for place in places])
    same = all(each == numbers[0] for each in numbers)
    titles = ["input", *(numbers[0] if same else [""] * columns)]
    return images.make_grid(np.stack(rows), scale=_SCALE, row_labels=labels, col_labels=titles)


# --------------------------------------------------------------------------------------------------------------- texts


def _kinds(facts: Mapping[str, Any]) -> list[str]:
    return list(facts["config"]["data"]["procedural"]["kinds"])


def _settings(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _figure(figures: Mapping[str, Any], key: str, digits: int) -> str:
    text, spread = _number(figures.get(key), digits), figures.get(f"{key}_std_over_objects")
    return text if spread is None else f"{text} ± {spread:.{digits}f}"


def _mean(found: Sequence[Mapping[str, Any]], key: str, digits: int) -> str:
    values = [one[key] for one in found]
    return _NOTHING if None in values else f"{np.mean(values):.{digits}f}"


def _number(value: float | None, digits: int) -> str:
    return _NOTHING if value is None else f"{value:.{digits}f}"


def _range(ends: Sequence[float], digits: int) -> str:
    low, high = (f"{end:.{digits}f}" for end in ends)
    return low if low == high else f"{low} to {high}"


def _time(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"


def _dates(training: Mapping[str, Any]) -> str:
    first, last = (
        datetime.datetime.fromtimestamp(training[name], datetime.UTC).date().isoformat()
        for name in ("first_time", "last_time")
    )
    return first if first == last else f"{first} to {last}"


def _list(sentences: Sequence[str]) -> str:
    return "\n".join(f"- {each}" for each in sentences)


def _grid(lines: Sequence[Sequence[str]]) -> str:
    texts = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([texts[0], f"|{' --- |' * len(lines[0])}", *texts[1:]])
