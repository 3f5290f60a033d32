"""--mode=evaluate: the paper's protocol [3], from one input view of every test object to a report.

First all other views of every test object are sampled, one rollout per object, as ``config.sample`` says; existing
views are kept. Then what is on disk is scored. An output folder holds what `sample.sample` writes, and

* ``results.json``: every figure, of the data set, each object and each view, with everything they depend on;
* ``report.html``: one self-contained page.

Both are rewritten each time. With several processes, each samples its objects; then process 0 scores all of them. With
``config.evaluate.views`` nothing is sampled, and a folder of views from elsewhere is scored.
"""

from __future__ import annotations

import copy
import json
from typing import Any

import ml_collections
import numpy as np
from etils import epath

from threedim import distributed, files, provenance
from threedim import sample as sample_lib
from threedim import settings as settings_lib
from threedim.data import sources
from threedim.errors import UserError
from threedim.evaluation import published, report, scores
from threedim.evaluation.metrics import inception, lpips
from threedim.evaluation.sampled import SampledViews, read_views
from threedim.output import object_folder, page
from threedim.progress import Progress
from threedim.tasks import Task, make_tasks, with_fewer_views

# Views of each object in the report.
_STRIP_VIEWS = 6

_SAMPLED_HERE = "sampled here"


def evaluate(
    config: ml_collections.ConfigDict,
    workdir: epath.PathLike,
    *,
    extract: inception.FeatureExtractor | None = None,
    compare: lpips.PerceptualDistance | None = None,
) -> epath.Path:
    """Samples missing views, scores all of them, and writes ``results.json`` and ``report.html``.

    Args:
      config: section ``evaluate`` sets the protocol; ``sample`` how views are sampled, but not which.
      workdir: of the run; with ``config.evaluate.views`` only the place for the output.
      extract, compare: features for the FID, and LPIPS, instead of those of the files of weights in the config.

    Returns:
      The output folder.

    Raises:
      MissingError: if there is no such checkpoint, data or weights, or if views are missing; lists them.
      UserError: if settings contradict each other, or the folder holds results that would be lost.
    """
    # Check everything before sampling, which may take days.
    e, workdir = config.evaluate, epath.Path(workdir)
    published.table(e.published)
    for field in ("max_objects", "max_views"):
        if e[field] < 0:
            raise UserError(f"evaluate.{field} must be 0 (all) or more, got {e[field]}")
    inception_params = inception.load_params(e.inception) if e.inception and not extract else None
    lpips_weights = _lpips_weights(e) if not compare else None
    sampling = sampling_config(config)
    if e.views:
        views, name = SampledViews(e.views), epath.Path(e.views).name
    else:
        name = sample_lib.output_folder(sampling, workdir, sample_lib.find_weights(sampling, workdir)).name
    out = epath.Path(e.out or workdir / "evaluation" / name)
    sampling.sample.out = str(out)
    tasks = [with_fewer_views(task, e.max_views) for task in distributed.lead_first(lambda: make_tasks(sampling))]
    _check_old_results(out, tasks, _protocol(config))

    # Sample.
    if not e.views:
        sampling.sample.num_views = e.max_views  # recorded with the views
        sample_lib.sample(sampling, workdir, tasks)
        distributed.wait_for_all("every object is sampled")
        views = SampledViews(out / "views")
    if not distributed.is_lead():
        return out

    # Score.
    extract = inception.FeatureExtractor(inception_params) if inception_params else extract
    compare = lpips.PerceptualDistance(lpips_weights) if lpips_weights else compare
    paths = views.find(tasks)
    size, total = config.model.image_size, sum(len(task.target_views) for task in tasks)
    scored = scores.Scores(total, size, e.seed, extract, compare)
    with Progress(total, desc="scoring, views") as bar:
        for task in tasks:
            known = task.load()
            scored.add(task, known, read_views(paths[task.name], known.targets, size))
            bar.advance(len(task.target_views))
    results = scored.results() | _provenance(config, views.settings)
    results["inception"] = identity = provenance.file_identity(e.inception) if e.inception and extract else None
    if identity and "fid" not in scored.not_computed:
        results["warnings"] += inception.not_as_published(identity)
    results |= {"lpips_network": None, "lpips_weights": None}
    if "lpips" not in scored.not_computed:
        results["lpips_network"] = compare.name
        if e.lpips_backbone:
            identities = {name: provenance.file_identity(e[f"lpips_{name}"]) for name in ("backbone", "lin")}
            results["lpips_weights"] = identities
            results["warnings"] += lpips.not_as_published(**identities)
    results["objects"] = {name: one.to_json() for name, one in scored.objects.items()}

    # Report.
    files.write_atomically(out / "results.json", to_json(results))
    strips = _strips(out, tasks, paths, size, results["objects"])
    files.write_atomically(out / "report.html", report.render(results, strips))
    _say(results, out)
    return out


def _provenance(config: ml_collections.ConfigDict, sampler: dict[str, Any] | None) -> dict[str, Any]:
    """The entries of ``results.json`` about what was scored, and where."""
    e = config.evaluate
    return {
        "protocol": _protocol(config) | {"max_objects": e.max_objects, "seed": e.seed},
        "published": e.published,
        "checkpoint_step": sampler and sampler.get("checkpoint_step"),
        "sampling": sampler,
        "commit": provenance.commit(),
        "versions": provenance.versions(),
        "device": provenance.device(),
        "config": settings_lib.plain(config),
    }


