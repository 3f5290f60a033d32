"""The page of an evaluation: one HTML file with everything in it, for a phone or a desk, by day or night."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from threedim.evaluation import plot, published
from threedim.output import page
from threedim.output.page import text

# Figures of a data set, in the order of the page.
_TITLES = {"psnr": "PSNR", "ssim": "SSIM", "ssim_uniform": "SSIM (uniform)", "fid": "FID", "lpips": "LPIPS"}
_TITLES["patch_distance"] = "patch distance"


@dataclasses.dataclass(frozen=True)
class StripView:
    """One sampled view with its truth, both (height, width, 3) uint8; ``angle`` in degrees from the input view."""

    number: int
    angle: float
    psnr: float
    sampled: np.ndarray
    truth: np.ndarray


@dataclasses.dataclass(frozen=True)
class Strip:
    """Pictures of an object: its input views by number, and some of the others."""

    name: str
    psnr: float
    ssim: float | None
    inputs: Mapping[int, np.ndarray]
    views: Sequence[StripView]
    page: str = ""  # address of the object's page, if there is one


def render(results: Mapping[str, Any], strips: Mapping[str, Sequence[Strip]]) -> str:
    """The page.

    Args:
      results: what ``results.json`` holds.
      strips: pictures of objects under headings.

    Returns:
      HTML that asks for no other file and no network.
    """
    table = published.table(results["published"])
    title = f"Evaluation: {table.title}" if table else "Evaluation"
    parts = [
        f"<h1>{text(title)}</h1>",
        f"<p class=soft>{text(_what(results))}</p>",
        _headline(results),
        "<h2>Beside others</h2>",
        _comparison(results, table),
        "<h2>PSNR against the angle from the input view</h2>",
        _angles(results["psnr_by_angle"]),
        *[_strips(heading, group) for heading, group in strips.items()],
        "<h2>Not computed</h2>",
        _list([f"{_TITLES[name]}: {reason}." for name, reason in results["not_computed"].items()]),
        "<h2>Settings</h2>",
        _settings(results),
        "<h2>Every object</h2>",
        _objects(results["objects"]),
    ]
    shown = [picture for group in strips.values() for strip in group for picture in strip.inputs.values()]
    return page.frame(title, parts, pixelated=all(len(picture) <= page.SMALL_PICTURE for picture in shown))


def caveats(results: Mapping[str, Any]) -> list[str]:
    """Why figures are not those of the paper's protocol; a sentence each."""
    protocol, found = results["protocol"], []
    if results["num_objects"] < protocol["objects_in_split"]:
        found.append(
            f"Only {results['num_objects']:,} of {protocol['objects_in_split']:,} test objects, chosen by seed "
            f"{protocol['seed']}: a quick look, not the test set."
        )
    if count := protocol.get("max_views"):
        sampled = "" if results["sampling"] is None else ", and each was sampled with fewer others known"
        found.append(f"Only {count:,} views of each object, spread evenly: FID between fewer views is larger{sampled}.")
    if results["published"] != "none" and protocol["image_size"] != 128:
        found.append(f"Pictures are of {protocol['image_size']} px; the paper's are of 128 px.")
    if results["published"] in ("cars", "chairs") and protocol["input_view"] != 64:
        found.append(f"The input view is number {protocol['input_view']}; the paper's is number 64.")
    if results["equal_views"]:
        found.append(
            f"{results['equal_views']:,} sampled views equal the truth in every pixel; each counts as "
            f"{results['psnr_of_equal_views']:.2f} dB, the highest PSNR that unequal pictures of this size can have."
        )
    return found + [f"{warning[:1].upper()}{warning[1:]}." for warning in results["warnings"]]


def _what(results: Mapping[str, Any]) -> str:
    protocol, step = results["protocol"], results["checkpoint_step"]
    source = f"checkpoint of step {step:,}" if step is not None else f"ready-made views in {protocol['views']}"
    return (
        f"{results['num_objects']:,} objects, {results['num_views']:,} views of {protocol['image_size']} px, sampled "
        f"from view {protocol['input_view']} of each; {source}"
    )


