"""Folders of sampled views, by this project or any other method, and which view of the test set each file is."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from threedim import arrays
from threedim.cameras import Camera
from threedim.data import pictures
from threedim.errors import MissingError, UserError
from threedim.files import check_regular, interpreting, read_json
from threedim.tasks import Task

# Files are small and may be remote: most of the time is spent waiting.
_THREADS = 16
_POSE_TOLERANCE = 1e-3


def read_samples(folder: epath.PathLike) -> tuple[dict[str, Any] | None, dict[str, tuple[list[int], list[int]]]]:
    """Reads the ``samples.json`` that ``--mode=sample`` writes beside its views; `UserError` if it is damaged.

    Returns:
      The settings of the sampler, and by object the numbers of its input views and of its target views, in the order
      of the files; None and {} if there is no such file.
    """
    path = epath.Path(folder).parent / "samples.json"
    if not path.exists():
        return None, {}
    content = read_json(path)
    with interpreting(path, "it records which view each file is"):
        objects = {
            name: tuple([int(view) for view in one[kind]] for kind in ("input_views", "target_views"))
            for name, one in content["objects"].items()
        }
        return dict(content["settings"]), objects


class SampledViews:
    """A folder ``<folder>/<object>/000000.png`` or ``<folder>/<object>/rgb/000000.png``, named by view number.

    Views that ``--mode=sample`` wrote are numbered from 0, input views first; the numbers are in ``samples.json``, as
    are the sampler's ``settings``, None without that file. Raises `MissingError` if there is no such folder, or
    `UserError` if ``samples.json`` is damaged, or the views are those of an orbit, which have no truth.
    """

    def __init__(self, folder: epath.PathLike):
        folder = epath.Path(folder)
        if (folder / "samples.json").exists():
            folder = folder / "views"
        if not folder.is_dir():
            raise MissingError(f"{folder}: no such folder of views; expected {folder}/<object>/000000.png")
        self._folder = folder
        self.settings, self._order = read_samples(folder)
        if self.settings and self.settings.get("cameras") == "orbit":
            raise UserError(f"{folder} holds an orbit, whose true views are unknown; set sample.cameras to 'object'")

    def find(self, tasks: Sequence[Task]) -> dict[str, list[epath.Path]]:
        """The files of the ``target_views`` of each object, in that order.

        Raises:
          MissingError: listing the objects and views that are missing.
          UserError: if two files have the same number, or the views were sampled from another input view.
        """
        with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
            numbered = dict(zip([task.name for task in tasks], pool.map(self._numbered, tasks), strict=True))
        missing = []
        for task in tasks:
            if absent := [view for view in task.target_views if view not in numbered[task.name]]:
                missing.append(f"{task.name}: " + (f"view {_ranges(absent)}" if numbered[task.name] else "no views"))
        if missing:
            raise MissingError(
                f"{self._folder} has no views for {len(missing)} of {len(tasks)} objects:\n  {arrays.listed(missing)}\n"
                "Files are <object>/000000.png or <object>/rgb/000000.png, numbered as in the test set."
            )
        return {task.name: [numbered[task.name][view] for view in task.target_views] for task in tasks}

    def _numbered(self, task: Task) -> dict[int, epath.Path]:
        """Files of an object by view number."""
        folder = self._folder / task.name
        if (folder / "rgb").is_dir():
            folder = folder / "rgb"
        if not folder.is_dir():
            return {}
        files: dict[int, epath.Path] = {}
        for path in folder.iterdir():
            # Other files may lie there, such as 000003_compare.png.
            if path.suffix.lower() == ".png" and path.stem.isdecimal():
                if int(path.stem) in files:
                    raise UserError(f"{path} and {files[int(path.stem)].name} are both of view {int(path.stem)}")
                files[int(path.stem)] = path
        if task.name not in self._order:
            return files
        inputs, targets = self._order[task.name]
        if inputs != task.input_views:
            said = f"{folder} was sampled from view {_ranges(inputs)}, not {_ranges(task.input_views)}"
            raise UserError(f"{said}; set --config.evaluate.input_view")
        return {number: files[place] for place, number in enumerate(inputs + targets) if place in files}


def read_views(paths: Sequence[epath.Path], cameras: Camera, size: int) -> np.ndarray:
    """Reads views of an object, transparency over white, (view, size, size, 3) uint8; they are never resized.

    If poses lie beside them (``pose/`` beside ``rgb/``), they are compared with the true views' cameras, axes (view,).
    Raises `UserError`, naming a file that is no picture, has another size, or whose pose is that of another camera.
    """
    has_poses = paths[0].parent.name == "rgb" and (paths[0].parent.parent / "pose").is_dir()

    def read_one(path: epath.Path, matrix: np.ndarray) -> np.ndarray:
        image = pictures.load_rgb(path)
        if image.shape[:2] != (size, size):
            height, width = image.shape[:2]
            said = f"{path} has {width}x{height} pixels, but views are compared at {size} px and never resized"
            raise UserError(f"{said}; set --config.model.image_size")
        if has_poses:
            _check_pose(path.parent.parent / "pose" / f"{path.stem}.txt", matrix)
        return image

    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        return np.stack(list(pool.map(read_one, paths, cameras.to_matrix())))


def _check_pose(path: epath.Path, expected: np.ndarray) -> None:
    try:
        check_regular(path)
        found = np.array(path.read_text().split(), float).reshape(4, 4)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a readable pose of 16 numbers: {error}") from error
    if not np.allclose(found, expected, rtol=_POSE_TOLERANCE, atol=_POSE_TOLERANCE):
        raise UserError(f"{path} is not the pose of the test set's view of that number; files are numbered as there")


def _ranges(numbers: Sequence[int]) -> str:
    """ "0-3, 7" of [0, 1, 2, 3, 7]."""
    spans: list[list[int]] = []
    for number in sorted(numbers):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)
