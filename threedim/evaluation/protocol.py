"""--mode=evaluate: the paper's protocol [3], from drawing to a page: every test object from one input view.

First all other views of every test object are drawn, one rollout for each object, as ``config.sample`` says; what is
drawn already is not drawn again. Then what lies on the disk is scored. An output folder holds what `sample_lib.sample`
writes, and

* ``results.json``: every figure, of the data set, each object and each view, and all that they depend on;
* ``report.html``: one page that needs nothing else.

Both are written anew each time. Of several processes each draws its objects; when all are done, process 0 scores them
alone. With ``config.evaluate.views`` nothing is drawn, and a folder of ready-made views is scored instead.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from typing import Any

import ml_collections
import numpy as np
from etils import epath

from threedim import distributed, files, provenance
from threedim import sample as sample_lib
from threedim.data import sources
from threedim.errors import UserError
from threedim.evaluation import published, report, sampled, scores
from threedim.evaluation.metrics import inception, lpips
from threedim.progress import progress
from threedim.tasks import Task, make_tasks

# Pictures in the report: objects at either end, and views of each.
_ENDS, _STRIP_VIEWS = 4, 6

_DRAWN_HERE = "drawn here"
_NO_LPIPS = (
    "the paper has none, and no weights are named with --config.evaluate.lpips_backbone=FILE "
    f"--config.evaluate.lpips_lin=FILE; {lpips.HOW_TO_GET_WEIGHTS}"
)
_NO_WEIGHTS = f"no weights named with --config.evaluate.inception=FILE; {inception.HOW_TO_GET_WEIGHTS}"


@dataclasses.dataclass(frozen=True)
class _Found:
    """What is scored: tasks and the files of their drawn views."""

    drawn: sampled.DrawnViews
    tasks: list[Task]
    paths: dict[str, list[epath.Path]]


def evaluate(
    config: ml_collections.ConfigDict,
    workdir: epath.PathLike,
    *,
    extract: scores.Extractor | None = None,
    compare: scores.Comparer | None = None,
) -> epath.Path:
    """Draws what is not drawn yet, scores all of it, and writes ``results.json`` and ``report.html``.

    Args:
      config: its section ``evaluate`` sets the protocol; ``sample`` how views are drawn, but not which.
      workdir: of the run; with ``config.evaluate.views`` only the place for the output.
      extract: features for the FID instead of those of ``config.evaluate.inception``.
      compare: LPIPS instead of that of ``config.evaluate.lpips_backbone`` and ``lpips_lin``.

    Returns:
      The output folder.

    Raises:
      FileNotFoundError: if there is no checkpoint, no data, no such weights, or views are missing; lists them.
      ValueError: if settings contradict each other, or the folder holds results that this would not replace but lose.
    """
    e, workdir = config.evaluate, epath.Path(workdir)
    published.table(e.published)
    if e.max_objects < 0:
        raise UserError(f"evaluate.max_objects must be 0 (all) or more, got {e.max_objects}")
    # Before anything is drawn, which may take days.
    params = inception.load_params(e.inception) if e.inception and not extract else None
    weights = _lpips_weights(e) if not compare else None
    protocol = drawing_config(config)
    if e.views:
        ready_made = sampled.DrawnViews(e.views)
        out = epath.Path(e.out or workdir / "evaluation" / epath.Path(e.views).name)
    else:
        out = epath.Path(e.out or workdir / "evaluation" / sample_lib.output_folder(protocol, workdir).name)
        protocol.sample.out = str(out)
    tasks = distributed.lead_first(lambda: make_tasks(protocol))
    _check_old_results(out, tasks, _protocol(config))
    if not e.views:
        sample_lib.sample(protocol, workdir)
        distributed.wait_for_all("every object is drawn")
    if not distributed.is_lead():
        return out
    if params is not None:
        extract = inception.FeatureExtractor(params)
    if weights is not None:
        compare = lpips.PerceptualDistance(weights)
    drawn = ready_made if e.views else sampled.DrawnViews(out / "views")
    found = _Found(drawn, tasks, drawn.find(tasks))
    results = _score(config, found, extract, compare)
    files.write_atomically(out / "results.json", to_json(results))
    best_and_worst = _strips(config, found, results["objects"])
    files.write_atomically(out / "report.html", report.render(results, best_and_worst))
    _say(results, out)
    return out


def to_json(results: dict[str, Any]) -> str:
    """Readable, but with one line for each object. Numbers that JSON does not have are refused."""
    rest = {name: value for name, value in results.items() if name != "objects"}
    head = json.dumps(rest, indent=2, ensure_ascii=False, allow_nan=False).removesuffix("\n}")
    lines = [
        f"    {json.dumps(name, ensure_ascii=False)}: {json.dumps(figures, allow_nan=False)}"
        for name, figures in results["objects"].items()
    ]
    return head + ',\n  "objects": {\n' + ",\n".join(lines) + "\n  }\n}\n"


def _lpips_weights(e: ml_collections.ConfigDict) -> lpips.Weights | None:
    """None if no files are named."""
    if bool(e.lpips_backbone) != bool(e.lpips_lin):
        named = "lpips_backbone" if e.lpips_backbone else "lpips_lin"
        raise UserError(
            f"evaluate.lpips_backbone and evaluate.lpips_lin must both be named, or neither; only {named} is; "
            f"{lpips.HOW_TO_GET_WEIGHTS}"
        )
    return lpips.load_weights(e.lpips_backbone, e.lpips_lin) if e.lpips_backbone else None


def drawing_config(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The configuration with which `sample_lib.sample` draws what the protocol asks for."""
    # A copy that can be written to, with its placeholders.
    config = copy.deepcopy(config)
    e, s = config.evaluate, config.sample
    with config.unlocked():
        s.split, s.object, s.cameras, s.out = "test", "", "object", ""
        s.input_views, s.num_views = (e.input_view,), 0
        s.num_objects, s.objects_seed = e.max_objects, e.seed
    return config


