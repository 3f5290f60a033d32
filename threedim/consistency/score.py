"""3D consistency score [4, 7.4]: do the views of an object, from whatever method, show one and the same object?

    python -m threedim.evaluation.consistency --views DIR [--views NAME=DIR2 ...] --out FOLDER

fits one neural field per object to its views, a tenth of them set aside, and compares the field's renders with the
views that were set aside: those of the same folder, never the truth. Folders are in SRN format. ``FOLDER`` gets
``results.json``, a line for each folder there is, and for each folder ``NAME/scores/<object>.json`` (figures of every
view), ``NAME/strips/<object>.png`` (held-out views, renders, differences, depth) and ``NAME/renders/<object>`` (SRN
format). The same command goes on after an interruption; other settings need another folder.

Beside the score stands how well the field's render from the input camera agrees with the input view: views may agree
with each other, and yet show another object than the one that was asked for.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import sys
import time
import zlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from threedim import provenance
from threedim.consistency import field, fit
from threedim.consistency import results as results_folder
from threedim.consistency.field import FieldSettings
from threedim.consistency.fit import Rays
from threedim.consistency.held_out import (
    ScoredObject,
    default_inputs,
    fingerprint,
    load_views,
    named_folders,
    read_row,
    sampled_inputs,
)
from threedim.consistency.results import ScoreSettings
from threedim.data import srn
from threedim.errors import UserError
from threedim.evaluation.metrics import image as image_metrics
from threedim.evaluation.metrics import inception
from threedim.evaluation.scores import Extractor
from threedim.output import images as images_lib
from threedim.progress import progress

# Random rays of a step where all pixels would take hours.
CPU_RAYS_PER_STEP = 1536
# Of a render that equals the view to the last bit, whose PSNR is infinite, which JSON has no number for.
_MAX_PSNR = 100.0
_STRIP_VIEWS, _DIFFERENCE_GAIN = 4, 4


def score(
    views: Sequence[str],
    out: epath.PathLike,
    field: FieldSettings,
    *,
    input_views: Sequence[int] | None = None,
    size: int = 0,
    seed: int = 0,
    max_objects: int = 0,
    objects_at_once: int = 1,
    weights: epath.PathLike | None = None,
    extract: Extractor | None = None,
) -> dict[str, Any]:
    """Scores folders of objects; what the module's docstring says is written to ``out``.

    Args:
      views: folders in SRN format, "DIR" or "NAME=DIR"; the name of a row is the folder's unless given. Where a folder
        was written by ``--mode=sample``, samples.json beside it says which number each view has.
      out: folder of the results.
      field, input_views, size, seed: as in `ScoreSettings`. Input views are, unless given, those of the first
        samples.json, or else view 64, or else 0.
      max_objects: if positive, only that many objects of each folder, the first by a hash of their names.
      objects_at_once: fields fitted side by side, on an accelerator with room for them.
      weights: file with the weights of the FID's network; without it there is no FID.
      extract: features for the FID instead of those.

    Returns:
      The content of results.json.

    Raises:
      FileNotFoundError, BadObjectError: if a folder is absent or not in SRN format.
      ValueError: if ``out`` holds scores made with other settings or of other views; if two rows have one name; if
        views were drawn from other input views than those given.
    """
    if objects_at_once < 1 or max_objects < 0 or size < 0:
        raise UserError(
            f"objects_at_once must be positive, max_objects and size not negative; got {objects_at_once}, "
            f"{max_objects}, {size}"
        )
    # Before anything is fitted, which takes long.
    params = inception.load_params(weights) if weights and not extract else None
    named = named_folders(views)
    if input_views is None:
        input_views = next((inputs for _, folder in named if (inputs := sampled_inputs(folder))), None)
    rows = [read_row(name, folder, input_views, size) for name, folder in named]
    if input_views is None:
        defaults = {default_inputs(len(one.numbers)) for row in rows for one in row.objects}
        if len(defaults) > 1:
            raise UserError("objects have more and fewer than 65 views: say with --input_view which is the input")
        (input_views,) = defaults
    settings = ScoreSettings(field, tuple(int(view) for view in input_views), size, seed)
    out = epath.Path(out)
    results_folder.claim(out / "settings.json", dataclasses.asdict(settings), "was scored with other settings")
    for row in rows:
        about = {"views": str(row.folder), "bounds": row.bounds._asdict()}
        results_folder.claim(out / row.name / "row.json", about, "is of other views")

    jobs = []
    for row in rows:
        chosen = sorted(row.objects, key=lambda one: hashlib.sha256(one.folder.name.encode()).digest())
        chosen = chosen[:max_objects] if max_objects else row.objects
        jobs += [(row, one) for one in chosen]
    todo = [job for job in jobs if not results_folder.is_done(out, *job)]
    steps = field.num_steps
    with progress(len(jobs) * steps, initial=(len(jobs) - len(todo)) * steps, desc="fitting, steps") as bar:
        done = bar.initial
        for batch in _batches(todo, objects_at_once):

            def on_step(step: int, before: int = done, objects: list = batch) -> None:
                bar.set(before + step * len(objects))

            _score_batch(out, batch, objects_at_once, settings, on_step)
            done += steps * len(batch)
    identity = provenance.file_identity(weights) if weights else None
    if params is not None:
        extract = inception.FeatureExtractor(params)
    if extract is not None:
        for row in rows:
            results_folder.take_fid(out, row, extract, identity)
    return results_folder.collect(out, settings)


def _batches(jobs, size):
    """Objects of one row, number of views and picture size, which one program can fit side by side."""
    groups: dict[Any, list[Any]] = {}
    for row, one in jobs:
        groups.setdefault((row.name, len(one.numbers), one.pixels), []).append((row, one))
    for group in groups.values():
        for start in range(0, len(group), size):
            yield group[start : start + size]


# ------------------------------------------------------------------------------------------------------------- scoring


def _score_batch(out, batch, width, settings: ScoreSettings, on_step) -> None:
    began, bounds = time.monotonic(), batch[0][0].bounds
    loaded = [load_views(one) for _, one in batch]
    keys = [_key(one.folder.name, settings.seed) for _, one in batch]
    # Filled up, so that there is one compiled program.
    filled = [(*loaded, *[loaded[0]] * width)[index] for index in range(width)]
    filled_keys = [(*keys, *[keys[0]] * width)[index] for index in range(width)]
    rays = [_rays(pictures[training], cameras[training]) for pictures, cameras, training, _ in filled]
    fields = fit.fit(
        jnp.stack(filled_keys),
        jax.tree.map(lambda *leaves: np.stack(leaves), *rays),
        bounds,
        settings.field,
        lambda steps, _: on_step(steps),
    )
    seconds = time.monotonic() - began
    for index, ((row, one), (pictures, cameras, _, held_out)) in enumerate(zip(batch, loaded, strict=True)):
        field, held, seen_by = (
            jax.tree.map(lambda leaf, i=index: leaf[i], fields),
            pictures[held_out],
            cameras[held_out],
        )
        renders, rendering = _render(field, held, seen_by, bounds, settings)
        psnr = _psnr(renders, held)
        ssim = image_metrics.ssim(renders, held)
        inputs = [one.numbers.index(view) for view in settings.input_views]
        from_input, _ = _render(field, pictures[inputs], cameras[inputs], bounds, settings)
        folder, name = out / row.name, one.folder.name
        kept = folder / "renders" / name
        if kept.exists():  # of an attempt that did not get to the end
            kept.rmtree()
        srn.write_object(kept, renders, seen_by)
        images_lib.save_png(results_folder.strip_path(folder, name), _strip(one, held, renders, rendering))
        figures = {
            "views_sha256": fingerprint(one),
            "num_views": len(one.numbers),
            "held_out": list(one.held_out),
            "psnr": float(np.mean(psnr, dtype=np.float64)),
            "ssim": float(np.mean(ssim, dtype=np.float64)),
            "psnr_of_view": [float(value) for value in psnr],
            "ssim_of_view": [float(value) for value in ssim],
            "input_psnr": float(np.mean(_psnr(from_input, pictures[inputs]), dtype=np.float64)),
            "fit_seconds": round(seconds / len(batch), 2),
        }
        # Last, because an object that has it is finished.
        results_folder.save(results_folder.score_path(folder, name), figures)


def _render(field, pictures: np.ndarray, cameras, bounds, settings: ScoreSettings):
    """What the field shows from these cameras, (view, height, width, 3) uint8, and all that is known of each pixel."""
    target = _rays(pictures, cameras)
    rendering = field.render(field, target.origins, target.directions, bounds, settings.field)
    return images_lib.to_uint8(2 * np.asarray(rendering.colors).reshape(pictures.shape) - 1), rendering


def _psnr(renders: np.ndarray, views: np.ndarray) -> np.ndarray:
    return np.minimum(image_metrics.psnr(renders, views), _MAX_PSNR)


def _rays(pictures: np.ndarray, cameras) -> Rays:
    views, height, width = pictures.shape[:3]
    _, directions = cameras.rays(height, width)
    colors = pictures.reshape(views, -1, 3).astype(np.float32) / 255
    return Rays(np.asarray(cameras.t), directions.reshape(views, -1, 3), colors)


def _key(name: str, seed: int) -> jax.Array:
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))


def _strip(one: ScoredObject, held: np.ndarray, renders: np.ndarray, rendering: field.Rendering) -> np.ndarray:
    chosen = np.unique(np.linspace(0, len(held) - 1, _STRIP_VIEWS).round().astype(int))
    difference = np.abs(held.astype(int) - renders.astype(int))
    difference = (255 - np.minimum(_DIFFERENCE_GAIN * difference, 255)).astype(np.uint8)
    opacity, depth = (np.asarray(leaf).reshape(held.shape[:3]) for leaf in (rendering.opacity, rendering.depth))
    seen = depth[opacity > 0.5]
    near, far = (seen.min(), max(seen.max(), seen.min() + 1e-6)) if seen.size else (0.0, 1.0)
    shade = 0.8 * np.clip((depth - near) / (far - near), 0, 1)
    gray = np.rint(255 * (1 - opacity * (1 - shade))).clip(0, 255).astype(np.uint8)
    columns = [held, renders, difference, np.repeat(gray[..., None], 3, axis=-1)]
    return images_lib.make_grid(
        np.stack([column[chosen] for column in columns], axis=1),
        row_labels=[f"view {one.held_out[index]}" for index in chosen],
        col_labels=["held out", "field", f"difference x{_DIFFERENCE_GAIN}", "depth, near is dark"],
    )


# -------------------------------------------------------------------------------------------------------- command line


def _field_settings(rays_per_step: int | None, changes: Sequence[str]) -> FieldSettings:
    """The frozen settings but for ``changes``, NAME=VALUE."""
    defaults = dataclasses.asdict(FieldSettings())
    given: dict[str, Any] = {}
    for change in changes:
        name, _, value = change.partition("=")
        if name not in defaults:
            raise UserError(f"--set {change}: no field setting {name!r}; there are {', '.join(defaults)}")
        try:
            given[name] = type(defaults[name])(value)
        except ValueError as error:
            raise UserError(f"--set {change}: {error}") from error
    if rays_per_step is None:
        rays_per_step = CPU_RAYS_PER_STEP if jax.default_backend() == "cpu" else FieldSettings().rays_per_step
    given.setdefault("rays_per_step", rays_per_step)
    return dataclasses.replace(FieldSettings(), **given)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m threedim.evaluation.consistency", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--views", action="append", required=True, metavar="[NAME=]DIR", help="Folder in SRN format; may be repeated.")
    add("--out", required=True, help="Folder of the results; new, or that of the same settings.")
    add("--input_view", type=int, action="append", help="Number of a view that the others were drawn from; may be "
        "repeated. Unless given: as samples.json beside the views says, else 64, else 0.")  # fmt: skip
    add("--size", type=int, default=0, help="Pixels that views are averaged down to; as they are by default.")
    add("--seed", type=int, default=0, help="Of the fits.")
    add("--max_objects", type=int, default=0, help="Only so many objects, chosen by a hash of their names; 0 for all.")
    add("--objects_at_once", type=int, default=1, help="Fitted side by side, on an accelerator with room for them.")
    add("--rays_per_step", type=int, help=f"Random rays of a step; 0 for all pixels of all views. Unless given: "
        f"{CPU_RAYS_PER_STEP} on a CPU, else 0. Compare only rows of equal numbers.")  # fmt: skip
    add("--inception", help="File with the weights of the FID's network; without it there is no FID.")
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="Another field setting than the frozen one.")
    add("--compilation_cache", default="~/.cache/threedim/xla", help="Folder of compiled programs; empty for none.")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    given = _parser().parse_args(argv)
    if given.compilation_cache:
        jax.config.update("jax_compilation_cache_dir", str(epath.Path(given.compilation_cache).expanduser()))
    try:
        results = score(
            given.views,
            given.out,
            _field_settings(given.rays_per_step, given.set),
            input_views=given.input_view,
            size=given.size,
            seed=given.seed,
            max_objects=given.max_objects,
            objects_at_once=given.objects_at_once,
            weights=given.inception,
        )
    except UserError as error:
        sys.exit(f"error: {error}")
    print(json.dumps(results["settings"]))
    for name, row in results["rows"].items():
        seconds = np.mean([one["fit_seconds"] for one in row["objects"].values()])
        fid = "" if row["fid"] is None else f"   FID {row['fid']:.2f}"
        print(
            f"{name:24} {row['psnr']:6.2f} dB   SSIM {row['ssim']:.3f}{fid}   input view {row['input_psnr']:.2f} dB   "
            f"{row['num_objects']} objects   {seconds:.0f} s each"
        )
    print(f"{epath.Path(given.out) / 'results.json'}")
