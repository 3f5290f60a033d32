"""Compares samplers of fewer steps with the paper's 250 ancestral ones, on a trained network.

    python -m threedim.main --config=configs/demo.py --mode=train --workdir=runs/demo
    python -m benchmarks.samplers --config=configs/demo.py --workdir=runs/demo

Samples the views that ``config.sample`` asks for with every sampler and several seeds, and writes ``samplers.json``,
``samplers.md``, ``samplers.png`` and sheets of views to ``<workdir>/samplers_step_N``. Run again, the command resumes
after the last finished sampler. Measures are means over seeds: PSNR and SSIM against the true views, patch distance to
them (`evaluation.metrics.patches`), and the agreement of a rollout with itself. For that, the first cameras are sampled
again at the end, conditioned on everything in between, and the two views of each camera are compared by PSNR;
"independent" is the same between rollouts of different seeds. A sampler is worse than the reference in a measure if it
is so by more than twice the standard error of the difference.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

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
from threedim.evaluation.metrics.image import psnr, ssim
from threedim.evaluation.metrics.patches import sliced_wasserstein
from threedim.output.sheets import make_grid
from threedim.progress import Progress
from threedim.sampling import Settings
from threedim.tasks import Views, make_tasks

# Title in the table of each measure, and whether higher is better.
MEASURES = {
    "psnr": ("PSNR, dB", True),
    "ssim": ("SSIM", True),
    "patch_distance": ("patch distance", False),
    "agreement": ("agreement, dB", True),
}
REFERENCE, FAST = "ancestral 250", "preset fast"
# The interval of log signal-to-noise ratios that Kynkäänniemi et al. found best for images.
GUIDED = (-1.0, 3.0)

Row = dict[str, Any]


def candidates(reference: Settings, steps: list[int]) -> dict[str, Settings]:
    """Every sampler to compare, by name; the reference first."""
    solvers: dict[str, dict[str, Any]] = {
        "ancestral": {},
        "DDIM": {"solver": "ddim"},
        "DDIM η=0.5": {"solver": "ddim", "eta": 0.5},
        "2M": {"solver": "dpm_solver_2m"},
        "2M SDE": {"solver": "dpm_solver_2m_sde"},
        "2M SDE, λ": {"solver": "dpm_solver_2m_sde", "spacing": "logsnr", "logsnr_range": (-8.0, 8.0)},
    }
    rows = {REFERENCE: reference}
    for name, fields in solvers.items():
        for count in steps:
            settings = dataclasses.replace(reference, num_steps=count, **fields)
            rows[f"{name} {count}"] = settings
            if reference.guidance_weight and name in ("ancestral", "2M SDE"):
                rows[f"{name} {count}, guided in [-1, 3]"] = dataclasses.replace(settings, guidance_interval=GUIDED)
    fast = dataclasses.replace(reference, **config_lib.PRESETS["fast"])
    return {name: settings for name, settings in rows.items() if settings != fast} | {FAST: fast}


def sample(
    model: threedim.Model, objects: list[Views], repeated: int, seeds: int, settings: Settings, report: Callable
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

    sampled = dataclasses.replace(model.sampler, settings=settings).sample_views(
        model.params,
        per_seed(np.stack([pixels.to_float(each.inputs) for each in objects])),
        jax.tree.map(per_seed, Camera.stack([each.cameras for each in objects])),
        jax.tree.map(per_seed, Camera.stack(targets)),
        keys,
        on_view=on_view,
    )
    # Differences leave out the first view, which waits for the compiler.
    seconds = statistics.median(np.diff(finished)) / (len(objects) * seeds)
    views = pixels.to_uint8(np.asarray(sampled))
    return views.reshape(len(objects), seeds, *views.shape[1:]), seconds


def measure(views: np.ndarray, truth: np.ndarray, repeated: int) -> dict[str, list[float]]:
    """Every measure of what `sample` returns, a number for each seed.

    ``truth`` holds the true views, (object, view, height, width, 3) uint8.
    """
    seeds, count = views.shape[1], truth.shape[1]
    first, again = views[:, :, :repeated], views[:, :, count:]
    rows: dict[str, list[float]] = {name: [] for name in [*MEASURES, "independent"]}
    for seed in range(seeds):
        sampled = views[:, seed, :count]
        rows["psnr"].append(float(psnr(sampled, truth).mean()))
        rows["ssim"].append(float(ssim(sampled, truth).mean()))
        rows["patch_distance"].append(sliced_wasserstein(sampled, truth))
        rows["agreement"].append(_psnr_of_mean(first[:, seed], again[:, seed]))
        rows["independent"].append(_psnr_of_mean(first[:, seed], again[:, (seed + 1) % seeds]))
    return rows


def worse_in(row: dict[str, list[float]], reference: dict[str, list[float]]) -> list[str]:
    """Measures in which a sampler is worse than the reference by more than twice the standard error."""
    worse = []
    for name, (_, more_is_better) in MEASURES.items():
        difference = np.mean(row[name]) - np.mean(reference[name])
        error = math.sqrt((np.var(row[name], ddof=1) + np.var(reference[name], ddof=1)) / len(row[name]))
        if (difference if more_is_better else -difference) < -2 * error:
            worse.append(name)
    return worse


def table(rows: dict[str, Row]) -> str:
    """Markdown, one line per sampler."""
    titles = ["sampler", "evaluations", "s/view", *(title for title, _ in MEASURES.values()), "independent, dB"]
    titles.append("worse than the reference in")
    lines = [f"| {' | '.join(titles)} |", "| --- |" + " --- |" * (len(titles) - 1)]
    reference = rows[REFERENCE]["measures"]
    for name, row in rows.items():
        cells = [name, str(row["evaluations"]), f"{row['seconds_per_view']:.4f}"]
        for key in MEASURES:
            digits = 3 if key == "ssim" else 2
            values = row["measures"][key]
            cells.append(f"{np.mean(values):.{digits}f} ± {np.std(values, ddof=1):.{digits}f}")
        cells.append(f"{np.mean(row['measures']['independent']):.2f}")
        worse = ", ".join(worse_in(row["measures"], reference)) or "nothing"
        lines.append(f"| {' | '.join(cells)} | {'(reference)' if name == REFERENCE else worse} |")
    return "\n".join(lines) + "\n"


def plot(rows: dict[str, Row], path: epath.Path) -> None:
    """Each measure against network evaluations."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    families: dict[str, list[str]] = {}
    for name, row in rows.items():
        if name not in (REFERENCE, FAST):
            families.setdefault(name.replace(f" {row['settings']['num_steps']}", ""), []).append(name)
    figure, axes = plt.subplots(1, len(MEASURES), figsize=(4 * len(MEASURES), 4.5), constrained_layout=True)
    for axis, (measured, (title, _)) in zip(axes, MEASURES.items(), strict=True):
        middle, error = _mean_and_error(rows[REFERENCE], measured)
        axis.axhspan(middle - error, middle + error, color="0.85", label=f"{REFERENCE}, ± 2 standard errors")
        for family, names in families.items():
            y, bars = zip(*(_mean_and_error(rows[name], measured) for name in names), strict=True)
            x = [rows[name]["evaluations"] for name in names]
            axis.errorbar(x, y, bars, marker=".", capsize=2, linewidth=1, label=family)
        axis.plot(rows[FAST]["evaluations"], _mean_and_error(rows[FAST], measured)[0], "k*", markersize=11, label=FAST)
        axis.set(xscale="log", xlabel="network evaluations", ylabel=title)
        axis.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    with path.open("wb") as file:
        figure.savefig(file, dpi=100, format="png")
    plt.close(figure)