def _protocol(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """What must be alike for figures to be comparable."""
    dataset = sources.open_from_config(config.data, "test")
    return {
        "split": "test",
        "objects_in_split": len(dataset),
        "data_fingerprint": dataset.fingerprint,
        "input_view": config.evaluate.input_view,
        "image_size": config.model.image_size,
        "views": config.evaluate.views or _DRAWN_HERE,
    }


def _check_old_results(out: epath.Path, tasks: list[Task], protocol: dict[str, Any]) -> None:
    """Results are replaced by results of the same protocol that hold the same objects or more."""
    path = out / "results.json"
    if not path.exists():
        return
    try:
        old = json.loads(path.read_text())
        lost = old["objects"].keys() - {task.name for task in tasks}
        changed = [f"{name}: {old['protocol'].get(name)} → {value}" for name, value in protocol.items()]
        changed = [
            line for line, name in zip(changed, protocol, strict=True) if old["protocol"].get(name) != protocol[name]
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error}); move it away") from error
    if changed:
        raise UserError(
            f"{path} holds results of another protocol (then → now):\n  "
            + "\n  ".join(changed)
            + "\nName another folder with --config.evaluate.out=FOLDER, or move it away."
        )
    if lost:
        views = out / "views" if protocol["views"] == _DRAWN_HERE else protocol["views"]
        raise UserError(
            f"{path} holds scores of {len(lost)} objects that are not among the {len(tasks)} asked for now, and would "
            f"be lost. To score fewer: --config.evaluate.views={views} --config.evaluate.out=FOLDER"
        )


def _score(
    config: ml_collections.ConfigDict,
    found: _Found,
    extract: scores.Extractor | None,
    compare: scores.Comparer | None,
) -> dict[str, Any]:
    """All that goes into ``results.json``."""
    e, size = config.evaluate, config.model.image_size
    total = sum(len(task.target_views) for task in found.tasks)
    distances = scores.Distances(total, e.seed, extract)
    scored = []
    with progress(total, desc="scores") as bar:
        for task in found.tasks:
            views = task.load()
            pictures = sampled.read(found.paths[task.name], views.targets, size)
            scored.append(scores.score_object(task, views, pictures, compare))
            distances.add(views, pictures)
            bar.advance(len(pictures))
    summary = scores.summary(scored)
    not_computed, warnings = {}, []
    if reason := scores.ssim_refusal(size):
        not_computed["ssim"] = reason
    if reason := scores.lpips_refusal(size, compare) if compare else _NO_LPIPS:
        not_computed["lpips"] = reason
    dataset = summary["dataset"] | {"fid": None, "patch_distance": None}
    repeated = summary["repeated"] | {"patch_distance": None}
    if reason := scores.patch_refusal(size):
        not_computed["patch_distance"] = reason
    else:
        dataset["patch_distance"], repeated["patch_distance"] = distances.patch_distances()
    if not extract:
        not_computed["fid"] = _NO_WEIGHTS
    elif total < 2:
        not_computed["fid"] = "a covariance needs at least 2 views"
    else:
        distance = distances.fid()
        dataset["fid"], warnings = distance.value, [f"FID: {warning}" for warning in distance.warnings]
    lpips_files = None
    if e.lpips_backbone and dataset["lpips"] is not None:
        lpips_files = {name: provenance.file_identity(e[f"lpips_{name}"]) for name in ("backbone", "lin")}
        warnings += lpips.not_as_published(**lpips_files)
    settings = found.drawn.settings
    return {
        "dataset": dataset,
        "baselines": {"input view repeated": repeated},
        "num_objects": len(scored),
        "num_views": total,
        "equal_views": sum(each.equal for each in scored),
        "psnr_of_equal_views": scores.psnr_limit(size, size),
        "patch_distance_views": min(total, scores.PATCH_VIEWS),
        "not_computed": not_computed,
        "warnings": warnings,
        "psnr_by_angle": summary["psnr_by_angle"],
        "protocol": _protocol(config) | {"max_objects": e.max_objects, "seed": e.seed},
        "published": e.published,
        "checkpoint_step": settings and settings.get("checkpoint_step"),
        "sampling": settings,
        "inception": provenance.file_identity(e.inception) if e.inception and extract else None,
        "lpips_network": None if dataset["lpips"] is None else compare.name,
        "lpips_weights": lpips_files,
        "commit": provenance.commit(),
        "versions": provenance.versions(),
        "device": provenance.device(),
        "config": json.loads(config.to_json()),
        "objects": {each.name: _object(each) for each in scored},
    }


