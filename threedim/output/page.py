"""Pages of results: one HTML file each with everything in it, for a phone or a desk, by day or night.

`render` is the page of one object, which turns; `overview` links to several. The pages of an evaluation and of a 3D
consistency score are built from the same parts. A page asks for no other file and no network.
"""

from __future__ import annotations

import base64
import functools
import html
import io
import json
import os
import sys
import webbrowser
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from etils import epath
from PIL import Image

from threedim import files
from threedim.cameras import Camera
from threedim.data import camera_checks

T = TypeVar("T")

# Up to this size pictures are shown pixel by pixel, exactly; beyond, smoothly, and not each bit of a long rollout.
SMALL_PICTURE = 64
# Elevations of target cameras that span less, in degrees, are a ring around the object.
_RING = 10.0


def text(value: Any) -> str:
    """A value as text of a page."""
    return html.escape(str(value))


def picture(pixels: np.ndarray, description: str) -> str:
    """An ``<img>`` of (height, width, 3) uint8 that holds its data."""
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "WEBP", lossless=max(pixels.shape) <= SMALL_PICTURE, quality=90)
    data = base64.b64encode(encoded.getvalue()).decode()
    return f'<img alt="{text(description)}" draggable="false" src="data:image/webp;base64,{data}">'


def table(rows: Mapping[str, Any], kind: str = "settings") -> str:
    """Names and values in two columns."""
    lines = "".join(f"<tr><td>{text(name)}</td><td>{text(value)}</td></tr>" for name, value in rows.items())
    return f'<table class="{kind}"><tbody>{lines}</tbody></table>'


def best_and_worst(ordered: Sequence[T], ends: int = 4) -> dict[str, Sequence[T]]:
    """The objects to show of a list, best first: all, or those at both ends, under headings."""
    if len(ordered) <= 2 * ends:
        return {"Objects, best first": ordered}
    return {"Best objects": ordered[:ends], "Worst objects": ordered[-ends:][::-1]}


def frame(title: str, parts: Sequence[str], *, pixelated: bool = False, script: str = "") -> str:
    """A whole page of parts in HTML. The browser is told to load nothing."""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{text(title)}</title>\n<link rel="icon" href="data:,">\n<style>\n{_part_of_page("page.css")}</style>\n'
        f"</head>\n<body{' class=pixels' if pixelated else ''}>\n"
        + "\n".join(part for part in parts if part)
        + (f"\n<script>\n{script}</script>" if script else "")
        + "\n</body>\n</html>\n"
    )


