"""The model card of trained weights: what they are, made of what, how good, and which commands make them again.

    python -m scripts.model_card --workdir=runs/shapes64 --evaluation=runs/shapes64/evaluation/shapes64 \\
        --weights=threedim/pretrained/shapes64.safetensors --out=threedim/pretrained

writes ``NAME.md`` and ``NAME.png``, a sheet of samples. Every number is read from files: the run's config.json and
metrics.jsonl, the evaluation's results.json and pictures, the records of the data, the weights themselves, and with
``--consistency`` the results of `threedim.evaluation.consistency`. Files of other weights or data are refused.
"""

from __future__ import annotations

import argparse
import json
import runpy
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections
from etils import epath

from scripts import ablations, baselines, model_card_page
from threedim import config as config_lib
from threedim import files, provenance, weights
from threedim.consistency.held_out import ScoredObject, fingerprint, load_json
from threedim.output import images
from threedim.training import checkpoints, run_info

# What the weights and the run must have in common. Where the data lies, and how long training was to be, is neither.
_SECTIONS = ("seed", "model", "diffusion", "data")
_ELSEWHERE = ("data.dir",)
_FILES = ("evaluate.inception", "evaluate.lpips_backbone", "evaluate.lpips_lin")


def write(
    workdir: epath.PathLike,
    evaluation: epath.PathLike,
    weights_file: epath.PathLike,
    out: epath.PathLike,
    *,
    consistency: epath.PathLike | None = None,
    config_file: str | None = None,
    begun_with: Sequence[tuple[epath.PathLike, str]] = (),
    notes: Sequence[str] = (),
    overwrite: bool = False,
) -> dict[str, Any]:
    """Writes the card and the sheet.

    Args:
      workdir: of the training run.
      evaluation: folder that ``--mode=evaluate`` has written with these weights.
      weights_file: the weights; their name is the card's.
      out: folder for both.
      consistency: folder of a 3D consistency score of the evaluation's views, and of other rows.
      config_file: with which the run was started, as given to ``--config``; configs/NAME.py if None.
      begun_with: the run that ``train.init_from`` named, if it named one, and so on back to the first: of each its
        folder, and the config file as above. Where it named weights, their file, with "" for the config file; what came
        before them their own card tells.
      notes: sentences of the person who trained, added to the limits.
      overwrite: replaces an existing card and sheet.

    Returns:
      What the card says.

    Raises:
      FileNotFoundError: if a file is missing.
      FileExistsError: if a card is there and not to be replaced.
      ValueError: if files are damaged, or are not of the same weights and data.
    """
    name, out = epath.Path(weights_file).stem, epath.Path(out)
    card, sheet = out / f"{name}.md", out / f"{name}.png"
    for path in (card, sheet):
        if path.exists() and not overwrite:
            raise FileExistsError(f"{path} is there already: name another --out, or replace it with --overwrite")
    evaluation = epath.Path(evaluation)
    results = load_json(evaluation / "results.json")
    facts = {"name": name, "config_file": config_file or f"configs/{name}.py", "notes": list(notes)}
    facts |= _weights_and_run(epath.Path(weights_file), epath.Path(workdir), results)
    facts["begun_with"] = _begun_with(facts["config"], begun_with)
    config, tasks = baselines.protocol_tasks(results)
    seen = baselines.training_views(config)
    if seen.fingerprint != facts["training"]["data_fingerprint"]:
        raise ValueError(f"{config.data.dir} holds other training data than the run in {workdir} began with")
    facts["data"] = {
        "train_objects": seen.objects,
        "train_views": seen.views,
        "distance": seen.distance,
        "elevation": seen.elevation,
        "fingerprints": {"train": seen.fingerprint, "test": results["protocol"]["data_fingerprint"]},
    }
    facts["mean_image"] = baselines.score_picture(config, tasks, seen.mean)
    facts["results"] = results
    facts["consistency"] = _consistency(epath.Path(consistency), evaluation) if consistency else None
    facts["commands"] = commands(facts)
    # The picture first: a card that is there has one.
    images.save_png(sheet, model_card_page.sheet(evaluation, tasks, config.model.image_size))
    files.write_atomically(card, model_card_page.markdown(facts))
    return facts


