"""3D consistency score [4, 7.4]: do the views of an object, sampled by any method, show one object?

    python -m threedim.evaluation.consistency --views DIR [--views NAME=DIR2 ...] --out FOLDER

fits one neural field per object to its views, except for a tenth that is held out, and compares the field's renders
with the held-out views of the same folder, never with the ground truth. ``FOLDER`` gets ``results.json``, with a row
for each folder, ``report.html`` to look at it, and per folder ``NAME/scores/<object>.json`` (figures of every view),
``NAME/strips/<object>.png`` (held-out views, renders, differences, depth) and ``NAME/renders/<object>`` (SRN format).
The same command resumes after an interruption; other settings need another folder.

A second figure is how well the field's render from the input camera agrees with the input view: views may agree with
each other and yet show another object than the given one. A third is the sharpness of the views: blurred ones agree
better.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import time
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from threedim import errors, files, pixels, provenance
from threedim.cameras import Camera
from threedim.consistency import fit, flags
from threedim.consistency import results as results_lib
from threedim.consistency.field import Bounds, FieldSettings, Rendering, render
from threedim.consistency.results import ScoreSettings
from threedim.consistency.rows import (
    Row,
    ScoredObject,
    default_inputs,
    named_folders,
    rays_of,
    read_row,
    sampled_objects,
)
from threedim.data import srn
from threedim.data.views import ReadSettings
from threedim.errors import UserError
from threedim.evaluation.metrics import image as image_metrics
from threedim.evaluation.metrics import inception, patches
from threedim.output import sheets
from threedim.progress import Progress

_STRIP_VIEWS, _DIFFERENCE_GAIN = 4, 4

Job = tuple[Row, ScoredObject]


def score(
    views: Sequence[str],
    out: epath.PathLike,
    field: FieldSettings,
    *,
    input_views: Sequence[int] | None = None,
    size: int = 0,
    seed: int = 0,
    read: ReadSettings | None = None,
    max_objects: int = 0,
    objects_at_once: int = 1,
    weights: epath.PathLike | None = None,
    extract: inception.FeatureExtractor | None = None,
) -> dict[str, Any]:
    """Scores folders of objects, writes the files that the module's docstring lists, and returns results.json.

    Args:
      views: folders of objects (docs/data.md), "DIR" or "NAME=DIR"; the name of a row defaults to the folder's. The
        samples.json of ``--mode=sample`` beside a folder gives the numbers of the views.
      out: folder of the results.
      field, input_views, size, seed: as in `ScoreSettings`. Input views default to those of the first samples.json, or
        view 64, or 0.
      read: how folders are read; the defaults of `ReadSettings` if None.
      max_objects: if positive, only that many objects of each folder, the first by a hash of their names.
      objects_at_once: fields fitted side by side, on an accelerator with room for them.
      weights: file with the weights of the FID's network; without it the FID is left out.
      extract: features for the FID instead of those.

    Raises:
      MissingError, BadObjectError: if a folder does not exist or holds no objects.
      UserError: if ``out`` holds scores made with other settings or of other views, two rows have one name, views
        were sampled from other input views than those given, or they are too few, too small or all equal.
    """
    # Check everything before the fits, which take long.
    if objects_at_once < 1 or max_objects < 0 or size < 0:
        given = f"{objects_at_once}, {max_objects}, {size}"
        raise UserError(f"objects_at_once must be positive, max_objects and size not negative; got {given}")
    params = inception.load_params(weights) if weights and not extract else None
    read = read or ReadSettings()
    rows, input_views = _read_rows(views, input_views, size, read)
    jobs = []
    for row in rows:
        by_hash = sorted(row.objects, key=lambda one: hashlib.sha256(one.folder.name.encode()).digest())
        jobs += [(row, one) for one in (by_hash[:max_objects] if max_objects else row.objects)]
    for row in rows if params or extract else ():
        if sum(len(one.held_out) for of, one in jobs if of is row) < 2:
            problem = "one held-out view has no FID, which needs two: score more objects or views, or leave it out"
            raise UserError(f"{row.folder}: {problem}")
    settings = ScoreSettings(field, tuple(map(int, input_views)), size, seed)
    out = epath.Path(out)
    results_lib.claim(out / "settings.json", dataclasses.asdict(settings), "scores made with")
    for row in rows:
        about = {"views": str(row.folder), "bounds": row.bounds._asdict(), **read.changed()}
        results_lib.claim(out / row.name / "row.json", about, "scores of other views, with")

    # Fit and score what is not finished.
    todo = [job for job in jobs if not results_lib.is_done(out, *job)]
    steps = field.num_steps
    done = (len(jobs) - len(todo)) * steps
    with Progress(len(jobs) * steps, initial=done, desc="fitting, steps") as bar:
        for batch in _batches(todo, objects_at_once):
            _score_batch(out, batch, objects_at_once, settings, bar, done)
            done += steps * len(batch)

    # FID, and all rows together.
    extract = inception.FeatureExtractor(params) if params else extract
    identity = provenance.file_identity(weights) if weights else None
    for row in rows if extract else ():
        results_lib.take_fid(out, row, extract, identity)
    return results_lib.collect(out, settings)


def _read_rows(
    views: Sequence[str], input_views: Sequence[int] | None, size: int, settings: ReadSettings
) -> tuple[list[Row], Sequence[int]]:
    """The rows, and the numbers of the input views."""
    named = named_folders(views)
    if input_views is None:
        samples = (sampled_objects(folder) for _, folder in named)
        input_views = next((list(inputs) for each in samples for inputs, _ in each.values()), None)
    rows = [read_row(name, folder, input_views, size, settings) for name, folder in named]
    if input_views is None:
        defaults = {default_inputs(len(one.numbers)) for row in rows for one in row.objects}
        if len(defaults) > 1:
            raise UserError("some objects have more than 64 views and others fewer: set --input_view")
        (input_views,) = defaults
    return rows, input_views


def _batches(jobs: Sequence[Job], size: int) -> Iterator[list[Job]]:
    """Objects of one row, number of views and picture size, which one program can fit side by side."""
    groups: dict[Any, list[Job]] = {}
    for row, one in jobs:
        groups.setdefault((row.name, len(one.numbers), one.pixels), []).append((row, one))
    for group in groups.values():
        for start in range(0, len(group), size):
            yield group[start : start + size]


def _score_batch(
    out: epath.Path, batch: list[Job], width: int, settings: ScoreSettings, bar: Progress, done: int
) -> None:
    """Fits and scores up to ``width`` objects side by side; ``done`` steps came before."""
    began, bounds = time.monotonic(), batch[0][0].bounds
    loaded = [one.views() for _, one in batch]
    key = jax.random.key(settings.seed)
    keys = [jax.random.fold_in(key, zlib.crc32(one.folder.name.encode())) for _, one in batch]
    rays = [rays_of(pictures[training], cameras[training]) for pictures, cameras, training, _ in loaded]
    # Padded, so that one program is compiled.
    keys, rays = ((each + each[:1] * width)[:width] for each in (keys, rays))
    rays = jax.tree.map(lambda *leaves: np.stack(leaves), *rays)

    def show(steps: int, _: np.ndarray) -> None:
        bar.set(done + steps * len(batch))

    fields = fit.fit(jnp.stack(keys), rays, bounds, settings.field, show)
    seconds = (time.monotonic() - began) / len(batch)
    for index, ((row, one), views) in enumerate(zip(batch, loaded, strict=True)):
        fitted = jax.tree.map(lambda leaf, i=index: leaf[i], fields)
        _write_score(out / row.name, one, views, fitted, bounds, settings, seconds)


def _write_score(folder, one: ScoredObject, views, fitted, bounds: Bounds, settings: ScoreSettings, seconds) -> None:
    """Compares one object's field with its held-out views, and writes renders, strip and figures."""
    pictures, cameras, _, held_out = views
    held, seen_by = pictures[held_out], cameras[held_out]
    inputs = [one.numbers.index(view) for view in settings.input_views]
    renders, rendering = _render(fitted, held, seen_by, bounds, settings)
    from_input, _ = _render(fitted, pictures[inputs], cameras[inputs], bounds, settings)
    psnr, ssim = image_metrics.psnr(renders, held), image_metrics.ssim(renders, held)
    name = one.folder.name
    kept = folder / "renders" / name
    if kept.exists():  # of an interrupted attempt
        kept.rmtree()
    srn.write_object(kept, renders, seen_by)
    pixels.save_png(folder / "strips" / f"{name}.png", _strip(one, held, renders, rendering))
    figures = {
        "views_sha256": one.fingerprint(),
        "num_views": len(one.numbers),
        "held_out": list(one.held_out),
        "psnr": float(np.mean(psnr, dtype=np.float64)),
        "ssim": float(np.mean(ssim, dtype=np.float64)),
        "sharpness": patches.sharpness(pictures),
        "psnr_of_view": psnr.tolist(),
        "ssim_of_view": ssim.tolist(),
        "input_psnr": float(np.mean(image_metrics.psnr(from_input, pictures[inputs]), dtype=np.float64)),
        "fit_seconds": round(seconds, 2),
    }
    # Last: an object that has this file is finished.
    results_lib.save(results_lib.score_path(folder, name), figures)