def _headline(results: Mapping[str, Any]) -> str:
    dataset = results["dataset"]
    items = []
    for name in _TITLES:
        value, unit = dataset[name], " dB" if name == "psnr" else ""
        if name == "lpips" and value is None:
            # The paper has none, so that nobody misses it.
            continue
        shown = "–" if value is None else f"{_number(name, value)}{unit}"
        spread = dataset.get(f"{name}_std_over_objects")
        note = "" if spread is None else f"objects: ± {_number(name, spread)}"
        note = "not computed, see below" if value is None else note
        items.append(f"<li>{text(_TITLES[name])}<b>{text(shown)}</b><small class=soft>{text(note)}</small></li>")
    return f"<ul class=figures>{''.join(items)}</ul>{_list(caveats(results))}"


def _comparison(results: Mapping[str, Any], table: published.Table | None) -> str:
    dataset = results["dataset"]
    ours = [("this run", dataset, "this"), *[(name, figures, "") for name, figures in results["baselines"].items()]]
    others = [(row.name, dataclasses.asdict(row), "") for row in table.rows] if table else []
    columns = [name for name in _TITLES if any(figures.get(name) is not None for _, figures, _ in ours + others)]
    higher = ("psnr", "ssim", "ssim_uniform")
    head = "".join(f"<th>{text(_TITLES[name])} {'↑' if name in higher else '↓'}</th>" for name in columns)
    lines = []
    for rows, rounded in ((ours, _number), (others, _published_number)):
        for name, figures, kind in rows:
            cells = "".join(f"<td>{text(rounded(column, figures.get(column)))}</td>" for column in columns)
            lines.append(f'<tr class="{kind}"><td>{text(name)}</td>{cells}</tr>')
    if table:
        lines.insert(len(ours), f"<tr><td colspan={len(columns) + 1} class=soft>as published</td></tr>")
    notes = [said for name, said in results["measures"].items() if name == "means" or dataset[name] is not None]
    if dataset["lpips"] is not None:
        notes.append(f"LPIPS: version 0.1 by {results['lpips_network']}.")
    if dataset["patch_distance"] is not None:
        notes.append(f"The patch distance is of {results['patch_distance_views']:,} views of a set.")
    if table:
        notes += [*table.notes, *[f"Source: {source}." for source in table.sources]]
    else:
        notes.append("Nobody has published figures on this data set; config.evaluate.published names those that have.")
    return (
        f"<div class=wide><table><thead><tr><th>method</th>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
        f"</div><small class=soft>{''.join(f'<p>{text(note)}</p>' for note in notes)}</small>"
    )


def _angles(bins: Sequence[Mapping[str, float]]) -> str:
    rows = "".join(
        f"<tr><td>{each['from_degrees']}° to {each['to_degrees']}°</td><td>{each['views']:,}</td>"
        f"<td>{each['psnr']:.2f}</td><td>{each['psnr_p10']:.2f} to {each['psnr_p90']:.2f}</td>"
        f"<td>{each['repeated_psnr']:.2f}</td></tr>"
        for each in bins
    )
    return (
        f"<div class='wide plot'>{plot.psnr_by_angle(bins)}</div>"
        "<p><small class=soft>Solid: mean PSNR of the sampled views. Band: from the 10th to the 90th percentile of "
        "views. Dashed: the input view repeated. Gray bars: shares of the views. The angle is that between the optical "
        "axes.</small></p><details><summary>The same as a table</summary><div class=wide><table><thead><tr>"
        "<th>angle</th><th>views</th><th>PSNR, dB</th><th>10 % to 90 %</th><th>input repeated, dB</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></div></details>"
    )


def _strips(heading: str, strips: Sequence[Strip]) -> str:
    return f"<h2>{text(heading)}</h2>" + "".join(_strip(strip) for strip in strips)


