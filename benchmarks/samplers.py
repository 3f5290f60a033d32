"""Samplers of few steps against the paper's 250 ancestral ones, on a trained network.

    python -m threedim.main --config=configs/demo.py --mode=train --workdir=runs/demo
    python -m benchmarks.samplers --config=configs/demo.py --workdir=runs/demo

Draws the views that ``config.sample`` asks for with every sampler and several seeds, all in one batch, and writes
``samplers.json``, ``samplers.md`` and ``samplers.png`` to ``<workdir>/samplers_step_N``, the first also to ``--json``.
The same command goes on after the last sampler that is finished. Measured, each the mean over seeds:

* PSNR and SSIM to the true views;
* patch distance to the true views (sliced Wasserstein distance of 7x7 patches, ``evaluation.metrics.patches``);
* agreement of a rollout with itself: after the last view, the first ones' cameras are drawn again, by then
  conditioned on everything in between; PSNR between the two drawings. Beside it, for scale, the same between
  rollouts that know nothing of one another.

A sampler equals the 250 ancestral steps within noise where each measure, if it is worse at all, is so by at most twice
the standard error of the difference.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
import time
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging
from etils import epath
from ml_collections import config_flags

import threedim
from benchmarks import record
from threedim import config as config_lib
from threedim import files
from threedim.cameras import Camera
from threedim.evaluation.metrics.image import psnr, ssim
from threedim.evaluation.metrics.patches import sliced_wasserstein
from threedim.output import images
from threedim.progress import progress
from threedim.sampling import Settings, sample_views
from threedim.tasks import Views, make_tasks

_CONFIG = config_flags.DEFINE_config_file("config", None, "The configuration of the run.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
_SEEDS = flags.DEFINE_integer("seeds", 5, "Rollouts of every object, for error bars.", lower_bound=2)
_STEPS = flags.DEFINE_list("steps", ["8", "16", "24", "32", "50", "100"], "Numbers of steps to compare.")
_REPEATED = flags.DEFINE_integer("repeated", 4, "Cameras that are drawn a second time.", lower_bound=1)
_JSON = flags.DEFINE_string("json", None, "Also write the figures to this file.")
flags.mark_flags_as_required(["config", "workdir"])

# Of each measure: its name in the table, and whether more is better.
MEASURES = {
    "psnr": ("PSNR, dB", True),
    "ssim": ("SSIM", True),
    "patch_distance": ("patch distance", False),
    "agreement": ("agreement, dB", True),
}
REFERENCE = "ancestral 250"


def candidates(guidance_weight: float, fresh: bool, steps: list[int]) -> dict[str, Settings]:
    """Every sampler to compare, by name; the reference first."""
    solvers: dict[str, dict[str, Any]] = {
        "ancestral": {},
        "DDIM": {"solver": "ddim"},
        "DDIM η=0.5": {"solver": "ddim", "eta": 0.5},
        "2M": {"solver": "dpm_solver_2m"},
        "2M SDE": {"solver": "dpm_solver_2m_sde"},
        "2M SDE, λ": {"solver": "dpm_solver_2m_sde", "spacing": "logsnr", "logsnr_range": (-8.0, 8.0)},
    }
    every = Settings(guidance_weight=guidance_weight, fresh_uncond_noise=fresh)
    rows = {REFERENCE: every}
    for name, fields in solvers.items():
        for count in steps:
            rows[f"{name} {count}"] = dataclasses.replace(every, num_steps=count, **fields)
            if guidance_weight and name in ("ancestral", "2M SDE"):
                # The interval that Kynkäänniemi et al. found best for pictures, as log signal-to-noise ratio.
                rows[f"{name} {count}, guided in [-1, 3]"] = dataclasses.replace(
                    every, num_steps=count, guidance_interval=(-1.0, 3.0), **fields
                )
    fast = dataclasses.replace(every, **config_lib.PRESETS["fast"])
    return {name: settings for name, settings in rows.items() if settings != fast} | {"preset fast": fast}


def draw(
    model: threedim.Model, objects: list[Views], repeated: int, seeds: int, settings: Settings, report
) -> tuple[np.ndarray, float]:
    """(object, seed, view, height, width, 3) uint8 with ``repeated`` cameras again at the end, and seconds per view."""

    def per_seed(array):
        return np.repeat(array, seeds, axis=0)

    targets = [Camera.stack([*each.targets, *each.targets[:repeated]]) for each in objects]
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(np.arange(len(objects) * seeds))
    finished = []

    def on_view(index: int, picture: jax.Array) -> None:
        jax.block_until_ready(picture)
        finished.append(time.perf_counter())
        report(index)

    drawn = sample_views(
        model.denoiser,
        model.params,
        per_seed(np.stack([images.to_float(each.inputs) for each in objects])),
        jax.tree.map(per_seed, Camera.stack([each.cameras for each in objects])),
        jax.tree.map(per_seed, Camera.stack(targets)),
        keys,
        process=model.process,
        settings=settings,
        on_view=on_view,
    )
    # The first view waits for the compiler.
    seconds = statistics.median(np.diff(finished)) / (len(objects) * seeds)
    pictures = images.to_uint8(np.asarray(drawn))
    return pictures.reshape(len(objects), seeds, *pictures.shape[1:]), seconds


def _psnr_of_mean(a: np.ndarray, b: np.ndarray) -> float:
    """PSNR of the mean squared error over all pictures: finite where single ones are equal."""
    error = np.mean((a.astype(np.float64) - b) ** 2)
    return float(10 * np.log10(255.0**2 / max(error, 1e-3)))


def measure(pictures: np.ndarray, truth: np.ndarray, repeated: int) -> dict[str, list[float]]:
    """Every measure, a number for each seed. ``truth`` is (object, view, height, width, 3)."""
    seeds, views = pictures.shape[1], truth.shape[1]
    first, again = pictures[:, :, :repeated], pictures[:, :, views:]
    rows: dict[str, list[float]] = {name: [] for name in [*MEASURES, "independent"]}
    for seed in range(seeds):
        drawn = pictures[:, seed, :views]
        rows["psnr"].append(float(psnr(drawn, truth).mean()))
        rows["ssim"].append(float(ssim(drawn, truth).mean()))
        rows["patch_distance"].append(sliced_wasserstein(drawn, truth))
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


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Markdown, one line per sampler."""
    titles = [title for title, _ in MEASURES.values()]
    lines = [
        "| sampler | evaluations | s/view | "
        + " | ".join(titles)
        + " | independent, dB | worse than the reference in |",
        "| --- |" + " --- |" * (len(titles) + 4),
    ]
    reference = rows[REFERENCE]["measures"]
    for name, row in rows.items():
        cells = [
            f"{np.mean(row['measures'][key]):.3g} ± {np.std(row['measures'][key], ddof=1):.1g}"
            if key == "ssim"
            else f"{np.mean(row['measures'][key]):.2f} ± {np.std(row['measures'][key], ddof=1):.2f}"
            for key in MEASURES
        ]
        independent = f"{np.mean(row['measures']['independent']):.2f}"
        worse = "(reference)" if name == REFERENCE else ", ".join(worse_in(row["measures"], reference)) or "nothing"
        lines.append(
            f"| {name} | {row['evaluations']} | {row['seconds_per_view']:.4f} | "
            + " | ".join([*cells, independent, worse])
            + " |"
        )
    return "\n".join(lines) + "\n"


