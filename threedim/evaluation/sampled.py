"""Sampled views in a folder, of this project or any other method, matched with a test set."""

from __future__ import annotations

import concurrent.futures
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from threedim.cameras import Camera
from threedim.data import png
from threedim.errors import MissingError, UserError
from threedim.tasks import Task

# Small files, possibly remote: threads wait for them.
_THREADS = 16
_LISTED = 20
_POSE_TOLERANCE = 1e-3


class SampledViews:
    """A folder with files ``<object>/000000.png`` or ``<object>/rgb/000000.png``, named by view number.

    Folders that `sample.sample` wrote begin with the input views; ``samples.json`` beside them has the view numbers.

    Attributes:
      settings: the sampler settings in ``samples.json``; None without that file.

    Raises:
      MissingError: if the folder does not exist.
      UserError: if ``samples.json`` is damaged, or its views are an orbit, which has no true views.
    """

    def __init__(self, folder: epath.PathLike):
        folder = epath.Path(folder)
        if (folder / "samples.json").exists():
            folder = folder / "views"
        if not folder.is_dir():
            raise MissingError(f"{folder}: no such folder of views; expected {folder}/<object>/000000.png")
        self._folder = folder
        self.settings: dict[str, Any] | None = None
        self._order: dict[str, dict[str, list[int]]] | None = None
        path = folder.parent / "samples.json"
        if path.exists():
            try:
                content = json.loads(path.read_text())
                self.settings, self._order = content["settings"], content["objects"]
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{path} is damaged ({error}); it has the numbers of the views") from error
            if self.settings.get("cameras") == "orbit":
                raise UserError(f"{folder} holds an orbit, which has no true views; sample the object's cameras")

    def find(self, tasks: Sequence[Task]) -> dict[str, list[epath.Path]]:
        """The files of every object's ``target_views``, in that order.

        Raises:
          MissingError: if views are missing; lists them.
          UserError: if two files have the same number, or the views were sampled from another input view.
        """
        with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
            numbered = dict(zip([task.name for task in tasks], pool.map(self._numbered, tasks), strict=True))
        missing, found = [], {}
        for task in tasks:
            files = numbered[task.name]
            if not files:
                missing.append(f"{task.name}: no views")
            elif absent := [view for view in task.target_views if view not in files]:
                missing.append(f"{task.name}: view {_ranges(absent)}")
            else:
                found[task.name] = [files[view] for view in task.target_views]
        if missing:
            more = [f"... and {len(missing) - _LISTED} more objects"] if len(missing) > _LISTED else []
            raise MissingError(
                f"{self._folder} has no views for {len(missing)} of {len(tasks)} objects:\n  "
                + "\n  ".join(missing[:_LISTED] + more)
                + "\nFiles are <object>/000000.png or <object>/rgb/000000.png, numbered as in the test set."
            )
        return found

    def _numbered(self, task: Task) -> dict[int, epath.Path]:
        """Files of an object by view number."""
        folder = self._folder / task.name
        if (folder / "rgb").is_dir():
            folder = folder / "rgb"
        if not folder.is_dir():
            return {}
        files: dict[int, epath.Path] = {}
        for path in folder.iterdir():
            # Other files, such as 000003_compare.png, are ignored.
            if path.suffix.lower() == ".png" and path.stem.isdecimal():
                if int(path.stem) in files:
                    raise UserError(f"{path} and {files[int(path.stem)].name} are both of view {int(path.stem)}")
                files[int(path.stem)] = path
        order = (self._order or {}).get(task.name)
        if order is None:
            return files
        if order["input_views"] != task.input_views:
            raise UserError(
                f"{folder} was sampled from view {_ranges(order['input_views'])}, not {_ranges(task.input_views)}; set "
                "--config.evaluate.input_view"
            )
        numbers = order["input_views"] + order["target_views"]
        return {number: files[place] for place, number in enumerate(numbers) if place in files}


def read_views(paths: Sequence[epath.Path], cameras: Camera, size: int) -> np.ndarray:
    """Reads the pictures of an object, (view, size, size, 3) uint8, transparency over white.

    Poses in ``pose/`` beside ``rgb/`` are compared with the cameras.

    Args:
      paths: from `SampledViews.find`.
      cameras: those of the true views, axes (view,).
      size: height and width of the true views; sampled views are never resized.

    Raises:
      UserError: if a file is not a PNG, has another size, or its pose is that of another camera; names the file.
    """
    has_poses = paths[0].parent.name == "rgb" and (paths[0].parent.parent / "pose").is_dir()
    matrices = cameras.to_matrix()

    def read_one(index: int) -> np.ndarray:
        path = paths[index]
        try:
            picture = png.decode_png(path.read_bytes())
        except (OSError, SyntaxError, ValueError) as error:
            raise UserError(f"{path} is not a readable square PNG: {error}") from error
        if len(picture) != size:
            raise UserError(
                f"{path} is {len(picture)} px wide, but views are compared at {size} px and never resized; set "
                "--config.model.image_size"
            )
        if has_poses:
            _check_pose(path.parent.parent / "pose" / f"{path.stem}.txt", path, matrices[index])
        return picture

    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        return np.stack(list(pool.map(read_one, range(len(paths)))))


def _check_pose(path: epath.Path, picture: epath.Path, expected: np.ndarray) -> None:
    try:
        found = np.array(path.read_text().split(), float).reshape(4, 4)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a readable pose of 16 numbers: {error}") from error
    if not np.allclose(found, expected, rtol=_POSE_TOLERANCE, atol=_POSE_TOLERANCE):
        raise UserError(
            f"{path} is not the pose of the test set's view with the number of {picture.name}; files must be numbered "
            "as in the test set"
        )


def _ranges(numbers: Sequence[int]) -> str:
    """ "0-3, 7" of [0, 1, 2, 3, 7]."""
    spans: list[list[int]] = []
    for number in sorted(numbers):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)
