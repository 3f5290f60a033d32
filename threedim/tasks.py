"""What to sample: objects, their known views, and target cameras."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import ml_collections
import numpy as np
from etils import epath

from threedim import cameras as cameras_lib
from threedim.cameras import Camera
from threedim.data import camera_checks, convert, objects, records, sources
from threedim.data.views import ObjectViews
from threedim.errors import UserError
from threedim.files import check_name
from threedim.rendering import viewpoints

SPLITS = ("test", "val", "train", "holdout")
# Distances and focal lengths of cameras, in those of the training data or their inverse, with which sampling may work.
_MAX_RATIO = 1.6

# From view numbers of an object to pictures (view, height, width, 3) uint8 and cameras.
Read = Callable[[Sequence[int]], tuple[np.ndarray, Camera]]


class Views(NamedTuple):
    """The known and the target views of an object."""

    inputs: np.ndarray  # known views, (inputs, height, width, 3) uint8
    cameras: Camera  # their cameras, axes (inputs,)
    targets: Camera  # target cameras, axes (views,)
    truth: np.ndarray | None  # the true views there, (views, height, width, 3) uint8, or None if unknown


@dataclasses.dataclass(frozen=True)
class Task:
    """One object to sample. Its pictures are read on demand, since a test set may not fit into memory."""

    name: str
    input_views: list[int]  # numbers in the object's folder
    target_views: list[int]  # the same; for an orbit, the numbers along it
    load: Callable[[], Views]
    data: str  # fingerprint of what the pictures and cameras come from

    def __post_init__(self):
        check_name(self.name, "config.sample")  # what is sampled is written, and removed, under this name


def make_tasks(config: ml_collections.ConfigDict) -> list[Task]:
    """The tasks of ``config.sample``, from the data set or ``config.sample.object``.

    Raises:
      MissingError: if there is no such data.
      UserError: if a setting is unknown, or asks for views that an object does not have.
    """
    s, size = config.sample, config.model.image_size
    if s.cameras not in ("object", "orbit"):
        raise UserError(f'sample.cameras must be "object" or "orbit", got {s.cameras!r}')
    for field in ("num_views", "num_objects"):
        if s[field] < 0:
            raise UserError(f"sample.{field} must be 0 (all) or more, got {s[field]}")
    if s.object:
        views = objects.read_object(s.object, sources.read_settings(config.data))
        views.print_warnings(s.object)
        print(*(f"warning: {s.object}: {doubt}\n" for doubt in _doubts(config, views)), sep="", end="")
        read = functools.partial(views.decode, size=size)
        return [_make_task(s, views.name, len(views.pngs), read, convert.object_digest(views))]
    if s.split not in SPLITS:
        raise UserError(f"sample.split must be one of {', '.join(SPLITS)}, got {s.split!r}")
    sources.prepare_from_config(config.data)
    dataset = sources.open_from_config(config.data, s.split)
    known = sources.open_from_config(config.data, "train") if s.split == "holdout" else None
    count = min(s.num_objects or len(dataset), len(dataset))
    if s.objects_seed is None:
        # Evenly spaced, since names are sorted by class.
        chosen = [len(dataset) * i // count for i in range(count)]
    else:
        # The first of a shuffled list, so that a larger number includes these.
        chosen = sorted(np.random.default_rng(s.objects_seed).permutation(len(dataset))[:count].tolist())
    tasks = []
    for index in chosen:
        name, count = dataset.names[index], dataset.num_views(index)
        read = functools.partial(dataset.views, index, size=size)
        if known is None:
            tasks.append(_make_task(s, name, count, read, dataset.fingerprint))
            continue
        # Held-out cameras of a training object; the inputs are training views.
        number = known.names.index(name)
        inputs = _chosen_views(s.input_views, known.num_views(number), name)
        targets = list(range(count))[: s.num_views or None]
        read_inputs = functools.partial(known.views, number, size=size)
        load = functools.partial(_load, read_inputs, inputs, read, targets)
        tasks.append(Task(name, inputs, targets, load, dataset.fingerprint))
    if s.num_objects > len(tasks):
        print(f"sample.num_objects is {s.num_objects}, but the split {s.split!r} has {len(tasks)} objects")
    if fewer := sum(len(task.target_views) < s.num_views for task in tasks):
        print(f"sample.num_views is {s.num_views}, but {fewer} of {len(tasks)} objects have fewer views to sample")
    return tasks


def _doubts(config: ml_collections.ConfigDict, views: ObjectViews) -> list[str]:
    """Warnings if cameras differ much from those of the training data, as far as these are known."""
    if not config.data.check_cameras:
        return []
    if (epath.Path(config.data.dir) / "records" / records.METADATA).exists():
        known = sources.open_from_config(config.data, "train")[0]
        known, size = known.cameras, known.size
    elif not config.data.source:
        known, size = viewpoints.spiral_cameras(4, viewpoints.RADIUS, viewpoints.default_intrinsics(1)), 1
    else:
        return []
    doubts = []
    trained, given = (camera_checks.distance(cameras.to_matrix()) for cameras in (known, views.cameras))
    if not 1 / _MAX_RATIO <= given / trained <= _MAX_RATIO:
        hint = f"--config.data.scale={config.data.scale * trained / given:.3g} would make them equal"
        doubts.append(f"cameras are at a distance of {given:.3g}, those of the training data at {trained:.3g}; {hint}")
    trained, given = (np.median(K[:, 0, 0]) / pixels for K, pixels in ((known.K, size), (views.cameras.K, views.size)))
    if not 1 / _MAX_RATIO <= given / trained <= _MAX_RATIO:
        angles = [f"{np.rad2deg(2 * np.arctan(0.5 / focal)):.3g} degrees" for focal in (given, trained)]
        doubts.append(f"field of view is {angles[0]}, that of the training data {angles[1]}; is data.fit right?")
    return doubts


def _load(read_inputs: Read, inputs: list[int], read_targets: Read, targets: list[int]) -> Views:
    truth, cameras = read_targets(targets)
    return Views(*read_inputs(inputs), cameras, truth)


def _make_task(s: ml_collections.ConfigDict, name: str, count: int, read: Read, data: str) -> Task:
    inputs = _chosen_views(s.input_views, count, name)
    if s.cameras == "orbit":
        if s.num_views < 1:
            raise UserError(f"sample.num_views must be at least 1 for an orbit, got {s.num_views}")

        def load_orbit() -> Views:
            pictures, cameras = read(inputs)
            radius = s.orbit_radius or float(np.linalg.norm(cameras.t[0]))
            azimuths = np.arange(s.num_views) * (360.0 / s.num_views)
            return Views(pictures, cameras, cameras_lib.orbit(azimuths, s.orbit_elevation, radius, cameras.K[0]), None)

        return Task(name, inputs, list(range(s.num_views)), load_orbit, data)

    rest = [view for view in range(count) if view not in inputs][: s.num_views or None]
    if not rest:
        raise UserError(f"object {name} has no views besides the input views; set sample.cameras to 'orbit'")
    return Task(name, inputs, rest, functools.partial(_load, read, inputs, read, rest), data)


def _chosen_views(wanted: Sequence[int], count: int, name: str) -> list[int]:
    """Numbers of the input views; all for an empty list."""
    numbers = [int(number) for number in wanted] or list(range(count))
    wrong = [number for number in numbers if not 0 <= number < count]
    if wrong or len(set(numbers)) != len(numbers):
        rule = f"must be distinct views of object {name}, which has {count} (0 to {count - 1})"
        hint = "with --mode=evaluate it is evaluate.input_view that sets them"
        raise UserError(f"sample.input_views {tuple(numbers)} {rule}; {hint}")
    return numbers