def compare(config, workdir: epath.Path, seeds: int, steps: list[int], repeated: int) -> epath.Path:
    """Samples and measures what is not measured yet, and writes table, plot and sheets to the folder returned.

    Raises:
      UserError: if there are no true views, their number differs between objects, or the folder has another protocol.
    """
    head = record.head("samplers")
    tasks = make_tasks(config)
    objects = [task.load() for task in tasks]
    if any(each.truth is None for each in objects):
        raise UserError("an orbit has no true views to compare with; use --config.sample.cameras=object")
    if len({(len(task.input_views), len(task.target_views)) for task in tasks}) > 1 or len(objects[0].truth) < repeated:
        raise UserError(f"all objects must have as many views, at least {repeated}; set config.sample.num_views")
    model = threedim.load(workdir, config.sample.checkpoint_step)
    truth = np.stack([each.truth for each in objects])
    out = workdir / f"samplers_step_{model.step:07d}"
    protocol = {
        "objects": [task.name for task in tasks],
        "views": truth.shape[1],
        "repeated": repeated,
        "seeds": seeds,
        "inputs": tasks[0].input_views,
        "step": model.step,
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

    reference = Settings(
        guidance_weight=config.sample.guidance_weight, fresh_uncond_noise=config.sample.fresh_uncond_noise
    )
    wanted = candidates(reference, steps)
    plain = {name: json.loads(json.dumps(dataclasses.asdict(settings))) for name, settings in wanted.items()}
    todo = {name: settings for name, settings in wanted.items() if rows.get(name, {}).get("settings") != plain[name]}
    views_each = truth.shape[1] + repeated
    total = sum(settings.evaluations(model.sampler.process) for settings in todo.values()) * views_each
    done = 0
    with Progress(total, desc="network evaluations", enabled=total > 0) as bar:
        for name, settings in todo.items():
            evaluations = settings.evaluations(model.sampler.process)

            def report(index: int, done=done, evaluations=evaluations) -> None:
                bar.set(done + (index + 1) * evaluations)

            views, seconds = sample(model, objects, repeated, seeds, settings, report)
            done += evaluations * views_each
            rows[name] = {
                "settings": plain[name],
                "evaluations": evaluations,
                "seconds_per_view": seconds,
                "measures": measure(views, truth, repeated),
                "commit": head["commit"],
            }
            record.write(path, "samplers", head, {"protocol": protocol, "samplers": rows})
            sheet = np.stack([views[:, 0, : truth.shape[1]], truth], axis=1).reshape(-1, *truth.shape[1:])
            grid = make_grid(sheet, row_labels=["sampled", "truth"] * len(truth))
            pixels.save_png(out / "sheets" / f"{name}.png", grid)
            jax.clear_caches()
    rows = {name: rows[name] for name in wanted}
    files.write_atomically(out / "samplers.md", table(rows))
    plot(rows, out / "samplers.png")
    return out


def _mean_and_error(row: Row, measure: str) -> tuple[float, float]:
    """Mean over seeds, and twice its standard error."""
    values = row["measures"][measure]
    return float(np.mean(values)), 2 * float(np.std(values, ddof=1)) / math.sqrt(len(values))


def _psnr_of_mean(a: np.ndarray, b: np.ndarray) -> float:
    """PSNR of the mean squared error over all images: finite even where single ones are equal."""
    error = np.mean((a.astype(np.float64) - b) ** 2)
    return float(10 * np.log10(255.0**2 / max(error, 1e-3)))


def _measure(given: flags.FlagValues) -> dict:
    steps = [int(count) for count in given.steps]
    config_lib.expand_paths(given.config)
    out = compare(given.config, epath.Path(files.path(given.workdir)), given.seeds, steps, given.repeated)
    print(out)
    return record.read(out / "samplers.json")["figures"]


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "Configuration of the run.")
    flags.DEFINE_string("workdir", None, "Folder of the run.")
    flags.DEFINE_integer("seeds", 5, "Rollouts of every object, for error bars.", lower_bound=2)
    flags.DEFINE_list("steps", ["8", "16", "24", "32", "50", "100"], "Numbers of steps to compare.")
    flags.DEFINE_integer("repeated", 4, "Cameras that are sampled a second time.", lower_bound=1)
    flags.mark_flags_as_required(["config", "workdir"])
    record.run("samplers", _measure, lambda figures: table(figures["samplers"]))
