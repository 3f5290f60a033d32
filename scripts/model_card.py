"""The model card of trained weights: what they are, how they were trained, how good they are, and how to repeat it.

    python -m scripts.model_card --workdir=runs/shapes64 --evaluation=runs/shapes64/evaluation/shapes64 \\
        --weights=threedim/pretrained/shapes64.safetensors --out=threedim/pretrained

writes ``NAME.md`` and ``NAME.png``, a sheet of samples. All numbers are read from files: the run's config.json and
metrics.jsonl, the evaluation's results.json and views, the data, the weights, and with ``--consistency`` the results of
`threedim.evaluation.consistency`. Files of other weights or data are refused.
"""

from __future__ import annotations

import argparse
import datetime
import json
import runpy
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from etils import epath

from scripts.tables import number, table
from threedim import errors, files, pixels, weights_file
from threedim import settings as settings_lib
from threedim.data import sources
from threedim.errors import ExistsError, MissingError, UserError
from threedim.evaluation import protocol, report, scores
from threedim.evaluation.sampled import SampledViews, read_views
from threedim.files import read_json
from threedim.output import sheets
from threedim.progress import Progress
from threedim.tasks import Task, make_tasks
from threedim.trained import Trained, open_run, open_trained
from threedim.training.run_info import read_run_info

_OBJECTS, _VIEWS, _SCALE = 6, 6, 2  # of the sheet
_COLUMNS = {"psnr": ("PSNR, dB ↑", 2), "ssim": ("SSIM ↑", 3), "fid": ("FID ↓", 2), "lpips": ("LPIPS ↓", 3)}
_COLUMNS |= {"patch_distance": ("patch distance ↓", 2)}
# Fields that the commands set themselves.
_SET_HERE = ("data.dir", "train.num_steps", "train.init_from", "sample.weights", "sample.out", "evaluate.out")


class Stage(NamedTuple):
    """A training run."""

    workdir: epath.Path
    config_file: str  # as given to --config
    settings: dict[str, Any]
    steps: int
    seconds: float
    lines: list[dict[str, Any]]  # of metrics.jsonl

    @property
    def pairs(self) -> int:
        return self.steps * self.settings["train"]["batch_size"]


def write(given: argparse.Namespace) -> list[epath.Path]:
    """Writes the card and the sheet, and returns their paths.

    Raises:
      MissingError: if a file is missing.
      ExistsError: if the card exists.
      UserError: if files are damaged, or are not of the same weights and data.
    """
    name, out = epath.Path(given.weights).stem, epath.Path(given.out)
    paths = [out / f"{name}.png", out / f"{name}.md"]
    for path in paths:
        if path.exists() and not given.overwrite:
            raise ExistsError(f"{path} exists: choose another --out, or replace it with --overwrite")
    evaluation, trained = epath.Path(given.evaluation), open_trained(given.weights)
    results = read_json(evaluation / "results.json")
    _check_same(trained, results, given)
    stages = _stages(trained, given)
    consistency = read_json(epath.Path(given.consistency) / "results.json") if given.consistency else None
    if consistency and name not in consistency["rows"]:
        raise UserError(f"{given.consistency} has no row {name}; score it with --views={name}={evaluation / 'views'}")
    config = ml_collections.ConfigDict(results["config"])
    mean, data = _training_views(config, read_run_info(given.workdir)[1], results)
    tasks = make_tasks(protocol.sampling_config(config))
    baseline = _score_picture(config, tasks, mean)
    count = sum(leaf.size for leaf in jax.tree.leaves(trained.params()))
    dtype = "float32" if epath.Path(given.weights).stat().length >= 4 * count else "bfloat16"
    parts = [
        f"# {name}",
        f'`threedim.load("{name}")` and `--config.sample.weights={name}` use these weights. All numbers were read '
        "from the files of the run and of its evaluation; the commands are at the end.",
        f"![samples]({name}.png)",
        f"Evenly spaced objects of the {results['num_objects']} held-out ones, and evenly spaced views of each: the "
        "input view, the sampled views, and the true views below them.",
        "## Weights\n\n" + _weights(given.weights, trained, count, dtype),
        "## Data\n\n" + data,
        "## Training\n\n" + _training(stages, results),
        "## Scores on held-out objects\n\n" + _scores(name, results, baseline, consistency),
        "## Limits\n\n" + "\n".join(f"- {line}" for line in [*_limits(results, baseline, stages), *given.note]),
        "## License\n\nApache-2.0, like the project.",
        "## Commands\n\n```\n" + "\n".join(_commands(given, stages, dtype, results, consistency)) + "\n```",
        "An interrupted training run saves a checkpoint, and the same command resumes it.",
    ]
    # The picture first: a card that exists has one.
    pixels.save_png(paths[0], _sheet(evaluation, tasks, config.model.image_size))
    files.write_atomically(paths[1], "\n\n".join(parts) + "\n")
    return paths