def _weights_and_run(path: epath.Path, workdir: epath.Path, results: dict[str, Any]) -> dict[str, Any]:
    info, params = weights.load_weights(path)
    identity = provenance.file_identity(path)["sha256"]
    used = (results["sampling"] or {}).get("weights")
    if used != identity:
        raise ValueError(
            f"the evaluation is not of {path} (sha256 {identity[:12]}), but of "
            f"{f'sha256 {used[:12]}' if used else 'something else'}; evaluate with --config.sample.weights={path}"
        )
    saved, data_fingerprint = run_info.read_run_info(workdir)
    exported = json.loads(info.config.to_json())
    if lines := _differences(saved, exported, _SECTIONS):
        raise ValueError(f"{path} is not of the run in {workdir} (run → file):\n  " + "\n  ".join(lines))
    if exported["data"]["source"]:
        raise ValueError(
            f"{path}: the card is of weights trained on procedural data, not on {exported['data']['source']}"
        )
    count, size = sum(leaf.size for leaf in jax.tree.leaves(params)), path.stat().length
    process, settings = (
        config_lib.process(info.config),
        config_lib.sample_settings(ml_collections.ConfigDict(results["config"])),
    )
    return {
        "weights": {
            "parameters": count,
            "bytes": size,
            "dtype": "float32" if size >= 4 * count else "bfloat16",
            "sha256": identity,
            "commit": info.commit,
        },
        "config": exported,
        "training": _training(workdir, info.training_steps, exported) | {"data_fingerprint": data_fingerprint},
        "evaluations_per_view": settings.evaluations(process),
    }


def _begun_with(config: dict[str, Any], given: Sequence[tuple[epath.PathLike, str]]) -> list[dict[str, Any]]:
    """The run that this one took its first weights from, the one that that one did, and so on; or a file of weights."""
    found = []
    for folder, config_file in [*given, ("", "")]:
        of_a_file = bool(found) and found[-1]["training"] is None
        named = "" if of_a_file else run_info.flatten(config).get("train.init_from", "")
        if _name(named) != _name(folder):
            raise ValueError(
                f"{f'the run in {given[len(found) - 1][0]}' if found else 'the run'} began with "
                f"{f'the weights in {named}' if named else 'fresh weights'}, but --begun_with names "
                f"{folder or 'nothing'}: name the folder of every run before, the last one first, and its config file; "
                "or a file of weights, and nothing before it"
            )
        if not folder:
            break
        path = epath.Path(folder)
        if weights.is_weights_file(path):
            info = weights.read_info(path)
            config, training, steps = json.loads(info.config.to_json()), None, info.training_steps
        else:
            steps = checkpoints.latest_step(path)
            if steps is None:
                raise FileNotFoundError(f"no checkpoint in {path}")
            config, data_fingerprint = run_info.read_run_info(path)
            training = _training(path, steps, config) | {"data_fingerprint": data_fingerprint}
        found.append({"name": _name(path), "config_file": config_file, "config": config, "steps": steps})
        found[-1] |= {"training": training, "sha256": None if training else provenance.file_identity(path)["sha256"]}
    return found


def _name(source: epath.PathLike) -> str:
    """Of a run's folder, a file of weights, or weights of the package."""
    path = epath.Path(source)
    return path.stem if weights.is_weights_file(path) else path.name


def _training(workdir: epath.Path, steps: int, config: dict[str, Any]) -> dict[str, Any]:
    path = workdir / "metrics.jsonl"
    seconds = ablations.training_seconds(workdir, steps)
    if seconds is None:
        raise FileNotFoundError(f"{path} is missing: it says how long the run took")
    text = path.read_text()
    # The last line may be cut short, or just be written.
    lines = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    lines = [line for line in lines if line["step"] <= steps]
    if not lines or lines[-1]["step"] + config["train"]["log_every"] < steps:
        raise ValueError(f"{path} ends before step {steps:,}, which the weights are of")
    rates = [line["mfu"] for line in lines if line.get("mfu") is not None]
    pairs = steps * config["train"]["batch_size"]
    return {
        "steps": steps,
        "pairs": pairs,
        "seconds": seconds,
        "pairs_per_second": pairs / seconds,
        "first_time": lines[0]["time"],
        "last_time": lines[-1]["time"],
        "loss": lines[-1]["loss"],
        "mfu": sum(rates) / len(rates) if rates else None,
    }


