"""How much samples of one object differ where its input view shows the surface, and where it does not.

    python -m benchmarks.completions --config=configs/shapes64.py --workdir=runs/completions \
        --config.sample.weights=shapes64 --config.sample.cameras=object --config.sample.num_objects=8

Samples views of the objects that ``config.sample`` asks for several times from the same input view. The spread is the
standard deviation of a pixel over the samples, the error the difference of their mean from the true view, both root
mean squares over pixels and colors in gray levels. A pixel shows "seen" surface if the straight line from there to the
input camera meets nothing else. This needs the meshes: only procedural objects work. Writes
``completions_<weights or step>.json`` and a sheet of the same name.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import trimesh
from absl import flags
from etils import epath
from ml_collections import config_flags

from benchmarks import record, samplers
from threedim import config as config_lib
from threedim import files, pixels
from threedim.cameras import Camera
from threedim.errors import UserError
from threedim.evaluation.bootstrap import estimate
from threedim.output.sheets import make_grid
from threedim.progress import Progress
from threedim.rendering.render import procedural_shape

# Distance from a surface at which a line back to the camera begins; objects have radius 1.
_OFFSET = 1e-3
_SHOWN_SAMPLES = 3


def surfaces(mesh: trimesh.Trimesh, camera: Camera, targets: Camera, size: int) -> tuple[np.ndarray, np.ndarray]:
    """What target pixels show: (view, size, size) bool, of surface that ``camera`` sees, and of surface it does not.

    A pixel counts by the ray through its center. From the far side of a solid the line runs through the solid itself.
    """
    origins, directions = (np.asarray(each, np.float64).reshape(-1, 3) for each in targets.rays(size, size))
    points, rays, _ = mesh.ray.intersects_location(origins, directions, multiple_hits=False)
    back = np.asarray(camera.t, np.float64) - points
    back /= np.linalg.norm(back, axis=1, keepdims=True)
    blocked = mesh.ray.intersects_any(points + _OFFSET * back, back)
    seen, hidden = np.zeros((2, len(origins)), bool)
    seen[rays[~blocked]], hidden[rays[blocked]] = True, True
    return seen.reshape(-1, size, size), hidden.reshape(-1, size, size)


def measure(samples: np.ndarray, truth: np.ndarray, seen: np.ndarray, hidden: np.ndarray) -> dict[str, float]:
    """Spread and error of (sample, view, height, width, 3) uint8 where surface is seen and where it is hidden."""
    samples, truth = samples.astype(np.float64), truth.astype(np.float64)
    variance, error = samples.var(axis=0, ddof=1), (samples.mean(axis=0) - truth) ** 2
    parts = {"seen": seen, "hidden": hidden}
    found = {f"{name}_pixels": float(mask.mean()) for name, mask in parts.items()}
    for name, mask in parts.items():
        found |= {f"{name}_spread": float(np.sqrt(variance[mask].mean()))}
        found |= {f"{name}_error": float(np.sqrt(error[mask].mean()))}
    return found


def _measure(given: flags.FlagValues) -> dict[str, Any]:
    config, workdir = given.config, epath.Path(files.path(given.workdir))
    config_lib.expand_paths(config)
    if config.data.source or config.sample.object or config.sample.image:
        raise UserError("only procedural objects have meshes to tell hidden from seen surface by")
    tasks, objects = samplers.spread_tasks(config, given.views)
    model, _ = samplers.load(config, workdir)
    size, masks = config.model.image_size, []
    for task, one in zip(tasks, objects, strict=True):
        mesh = procedural_shape(task.name, config.data.procedural.seed)
        masks.append(surfaces(mesh, one.cameras[0], one.targets, size))
        if not all(mask.any() for mask in masks[-1]):
            raise UserError(f"{task.name}: the views show only seen or only hidden surface; take more --views")
    trial = samplers.Trial("", config_lib.sampler_settings(config))
    with Progress(given.views, desc=f"views of {len(objects)} objects") as bar:
        views, _ = samplers.sample(model, objects, 0, given.samples, trial, lambda _: bar.advance())
    rows, cells = {}, []
    for task, one, samples, (seen, hidden) in zip(tasks, objects, views, masks, strict=True):
        rows[task.name] = measure(samples, one.truth, seen, hidden)
        view = int(np.argmax(hidden.sum(axis=(1, 2))))
        spread = np.sqrt(samples[:, view].astype(np.float64).var(axis=0, ddof=1).mean(axis=-1))
        shown = [one.inputs[0], one.truth[view], _colored(seen[view], hidden[view]), _gray(spread)]
        cells.append([*shown, *samples[:_SHOWN_SAMPLES, view]])
    figures = {name: [row[name] for row in rows.values()] for name in next(iter(rows.values()))}
    figures["more_spread"] = [row["hidden_spread"] - row["seen_spread"] for row in rows.values()]
    path = workdir / f"completions_{epath.Path(config.sample.weights).stem or f'step_{model.step:07d}'}.png"
    titles = ["input", "truth", "seen: blue, hidden: orange", "spread, white: 64", *["sample"] * (len(cells[0]) - 4)]
    pixels.save_png(path, make_grid(np.array(cells), row_labels=list(rows), col_labels=titles))
    summary = {name: estimate(values)._asdict() for name, values in figures.items()}
    content = {"samples": given.samples, "views": tasks[0].target_views, "objects": rows, "summary": summary}
    record.write(path.with_suffix(".json"), "completions", record.head("completions"), content)
    print(path)
    return content


def report(figures: dict[str, Any]) -> str:
    """Means over the objects with their 95 % intervals."""
    lines = [f"{len(figures['objects'])} objects, {len(figures['views'])} views, {figures['samples']} samples of each"]
    for name, one in figures["summary"].items():
        interval = "" if one["low"] is None else f" [{one['low']:.2f}, {one['high']:.2f}]"
        lines.append(f"{name:15} {one['mean']:7.2f}{interval}")
    return "\n".join(lines)


def _colored(seen: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    colors = np.full((*seen.shape, 3), 255, np.uint8)
    colors[seen], colors[hidden] = (70, 120, 200), (240, 150, 40)
    return colors


def _gray(spread: np.ndarray) -> np.ndarray:
    return np.repeat((4 * spread).clip(0, 255).astype(np.uint8)[..., None], 3, axis=-1)


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "Configuration of the run.")
    flags.DEFINE_string("workdir", None, "Folder of the run, or with config.sample.weights of the results.")
    flags.DEFINE_integer("views", 4, "Target views of every object.", lower_bound=2)
    flags.DEFINE_integer("samples", 6, "Samples of every object.", lower_bound=2)
    flags.mark_flags_as_required(["config", "workdir"])
    record.run("completions", _measure, report)