def _check_same(trained: Trained, results: Mapping[str, Any], given: argparse.Namespace) -> None:
    if (results["sampling"] or {}).get("weights") != trained.identity:
        said = f"{given.evaluation} is not an evaluation of {given.weights}"
        raise UserError(f"{said}; evaluate with --config.sample.weights={given.weights}")
    # The run may have gone on since the export.
    of_run, now = (settings_lib.plain(each.config) for each in (open_run(given.workdir), trained))
    only = ("seed", "model", "diffusion", "data")
    changes = settings_lib.differences(of_run, now, only, ignore=("data.dir",))
    what = f"{given.weights} is not of the run in {given.workdir}"
    settings_lib.refuse(what, changes, "Name the run of the weights.")


def _stages(trained: Trained, given: argparse.Namespace) -> list[Stage]:
    """The run, after the runs that its first weights came from."""
    stages = [_stage(epath.Path(given.workdir), given.config, trained)]
    for text in given.started_from:
        folder, _, config_file = text.partition("=")
        source, before = stages[0].settings["train"]["init_from"], epath.Path(files.path(folder))
        if epath.Path(source).name != before.name or not config_file:
            said = f"{stages[0].workdir} started from {source or 'none'}"
            raise UserError(f"--started_from={text}: expected RUN=CONFIG, and {said}")
        stages.insert(0, _stage(before, config_file, open_run(folder)))
    return stages


def _stage(workdir: epath.Path, config_file: str, trained: Trained) -> Stage:
    settings, steps, path = settings_lib.plain(trained.config), trained.step, workdir / "metrics.jsonl"
    if not path.exists():
        raise MissingError(f"{path} is missing; it says how long the run took")
    # The last line may be cut short.
    lines = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    lines = [line for line in lines if line["step"] <= steps and "loss" in line]  # not those of held-out objects
    if not lines or lines[-1]["step"] + settings["train"]["log_every"] < steps:
        raise UserError(f"{path} ends before step {steps:,}, that of the weights")
    intervals = np.diff([0, *(line["step"] for line in lines)])
    seconds = float(intervals @ [line["seconds_per_step"] for line in lines])
    return Stage(workdir, config_file, settings, steps, seconds, lines)


def _training_views(config: ml_collections.ConfigDict, fingerprint: str, results: Mapping[str, Any]):
    """The mean of all training views, (height, width, 3) uint8, and a paragraph about the data."""
    train, test = (sources.open_from_config(config.data, split) for split in ("train", "test"))
    if (train.fingerprint, test.fingerprint) != (fingerprint, results["protocol"]["data_fingerprint"]):
        raise UserError(f"{config.data.dir} holds other data than the run was trained or evaluated with")
    size = config.model.image_size
    total, centers = np.zeros((size, size, 3)), []
    with Progress(len(train), desc="mean of the training views, objects") as bar:
        for index in range(len(train)):
            pictures, cameras = train.views(index, range(train.num_views(index)), size)
            total += pictures.sum(axis=0, dtype=np.float64)
            centers.append(cameras.t)
            bar.advance()
    centers = np.concatenate(centers).astype(np.float64)
    distance = np.linalg.norm(centers, axis=-1)
    elevation = np.degrees(np.arcsin(np.clip(centers[:, 2] / distance, -1, 1)))
    about = (
        f"{len(train):,} training objects with {len(centers):,} views from distances of {distance.min():.2f} to "
        f"{distance.max():.2f} and elevations of {elevation.min():.0f} to {elevation.max():.0f} degrees; {len(test):,} "
        f"held-out objects. Source: {config.data.source or 'procedural ' + ', '.join(config.data.procedural.kinds)}. "
        f"Fingerprints: train `{train.fingerprint[:12]}`, test `{test.fingerprint[:12]}`."
    )
    return np.rint(total / len(centers)).astype(np.uint8), about