def to_json(results: dict[str, Any]) -> str:
    """Indented JSON, but with one line per object."""
    rest = {name: value for name, value in results.items() if name != "objects"}
    head = json.dumps(rest, indent=2, ensure_ascii=False, allow_nan=False).removesuffix("\n}")
    objects = results["objects"].items()
    lines = [f"    {json.dumps(name, ensure_ascii=False)}: {json.dumps(one, allow_nan=False)}" for name, one in objects]
    return head + ',\n  "objects": {\n' + ",\n".join(lines) + "\n  }\n}\n"


def _lpips_weights(e: ml_collections.ConfigDict) -> lpips.Weights | None:
    if bool(e.lpips_backbone) != bool(e.lpips_lin):
        only = f"only {'lpips_backbone' if e.lpips_backbone else 'lpips_lin'} is; {lpips.HOW_TO_GET_WEIGHTS}"
        raise UserError(f"evaluate.lpips_backbone and evaluate.lpips_lin must both be set, or neither; {only}")
    return lpips.load_weights(e.lpips_backbone, e.lpips_lin) if e.lpips_backbone else None


def sampling_config(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The config with which `sample.sample` samples what the protocol asks for."""
    config = copy.deepcopy(config)
    e, s = config.evaluate, config.sample
    with config.unlocked():
        s.split, s.object, s.cameras, s.out = "test", "", "object", ""
        s.input_views, s.num_views = (e.input_view,), 0
        s.num_objects, s.objects_seed = e.max_objects, e.seed
    return config


def _protocol(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """What must be equal for figures to compare."""
    dataset = sources.open_from_config(config.data, "test")
    return {
        "split": "test",
        "objects_in_split": len(dataset),
        "data_fingerprint": dataset.fingerprint,
        "input_view": config.evaluate.input_view,
        "max_views": config.evaluate.max_views or None,
        "image_size": config.model.image_size,
        "views": config.evaluate.views or _SAMPLED_HERE,
    }


def _check_old_results(out: epath.Path, tasks: list[Task], protocol: dict[str, Any]) -> None:
    """Results may only be replaced by results of the same protocol with at least the same objects."""
    path = out / "results.json"
    if not path.exists():
        return
    old = files.read_json(path)
    with files.interpreting(path):
        lost = old["objects"].keys() - {task.name for task in tasks}
        before = {name: old["protocol"].get(name) for name in protocol}
    settings_lib.refuse(
        f"{path} holds results of another protocol",
        settings_lib.differences(before, protocol),
        "Choose another folder with --config.evaluate.out=FOLDER, or move it away.",
    )
    if lost:
        views = out / "views" if protocol["views"] == _SAMPLED_HERE else protocol["views"]
        raise UserError(
            f"{path} holds scores of {len(lost)} objects that are not among the {len(tasks)} asked for now, and would "
            f"be lost. To score fewer: --config.evaluate.views={views} --config.evaluate.out=FOLDER"
        )


def _strips(
    out: epath.Path, tasks: list[Task], paths: dict[str, list[epath.Path]], size: int, objects: dict[str, Any]
) -> dict[str, list[report.Strip]]:
    """Pictures of the objects with the highest and the lowest PSNR, or of all if there are few."""
    order = sorted(tasks, key=lambda task: -objects[task.name]["psnr"])

    def strip(task: Task) -> report.Strip:
        name, scored = task.name, objects[task.name]
        loaded, views = task.load(), scored["views"]
        chosen = np.unique(np.linspace(0, len(task.target_views) - 1, _STRIP_VIEWS).round().astype(int)).tolist()
        pictures = read_views([paths[name][i] for i in chosen], loaded.targets[np.array(chosen)], size)
        shown = [
            report.StripView(views["number"][i], views["angle_degrees"][i], views["psnr"][i], picture, loaded.truth[i])
            for i, picture in zip(chosen, pictures, strict=True)
        ]
        inputs = dict(zip(task.input_views, loaded.inputs, strict=True))
        address = f"views/{name}/{object_folder.PAGE}"
        linked = address if (out / address).exists() else ""
        return report.Strip(name, scored["psnr"], scored["ssim"], inputs, shown, linked)

    return {title: [strip(task) for task in group] for title, group in page.best_and_worst(order).items()}


def _say(results: dict[str, Any], out: epath.Path) -> None:
    figures = results["dataset"]
    shown = {
        "PSNR": "psnr",
        "SSIM": "ssim",
        "SSIM (uniform)": "ssim_uniform",
        "FID": "fid",
        "LPIPS": "lpips",
        "patch distance": "patch_distance",
    }
    parts = [f"{title} {figures[name]:.4g}" for title, name in shown.items() if figures[name] is not None]
    print(f"{results['num_objects']} objects, {results['num_views']} views: {', '.join(parts)}")
    for name, reason in results["not_computed"].items():
        print(f"no {name.upper().replace('_', ' ')}: {reason}")
    for warning in results["warnings"]:
        print(warning)
    print(f"figures: {out / 'results.json'}\nreport:  {out / 'report.html'}")
