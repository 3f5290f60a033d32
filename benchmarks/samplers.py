"""Compares samplers, guidance weights and numbers of input views on a trained network.

    python -m benchmarks.samplers --config=configs/shapes64.py --workdir=runs/samplers \
        --config.sample.weights=shapes64 --config.sample.cameras=object --config.sample.num_objects=8

Samples views of the objects that ``config.sample`` asks for in every way and with several seeds, and writes
``samplers.json``, ``samplers.md``, ``samplers.png`` and sheets of views to ``<workdir>/samplers_<weights or step>``.
Run again, the command resumes after the last finished row. Measures are means over objects and seeds, ± the
bootstrapped standard error over objects: PSNR and SSIM against the true views, patch distance to them
(`evaluation.metrics.patches`), and the agreement of a rollout with itself. For that, the first cameras are sampled
again at the end, conditioned on everything in between, and the two views of each camera are compared by PSNR;
"independent" is the same between rollouts of different seeds. A row is worse than the reference, the paper's sampler,
in a measure if the 95 % interval of their difference, bootstrapped over the objects, is on the wrong side of zero.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags
from etils import epath
from ml_collections import config_flags

import threedim
from benchmarks import record
from threedim import config as config_lib
from threedim import files, pixels
from threedim.cameras import Camera
from threedim.errors import UserError
from threedim.evaluation.bootstrap import estimate
from threedim.evaluation.metrics.image import psnr, ssim
from threedim.evaluation.metrics.patches import sliced_wasserstein
from threedim.output.sheets import make_grid
from threedim.progress import Progress
from threedim.sampling import Settings
from threedim.tasks import Task, Views, make_tasks, with_fewer_views
from threedim.trained import open_trained

# Title in the table of each measure, and whether higher is better.
MEASURES = {
    "psnr": ("PSNR, dB", True),
    "ssim": ("SSIM", True),
    "patch_distance": ("patch distance", False),
    "agreement": ("agreement, dB", True),
}
# The interval of log signal-to-noise ratios that Kynkäänniemi et al. found best for images.
GUIDED = (-1.0, 3.0)
PRESET_FAMILY = "2M SDE"
EVALUATIONS = "network evaluations per view"

Row = dict[str, Any]


class Trial(NamedTuple):
    """One way to sample."""

    family: str  # rows that differ in one number: what a line of the picture joins
    settings: Settings
    inputs: int = 1  # number of input views


def candidates(
    base: Settings, reference: int, steps: list[int], weights: list[float], inputs: list[int]
) -> dict[str, Trial]:
    """Everything to compare, by name; the reference, the paper's sampler with so many steps, first.

    Args:
      base: the sampler's other settings.
      reference, steps: numbers of steps of the reference, and of each solver.
      weights, inputs: guidance weights and numbers of input views to try with the preset "fast".

    Raises:
      ValueError: if a number is out of range.
    """
    solvers: dict[str, dict[str, Any]] = {
        "ancestral": {"guidance_interval": GUIDED},
        "DDIM": {"solver": "ddim", "guidance_interval": GUIDED},
        "2M": {"solver": "dpm_solver_2m", "guidance_interval": GUIDED},
        PRESET_FAMILY: {"solver": "dpm_solver_2m_sde", "guidance_interval": GUIDED},
    }
    rows = {f"ancestral {reference}, always guided": Trial("paper", dataclasses.replace(base, num_steps=reference))}
    for name, fields in config_lib.PRESETS.items():
        if name != "paper":  # the reference
            rows[f"preset {name}"] = Trial(PRESET_FAMILY, dataclasses.replace(base, **fields))
    presets = {trial.settings for trial in rows.values()}
    for family, fields in solvers.items():
        for count in steps:
            settings = dataclasses.replace(base, num_steps=count, **fields)
            if settings not in presets:
                rows[f"{family} {count}"] = Trial(family, settings)
    fast = rows["preset fast"].settings
    for weight in weights:
        if weight != base.guidance_weight:
            rows[f"fast, w = {weight:g}"] = Trial("weight", dataclasses.replace(fast, guidance_weight=weight))
    for count in inputs:
        if count < 1:
            raise ValueError(f"a rollout begins from 1 view or more, not {count}")
        if count > 1:
            rows[f"fast, {count} input views"] = Trial("inputs", fast, count)
    return rows


def sample(
    model: threedim.Model, objects: list[Views], repeated: int, seeds: int, trial: Trial, report: Callable
) -> tuple[np.ndarray, float]:
    """Samples every object's views, then the first ``repeated`` cameras again, in ``seeds`` rollouts each.

    Calls ``report`` with the number of each finished view.

    Returns:
      (object, seed, view, height, width, 3) uint8, and median seconds per view.
    """

    def per_seed(array):
        return np.repeat(array, seeds, axis=0)

    targets = [Camera.stack([*each.targets, *each.targets[:repeated]]) for each in objects]
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(np.arange(len(objects) * seeds))
    finished = []

    def on_view(index: int, view: jax.Array) -> None:
        jax.block_until_ready(view)
        finished.append(time.perf_counter())
        report(index)

    sampled = dataclasses.replace(model.sampler, settings=trial.settings).sample_views(
        model.params,
        per_seed(np.stack([pixels.to_float(each.inputs[: trial.inputs]) for each in objects])),
        jax.tree.map(per_seed, Camera.stack([each.cameras[: trial.inputs] for each in objects])),
        jax.tree.map(per_seed, Camera.stack(targets)),
        keys,
        on_view=on_view,
    )
    # Differences leave out the first view, which waits for the compiler.
    seconds = statistics.median(np.diff(finished)) / (len(objects) * seeds)
    views = pixels.to_uint8(np.asarray(sampled))
    return views.reshape(len(objects), seeds, *views.shape[1:]), seconds


def measure(views: np.ndarray, truth: np.ndarray, repeated: int) -> dict[str, list[float]]:
    """Every measure of what `sample` returns: a mean over the seeds for each object.

    ``truth`` holds the true views, (object, view, height, width, 3) uint8.
    """
    seeds, count = views.shape[1], truth.shape[1]
    first, again = views[:, :, :repeated], views[:, :, count:]
    found: dict[str, list[float]] = {name: [] for name in [*MEASURES, "independent"]}
    for index, true in enumerate(truth):
        sampled = views[index, :, :count]
        found["psnr"].append(np.mean([psnr(each, true) for each in sampled]))
        found["ssim"].append(np.mean([ssim(each, true) for each in sampled]))
        found["patch_distance"].append(np.mean([sliced_wasserstein(each, true) for each in sampled]))
        pairs = list(zip(first[index], again[index], again[index][[*range(1, seeds), 0]], strict=True))
        found["agreement"].append(np.mean([_psnr_of_mean(one, same) for one, same, _ in pairs]))
        found["independent"].append(np.mean([_psnr_of_mean(one, other) for one, _, other in pairs]))
    return {name: [float(value) for value in values] for name, values in found.items()}


def worse_in(row: dict[str, list[float]], reference: dict[str, list[float]]) -> list[str]:
    """Measures in which a row is worse than the reference on the same objects."""
    worse = []
    for name, (_, more_is_better) in MEASURES.items():
        difference = estimate((np.array(row[name]) - reference[name]) * (1 if more_is_better else -1))
        if difference.high is not None and difference.high < 0:
            worse.append(name)
    return worse


def table(rows: dict[str, Row]) -> str:
    """Markdown, one line per row."""
    titles = ["sampler", "evaluations", "s/view", *(title for title, _ in MEASURES.values()), "independent, dB"]
    titles.append("worse than the reference in")
    lines = [f"| {' | '.join(titles)} |", "| --- |" + " --- |" * (len(titles) - 1)]
    reference = next(iter(rows.values()))
    for name, row in rows.items():
        cells = [name, str(row["evaluations"]), f"{row['seconds_per_view']:.3f}"]
        for key in MEASURES:
            digits, found = 3 if key == "ssim" else 2, estimate(row["measures"][key])
            error = "" if found.standard_error is None else f" ± {found.standard_error:.{digits}f}"
            cells.append(f"{found.mean:.{digits}f}{error}")
        cells.append(f"{np.mean(row['measures']['independent']):.2f}")
        worse = ", ".join(worse_in(row["measures"], reference["measures"])) or "nothing"
        worse = worse if len(row["measures"]["psnr"]) > 1 else "–"
        lines.append(f"| {' | '.join(cells)} | {'(reference)' if row is reference else worse} |")
    return "\n".join(lines) + "\n"


def plot(rows: dict[str, Row], trials: dict[str, Trial], path: epath.Path) -> None:
    """Each measure against network evaluations, the guidance weight, and the number of input views.

    Bars are standard errors of the difference on the same objects from the reference, or from the preset "fast" that
    weights and inputs vary: the spread between objects is larger, and common to all.
    """
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    reference = next(iter(rows.values()))
    families: dict[str, list[str]] = {}
    for name in rows:
        families.setdefault(trials[name].family, []).append(name)
    across = {
        EVALUATIONS: lambda name: rows[name]["evaluations"],
        "guidance weight": lambda name: trials[name].settings.guidance_weight,
        "input views": lambda name: trials[name].inputs,
    }
    lines = [[family for family in families if family not in ("weight", "inputs")], ["weight"], ["inputs"]]
    shown = [(x, kinds) for x, kinds in zip(across.items(), lines, strict=True) if set(kinds) & set(families)]
    size = (4 * len(MEASURES), 4 * len(shown) + 0.5)
    figure, axes = plt.subplots(len(shown), len(MEASURES), figsize=size, constrained_layout=True, squeeze=False)
    for ((label, position), kinds), line in zip(shown, axes, strict=True):
        base = reference if label == EVALUATIONS else rows["preset fast"]
        for axis, (measured, (title, _)) in zip(line, MEASURES.items(), strict=True):
            for family in kinds:
                also = ["preset fast"] if family in ("weight", "inputs") else []
                names = sorted([*families[family], *also], key=position)
                y = [np.mean(rows[name]["measures"][measured]) for name in names]
                bars = [_difference_error(rows[name], base, measured) for name in names]
                x = [position(name) for name in names]
                axis.errorbar(x, y, bars, marker=".", capsize=2, linewidth=1, label=family)
            if label == EVALUATIONS:
                for marker, name in zip("*PX", [name for name in rows if name.startswith("preset")], strict=False):
                    axis.plot(
                        position(name),
                        np.mean(rows[name]["measures"][measured]),
                        f"k{marker}",
                        ms=11,
                        zorder=3,
                        label=name,
                    )
                axis.set_xscale("log")
            axis.set(xlabel=label, ylabel=title)
            axis.grid(alpha=0.3)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    with path.open("wb") as file:
        figure.savefig(file, dpi=80, format="png")
    plt.close(figure)


def load(config, workdir: epath.Path) -> tuple[threedim.Model, str]:
    """The model of ``config.sample.weights`` or of the run, and its identity; `UserError` if it has another config."""
    source, step = config.sample.weights or workdir, config.sample.checkpoint_step
    found = open_trained(source, step)
    found.check_config(config)
    return threedim.load(source, step), found.identity


def spread_tasks(config, count: int) -> tuple[list[Task], list[Views]]:
    """The tasks of ``config.sample`` with ``count`` true views each, spread evenly, and their views.

    Raises:
      UserError: if the views have no truth, or objects do not have as many.
    """
    if config.sample.cameras != "object" or config.sample.image:
        raise UserError("an orbit has no true views to compare with; use --config.sample.cameras=object")
    config.sample.num_views, config.sample.num_samples = 0, 1
    tasks = [with_fewer_views(task, count) for task in make_tasks(config)]
    if fewer := [task.name for task in tasks if len(task.target_views) != count]:
        raise UserError(f"{fewer[0]} has not {count} views to sample; choose fewer --views")
    return tasks, [task.load() for task in tasks]


def compare(config, workdir: epath.Path, views: int, seeds: int, repeated: int, trials: dict[str, Trial]) -> epath.Path:
    """Samples and measures what is not measured yet, and writes table, plot and sheets to the folder returned.

    Raises:
      UserError: for `spread_tasks`, if a trial needs more input views than ``config.sample.input_views`` has, or if the
        folder has another protocol.
    """
    head = record.head("samplers")
    if repeated > views:
        raise UserError(f"--repeated={repeated} is more than --views={views}")
    most = max(trial.inputs for trial in trials.values())
    if len(config.sample.input_views) < most:
        raise UserError(f"config.sample.input_views has {len(config.sample.input_views)} views, but rows use {most}")
    tasks, objects = spread_tasks(config, views)
    model, identity = load(config, workdir)
    truth = np.stack([each.truth for each in objects])
    named = epath.Path(config.sample.weights).stem if config.sample.weights else f"step_{model.step:07d}"
    out = workdir / f"samplers_{named}"
    protocol = {
        "objects": [task.name for task in tasks],
        "views": tasks[0].target_views,
        "repeated": repeated,
        "seeds": seeds,
        "inputs": tasks[0].input_views,
        "weights": identity,
        "data": [task.data for task in tasks],
        "guidance_weight": config.sample.guidance_weight,
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
    }
    path = out / "samplers.json"
    rows: dict[str, Row] = {}
    if path.exists():
        figures = record.read(path)["figures"]
        if figures["protocol"] != protocol:
            raise UserError(f"{path} has another protocol: {figures['protocol']}, now {protocol}; move it away")
        rows = figures["samplers"]

    plain = {name: json.loads(json.dumps(dataclasses.asdict(trial.settings))) for name, trial in trials.items()}
    todo = {name: trial for name, trial in trials.items() if rows.get(name, {}).get("settings") != plain[name]}
    process, views_each = model.sampler.process, views + repeated
    total = sum(trial.settings.evaluations(process) for trial in todo.values()) * views_each
    done = 0
    with Progress(total, desc="network evaluations", enabled=total > 0) as bar:
        for name, trial in todo.items():
            evaluations = trial.settings.evaluations(process)

            def report(index: int, done=done, evaluations=evaluations) -> None:
                bar.set(done + (index + 1) * evaluations)

            sampled, seconds = sample(model, objects, repeated, seeds, trial, report)
            done += evaluations * views_each
            rows[name] = {
                "settings": plain[name],
                "evaluations": evaluations,
                "seconds_per_view": seconds,
                "measures": measure(sampled, truth, repeated),
                "commit": head["commit"],
            }
            record.write(path, "samplers", head, {"protocol": protocol, "samplers": rows})
            sheet = np.stack([sampled[:, 0, :views], truth], axis=1).reshape(-1, *truth.shape[1:])
            grid = make_grid(sheet, row_labels=["sampled", "truth"] * len(truth))
            pixels.save_png(out / "sheets" / f"{name}.png", grid)
            jax.clear_caches()
    rows = {name: rows[name] for name in trials}  # an earlier call may have measured others
    record.write(path, "samplers", head, {"protocol": protocol, "samplers": rows})
    files.write_atomically(out / "samplers.md", table(rows))
    plot(rows, trials, out / "samplers.png")
    return out


def _difference_error(row: Row, reference: Row, measure: str) -> float:
    """Standard error over objects of the difference from the reference; 0 for the reference or a single object."""
    difference = np.subtract(row["measures"][measure], reference["measures"][measure])
    return estimate(difference).standard_error or 0.0


def _psnr_of_mean(a: np.ndarray, b: np.ndarray) -> float:
    """PSNR of the mean squared error over all images: finite even where single ones are equal."""
    error = np.mean((a.astype(np.float64) - b) ** 2)
    return float(10 * np.log10(255.0**2 / max(error, 1e-3)))


def _measure(given: flags.FlagValues) -> dict:
    config_lib.expand_paths(given.config)
    s = given.config.sample
    base = Settings(guidance_weight=s.guidance_weight, fresh_uncond_noise=s.fresh_uncond_noise)
    try:
        numbers = [[int(count) for count in given.steps], [float(weight) for weight in given.weights]]
        trials = candidates(base, given.reference, *numbers, [int(count) for count in given.inputs])
    except ValueError as error:
        raise UserError(f"--steps, --weights or --inputs: {error}") from error
    workdir = epath.Path(files.path(given.workdir))
    out = compare(given.config, workdir, given.views, given.seeds, given.repeated, trials)
    print(out)
    return record.read(out / "samplers.json")["figures"]


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "Configuration of the run.")
    flags.DEFINE_string("workdir", None, "Folder of the run, or with config.sample.weights of the results.")
    flags.DEFINE_integer("views", 4, "Target views of every object.", lower_bound=1)
    flags.DEFINE_integer("seeds", 3, "Rollouts of every object.", lower_bound=2)
    flags.DEFINE_integer("reference", 250, "Ancestral steps of the reference.", lower_bound=1)
    flags.DEFINE_list("steps", ["8", "16", "32", "50", "100"], "Numbers of steps of each solver.")
    flags.DEFINE_list("weights", [], "Guidance weights to try with the preset fast, such as 0,0.5,1,2,3,4,6.")
    flags.DEFINE_list("inputs", [], "Numbers of input views to try, the first ones of config.sample.input_views.")
    flags.DEFINE_integer("repeated", 1, "Cameras that are sampled a second time, at most --views.", lower_bound=1)
    flags.mark_flags_as_required(["config", "workdir"])
    record.run("samplers", _measure, lambda figures: table(figures["samplers"]))