def _score_picture(config: ml_collections.ConfigDict, tasks: Sequence[Task], picture: np.ndarray) -> dict[str, Any]:
    """Scores of one picture in place of every view, like "dataset" in results.json, without FID and LPIPS."""
    total = sum(len(task.target_views) for task in tasks)
    scored = scores.Scores(total, config.model.image_size, config.evaluate.seed)
    for task in tasks:
        views = task.load()
        scored.add(task, views, np.ascontiguousarray(np.broadcast_to(picture, views.truth.shape)))
    return scored.results()["dataset"]


def _weights(path: epath.PathLike, trained: Trained, count: int, dtype: str) -> str:
    plain, commit = settings_lib.plain(trained.config), weights_file.read_info(path).commit
    rows = {
        "parameters": f"{count:,}, {dtype}, averaged over training",
        "file": f"{epath.Path(path).stat().length / 1e6:.2f} MB, sha256 `{trained.identity}`",
        "network": _settings(plain["model"]),
        "diffusion": _settings(plain["diffusion"]),
        "cameras": f"{plain['data']['pose']} poses",
        "exported by": f"commit `{commit}`" if commit else "unknown commit",
    }
    return table([["", ""], *rows.items()])


def _training(stages: Sequence[Stage], results: Mapping[str, Any]) -> str:
    """A table with a column for each run, the last one first."""
    columns = []
    shown = ("learning_rate", "warmup_examples", "adam_b1", "adam_b2", "ema_half_life", "ema_rampup", "uncond_prob")
    for stage in reversed(stages):
        c, train, last = stage.settings, stage.settings["train"], stage.lines[-1]
        dates = dict.fromkeys(str(datetime.date.fromtimestamp(stage.lines[i]["time"])) for i in (0, -1))
        rates = [line["mfu"] for line in stage.lines if line.get("mfu")]
        cells = {
            "": stage.workdir.name,
            "steps": f"{stage.steps:,} of {train['batch_size']} pairs at {c['model']['image_size']} px",
            "started from": train["init_from"] or "random weights",
            "time": f"{stage.seconds / 3600:.2f} h ({stage.pairs / stage.seconds:.1f} pairs/s), {' to '.join(dates)}",
            "final loss": f"{last['loss']:.4f}",
            "by noise level, from clean to noise": ", ".join(
                f"{last[key]:.3f}" for key in sorted(last) if key.startswith("loss_by_noise/")
            ),
            "model FLOPs utilization": f"{100 * np.mean(rates):.1f} %" if rates else "not logged (CPU)",
            "augmentation": _settings(c["data"]["augment"]),
            "settings": _settings({name: train[name] for name in (*shown, "color_weight")}),
            "seed": str(c["seed"]),
        }
        columns.append(cells.values())
    lines = list(zip(cells, *columns, strict=True))
    seeds = f"sampling {results['config']['sample']['seed']}, evaluation {results['protocol']['seed']}"
    return table(lines) + f"\n\nOther seeds: {seeds}."