def render(
    name: str,
    inputs: np.ndarray,
    input_cameras: Camera,
    completions: np.ndarray,
    cameras: Camera,
    *,
    truth: np.ndarray | None = None,
    steps: Mapping[int, np.ndarray] | None = None,
    settings: Mapping[str, Any] | None = None,
    links: Mapping[str, str] | None = None,
) -> str:
    """The page of one object.

    Args:
      name: of the object.
      inputs: input views, (inputs, height, width, 3) uint8; at least one.
      input_cameras: axes (inputs,).
      completions: one or more sets of sampled views, (samples, views, height, width, 3) uint8.
      cameras: of the sampled views, axes (views,).
      truth: the true views there, (views, height, width, 3) uint8.
      steps: for steps of the denoising of a view, numbered from 1, what the network saw and its estimate,
        (2, height, width, 3) uint8.
      settings: that the views were sampled with.
      links: addresses of other files by what they are called.

    Returns:
      HTML.
    """
    samples, views, size = completions.shape[:3]
    rows = {f"sample {i + 1}" if samples > 1 else "sampled": each for i, each in enumerate(completions)}
    rows |= {} if truth is None else {"true": truth}
    described, aside = _describe(input_cameras, cameras)
    data = json.dumps({"views": described, "aside": aside}, separators=(",", ":")).replace("<", "\\u003c")
    buttons = []
    for view in described:
        kind, number = ("input", view["index"]) if view["input"] else ("", view["index"] - len(inputs))
        shown = {"input view": inputs} if view["input"] else rows
        pictures = "".join(picture(each[number], f"{row}, {view['label']}") for row, each in shown.items())
        said = text(view["label"])
        buttons.append(f'<button type=button class="{kind}" aria-label="Show {said}">{pictures}{said}</button>')
    turning = "".join(
        f"<figure class=turn><img alt='' draggable=false><figcaption>{text(row)}</figcaption></figure>" for row in rows
    )
    first = "input" if len(inputs) == 1 else f"input, 1 of {len(inputs)}"
    last = len(described) - aside - 1
    marks = "".join(
        f"<option value={i - aside}></option>" for i, view in enumerate(described) if view["input"] and i >= aside
    )
    below = f"<p><small class=soft>From above: {text(', '.join(rows))}</small></p>" if len(rows) > 1 else ""
    parts = [
        f"<h1>{text(name)}</h1><p class=soft>{text(_what(len(inputs), views, size, settings or {}))}</p>",
        "<main><div class=viewer><div>"
        "<div class=stage id=stage tabindex=0 role=group aria-label='The object, turning'>"
        f"<figure class=given>{picture(inputs[0], 'input view')}<figcaption>{first}</figcaption></figure>{turning}"
        "</div><div class=controls><button type=button id=play aria-label=Play>▶</button>"
        f"<input type=range id=slider min=0 max={last} value=0 list=marks aria-label=View><span id=where></span>"
        f"<datalist id=marks>{marks}</datalist></div>"
        "<p><small class=soft>Drag the object or use the arrow keys to turn it.</small></p></div>"
        '<figure><svg id=scene viewBox="-1 -.72 2 1.35" role=img aria-label="Where the cameras stand"></svg>'
        "<figcaption>Cameras: <span class='key input'>input</span> <span class='key now'>shown</span>"
        "</figcaption></figure></div>",
        f"<h2>All views</h2>{below}",
        f"<div class=views>{''.join(buttons)}</div>",
        _noise_to_picture(steps),
        "</main>",
        _details(settings or {}, links or {}),
        f"<script type=application/json id=data>{data}</script>",
    ]
    return frame(name, parts, pixelated=size <= SMALL_PICTURE, script=_part_of_page("page.js"))


def overview(title: str, objects: Mapping[str, tuple[str, Sequence[np.ndarray]]]) -> str:
    """A page that links to the pages of objects: their addresses and up to three pictures by name."""
    cards = "".join(
        f'<li><a href="{text(address)}"><span>{"".join(picture(each, "") for each in shown)}</span>'
        f"<b>{text(name)}</b></a></li>"
        for name, (address, shown) in objects.items()
    )
    small = all(max(each.shape) <= SMALL_PICTURE for _, shown in objects.values() for each in shown)
    heading = f"<h1>{text(title)}</h1><p class=soft>An input view and two sampled views of each</p>"
    return frame(title, [heading, f"<ul class=cards>{cards}</ul>"], pixelated=small)


def open_in_browser(path: epath.PathLike) -> None:
    """Opens a local page where there is a desktop and somebody at a terminal; elsewhere does nothing."""
    desktop = sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if desktop and sys.stdout.isatty() and "CI" not in os.environ and not files.is_remote(path):
        webbrowser.open(epath.Path(path).resolve().as_uri())


def turning_order(cameras: Camera) -> np.ndarray:
    """The order in which views turn the object to the right: that of a ring of cameras, or the given one, (views,)."""
    azimuth, elevation, _ = _around(cameras)
    return np.argsort(_turned(azimuth), kind="stable") if _is_ring(elevation) else np.arange(len(azimuth))


def _turned(azimuth: np.ndarray) -> np.ndarray:
    """How far the object has turned to the right since the first view, whole thousandths of a degree."""
    return np.rint(1e3 * (azimuth[0] - azimuth)) % 360_000


def _is_ring(elevation: np.ndarray) -> bool:
    return np.ptp(elevation) < _RING


