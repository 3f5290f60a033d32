"""What to sample: objects, their known views, and target cameras."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import ml_collections
import numpy as np
from etils import epath

from threedim import cameras as cameras_lib
from threedim import photos
from threedim.cameras import Camera
from threedim.data import camera_checks, convert, nerf, objects, records, sources, srn
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
    of: str = ""  # name of the task of which this is a further sample, if it is one

    def __post_init__(self):
        check_name(self.name, "config.sample")  # what is sampled is written, and removed, under this name


def with_fewer_views(task: Task, count: int) -> Task:
    """The task with ``count`` of its target views, spread evenly; itself if it has no more, or ``count`` is 0."""
    total = len(task.target_views)
    if not 0 < count < total:
        return task
    chosen = (2 * np.arange(count) + 1) * total // (2 * count)

    def load() -> Views:
        views = task.load()
        return views._replace(targets=views.targets[chosen], truth=views.truth[chosen])

    return dataclasses.replace(task, target_views=[task.target_views[i] for i in chosen.tolist()], load=load)


def make_tasks(config: ml_collections.ConfigDict) -> list[Task]:
    """The tasks of ``config.sample``, from the data set or ``config.sample.object``.

    Raises:
      MissingError: if there is no such data.
      UserError: if a setting is unknown, or asks for views that an object does not have.
    """
    s, size = config.sample, config.model.image_size
    for field, least in (("num_views", 0), ("num_objects", 0), ("num_samples", 1)):
        if s[field] < least:
            raise UserError(f"sample.{field} must be {least} or more, got {s[field]}")
    return [sample for task in _tasks(config, s, size) for sample in _samples(task, s.num_samples)]


def _samples(task: Task, count: int) -> list[Task]:
    """The task, and further ones that differ in their noise."""
    others = range(2, count + 1)
    return [task, *(dataclasses.replace(task, name=f"{task.name}_sample{i}", of=task.name) for i in others)]


def _tasks(config: ml_collections.ConfigDict, s: ml_collections.ConfigDict, size: int) -> list[Task]:
    """One task per object."""
    if s.image:
        return _photo_tasks(config)
    if s.object:
        views = objects.read_object(s.object, sources.read_settings(config.data))
        views.print_warnings(s.object)
        print(*(f"warning: {s.object}: {doubt}\n" for doubt in _doubts(config, views)), sep="", end="")
        read = functools.partial(views.decode, size=size)
        return [_make_task(s, size, views.name, len(views.pngs), read, convert.object_digest(views))]
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
            tasks.append(_make_task(s, size, name, count, read, dataset.fingerprint))
            continue
        # Held-out cameras of a training object; the inputs are training views.
        number = known.names.index(name)
        read_inputs = functools.partial(known.views, number, size=size)
        if s.cameras != "object":
            tasks.append(_make_task(s, size, name, known.num_views(number), read_inputs, dataset.fingerprint))
            continue
        inputs = _chosen_views(s.input_views, known.num_views(number), name)
        targets = list(range(count))[: s.num_views or None]
        load = functools.partial(_load, read_inputs, inputs, read, targets)
        tasks.append(Task(name, inputs, targets, load, dataset.fingerprint))
    if s.num_objects > len(tasks):
        print(f"sample.num_objects is {s.num_objects}, but the split {s.split!r} has {len(tasks)} objects")
    if fewer := sum(len(task.target_views) < s.num_views for task in tasks):
        print(f"sample.num_views is {s.num_views}, but {fewer} of {len(tasks)} objects have fewer views to sample")
    return tasks


def training_cameras(config: ml_collections.ConfigDict) -> tuple[Camera, int] | None:
    """Some cameras of the training data and the size of their pictures, as far as they are known."""
    if (epath.Path(config.data.dir) / "records" / records.METADATA).exists():
        known = sources.open_from_config(config.data, "train")[0]
        return known.cameras, known.size
    if not config.data.source:
        return viewpoints.spiral_cameras(4, viewpoints.RADIUS, viewpoints.default_intrinsics(1)), 1
    return None


def _photo_tasks(config: ml_collections.ConfigDict) -> list[Task]:
    """A task for a picture without a camera, for each elevation that it may have been taken from."""
    s, size = config.sample, config.model.image_size
    fields = {name: s[name] for name in ("radius", "fov") if s[name] is not None}
    if missing := {"radius", "fov"} - set(fields):
        if (found := training_cameras(config)) is None:
            raise UserError(
                f"sample.{' and sample.'.join(sorted(missing))} must be given: the training data is not here"
            )
        cameras, pixels = found
        typical = {"radius": camera_checks.distance(cameras.to_matrix())}
        typical["fov"] = float(np.rad2deg(2 * np.arctan(0.5 * pixels / np.median(cameras.K[:, 0, 0]))))
        fields |= {name: typical[name] for name in missing}
    fields |= {"azimuth": s.azimuth, "mask": s.mask, "fill": s.fill}
    tasks, stem = [], epath.Path(s.image).stem.lstrip(".")
    for elevation in s.elevations or (s.elevation,):
        view = photos.photo(s.image, elevation=elevation, **fields).resized(size)
        name = f"{stem}_elevation{elevation:g}" if s.elevations else stem
        said = f"azimuth {s.azimuth:g}, elevation {elevation:g}, field of view {fields['fov']:.3g} degrees"
        print(f"{name}: assumed camera: {said}, distance {fields['radius']:.3g} (sample.elevation etc.)")
        cameras = Camera.stack([view.camera])

        def read(indices: Sequence[int], image=view.image[None], cameras=cameras) -> tuple[np.ndarray, Camera]:
            return image[list(indices)], cameras[list(indices)]

        digest = hashlib.sha256(view.image.tobytes() + cameras.to_matrix().tobytes() + cameras.K.tobytes()).hexdigest()
        tasks.append(_make_task(s, size, name, 1, read, digest))
    return tasks


def _doubts(config: ml_collections.ConfigDict, views: ObjectViews) -> list[str]:
    """Warnings if cameras differ much from those of the training data, as far as these are known."""
    if not config.data.check_cameras or (found := training_cameras(config)) is None:
        return []
    known, size = found
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


def _make_task(s: ml_collections.ConfigDict, size: int, name: str, count: int, read: Read, data: str) -> Task:
    inputs = [0] if s.image else _chosen_views(s.input_views, count, name)
    if s.cameras != "object" or s.image:
        cameras = read(inputs)[1]
        targets = _path(s, size, cameras)
        load = functools.partial(_load_inputs, read, inputs, targets)
        return Task(name, inputs, list(range(len(targets))), load, data)

    rest = [view for view in range(count) if view not in inputs][: s.num_views or None]
    if not rest:
        raise UserError(f"object {name} has no views besides the input views; set sample.cameras to 'orbit'")
    return Task(name, inputs, rest, functools.partial(_load, read, inputs, read, rest), data)


def _load_inputs(read: Read, inputs: list[int], targets: Camera) -> Views:
    return Views(*read(inputs), targets, None)


def _path(s: ml_collections.ConfigDict, size: int, inputs: Camera) -> Camera:
    """The target cameras of ``sample.cameras`` around the origin, given those of the input views."""
    first = inputs[0]
    if s.cameras in ("object", "orbit", "spiral"):
        if s.num_views < 1:
            raise UserError(f"sample.num_views must be at least 1 for an {s.cameras}, got {s.num_views}")
        if s.cameras == "spiral":
            azimuths, elevations = viewpoints.spiral(s.num_views)
            return cameras_lib.orbit(azimuths, elevations, s.orbit_radius or float(np.linalg.norm(first.t)), first.K)
        turn = cameras_lib.orbit(s.num_views, s.orbit_elevation, s.orbit_radius or None)
        return turn(first)
    path = epath.Path(s.cameras)
    if path.is_dir():
        cameras = srn.read_cameras(path, np.asarray(first.K), size)
    elif path.suffix == ".json" and path.exists():
        cameras = nerf.read_cameras(path, size)
    else:
        known = "object, orbit, spiral, a transforms.json or a folder of poses"
        raise UserError(f"sample.cameras must be {known}; there is no {s.cameras!r}")
    return cameras[: s.num_views or None]


def _chosen_views(wanted: Sequence[int], count: int, name: str) -> list[int]:
    """Numbers of the input views; all for an empty list."""
    numbers = [int(number) for number in wanted] or list(range(count))
    wrong = [number for number in numbers if not 0 <= number < count]
    if wrong or len(set(numbers)) != len(numbers):
        rule = f"must be distinct views of object {name}, which has {count} (0 to {count - 1})"
        hint = "with --mode=evaluate it is evaluate.input_view that sets them"
        raise UserError(f"sample.input_views {tuple(numbers)} {rule}; {hint}")
    return numbers
