"""What ``--mode=sample`` writes for an object: one folder, complete or not there.

* ``rgb/``, ``pose/``, ``intrinsics.txt``: the input views, then the sampled ones, in SRN format, so that the folder can
  be an input again;
* ``transforms.json``: the same for nerfstudio and instant-ngp;
* ``sheet.png``: input views, then each sampled view above the true one where there is one;
* ``turn.gif``, ``turn.mp4``: the sampled views, turning;
* ``index.html``: a page to look at all of it, `page.render`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from threedim import files, pixels
from threedim.cameras import Camera
from threedim.data import nerf, srn
from threedim.output import page, sheets, video
from threedim.sampling import shown_steps

PAGE = "index.html"
_FPS = 8
_LINKS = {"animation (GIF)": "turn.gif", "video (MP4)": "turn.mp4", "contact sheet": "sheet.png"}
_LINKS |= {"views": "rgb/", "cameras for nerfstudio and instant-ngp": "transforms.json"}


def write(
    folder: epath.PathLike,
    inputs: np.ndarray,
    input_cameras: Camera,
    sampled: np.ndarray,
    cameras: Camera,
    *,
    truth: np.ndarray | None = None,
    steps: Mapping[int, np.ndarray] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Writes the folder; arguments as of `page.render`, with one set of ``sampled`` views.

    Raises:
      ExistsError: if the folder exists.
    """
    views, all_cameras = np.concatenate([inputs, sampled]), Camera.stack([*input_cameras, *cameras])
    name, size = epath.Path(folder).name, views.shape[1]
    scale = max(1, 128 // size)
    turning = sampled[page.turning_order(cameras)]
    html = page.render(
        *(name, inputs, input_cameras, sampled[None], cameras),
        truth=truth,
        steps=steps,
        settings=settings,
        links=_LINKS,
    )
    with files.new_folder(folder) as new:
        srn.write_views(new, views, all_cameras)
        paths = [f"rgb/{view:06d}.png" for view in range(len(views))]
        (new / "transforms.json").write_text(nerf.to_json(paths, all_cameras, size))
        rows = [sampled] if truth is None else [sampled, truth]
        pixels.save_png(new / "sheet.png", sheets.make_sheet(inputs, rows, columns=8, scale=scale))
        sheets.save_gif(new / "turn.gif", turning, fps=_FPS, scale=scale)
        video.save_mp4(new / "turn.mp4", turning, fps=_FPS)
        (new / PAGE).write_text(html, encoding="utf-8")


def write_overview(out: epath.Path) -> epath.Path:
    """Writes a page that links to those of all objects in ``out/views``, if there are several; returns `page_of`."""
    folders, objects = _folders(out), {}
    for folder in folders if len(folders) > 1 else ():
        views = sorted(path for path in (folder / "rgb").iterdir() if path.suffix == ".png")
        shown = [pixels.load_png(views[index * (len(views) - 1) // 2]) for index in range(3)]
        objects[folder.name] = (f"views/{folder.name}/{PAGE}", shown)
    if objects:
        files.write_atomically(out / PAGE, page.overview(f"Sampled views of {len(objects):,} objects", objects))
    return page_of(out)


def page_of(out: epath.Path) -> epath.Path:
    """The page to look at first: that of all objects, or of the only one."""
    return out / PAGE if (out / PAGE).exists() else _folders(out)[0] / PAGE


def _folders(out: epath.Path) -> list[epath.Path]:
    return sorted(path.parent for path in (out / "views").glob(f"*/{PAGE}") if path.parent.name[0] != ".")


def save_steps(path: epath.PathLike, steps: np.ndarray) -> None:
    """Keeps the steps of a view, (shown, 2, height, width, 3) floats, as a picture of two rows."""
    shown, rows, height, width = steps.shape[:4]
    pixels.save_png(path, pixels.to_uint8(steps).transpose(1, 2, 0, 3, 4).reshape(rows * height, shown * width, 3))


def load_steps(path: epath.Path, num_steps: int) -> dict[int, np.ndarray] | None:
    """What `save_steps` kept as `page.render` takes it, or None if there is no file."""
    if not path.exists():
        return None
    numbers, picture = shown_steps(num_steps) + 1, pixels.load_png(path)
    with files.interpreting(path, "delete it"):
        height, width = picture.shape[0] // 2, picture.shape[1] // len(numbers)
        columns = picture.reshape(2, height, len(numbers), width, 3).transpose(2, 0, 1, 3, 4)
    return dict(zip(numbers.tolist(), columns, strict=True))