def _around(cameras: Camera) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Azimuths and elevations in degrees, (views,), around what cameras look at, and their frusta.

    A frustum is the center and the corners of the picture, (views, 5, 3), in distances of the farthest camera.
    """
    poses = np.asarray(cameras.to_matrix(), np.float64)
    position = poses[:, :3, 3] - camera_checks.looked_at(poses)
    position /= max(np.linalg.norm(position, axis=-1).max(), 1e-9)
    azimuth = np.rad2deg(np.arctan2(position[:, 1], position[:, 0]))
    elevation = np.rad2deg(np.arctan2(position[:, 2], np.linalg.norm(position[:, :2], axis=-1)))
    half = np.asarray(cameras.K, np.float64)[:, :2, 2] / np.asarray(cameras.K)[:, [0, 1], [0, 1]]
    signs = np.asarray([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    rays = 0.22 * np.concatenate([signs * half[:, None], np.ones((len(half), 4, 1))], axis=-1)
    corners = position[:, None] + np.einsum("nij,nkj->nki", poses[:, :3, :3], rays)
    return azimuth, elevation, np.concatenate([position[:, None], corners], axis=1)


def _describe(input_cameras: Camera, cameras: Camera) -> tuple[list[dict[str, Any]], int]:
    """What the script knows of each view, in the order of turning, and how many come before, as they are off the ring.

    Their "index" counts input views and then sampled ones.
    """
    azimuth, elevation, frusta = _around(Camera.stack([*input_cameras, *cameras]))
    count, order, aside = len(input_cameras), np.arange(len(azimuth)), []
    if _is_ring(elevation[count:]):
        order = np.argsort(_turned(azimuth), kind="stable")
        is_off = (order < count) & (np.abs(elevation[order] - np.median(elevation[count:])) >= _RING)
        order, aside = order[~is_off], order[is_off]
    side, views = (azimuth - azimuth[0] + 180) % 360 - 180, []
    for place, index in enumerate([*aside, *order], 1 - len(aside)):
        turned = f"{abs(side[index]):.0f}° {'right' if side[index] > 0 else 'left'}, " if index else ""
        raised = f"{abs(elevation[index]):.0f}° {'up' if elevation[index] >= 0 else 'down'}"
        label = f"{'input, ' if index < count else ''}{turned}{raised}"
        views.append(
            {
                "index": int(index),
                "input": bool(index < count),
                "label": label,
                "said": f"view {place} of {len(order)}: {label}",
                "azimuth": round(float(azimuth[index]), 2),
                "elevation": round(float(elevation[index]), 2),
                "corners": frusta[index].round(3).tolist(),
            }
        )
    return views, len(aside)


def _what(inputs: int, views: int, size: int, settings: Mapping[str, Any]) -> str:
    counted = f"{views:,} {'view' if views == 1 else 'views'} of {size} px, sampled from {inputs} "
    known = {"solver": "{}", "num_steps": "{} steps", "guidance_weight": "guidance {:g}", "seed": "seed {}"}
    shown = [said.format(settings[name]) for name, said in known.items() if settings.get(name) is not None]
    return ", ".join([counted + ("input view" if inputs == 1 else "input views"), *shown])


def _noise_to_picture(steps: Mapping[int, np.ndarray] | None) -> str:
    if not steps:
        return ""
    columns = "".join(
        f"<div>{picture(noisy, f'noisy view, step {step}')}{picture(estimate, f'estimate, step {step}')}"
        f"<small>step {step}</small></div>"
        for step, (noisy, estimate) in steps.items()
    )
    return (
        "<h2>From noise to picture</h2><p><small class=soft>The first sampled view at some of its denoising steps. "
        "Above: what the network sees; below: the picture it expects behind the noise.</small></p>"
        f"<div class=wide tabindex=0 role=group aria-label='Denoising steps'><div class=strip>{columns}</div></div>"
    )


def _details(settings: Mapping[str, Any], links: Mapping[str, str]) -> str:
    shown = {name: value for name, value in settings.items() if value not in (None, "", [], ())}
    linked = " · ".join(f'<a href="{text(address)}">{text(title)}</a>' for title, address in links.items())
    return (f"<h2>Files</h2><p>{linked}</p>" if linked else "") + (
        f"<h2>Settings</h2><details><summary>All settings</summary>{table(shown)}</details>" if shown else ""
    )


@functools.cache
def _part_of_page(name: str) -> str:
    return (epath.Path(__file__).parent / name).read_text(encoding="utf-8")
