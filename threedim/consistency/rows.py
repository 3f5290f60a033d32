"""The views that a 3D consistency score [4, 7.4] uses: folders of objects, view numbers, and the held-out views."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np
from etils import epath

from threedim import files
from threedim.cameras import Camera
from threedim.consistency.field import Bounds, scene_bounds
from threedim.consistency.fit import Rays
from threedim.data import objects as objects_lib
from threedim.data.views import ReadSettings
from threedim.errors import UserError
from threedim.evaluation.metrics import image as image_metrics
from threedim.evaluation.sampled import read_samples
from threedim.progress import Progress

# The paper's input view; the first one if there are fewer views.
PAPER_INPUT_VIEW = 64
# A tenth of the views is held out: 25 of 251.
_HELD_OUT_SHARE = 10


@dataclasses.dataclass(frozen=True)
class ScoredObject:
    """One object of a row."""

    folder: epath.Path  # of views
    numbers: tuple[int, ...]  # the views' numbers in the data set, in the order of the files
    held_out: tuple[int, ...]  # numbers of the held-out views, ascending
    pixels: int  # height and width that views are averaged to
    settings: ReadSettings  # how the folder is read

    def views(self) -> tuple[np.ndarray, Camera, list[int], list[int]]:
        """Pictures (view, height, width, 3) uint8 and cameras; positions of the training and the held-out views."""
        pictures, cameras = objects_lib.read_object(self.folder, self.settings).decode(size=self.pixels)
        held_out = [self.numbers.index(view) for view in self.held_out]
        return pictures, cameras, [place for place in range(len(pictures)) if place not in held_out], held_out

    def fingerprint(self) -> str:
        """SHA-256 of the picture files and cameras."""
        views = objects_lib.read_object(self.folder, self.settings)
        parts = [hashlib.sha256(png).digest() for png in views.pngs]
        parts += [np.asarray(x, "<f4").tobytes() for x in (views.cameras.R, views.cameras.t, views.cameras.K)]
        return hashlib.sha256(b"".join(parts)).hexdigest()


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of the table: a folder of objects, and the bounds of its scenes."""

    name: str
    folder: epath.Path
    bounds: Bounds
    objects: list[ScoredObject]


def held_out_indices(num_views: int, input_views: Sequence[int]) -> list[int]:
    """Numbers of the held-out views, ascending: a tenth, 25 of 251, at least one, and no input view.

    The choice is fixed: the views whose SHA-256 of "num_views view" is least. Raises `UserError` if an input view does
    not exist, or no view would be left to fit or to compare.
    """
    if any(not 0 <= view < num_views for view in input_views):
        raise UserError(f"input views {tuple(input_views)} must be among the {num_views} views, 0 to {num_views - 1}")
    others = [view for view in range(num_views) if view not in input_views]
    count = max(1, num_views // _HELD_OUT_SHARE)
    if len(others) < count or num_views - count < 2:
        raise UserError(f"{num_views} views with {len(set(input_views))} input views are too few for a score")
    return sorted(sorted(others, key=lambda view: hashlib.sha256(f"{num_views} {view}".encode()).digest())[:count])


def named_folders(views: Sequence[str]) -> list[tuple[str, epath.Path]]:
    """Names and folders of rows from "DIR" or "NAME=DIR"; `UserError` for names that are invalid or equal."""
    named: dict[str, epath.Path] = {}
    for text in views:
        name, equals, folder = text.partition("=")
        folder = epath.Path(files.path(folder if equals else name))
        name = name if equals else folder.name
        if not name or "/" in name or name.startswith("."):
            raise UserError(f"{text}: {name!r} cannot be the name of a row; use --views NAME=DIR")
        if name in named:
            raise UserError(f"two folders would both be row {name!r}; name them: --views NAME={folder}")
        named[name] = folder
    return list(named.items())


def sampled_objects(folder: epath.Path) -> dict[str, tuple[list[int], list[int]]]:
    """Input and target views of each object by the samples.json beside a folder.

    Empty without one. Cameras that are no views of the object, such as an orbit, have the numbers of their files.
    """
    settings, objects = read_samples(folder) if folder.name == "views" else (None, {})
    if settings and (settings.get("image") or settings.get("cameras", "object") != "object"):
        counts = {name: (len(inputs), len(inputs) + len(targets)) for name, (inputs, targets) in objects.items()}
        return {name: (list(range(first)), list(range(first, last))) for name, (first, last) in counts.items()}
    return objects


def default_inputs(num_views: int) -> tuple[int, ...]:
    """The input view where nothing says which."""
    return (PAPER_INPUT_VIEW,) if num_views > PAPER_INPUT_VIEW else (0,)


def rays_of(pictures: np.ndarray, cameras: Camera) -> Rays:
    """The rays of every pixel of pictures (view, height, width, 3) uint8."""
    views, height, width = pictures.shape[:3]
    _, directions = cameras.rays(height, width)
    colors = pictures.reshape(views, -1, 3).astype(np.float32) / 255
    return Rays(np.asarray(cameras.t), directions.reshape(views, -1, 3), colors)


def _check_pictures(path: epath.Path, pictures: np.ndarray) -> None:
    """Raises `UserError` if views (view, height, width, 3) can have no score, or one that means nothing."""
    if min(pictures.shape[1:3]) < image_metrics.WINDOW:
        small = f"views of {pictures.shape[2]} px are smaller than SSIM's window of {image_metrics.WINDOW} px"
        raise UserError(f"{path}: {small}")
    if np.all(pictures == pictures[0]):
        raise UserError(f"{path}: all views are the same picture, which a field fits without showing any object")


def read_row(
    name: str, folder: epath.Path, input_views: Sequence[int] | None, size: int, settings: ReadSettings
) -> Row:
    """Reads and checks every object of a folder; ``input_views`` and ``size`` as in `results.ScoreSettings`.

    ``settings`` say how the folder is read.

    Raises:
      MissingError, BadObjectError: if the folder does not exist or holds no objects.
      UserError: if views are too few, too small or all equal, or were sampled from other input views.
    """
    samples, objects, distances = sampled_objects(folder), [], []
    found = objects_lib.find_objects(folder)
    with Progress(len(found), desc=f"reading objects, {name}") as bar:
        for path in found:
            one = objects_lib.read_object(path, settings)
            one.print_warnings(path)
            count = len(one.pngs)
            if size > one.size:
                raise UserError(f"{path}: views of {one.size} px cannot be averaged to {size} px")
            _check_pictures(path, one.decode(size=size or None)[0])
            numbers, inputs = tuple(range(count)), default_inputs(count) if input_views is None else input_views
            if path.name in samples:
                sampled_from, targets = samples[path.name]
                numbers = (*sampled_from, *targets)
                if sorted(numbers) != list(range(count)):
                    raise UserError(
                        f"{path}: {count} views, which samples.json numbers {list(numbers)}; a score needs all views "
                        "of the object, or a copy of the folder without samples.json"
                    )
                if set(sampled_from) != set(inputs):
                    raise UserError(f"{path}: sampled from views {sampled_from}, but --input_view is {list(inputs)}")
            try:
                held_out = tuple(held_out_indices(count, inputs))
            except UserError as error:
                raise UserError(f"{path}: {error}") from error
            objects.append(ScoredObject(path, numbers, held_out, size or one.size, settings))
            distances.append(np.linalg.norm(one.cameras.t, axis=-1))
            bar.advance()
    distances = np.concatenate(distances)
    try:
        return Row(name, folder, scene_bounds(float(distances.min()), float(distances.max())), objects)
    except ValueError as error:
        raise UserError(f"{folder}: {error}") from error
