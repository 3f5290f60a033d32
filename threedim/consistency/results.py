"""The folder of a 3D consistency score: what decides its figures, what is done, and ``results.json``.

``settings.json`` holds what decides all figures; ``NAME/row.json`` what a row is taken of; ``NAME/scores``,
``NAME/strips`` and ``NAME/renders`` have a file or folder for each object; ``NAME/fid.json`` the FID of the row.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

import jax
import numpy as np
from etils import epath

from threedim import files
from threedim.consistency.field import FieldSettings
from threedim.consistency.held_out import Row, ScoredObject, fingerprint, load_json, load_views
from threedim.data import srn
from threedim.errors import UserError
from threedim.evaluation.metrics import fid, inception
from threedim.evaluation.scores import Extractor
from threedim.progress import progress

_NO_FID = (
    "null where it was not taken: name the weights with --inception=FILE (fits that are done stay); "
    + inception.HOW_TO_GET_WEIGHTS
)


@dataclasses.dataclass(frozen=True)
class ScoreSettings:
    """Everything that decides a score beside the views.

    Attributes:
      field: of the fits.
      input_views: numbers of the views that the others were drawn from; never set aside.
      size: pixels that views are averaged down to; 0 leaves them as they are.
      seed: of the fits. The held-out views have no seed: they are drawn once and for all.
    """

    field: FieldSettings
    input_views: tuple[int, ...]
    size: int = 0
    seed: int = 0


def score_path(row: epath.Path, name: str) -> epath.Path:
    """File of an object's figures."""
    return row / "scores" / f"{name}.json"


def strip_path(row: epath.Path, name: str) -> epath.Path:
    """File of an object's pictures."""
    return row / "strips" / f"{name}.png"


def save(path: epath.Path, content: Any) -> None:
    """Writes a file of results."""
    files.write_atomically(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def claim(path: epath.Path, content: dict[str, Any], problem: str) -> None:
    """Writes what decides the results here, or checks that it is what it was.

    Raises:
      ValueError: if it is not, or the folder holds something else.
    """
    now = json.loads(json.dumps(content))
    if not path.exists():
        if path.parent.exists() and any(not child.name.startswith(".") for child in path.parent.iterdir()):
            raise UserError(f"{path.parent} is not empty and holds no {path.name}; choose another --out")
        save(path, now)
        return
    before, now = _flat(load_json(path)), _flat(now)
    changed = [f"{k}: {before.get(k)} → {now.get(k)}" for k in sorted(before | now) if before.get(k) != now.get(k)]
    if changed:
        raise UserError(f"{path.parent} {problem} (then → now): {'; '.join(changed)}; choose another --out")


def _flat(content: dict[str, Any]) -> dict[str, Any]:
    flat = {}
    for name, value in content.items():
        flat |= {f"{name}.{k}": v for k, v in _flat(value).items()} if isinstance(value, dict) else {name: value}
    return flat


def is_done(out: epath.Path, row: Row, one: ScoredObject) -> bool:
    """Whether an object has its score.

    Raises:
      ValueError: if it is the score of other views.
    """
    path = score_path(out / row.name, one.folder.name)
    if not path.exists():
        return False
    if load_json(path).get("views_sha256") != fingerprint(one):
        raise UserError(
            f"{path} is the score of other views than {one.folder} holds now; delete it or choose another --out"
        )
    return True


def take_fid(out: epath.Path, row: Row, extract: Extractor, weights: dict[str, str] | None) -> None:
    """FID between the held-out views of all the row's scored objects and the fields' renders [7.4].

    Args:
      out: folder of the results.
      row: whose objects are scored; those that are not are left out.
      extract: features.
      weights: what they were computed with.
    """
    folder = out / row.name
    scored = [one for one in row.objects if score_path(folder, one.folder.name).exists()]
    sets = [fid.PictureMoments(extract, extract.num_features) for _ in "ab"]
    with progress(len(scored), desc=f"FID, {row.name}") as bar:
        for one in scored:
            pictures, _, _, held_out = load_views(one)
            renders, _ = srn.read_object(folder / "renders" / one.folder.name).decode()
            sets[0].add(renders)
            sets[1].add(pictures[held_out])
            bar.advance()
    distance = fid.frechet_distance(*(each.moments for each in sets))
    about = {"fid": distance.value, "warnings": list(distance.warnings), "inception": weights}
    save(folder / "fid.json", about | {"of": _digest(_objects(folder))})


def _objects(row: epath.Path) -> dict[str, Any]:
    return {path.stem: load_json(path) for path in sorted((row / "scores").glob("*.json"))}


def _digest(objects: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(objects, sort_keys=True).encode()).hexdigest()


def collect(out: epath.Path, settings: ScoreSettings) -> dict[str, Any]:
    """``results.json`` from every row that the folder has, of this call or of earlier ones."""
    rows = {}
    for path in sorted(out.glob("*/row.json")):
        objects, fid = _objects(path.parent), {"fid": None}
        if (path.parent / "fid.json").exists():
            taken = load_json(path.parent / "fid.json")
            # Not that of other objects than the row has now.
            if taken.pop("of", None) == _digest(objects):
                fid = taken
        means = ("psnr", "ssim", "input_psnr")
        rows[path.parent.name] = {
            **load_json(path),
            "num_objects": len(objects),
            **{name: float(np.mean([one[name] for one in objects.values()])) for name in means},
            **fid,
            "objects": objects,
        }
    frozen = dataclasses.asdict(FieldSettings())
    # How many rays a step takes is a matter of the machine, and stands among the settings.
    free = ("rays_per_step", "rays_per_chunk")
    changed = {k: v for k, v in dataclasses.asdict(settings.field).items() if v != frozen[k] and k not in free}
    results = {
        "measure": "3D consistency score (arXiv 2210.04628, section 4): PSNR in dB, SSIM with a Gaussian window; "
        "input_psnr: the field's render from the input camera against the input view, which it was fitted to",
        "settings": {**dataclasses.asdict(settings), "input_views": list(settings.input_views)},
        "not_the_frozen_settings": changed,
        "fid": _NO_FID,
        "jax_backend": jax.default_backend(),
        "rows": rows,
    }
    save(out / "results.json", results)
    return results