def plot(rows: dict[str, dict[str, Any]], path: epath.Path) -> None:
    """Each measure against network evaluations and against seconds."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    from matplotlib import ticker

    families: dict[str, list[str]] = {}
    for name, row in rows.items():
        if name not in (REFERENCE, "preset fast"):
            families.setdefault(name.replace(f" {row['settings']['num_steps']}", ""), []).append(name)
    figure, axes = plt.subplots(2, len(MEASURES), figsize=(4 * len(MEASURES), 7), constrained_layout=True)
    for column, (measure_name, (title, _)) in enumerate(MEASURES.items()):
        for line, (key, label) in enumerate((("evaluations", "network evaluations"), ("seconds_per_view", "s/view"))):
            axis = axes[line, column]
            reference = rows[REFERENCE]["measures"][measure_name]
            middle, error = np.mean(reference), 2 * np.std(reference, ddof=1) / math.sqrt(len(reference))
            axis.axhspan(middle - error, middle + error, color="0.85", label=f"{REFERENCE}, ± 2 standard errors")
            for family, names in families.items():
                x = [rows[name][key] for name in names]
                y = [rows[name]["measures"][measure_name] for name in names]
                bars = [2 * np.std(each, ddof=1) / math.sqrt(len(each)) for each in y]
                axis.errorbar(x, [np.mean(each) for each in y], bars, marker=".", capsize=2, linewidth=1, label=family)
            fast = rows["preset fast"]
            axis.plot(fast[key], np.mean(fast["measures"][measure_name]), "k*", markersize=11, label="preset fast")
            axis.set(xscale="log", xlabel=label, ylabel=title)
            axis.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
            axis.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
            axis.xaxis.set_minor_formatter(ticker.NullFormatter())
            axis.grid(alpha=0.3)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
    with path.open("wb") as file:
        figure.savefig(file, dpi=100, format="png")
    plt.close(figure)


def compare(config, workdir: epath.Path, seeds: int, steps: list[int], repeated: int) -> epath.Path:
    """Draws and measures everything that is not measured yet, and writes table and plot to the folder returned.

    Raises:
      ValueError: if there are no true views, objects differ in their numbers of views, or the folder holds figures that
        were taken otherwise.
    """
    head = record.head("samplers")
    tasks = make_tasks(config)
    objects = [task.load() for task in tasks]
    if any(each.truth is None for each in objects):
        raise ValueError("an orbit has no true views to compare with; use --config.sample.cameras=object")
    if len({(len(task.input_views), len(task.target_views)) for task in tasks}) > 1 or len(objects[0].truth) < repeated:
        raise ValueError(f"all objects must have as many views, at least {repeated}; set config.sample.num_views")
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
    rows: dict[str, dict[str, Any]] = {}
    heads: dict[str, dict[str, Any]] = {}
    if path.exists():
        content = json.loads(path.read_text())
        if content["protocol"] != protocol:
            raise ValueError(f"{path} was measured otherwise: {content['protocol']}, now {protocol}; move it away")
        # Files from before there were heads call the rows otherwise.
        rows = content["figures"] if "figures" in content else content["samplers"]
        heads = content.get("heads", {})

    wanted = candidates(config.sample.guidance_weight, config.sample.fresh_uncond_noise, steps)
    plain = {name: json.loads(json.dumps(dataclasses.asdict(settings))) for name, settings in wanted.items()}
    todo = {name: settings for name, settings in wanted.items() if rows.get(name, {}).get("settings") != plain[name]}
    views = truth.shape[1] + repeated
    total = sum(settings.evaluations(model.process) for settings in todo.values()) * views
    finished = 0
    with progress(total, desc="network evaluations", enabled=total > 0) as bar:
        for name, settings in todo.items():
            evaluations = settings.evaluations(model.process)

            def report(index: int, finished=finished, evaluations=evaluations) -> None:
                bar.set(finished + (index + 1) * evaluations)

            pictures, seconds = draw(model, objects, repeated, seeds, settings, report)
            finished += evaluations * views
            rows[name] = {
                "settings": plain[name],
                "evaluations": evaluations,
                "seconds_per_view": seconds,
                "measures": measure(pictures, truth, repeated),
            }
            heads[name] = head
            record.write_rows(path, "samplers", heads, rows, protocol=protocol)
            save_sheet(out / "sheets" / f"{name}.png", objects, pictures[:, 0, : truth.shape[1]])
            jax.clear_caches()
    rows = {name: rows[name] for name in wanted}
    files.write_atomically(out / "samplers.md", table(rows))
    plot(rows, out / "samplers.png")
    return out


def save_sheet(path: epath.Path, objects: list[Views], pictures: np.ndarray) -> None:
    """For each object a line of drawn views above one of true views."""
    lines = [line for each, drawn in zip(objects, pictures, strict=True) for line in (drawn, each.truth)]
    images.save_png(path, images.make_grid(np.stack(lines), row_labels=["drawn", "truth"] * len(objects)))


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    logging.set_verbosity(logging.WARNING)
    steps = [int(count) for count in _STEPS.value]
    out = compare(_CONFIG.value, epath.Path(_WORKDIR.value), _SEEDS.value, steps, _REPEATED.value)
    if _JSON.value:
        files.write_atomically(_JSON.value, (out / "samplers.json").read_text())
    print((out / "samplers.md").read_text())
    print(f"{out / 'samplers.png'}")


if __name__ == "__main__":
    app.run(main)
