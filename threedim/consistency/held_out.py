"""Which views a 3D consistency score [4, 7.4] is taken of: folders of objects, the views' numbers, those set aside."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from threedim.cameras import Camera
from threedim.consistency import field
from threedim.consistency.field import Bounds
from threedim.data import srn
from threedim.errors import UserError
from threedim.progress import progress

# The paper's input view; where there are not that many views, the first.
PAPER_INPUT_VIEW = 64
# A tenth of the views is set aside: 25 of 251.
_HELD_OUT_SHARE = 10


@dataclasses.dataclass(frozen=True)
class ScoredObject:
    """One object of a row.

    Attributes:
      folder: in SRN format.
      numbers: of its views in the data set that the row imitates, in the order of the files.
      held_out: numbers of those that are set aside, ascending.
      pixels: height and width that views are averaged down to.
    """

    folder: epath.Path
    numbers: tuple[int, ...]
    held_out: tuple[int, ...]
    pixels: int


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table: a folder of objects, and the bounds of all its scenes."""

    name: str
    folder: epath.Path
    bounds: Bounds
    objects: list[ScoredObject]


def held_out_indices(num_views: int, input_views: Sequence[int]) -> list[int]:
    """Numbers of the views that are set aside, ascending: a tenth, 25 of 251, at least one, and no input view.

    The same for ever: those whose SHA-256 of "num_views view" is least.

    Raises:
      ValueError: if an input view does not exist, or no view would be left to fit or to compare.
    """
    if any(not 0 <= view < num_views for view in input_views):
        raise UserError(f"input views {tuple(input_views)} must be among the {num_views} views, 0 to {num_views - 1}")
    others = [view for view in range(num_views) if view not in input_views]
    count = max(1, num_views // _HELD_OUT_SHARE)
    if len(others) < count or num_views - count < 2:
        raise UserError(f"{num_views} views with {len(set(input_views))} input views are too few for a score")
    return sorted(sorted(others, key=lambda view: hashlib.sha256(f"{num_views} {view}".encode()).digest())[:count])


def named_folders(views: Sequence[str]) -> list[tuple[str, epath.Path]]:
    """Rows' names and folders from "DIR" or "NAME=DIR".

    Raises:
      ValueError: if there is none, a name is no file's name, or two are equal.
    """
    named = []
    for text in views:
        name, equals, folder = text.partition("=")
        folder = epath.Path(folder if equals else name)
        name = name if equals else folder.name
        if not name or "/" in name or name.startswith("."):
            raise UserError(f"{text}: {name!r} cannot be the name of a row; give --views NAME=DIR")
        if name in dict(named):
            raise UserError(f"two folders would both be row {name!r}; name them: --views NAME={folder}")
        named.append((name, folder))
    if not named:
        raise UserError("no folder of views is given")
    return named


def _samples(folder: epath.Path) -> dict[str, Any]:
    """What samples.json beside a folder says about each object; nothing where there is none."""
    path = folder.parent / "samples.json"
    if folder.name != "views" or not path.exists():
        return {}
    try:
        return {name: (one["input_views"], one["target_views"]) for name, one in load_json(path)["objects"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} does not say which views are whose (no {error}); delete it if it is foreign"
        ) from error


def sampled_inputs(folder: epath.Path) -> list[int] | None:
    """Input views by the samples.json that ``--mode=sample`` writes beside its views; None where there is none."""
    return next((list(inputs) for inputs, _ in _samples(folder).values()), None)


def default_inputs(num_views: int) -> tuple[int, ...]:
    """The input view where nobody says which."""
    return (PAPER_INPUT_VIEW,) if num_views > PAPER_INPUT_VIEW else (0,)


def read_row(name: str, folder: epath.Path, input_views: Sequence[int] | None, size: int) -> Row:
    """Reads and checks every object, which gives the bounds: they are those of the whole data set.

    Args:
      name, folder: of the row.
      input_views: numbers in the data set; `default_inputs` if None.
      size: pixels that views are averaged down to; 0 leaves them as they are.

    Raises:
      FileNotFoundError, BadObjectError: if the folder is absent or not in SRN format.
      ValueError: if views are too few or too small, or were drawn from other input views.
    """
    samples, objects, distances = _samples(folder), [], []
    found = srn.find_objects(folder)
    with progress(len(found), desc=f"reading objects, {name}") as bar:
        for path in found:
            one = srn.read_object(path)
            count = len(one.pngs)
            if size > one.size:
                raise UserError(f"{path}: views of {one.size} px cannot be averaged down to {size} px")
            numbers, inputs = tuple(range(count)), default_inputs(count) if input_views is None else input_views
            if path.name in samples:
                drawn_from, targets = samples[path.name]
                if sorted([*drawn_from, *targets]) != list(numbers):
                    raise UserError(
                        f"{path}: {count} views, but by samples.json they are numbers {[*drawn_from, *targets]} of the "
                        "object; a score needs all views of the object, or give a copy without samples.json"
                    )
                if set(drawn_from) != set(inputs):
                    raise UserError(f"{path}: drawn from views {drawn_from}, but --input_view is {list(inputs)}")
                numbers = (*drawn_from, *targets)
            try:
                held_out = tuple(held_out_indices(count, inputs))
            except ValueError as error:
                raise UserError(f"{path}: {error}") from error
            objects.append(ScoredObject(path, numbers, held_out, size or one.size))
            distances.append(np.linalg.norm(one.cameras.t, axis=-1))
            bar.advance()
    distances = np.concatenate(distances)
    return Row(name, folder, field.scene_bounds(float(distances.min()), float(distances.max())), objects)


def load_views(one: ScoredObject) -> tuple[np.ndarray, Camera, list[int], list[int]]:
    """Pictures (view, height, width, 3) uint8 and cameras as the files lie, places of training and held-out views."""
    pictures, cameras = srn.read_object(one.folder).decode(size=one.pixels)
    held_out = [one.numbers.index(view) for view in one.held_out]
    return pictures, cameras, [place for place in range(len(pictures)) if place not in held_out], held_out


def fingerprint(one: ScoredObject) -> str:
    """SHA-256 of its pictures' files and cameras."""
    views = srn.read_object(one.folder)
    digest = hashlib.sha256()
    for png in views.pngs:
        digest.update(hashlib.sha256(png).digest())
    for leaf in (views.cameras.R, views.cameras.t, views.cameras.K):
        digest.update(np.ascontiguousarray(leaf, "<f4").tobytes())
    return digest.hexdigest()


def load_json(path: epath.Path) -> Any:
    """Content of a file of results.

    Raises:
      ValueError: if it is damaged.
    """
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); delete it") from error