def _scores(name: str, results: Mapping[str, Any], mean: Mapping[str, Any], consistency: dict | None) -> str:
    rows = {f"**{name}**": results["dataset"], **results["baselines"], "mean of all training views": mean}
    shown = [key for key in _COLUMNS if results["dataset"].get(key) is not None]
    lines = [["", *(_COLUMNS[key][0] for key in shown)]]
    for title, figures in rows.items():
        spreads = [figures.get(f"{key}_std_over_objects") for key in shown]
        cells = [number(figures.get(key), _COLUMNS[key][1], each) for key, each in zip(shown, spreads, strict=True)]
        lines.append([title, *cells])
    sampling, device, view = results["sampling"], results["device"], results["protocol"]["input_view"]
    about = (
        f"{results['num_objects']} held-out objects, {results['num_views']:,} views of "
        f"{results['protocol']['image_size']} px from input view {view}: "
        f"{sampling['num_steps']} steps of {sampling['solver']} with guidance {sampling['guidance_weight']:g} on "
        f"{device['count']} {device['kind']} device(s). Means over all views ± standard deviation over objects. The "
        "patch distance asks whether views look real, not whether they are right. "
    )
    parts = [table(lines), about + " ".join(report.caveats(results))]
    kinds: dict[str, list[dict[str, Any]]] = {}
    for each, one in results["objects"].items():
        kinds.setdefault(each.split("_")[0], []).append(one)
    if len(kinds) < len(results["objects"]):
        lines = [["objects", "", "PSNR, dB", "input view repeated, dB"]]
        for kind, found in kinds.items():
            means = [f"{np.mean([one[key] for one in found]):.2f}" for key in ("psnr", "repeated_psnr")]
            lines.append([kind, str(len(found)), *means])
        parts.append(table(lines))
    if consistency:
        lines = [["3D consistency", "PSNR, dB ↑", "SSIM ↑", "objects"]]
        for row, one in consistency["rows"].items():
            title = f"**{row}**" if row == name else row
            lines.append([title, f"{one['psnr']:.2f}", f"{one['ssim']:.3f}", str(one["num_objects"])])
        changed = _settings(consistency["not_the_frozen_settings"])
        parts += [table(lines)] + ([f"The field differs from the default one: {changed}."] if changed else [])
    return "\n\n".join(parts)


def _limits(results: Mapping[str, Any], mean: Mapping[str, Any], stages: Sequence[Stage]) -> list[str]:
    psnr, objects, bins = results["dataset"]["psnr"], results["objects"], results["psnr_by_angle"]
    order = sorted(objects, key=lambda name: objects[name]["psnr"])
    worst, best = (f"{objects[name]['psnr']:.2f} dB ({name})" for name in (order[0], order[-1]))
    others = {"the repeated input view": results["baselines"]["input view repeated"], "the mean image": mean}
    against = [f"{psnr - figures['psnr']:+.2f} dB against {what}" for what, figures in others.items()]
    near, far = bins[0], bins[-1]
    pairs, hours = sum(stage.pairs for stage in stages), sum(stage.seconds for stage in stages) / 3600
    return [
        f"The network has seen {pairs:,} pairs in {hours:.1f} h, and only objects like those above: no photographs.",
        f"PSNR: {', '.join(against)}.",
        f"PSNR is {near['psnr']:.2f} dB at {near['from_degrees']} to {near['to_degrees']} degrees from the input view "
        f"and {far['psnr']:.2f} dB at {far['from_degrees']} to {far['to_degrees']}.",
        f"Worst object: {worst}; best: {best}.",
        "One training run and one sampling seed: the scores have no errors over either.",
    ]


def _commands(given: argparse.Namespace, stages: Sequence[Stage], dtype: str, results, consistency) -> list[str]:
    """The commands that train, export, evaluate, and write the card again."""
    name = epath.Path(given.weights).stem
    run, file = f"runs/{name}", f"threedim/pretrained/{name}.safetensors"
    evaluation, todo = f"{run}/evaluation/{name}", []
    for stage in stages:
        source = stage.settings["train"]["init_from"]
        workdir = run if stage is stages[-1] else f"runs/{stage.workdir.name}"
        flags = _flags(stage.config_file, stage.settings, ("seed", "data", "model", "diffusion", "train"))
        flags += [f"--config.train.init_from={f'runs/{epath.Path(source).name}' if todo else source}"] if source else []
        flags.append(f"--config.train.num_steps={stage.steps}")
        todo.append(["threedim.main", f"--config={stage.config_file}", "--mode=train", f"--workdir={workdir}", *flags])
    bits = [] if dtype == "bfloat16" else [f"--dtype={dtype}"]
    todo.append(["threedim.weights", f"--workdir={run}", f"--step={stages[-1].steps}", *bits, f"--out={file}"])
    flags = _flags(given.config, results["config"], ("data", "model", "diffusion", "sample", "evaluate"))
    head = ["threedim.main", f"--config={given.config}", "--mode=evaluate", f"--workdir={run}"]
    todo.append([*head, f"--config.sample.weights={file}", *flags])
    card = ["scripts.model_card", f"--workdir={run}", f"--evaluation={evaluation}", f"--weights={file}"]
    if consistency:
        settings, rows, changed = (consistency[name] for name in ("settings", "rows", "not_the_frozen_settings"))
        places = {row: one["views"] for row, one in rows.items()} | {name: f"{evaluation}/views"}
        score = ["threedim.evaluation.consistency", *(f"--views={row}={place}" for row, place in places.items())]
        score += [f"--input_view={view}" for view in settings["input_views"]]
        score += [f"--max_objects={rows[name]['num_objects']}", f"--rays_per_step={settings['field']['rays_per_step']}"]
        score += [f"--set={key}={value}" for key, value in changed.items() if key != "rays_per_step"]
        todo.append([*score, f"--out={run}/consistency"])
        card.append(f"--consistency={run}/consistency")
    card += [f"--started_from=runs/{stage.workdir.name}={stage.config_file}" for stage in stages[-2::-1]]
    notes = [f"--note={note}" for note in given.note]
    todo.append([*card, f"--config={given.config}", *notes, "--out=threedim/pretrained", "--overwrite"])
    return [shlex.join(["python", "-m", *arguments]) for arguments in todo]