def _object(each: scores.ObjectScores) -> dict[str, Any]:
    def mean(values: np.ndarray | None) -> float | None:
        return None if values is None else round(float(values.mean()), 5)

    def rounded(values: np.ndarray | None) -> list[float] | None:
        # Five digits are more than single precision gives.
        return None if values is None else np.round(values, 5).tolist()

    return {
        "psnr": mean(each.psnr),
        "ssim": mean(each.ssim),
        "lpips": mean(each.lpips),
        "repeated_psnr": mean(each.repeated_psnr),
        "repeated_ssim": mean(each.repeated_ssim),
        "repeated_lpips": mean(each.repeated_lpips),
        "input_views": each.input_views,
        "views": {
            "number": each.views,
            "angle_degrees": rounded(each.angle),
            "psnr": rounded(each.psnr),
            "ssim": rounded(each.ssim),
            "lpips": rounded(each.lpips),
        },
    }


def _strips(config: ml_collections.ConfigDict, found: _Found, objects: dict[str, Any]) -> dict[str, list[report.Strip]]:
    """Pictures of the objects with the highest and the lowest PSNR; of all, where there are few."""
    order = sorted(objects, key=lambda name: -objects[name]["psnr"])
    by_name = {task.name: task for task in found.tasks}
    groups = {"Best objects": order[:_ENDS], "Worst objects": order[-_ENDS:][::-1]}
    if len(order) <= 2 * _ENDS:
        groups = {"Objects, best first": order}

    def strip(name: str) -> report.Strip:
        task, views = by_name[name], objects[name]["views"]
        loaded = task.load()
        chosen = np.unique(np.linspace(0, len(task.target_views) - 1, _STRIP_VIEWS).round().astype(int)).tolist()
        pictures = sampled.read(
            [found.paths[name][i] for i in chosen], loaded.targets[np.array(chosen)], config.model.image_size
        )
        return report.Strip(
            name=name,
            psnr=objects[name]["psnr"],
            ssim=objects[name]["ssim"],
            inputs=dict(zip(task.input_views, loaded.inputs, strict=True)),
            views=[
                report.StripView(
                    views["number"][i], views["angle_degrees"][i], views["psnr"][i], picture, loaded.truth[i]
                )
                for i, picture in zip(chosen, pictures, strict=True)
            ],
        )

    return {title: [strip(name) for name in names] for title, names in groups.items()}


def _say(results: dict[str, Any], out: epath.Path) -> None:
    figures = results["dataset"]
    shown = {"PSNR": "psnr", "SSIM": "ssim", "FID": "fid", "LPIPS": "lpips", "patch distance": "patch_distance"}
    parts = [f"{title} {figures[name]:.4g}" for title, name in shown.items() if figures[name] is not None]
    print(f"{results['num_objects']} objects, {results['num_views']} views: {', '.join(parts)}")
    for name, reason in results["not_computed"].items():
        print(f"no {name.upper().replace('_', ' ')}: {reason}")
    for warning in results["warnings"]:
        print(warning)
    print(f"figures: {out / 'results.json'}\nreport:  {out / 'report.html'}")
