"""Sampled views against two baselines that need no network: the mean known view, and the nearest known view.

    python -m threedim.main --config=configs/demo.py --mode=sample --workdir=runs/demo
    python -m benchmarks.baselines --config=configs/demo.py --workdir=runs/demo

Takes the views that ``--mode=sample`` has drawn with the same configuration. A baseline may use every known view of the
object: the input views and, of a training object, all that training has seen.
"""

from __future__ import annotations

import numpy as np
from absl import app, flags, logging
from etils import epath
from ml_collections import config_flags

from benchmarks import record
from threedim import sample as sample_lib
from threedim import tasks
from threedim.data import sources, srn
from threedim.evaluation.metrics.image import psnr

_CONFIG = config_flags.DEFINE_config_file("config", None, "The configuration that the views were sampled with.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
_JSON = flags.DEFINE_string("json", None, "Also write the figures to this file.")
flags.mark_flags_as_required(["config", "workdir"])


def compare(config, out: epath.Path) -> dict[str, dict[str, float]]:
    """Mean PSNR in dB of each object's drawn views and of both baselines, by name."""
    rows = {}
    for task in tasks.make_tasks(config):
        views = task.load()
        if views.truth is None:
            raise ValueError("an orbit has no true views to compare with; use --config.sample.cameras=object")
        drawn, _ = srn.read_object(out / "views" / task.name).decode()
        drawn = drawn[len(views.inputs) :]
        known, cameras = views.inputs, views.cameras
        if config.sample.split in ("train", "holdout") and not config.sample.object:
            dataset = sources.open_from_config(config.data, "train")
            index = dataset.names.index(task.name)
            seen = [view for view in range(dataset.num_views(index)) if view not in task.target_views]
            seen = seen if config.sample.split == "train" else range(dataset.num_views(index))
            known, cameras = dataset.views(index, seen, config.model.image_size)
        mean = np.round(known.mean(axis=0)).astype(np.uint8)
        distance = np.linalg.norm(views.targets.t[:, None] - cameras.t[None], axis=-1)
        rows[task.name] = {
            "sampled": float(psnr(drawn, views.truth).mean()),
            "mean_image": float(psnr(np.broadcast_to(mean, views.truth.shape), views.truth).mean()),
            "nearest_view": float(psnr(known[distance.argmin(axis=1)], views.truth).mean()),
            "views": len(drawn),
        }
    return rows


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    logging.set_verbosity(logging.WARNING)
    head = record.head("baselines")
    config = _CONFIG.value
    out = sample_lib.output_folder(config, epath.Path(_WORKDIR.value))
    rows = compare(config, out)
    print(f"PSNR in dB, {out}")
    print(f"{'object':24}{'views':>6}{'sampled':>9}{'mean image':>12}{'nearest view':>14}")
    mean = {key: float(np.mean([row[key] for row in rows.values()])) for key in next(iter(rows.values()))}
    for name, row in [*rows.items(), ("mean", mean)]:
        print(f"{name:24}{row['views']:6.0f}{row['sampled']:9.2f}{row['mean_image']:12.2f}{row['nearest_view']:14.2f}")
    if _JSON.value:
        record.write(_JSON.value, "baselines", head, {"objects": rows, "mean": mean})


if __name__ == "__main__":
    app.run(main)