def _flags(config_file: str, settings: Mapping[str, Any], sections: Sequence[str]) -> list[str]:
    """Flags for the settings that a run changed in its config file."""
    path, *argument = config_file.split(":")
    if not epath.Path(path).is_file():
        raise MissingError(f"{path}: no such file; name the config of the run")
    before = settings_lib.flatten(settings_lib.plain(runpy.run_path(path)["get_config"](*argument)))
    return [
        f"--config.{field}={tuple(value) if isinstance(value, list) else value}"
        for field, value in settings_lib.flatten(settings).items()
        if field in before and before[field] != value and field.split(".")[0] in sections and field not in _SET_HERE
    ]


def _sheet(evaluation: epath.Path, tasks: Sequence[Task], size: int) -> np.ndarray:
    """Input view and sampled views, (height, width, 3) uint8, with the true views below."""
    count = min(_OBJECTS, len(tasks))
    tasks = [tasks[len(tasks) * index // count] for index in range(count)]
    paths = SampledViews(evaluation / "views").find(tasks)
    columns = min(_VIEWS, *(len(task.target_views) for task in tasks))
    rows, labels = [], []
    for task in tasks:
        views, total = task.load(), len(task.target_views)
        places = [(2 * index + 1) * total // (2 * columns) for index in range(columns)]
        pictures = read_views([paths[task.name][place] for place in places], views.targets[np.array(places)], size)
        blank = np.full_like(views.inputs[:1], 255)
        rows += [np.concatenate([views.inputs[:1], pictures]), np.concatenate([blank, views.truth[places]])]
        labels += [task.name, "truth"]
    return sheets.make_grid(np.stack(rows), scale=_SCALE, row_labels=labels)


def _settings(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser("python -m scripts.model_card", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--workdir", type=files.path, required=True, help="Folder of the training run.")
    add("--evaluation", type=files.path, required=True, help="Folder that --mode=evaluate wrote with these weights.")
    add("--consistency", type=files.path, help="Folder of a 3D consistency score, with a row called like the weights.")
    add("--weights", type=files.path, required=True, help=f"The weights, ending in {weights_file.SUFFIX}.")
    add("--config", type=files.path, help="Config file of the run, with its argument; defaults to configs/NAME.py.")
    add("--started_from", action="append", default=[], metavar="RUN=CONFIG", help="Folder and config file of the run "
        "in train.init_from; repeat for the run before that.")  # fmt: skip
    add("--note", action="append", default=[], help="A sentence to add to the limits; repeatable.")
    add("--out", type=files.path, required=True, help="Folder for NAME.md and NAME.png.")
    add("--overwrite", action="store_true", help="Replace an existing card.")
    given = parser.parse_args(argv)
    given.config = given.config or f"configs/{epath.Path(given.weights).stem}.py"
    with errors.one_line():
        print("\n".join(map(str, write(given))))


if __name__ == "__main__":
    main()
