"""The page of 3D consistency scores: ``report.html``, built from the parts of `output.page`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from threedim import settings as settings_lib
from threedim.output import page
from threedim.output.page import text

_COLUMNS = {"psnr": "PSNR, dB", "ssim": "SSIM", "fid": "FID", "input_psnr": "input view, dB", "sharpness": "sharpness"}
_ABOUT = (
    "Do the views of an object show one object? A neural field without view dependence is fitted to nine tenths of "
    "them, and its renders are compared with the rest, never with the ground truth. Input view: the field's render "
    "from the input camera against the input view, which it was fitted to. Sharpness: what a blur of one pixel takes "
    "from the views, in gray levels. Figures are means over objects, of the means over an object's held-out views.",
    "The score rewards blur and emptiness: a car's true views score 23.35 dB, the same blurred by 2 px 26.80 dB, plain "
    "gray 34.46 dB, and plain white has no error at all. So compare scores of equal sharpness only.",
    "It asks for a white background, an object within the field's box (below), and all views of an object. A tenth of "
    "them is held out, none of the input views.",
)


def render(results: Mapping[str, Any], strip: Callable[[str, str], np.ndarray | None]) -> str:
    """The page.

    Args:
      results: what ``results.json`` holds.
      strip: from row and object to held-out views beside renders, (height, width, 3) uint8, or None.

    Returns:
      HTML that asks for no other file and no network.
    """
    changed = ", ".join(f"{name} {value}" for name, value in results["not_the_frozen_settings"].items())
    said = [f"Not the frozen settings, so compare only with rows of the same: {changed}."] if changed else []
    said += [f"{name}: {warning}." for name, row in results["rows"].items() for warning in row.get("warnings", ())]
    about = "".join(f"<p class=soft>{text(one)}</p>" for one in _ABOUT)
    parts = [
        "<h1>3D consistency</h1>",
        about,
        *(f"<p>{text(one)}</p>" for one in said),
        _table("views", results["rows"]),
    ]
    views = ", ".join(map(str, results["settings"]["input_views"]))
    for name, row in results["rows"].items():
        counts = sorted({(one["num_views"], len(one["held_out"])) for one in row["objects"].values()})
        counted = "; ".join(f"{count} views of an object, {held} held out" for count, held in counts)
        box = row["bounds"]["half_width"]
        parts.append(f"<p class=soft>{text(f'{name}: {counted}; input view {views}; box ± {box:.3g}')}</p>")
    for name, row in results["rows"].items():
        ordered = _by_psnr(row["objects"])
        for title, group in page.best_and_worst(list(ordered)).items():
            parts.append(f"<h2>{text(name)}: {title[0].lower()}{title[1:]}</h2>")
            for one in group:
                parts.append(f"<h3>{text(one)}, {ordered[one]['psnr']:.2f} dB</h3>")
                if (picture := strip(name, one)) is not None:
                    shown = page.picture(picture, f"held-out views of {one}, and the field's")
                    parts.append(f"<div class='wide sheet'>{shown}</div>")
        summary = f"<summary>{text(name)}: {len(ordered):,} objects by PSNR</summary>"
        parts.append(f"<details>{summary}{_table('object', ordered)}</details>")
    parts.append(page.all_settings(settings_lib.flatten(results["settings"])))
    return page.frame("3D consistency", parts)


def _by_psnr(objects: Mapping[str, Any]) -> dict[str, Any]:
    return dict(sorted(objects.items(), key=lambda item: -item[1]["psnr"]))


def _table(what: str, rows: Mapping[str, Mapping[str, Any]]) -> str:
    columns = [name for name in _COLUMNS if any(row.get(name) is not None for row in rows.values())]
    head = "".join(f"<th>{_COLUMNS[name]}</th>" for name in columns)
    lines = "".join(
        f"<tr><td>{text(name)}</td>"
        + "".join(f"<td>{_number(column, row[column])}</td>" for column in columns)
        + "</tr>"
        for name, row in rows.items()
    )
    return f"<div class=wide><table><thead><tr><th>{what}</th>{head}</tr></thead><tbody>{lines}</tbody></table></div>"


def _number(name: str, value: float | None) -> str:
    return "–" if value is None else f"{value:.{3 if name == 'ssim' else 2}f}"