def _strip(strip: Strip) -> str:
    given = "".join(
        f"{page.picture(picture, f'input view {number}')}<small>input, view {number}</small>"
        for number, picture in strip.inputs.items()
    )
    views = "".join(
        f"<div>{page.picture(view.sampled, f'view {view.number}, sampled')}"
        f"{page.picture(view.truth, f'view {view.number}, true')}"
        f"<small>view {view.number}, {view.angle:.0f}°<br>{view.psnr:.2f} dB</small></div>"
        for view in strip.views
    )
    ssim = "" if strip.ssim is None else f", SSIM {_number('ssim', strip.ssim)}"
    name = f'<a href="{text(strip.page)}">{text(strip.name)}</a>' if strip.page else text(strip.name)
    return (
        f"<h3>{name}</h3><p><small class=soft>{strip.psnr:.2f} dB{ssim} over all its views; "
        "above sampled, below true</small></p>"
        f"<div class=wide><div class=strip><div class=given>{given}</div>{views}</div></div>"
    )


def _settings(results: Mapping[str, Any]) -> str:
    commit, device, inception = results["commit"], results["device"], results["inception"]
    sampling, lpips_files = results["sampling"], results["lpips_weights"]
    rows = {
        "views": results["protocol"]["views"],
        "checkpoint": "not known" if results["checkpoint_step"] is None else f"step {results['checkpoint_step']:,}",
        "sampling": "not known"
        if sampling is None
        else ", ".join(f"{name} {value}" for name, value in sampling.items() if value not in (None, "")),
        "protocol": ", ".join(f"{name} {value}" for name, value in results["protocol"].items() if name != "views"),
        "weights of the FID's network": "none" if inception is None else f"{inception['name']}, {inception['sha256']}",
        "weights of LPIPS": "none"
        if lpips_files is None
        else "; ".join(f"{file['name']}, {file['sha256']}" for file in lpips_files.values()),
        "commit": "not in a checkout"
        if commit is None
        else commit["hash"] + (", with changes that are not committed" if commit["modified"] else ""),
        "versions": ", ".join(f"{name} {version}" for name, version in results["versions"].items()),
        "device": f"{device['count']} x {device['kind']} ({device['platform']}), {device['processes']} process(es)",
    }
    config = json.dumps(results["config"], indent=2, ensure_ascii=False)
    return f"{page.table(rows)}<details><summary>The whole configuration</summary><pre>{text(config)}</pre></details>"


def _objects(objects: Mapping[str, Mapping[str, Any]]) -> str:
    columns = {"psnr": "PSNR, dB", "ssim": _TITLES["ssim"], "ssim_uniform": _TITLES["ssim_uniform"]}
    if any(each["lpips"] is not None for each in objects.values()):
        columns["lpips"] = _TITLES["lpips"]
    lines = "".join(
        f"<tr><td>{text(name)}</td><td>{len(each['views']['number']):,}</td>"
        + "".join(f"<td>{_number(column, each[column])}</td>" for column in columns)
        + f"<td>{_number('psnr', each['repeated_psnr'])}</td></tr>"
        for name, each in sorted(objects.items(), key=lambda item: -item[1]["psnr"])
    )
    head = "".join(f"<th>{title}</th>" for title in columns.values())
    return (
        f"<details><summary>{len(objects):,} objects by PSNR</summary><div class=wide><table><thead><tr><th>object</th>"
        f"<th>views</th>{head}<th>input repeated, dB</th></tr></thead><tbody>{lines}</tbody>"
        "</table></div></details>"
    )


def _list(sentences: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{text(each)}</li>" for each in sentences) + "</ul>" if sentences else ""


def _number(name: str, value: float | None) -> str:
    return "–" if value is None else f"{value:.{3 if name in ('ssim', 'ssim_uniform', 'lpips') else 2}f}"


def _published_number(name: str, value: float | None) -> str:
    """With as many digits as papers give."""
    return f"{value:.2f}" if name.startswith("ssim") and value is not None else _number(name, value)
