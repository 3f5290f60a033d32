"""Views that need no network, in the protocol of ``--mode=evaluate``: what drawn views have to beat.

    python -m scripts.baselines --evaluation=runs/shapes64/evaluation/shapes64 --out=runs/shapes64/baselines

writes two folders in SRN format with every view of every object that was evaluated, numbered as in the test set, for
`threedim.evaluation.consistency` and ``--config.evaluate.views``: ``mean_image``, the mean of all training views, and
``input_repeated``, the input view for all others. (The nearest view that is known of a test object is its input view.)
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

import ml_collections
import numpy as np
from etils import epath

from threedim.cameras import Camera
from threedim.consistency.held_out import load_json
from threedim.data import sources, srn
from threedim.evaluation import protocol, scores
from threedim.progress import progress
from threedim.tasks import Task, make_tasks

# Names of folders, and of rows of a consistency score; the last is for the true views themselves.
MEAN_IMAGE, INPUT_REPEATED, TRUE = "mean_image", "input_repeated", "true"


@dataclasses.dataclass(frozen=True)
class TrainingViews:
    """What all views of the training objects come to.

    Attributes:
      mean: picture, (height, width, 3) uint8.
      objects, views: how many there are.
      distance: of the cameras to the origin, lowest and highest.
      elevation: of the cameras, degrees above the horizon, lowest and highest.
      fingerprint: of the data set.
    """

    mean: np.ndarray
    objects: int
    views: int
    distance: tuple[float, float]
    elevation: tuple[float, float]
    fingerprint: str


def training_views(config: ml_collections.ConfigDict) -> TrainingViews:
    """Goes through all views of the train split at the network's size, with a progress bar.

    Raises:
      FileNotFoundError: if nothing is prepared in ``config.data.dir``.
    """
    dataset, size = sources.open_from_config(config.data, "train"), config.model.image_size
    total, count, places = np.zeros((size, size, 3)), 0, []
    with progress(len(dataset), desc="mean of the training views, objects") as bar:
        for index in range(len(dataset)):
            pictures, cameras = dataset.views(index, range(dataset.num_views(index)), size)
            total += pictures.sum(axis=0, dtype=np.float64)
            count += len(pictures)
            places.append(cameras.t)
            bar.advance()
    places = np.concatenate(places).astype(np.float64)
    distance = np.linalg.norm(places, axis=-1)
    elevation = np.degrees(np.arcsin(np.clip(places[:, 2] / distance, -1, 1)))
    return TrainingViews(
        np.rint(total / count).astype(np.uint8),
        len(dataset),
        count,
        (float(distance.min()), float(distance.max())),
        (float(elevation.min()), float(elevation.max())),
        dataset.fingerprint,
    )


def score_picture(config: ml_collections.ConfigDict, tasks: Sequence[Task], picture: np.ndarray) -> dict[str, Any]:
    """Scores one picture, (height, width, 3) uint8, that stands for every view.

    Args:
      config: whose section ``evaluate`` set the protocol.
      tasks: of the protocol (`protocol_tasks`).
      picture: of the network's size.

    Returns:
      As "dataset" in the results of `protocol.evaluate`; without FID and LPIPS.
    """
    total = sum(len(task.target_views) for task in tasks)
    distances, scored = scores.Distances(total, config.evaluate.seed, None), []
    with progress(total, desc="scores of the mean image, views") as bar:
        for task in tasks:
            views = task.load()
            pictures = np.ascontiguousarray(np.broadcast_to(picture, views.truth.shape))
            scored.append(scores.score_object(task, views, pictures))
            distances.add(views, pictures)
            bar.advance(len(pictures))
    figures = scores.summary(scored)["dataset"]
    refused = scores.patch_refusal(config.model.image_size)
    return figures | {"fid": None, "patch_distance": None if refused else distances.patch_distances()[0]}


def protocol_tasks(results: dict[str, Any]) -> tuple[ml_collections.ConfigDict, list[Task]]:
    """The config and the tasks that results of an evaluation are of.

    Raises:
      FileNotFoundError: if the data is not there.
      ValueError: if it is other data.
    """
    config = ml_collections.ConfigDict(results["config"])
    tasks = make_tasks(protocol.drawing_config(config))
    found = sources.open_from_config(config.data, "test").fingerprint
    if found != results["protocol"]["data_fingerprint"]:
        raise ValueError(
            f"{config.data.dir} holds other test data (fingerprint {found[:12]}) than was evaluated "
            f"({results['protocol']['data_fingerprint'][:12]})"
        )
    if {task.name for task in tasks} != results["objects"].keys():
        raise ValueError(f"{config.data.dir} gives other test objects than were evaluated")
    return config, tasks


def write(tasks: Sequence[Task], mean: np.ndarray, out: epath.PathLike) -> None:
    """Writes the folders; where a view is an input view, it stands as it is.

    Raises:
      FileExistsError: if one is there.
    """
    out = epath.Path(out)
    for name in (MEAN_IMAGE, INPUT_REPEATED):
        if (out / name).exists():
            raise FileExistsError(f"{out / name} is there already: delete it, or name another --out")
    with progress(len(tasks), desc="writing baselines, objects") as bar:
        for task in tasks:
            views = task.load()
            # The order of files is that of the numbers in the test set.
            order = np.argsort([*task.input_views, *task.target_views])
            cameras = Camera.stack([*views.cameras, *views.targets])[order]
            for name, picture in ((MEAN_IMAGE, mean), (INPUT_REPEATED, views.inputs[0])):
                others = np.broadcast_to(picture, views.truth.shape)
                pictures = np.concatenate([views.inputs, others])[order]
                srn.write_object(out / name / task.name, pictures, cameras)
            bar.advance()


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser("python -m scripts.baselines", description=__doc__.split("\n")[0])
    parser.add_argument("--evaluation", required=True, help="Folder that --mode=evaluate has written.")
    parser.add_argument("--out", required=True, help="Folder for both; not overwritten.")
    given = parser.parse_args(argv)
    try:
        config, tasks = protocol_tasks(load_json(epath.Path(given.evaluation) / "results.json"))
        write(tasks, training_views(config).mean, given.out)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    for name in (MEAN_IMAGE, INPUT_REPEATED):
        print(epath.Path(given.out) / name)


if __name__ == "__main__":
    main()
