"""The output folder of a 3D consistency score.

``settings.json`` holds the settings that all figures depend on; ``NAME/row.json`` the views of a row; ``NAME/scores``,
``NAME/strips`` and ``NAME/renders`` a file or folder per object; ``NAME/fid.json`` the FID of the row; ``results.json``
and ``report.html`` everything together.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

import jax
import numpy as np
from etils import epath

from threedim import files, pixels
from threedim import settings as settings_lib
from threedim.consistency import report
from threedim.consistency.field import FieldSettings
from threedim.consistency.rows import Row, ScoredObject
from threedim.data import objects
from threedim.data.views import UNCHECKED
from threedim.errors import UserError
from threedim.evaluation.metrics import fid, inception
from threedim.files import read_json
from threedim.progress import Progress

_MEASURE = (
    "3D consistency score (arXiv 2210.04628, section 4) of held-out views, averaged over the views of an object, then "
    "over objects: PSNR in dB, SSIM with a Gaussian window of 11 px without padding, FID as pytorch-fid's; input_psnr: "
    "the field's render from the input camera against the input view, which it was fitted to; sharpness: what a blur "
    "of 1 px takes from all views, root mean square in gray levels"
)
_NO_FID = f"null without weights: --inception=FILE adds it (finished fits are kept); {inception.HOW_TO_GET_WEIGHTS}"


@dataclasses.dataclass(frozen=True)
class ScoreSettings:
    """Everything that a score depends on besides the views. The choice of held-out views is fixed."""

    field: FieldSettings
    input_views: tuple[int, ...]  # numbers of the views that the others were sampled from; never held out
    size: int  # pixels that views are averaged to; 0 keeps their size
    seed: int  # of the fits


def score_path(row: epath.Path, name: str) -> epath.Path:
    """File of an object's figures."""
    return row / "scores" / f"{name}.json"


def save(path: epath.Path, content: Any) -> None:
    """Writes a JSON file."""
    files.write_atomically(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def claim(path: epath.Path, content: dict[str, Any], what: str) -> None:
    """Writes the settings of a folder, or raises `UserError` if it holds results of others."""
    settings_lib.check_claim(path, read_json(path) if path.exists() else None, content, what, "--out")
    save(path, settings_lib.plain(content))


def is_done(out: epath.Path, row: Row, one: ScoredObject) -> bool:
    """Whether an object has its score; `UserError` if it is that of other views."""
    path = score_path(out / row.name, one.folder.name)
    if not path.exists():
        return False
    if read_json(path).get("views_sha256") != one.fingerprint():
        said = f"{path} is the score of other views than {one.folder} holds"
        raise UserError(f"{said}; delete it or choose another --out")
    return True


def take_fid(out: epath.Path, row: Row, extract: inception.FeatureExtractor, weights: dict[str, str] | None) -> None:
    """FID between the held-out views of a row's scored objects and the fields' renders [7.4].

    ``weights`` are the name and sha256 of the file that the features are computed with.
    """
    folder = out / row.name
    scored = [one for one in row.objects if score_path(folder, one.folder.name).exists()]
    rendered, true = (fid.PictureMoments(extract, extract.num_features) for _ in range(2))
    with Progress(len(scored), desc=f"FID, objects of {row.name}") as bar:
        for one in scored:
            pictures, _, _, held_out = one.views()
            rendered.add(objects.read_object(folder / "renders" / one.folder.name, UNCHECKED).decode()[0])
            true.add(pictures[held_out])
            bar.advance()
    distance = fid.frechet_distance(rendered.moments, true.moments)
    warnings = [f"FID: {warning}" for warning in distance.warnings]
    warnings += inception.not_as_published(weights) if weights else []
    about = {"fid": distance.value, "warnings": warnings, "inception": weights}
    save(folder / "fid.json", about | {"of": _digest(_objects(folder))})


def collect(out: epath.Path, settings: ScoreSettings) -> dict[str, Any]:
    """Writes ``results.json`` and ``report.html`` from all rows of the folder, also those of earlier calls."""
    frozen, now = dataclasses.asdict(FieldSettings()), dataclasses.asdict(settings.field)
    results = {
        "measure": _MEASURE,
        "settings": settings_lib.plain(dataclasses.asdict(settings)),
        "not_the_frozen_settings": {k: v for k, v in now.items() if v != frozen[k] and k != "rays_per_chunk"},
        "fid": _NO_FID,
        "jax_backend": jax.default_backend(),
        "rows": {path.parent.name: _row(path) for path in sorted(out.glob("*/row.json"))},
    }
    save(out / "results.json", results)

    def strip(row: str, name: str) -> np.ndarray | None:
        path = out / row / "strips" / f"{name}.png"
        return pixels.load_png(path) if path.exists() else None

    with files.interpreting(out, "its rows are not as this version writes them; move it away"):
        shown = report.render(results, strip)
    files.write_atomically(out / "report.html", shown)
    return results


def _row(path: epath.Path) -> dict[str, Any]:
    objects, fid_path = _objects(path.parent), path.parent / "fid.json"
    distance = read_json(fid_path) if fid_path.exists() else {}
    # The FID of other objects than the row has now does not count.
    distance = distance if distance.pop("of", None) == _digest(objects) else {"fid": None}
    figures = ("psnr", "ssim", "input_psnr", "sharpness")
    with files.interpreting(path.parent / "scores"):
        means = {name: float(np.mean([float(one[name]) for one in objects.values()])) for name in figures}
    return {**read_json(path), "num_objects": len(objects), **means, **distance, "objects": objects}


def _objects(row: epath.Path) -> dict[str, Any]:
    return {path.stem: read_json(path) for path in sorted((row / "scores").glob("*.json"))}


def _digest(objects: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(objects, sort_keys=True).encode()).hexdigest()