def _consistency(folder: epath.Path, evaluation: epath.Path) -> dict[str, Any]:
    """Rows of a consistency score; "drawn" is the name of that of the evaluation's views."""
    results = load_json(folder / "results.json")
    drawn = None
    for name, row in results["rows"].items():
        if drawn is None and all(
            (evaluation / "views" / each).is_dir()
            and one["views_sha256"] == fingerprint(ScoredObject(evaluation / "views" / each, (), (), 0))
            for each, one in row["objects"].items()
        ):
            drawn = name
    if drawn is None:
        rows = ", ".join(results["rows"])
        raise ValueError(f"{folder} holds no score of {evaluation / 'views'} as they are; its rows are {rows}")
    return {
        "drawn": drawn,
        "rows": {
            name: {key: row[key] for key in ("views", "psnr", "ssim", "num_objects")}
            for name, row in results["rows"].items()
        },
        "settings": results["settings"],
        "not_the_frozen_settings": results["not_the_frozen_settings"],
    }


# ------------------------------------------------------------------------------------------------------------ commands


def commands(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What each does and how it is typed, in the order in which they make the weights and the card again.

    Folders are the usual ones, wherever the run was.
    """
    name, config_file, results = facts["name"], facts["config_file"], facts["results"]
    run, file = f"runs/{name}", f"threedim/pretrained/{name}.safetensors"
    evaluation, fields = f"{run}/evaluation/{name}", f"{run}/consistency"
    begun = _from_file(config_file)
    main = ["-m", "threedim.main", f"--config={config_file}"]
    skipped = ("sample", "evaluate", "profile", "train.num_steps", "train.init_from")
    train = _flags(begun, facts["config"], skipped)
    first, init_from, begin = [], [], "train"
    for earlier in reversed(facts["begun_with"]):
        if earlier["sha256"]:
            init_from = [f"--config.train.init_from={_kept(earlier)}"]
            begin += f", begun with the file of sha256 {earlier['sha256'][:12]}"
            continue
        flags = [*_flags(_from_file(earlier["config_file"]), earlier["config"], skipped), *init_from]
        flags.append(f"--config.train.num_steps={earlier['steps']}")
        folder = f"runs/{earlier['name']}"
        head = ["-m", "threedim.main", f"--config={earlier['config_file']}", "--mode=train", f"--workdir={folder}"]
        begin, what = "train", f"{begin} at {earlier['config']['model']['image_size']} px"
        first.append((what, [*head, *flags]))
        init_from = [f"--config.train.init_from={folder}"]
    train += init_from
    set_here = ("sample.weights", "sample.out", "evaluate.out")
    asked = _flags(begun, results["config"], ("train", "profile", "mesh", *set_here))
    size = [] if facts["weights"]["dtype"] == "bfloat16" else ["--dtype=float32"]
    steps = facts["training"]["steps"]
    found = [
        *first,
        (begin, [*main, "--mode=train", f"--workdir={run}", *train, f"--config.train.num_steps={steps}"]),
        ("export", ["-m", "threedim.weights", f"--workdir={run}", f"--step={steps}", *size, f"--out={file}"]),
        ("evaluate", [*main, "--mode=evaluate", f"--workdir={run}", f"--config.sample.weights={file}", *asked]),
    ]
    card = ["-m", "scripts.model_card", f"--workdir={run}", f"--evaluation={evaluation}"]
    if facts["consistency"]:
        rows = facts["consistency"]["rows"]
        if rows.keys() & {baselines.MEAN_IMAGE, baselines.INPUT_REPEATED}:
            write_them = ["-m", "scripts.baselines", f"--evaluation={evaluation}"]
            found.append(("baselines", [*write_them, f"--out={run}/baselines"]))
        found.append(
            ("3D consistency", _consistency_command(facts, f"{evaluation}/views", begun["data"]["dir"], fields))
        )
        card.append(f"--consistency={fields}")
    for earlier in facts["begun_with"]:
        source = [_kept(earlier)] if earlier["sha256"] else [f"runs/{earlier['name']}", earlier["config_file"]]
        card += ["--begun_with", *source]
    card += [f"--config={config_file}"] if config_file != f"configs/{name}.py" else []
    card += [f"--note={note}" for note in facts["notes"]]
    found.append(("card", [*card, f"--weights={file}", "--out=threedim/pretrained", "--overwrite"]))
    return [(what, shlex.join(["python", *arguments])) for what, arguments in found]


def _kept(earlier: Mapping[str, Any]) -> str:
    """Where the file of weights that a run began with is expected: not where weights of the same name are written."""
    return f"runs/{earlier['name']}_{earlier['sha256'][:12]}/{earlier['name']}{weights.SUFFIX}"


def _consistency_command(facts: Mapping[str, Any], views: str, data: str, out: str) -> list[str]:
    consistency = facts["consistency"]
    settings, rows = consistency["settings"], consistency["rows"]
    places = {consistency["drawn"]: views, baselines.TRUE: f"{data}/procedural/test"}
    places |= {
        name: f"runs/{facts['name']}/baselines/{name}" for name in (baselines.MEAN_IMAGE, baselines.INPUT_REPEATED)
    }
    arguments = ["-m", "threedim.evaluation.consistency"]
    for name, row in rows.items():
        arguments.append(f"--views={name}={places.get(name, epath.Path(row['views']).name)}")
    arguments += [f"--input_view={view}" for view in settings["input_views"]]
    fitted = max(row["num_objects"] for row in rows.values())
    if fitted < facts["results"]["num_objects"]:
        arguments.append(f"--max_objects={fitted}")
    arguments.append(f"--rays_per_step={settings['field']['rays_per_step']}")
    arguments += [f"--set={name}={value}" for name, value in consistency["not_the_frozen_settings"].items()]
    arguments += [f"--{name}={settings[name]}" for name in ("size", "seed") if settings[name]]
    return [*arguments, f"--out={out}"]


def _from_file(config_file: str) -> dict[str, Any]:
    path, *arguments = config_file.split(":")
    if not epath.Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file; name the one that the run was started with: --config=FILE")
    return json.loads(runpy.run_path(path)["get_config"](*arguments).to_json())


def _differences(then: Mapping[str, Any], now: Mapping[str, Any], sections: Sequence[str]) -> list[str]:
    one, other = (run_info.LATER_FIELDS | run_info.flatten(each) for each in (then, now))
    return [
        f"{name}: {one.get(name)} → {other.get(name)}"
        for name in sorted(one.keys() | other.keys())
        if name.split(".")[0] in sections and name not in _ELSEWHERE and one.get(name) != other.get(name)
    ]


def _flags(begun: Mapping[str, Any], then: Mapping[str, Any], skipped: Sequence[str]) -> list[str]:
    """Flags that turn the settings of a config file into those of a run, but for some sections and fields."""
    before, after = run_info.flatten(begun), run_info.flatten(then)
    flags = []
    for name, value in after.items():
        left_out = any(f"{name}.".startswith(f"{each}.") for each in (*skipped, *_ELSEWHERE))
        if left_out or name not in before or before[name] == value:
            continue
        value = tuple(value) if isinstance(value, list) else value
        flags.append(f"--config.{name}={epath.Path(value).name if name in _FILES else value}")
    return flags


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser("python -m scripts.model_card", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--workdir", required=True, help="Folder of the training run.")
    add("--evaluation", required=True, help="Folder that --mode=evaluate has written with these weights.")
    add("--consistency", help="Folder of a 3D consistency score of the evaluation's views.")
    add("--weights", required=True, help=f"The weights, ending in {weights.SUFFIX}.")
    add("--config", help="Config file of the run, with its argument if it had one; configs/NAME.py unless given.")
    add("--begun_with", nargs="+", action="append", default=[], metavar="RUN CONFIG", help="Folder and config file "
        "of the run that train.init_from named, if it named one; again for the one before that. "
        f"Where it named weights, their {weights.SUFFIX} file alone.")  # fmt: skip
    add("--note", action="append", default=[], help="A sentence to be added to the limits; may be repeated.")
    add("--out", required=True, help="Folder for NAME.md and NAME.png.")
    add("--overwrite", action="store_true", help="Replace them if they are there.")
    given = parser.parse_args(argv)
    for before in given.begun_with:
        if len(before) + weights.is_weights_file(before[0]) != 2:
            parser.error("--begun_with takes a run's folder and its config file, or a file of weights alone")
    try:
        write(
            given.workdir,
            given.evaluation,
            given.weights,
            given.out,
            consistency=given.consistency,
            config_file=given.config,
            begun_with=[(*before, "")[:2] for before in given.begun_with],
            notes=given.note,
            overwrite=given.overwrite,
        )
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    name = epath.Path(given.weights).stem
    print(f"card:  {epath.Path(given.out) / name}.md\nsheet: {epath.Path(given.out) / name}.png")


if __name__ == "__main__":
    main()