def _render(fitted, pictures: np.ndarray, cameras: Camera, bounds: Bounds, settings: ScoreSettings):
    """The field seen from these cameras, (view, height, width, 3) uint8, and the rendering of each pixel."""
    rays = rays_of(pictures, cameras)
    rendering = render(fitted, rays.origins, rays.directions, bounds, settings.field)
    return pixels.to_uint8(2 * np.asarray(rendering.colors).reshape(pictures.shape) - 1), rendering


def _strip(one: ScoredObject, held: np.ndarray, renders: np.ndarray, rendering: Rendering) -> np.ndarray:
    chosen = np.unique(np.linspace(0, len(held) - 1, _STRIP_VIEWS).round().astype(int))
    difference = np.abs(held.astype(int) - renders.astype(int))
    difference = (255 - np.minimum(_DIFFERENCE_GAIN * difference, 255)).astype(np.uint8)
    opacity, depth = (np.asarray(leaf).reshape(held.shape[:3]) for leaf in (rendering.opacity, rendering.depth))
    seen = depth[opacity > 0.5]
    near, far = (seen.min(), max(seen.max(), seen.min() + 1e-6)) if seen.size else (0.0, 1.0)
    shade = 0.8 * np.clip((depth - near) / (far - near), 0, 1)
    gray = np.rint(255 * (1 - opacity * (1 - shade))).clip(0, 255).astype(np.uint8)
    columns = [held, renders, difference, np.repeat(gray[..., None], 3, axis=-1)]
    return sheets.make_grid(
        np.stack([column[chosen] for column in columns], axis=1),
        row_labels=[f"view {one.held_out[index]}" for index in chosen],
        col_labels=["held out", "field", f"difference x{_DIFFERENCE_GAIN}", "depth, near is dark"],
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m threedim.evaluation.consistency", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--views", action="append", required=True, metavar="[NAME=]DIR", help="Folder of objects; repeatable.")
    add("--out", type=files.path, required=True, help="Output folder: new, or with results of the same settings.")
    add("--input_view", type=int, action="append", help="Number of a view that the others were sampled from; "
        "repeatable. Defaults to samples.json beside the views, then 64, then 0.")  # fmt: skip
    add("--size", type=int, default=0, help="Average views down to this many pixels.")
    add("--max_objects", type=int, default=0, help="Number of objects, chosen by a hash of their names; 0 for all.")
    add("--objects_at_once", type=int, default=1, help="Objects fitted side by side on an accelerator.")
    fid = "File with the weights of the FID's network; without it the FID is left out."
    add("--inception", type=files.path, help=fid)
    flags.add_fit_flags(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    given = _parser().parse_args(argv)
    with errors.one_line():
        field, read = flags.fit_settings(given)
        same = {name: getattr(given, name) for name in ("size", "seed", "max_objects", "objects_at_once")}
        same |= {"input_views": given.input_view, "weights": given.inception, "read": read}
        results = score(given.views, given.out, field, **same)
    print(json.dumps(results["settings"]))
    for name, row in results["rows"].items():
        seconds = np.mean([one["fit_seconds"] for one in row["objects"].values()])
        fid = "" if row["fid"] is None else f"   FID {row['fid']:.2f}"
        print(
            f"{name:24} {row['psnr']:6.2f} dB   SSIM {row['ssim']:.3f}{fid}   input view {row['input_psnr']:.2f} dB   "
            f"sharpness {row['sharpness']:.2f}   {row['num_objects']} objects   {seconds:.0f} s each"
        )
        for warning in row.get("warnings", ()):
            print(f"  {warning}")
    for name in ("results.json", "report.html"):
        print(epath.Path(given.out) / name)
