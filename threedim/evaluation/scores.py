"""Scores of sampled views against true ones, object by object, so that a test set need not fit into memory."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Protocol

import numpy as np

from threedim.evaluation.metrics import fid, patches
from threedim.evaluation.metrics import image as image_metrics
from threedim.tasks import Task, Views

# The patch distance sorts all patches that it compares: it uses at most this many views.
PATCH_VIEWS = 1000
BIN_DEGREES = 15


class Extractor(Protocol):
    """Features for the FID, such as `inception.FeatureExtractor`."""

    num_features: int

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """(picture, feature) of (picture, height, width, 3) uint8."""


class Comparer(Protocol):
    """LPIPS, such as `lpips.PerceptualDistance`."""

    name: str
    smallest: int

    def __call__(self, truth: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
        """(picture,) for each of the others, of (picture or 1, height, width, 3) uint8."""


@dataclasses.dataclass(frozen=True)
class ObjectScores:
    """The scores of one object; arrays are (view,) float64 in the order of ``views``.

    Attributes:
      name: of the object.
      input_views, views: numbers of the input views and of the sampled ones.
      angle: degrees between the optical axes of a view's camera and the first input's.
      psnr: dB, at most `psnr_limit`.
      ssim: None if pictures are too small.
      lpips: None if pictures are too small, or without weights.
      equal: number of views that equal the truth in every pixel.
      repeated_psnr, repeated_ssim, repeated_lpips: scores of the repeated input view, a baseline.
    """

    name: str
    input_views: list[int]
    views: list[int]
    angle: np.ndarray
    psnr: np.ndarray
    ssim: np.ndarray | None
    lpips: np.ndarray | None
    equal: int
    repeated_psnr: np.ndarray
    repeated_ssim: np.ndarray | None
    repeated_lpips: np.ndarray | None


def psnr_limit(height: int, width: int) -> float:
    """The highest PSNR of two unequal pictures, in which one number differs by 1: 95 dB at 128 px.

    It stands for the infinite PSNR of equal pictures, so that means stay finite.
    """
    return 10 * math.log10(255**2 * height * width * 3)


def angles(task_views: Views) -> np.ndarray:
    """Degrees in [0, 180] between the optical axes of the target cameras and the first input camera's, (view,)."""
    axes, given = task_views.targets.R[..., :, 2], task_views.cameras.R[0, :, 2]
    axes, given = np.asarray(axes, np.float64), np.asarray(given, np.float64)
    # Not by the cosine alone, which is flat for small angles.
    sine = np.linalg.norm(np.cross(axes, given), axis=-1)
    return np.degrees(np.arctan2(sine, axes @ given))


def score_object(task: Task, views: Views, sampled: np.ndarray, compare: Comparer | None = None) -> ObjectScores:
    """Scores the sampled views (view, height, width, 3) uint8 of an object, with ``compare`` also by LPIPS."""
    height, width = views.truth.shape[-3:-1]
    limit = psnr_limit(height, width)
    repeated = np.ascontiguousarray(np.broadcast_to(views.inputs[0], views.truth.shape))

    def psnr(images: np.ndarray) -> np.ndarray:
        return np.minimum(image_metrics.psnr(images, views.truth).astype(np.float64), limit)

    def ssim(images: np.ndarray) -> np.ndarray | None:
        return None if ssim_refusal(height) else image_metrics.ssim(images, views.truth).astype(np.float64)

    lpips = repeated_lpips = None
    if compare and not lpips_refusal(height, compare):
        lpips, repeated_lpips = compare(views.truth, sampled, views.inputs[:1])
    return ObjectScores(
        task.name,
        task.input_views,
        task.target_views,
        angles(views),
        psnr(sampled),
        ssim(sampled),
        lpips,
        int(np.all(sampled == views.truth, axis=(1, 2, 3)).sum()),
        psnr(repeated),
        ssim(repeated),
        repeated_lpips,
    )


def ssim_refusal(size: int) -> str | None:
    """Why SSIM is undefined for pictures of this size, or None."""
    return None if size >= 11 else f"pictures of {size} px are smaller than its window of 11 px"


def lpips_refusal(size: int, compare: Comparer) -> str | None:
    """Why LPIPS is undefined for pictures of this size, or None."""
    if size >= compare.smallest:
        return None
    return f"pictures of {size} px are smaller than the {compare.smallest} px that {compare.name} needs"


def patch_refusal(size: int) -> str | None:
    """Why the patch distance is undefined for pictures of this size, or None."""
    return None if size >= 16 else f"pictures of {size} px are smaller than the 16 px of its smallest level"


class Distances:
    """Distances between all sampled and all true views: the FID, and the patch distance of a subset.

    Args:
      num_views: number of views that will be added.
      seed: of the choice of views for the patch distance, and of its patches.
      extract: features for the FID; None leaves it out.
    """

    def __init__(self, num_views: int, seed: int, extract: Extractor | None):
        chosen = np.random.default_rng(seed).permutation(num_views)[:PATCH_VIEWS]
        self._wanted = np.zeros(num_views, bool)
        self._wanted[chosen] = True
        self._seen, self._seed = 0, seed
        self._subset: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._moments = [fid.PictureMoments(extract, extract.num_features) for _ in "ab"] if extract else None

    def add(self, views: Views, sampled: np.ndarray) -> None:
        """Adds an object's views."""
        mine = self._wanted[self._seen : self._seen + len(sampled)]
        self._seen += len(sampled)
        repeated = np.broadcast_to(views.inputs[0], views.truth.shape)
        self._subset.append((sampled[mine], views.truth[mine], repeated[mine]))
        if self._moments:
            for moments, pictures in zip(self._moments, (sampled, views.truth), strict=True):
                moments.add(pictures)

    def fid(self) -> fid.FrechetDistance | None:
        """None without features."""
        if not self._moments:
            return None
        return fid.frechet_distance(self._moments[0].moments, self._moments[1].moments)

    def patch_distances(self) -> tuple[float, float]:
        """Of the sampled views, and of the repeated input view, to the true ones."""
        sampled, truth, repeated = (np.concatenate(pictures) for pictures in zip(*self._subset, strict=True))
        return tuple(patches.sliced_wasserstein(each, truth, seed=self._seed) for each in (sampled, repeated))


def summary(scores: list[ObjectScores]) -> dict[str, Any]:
    """Means over all views as in the paper [3], and the spread over objects, as plain numbers or None.

    Returns:
      "dataset" with "psnr", "ssim" and "lpips", each also "..._std_over_objects"; the same of the repeated input
      view as "repeated"; and "psnr_by_angle", a list of non-empty bins.
    """
    return {
        "dataset": _means(scores, ""),
        "repeated": _means(scores, "repeated_"),
        "psnr_by_angle": _by_angle(scores),
    }


def _means(scores: list[ObjectScores], prefix: str) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for name in ("psnr", "ssim", "lpips"):
        values = [getattr(each, prefix + name) for each in scores]
        known = all(each is not None for each in values)
        found[name] = float(np.concatenate(values).mean()) if known else None
        spread = known and len(values) > 1
        found[f"{name}_std_over_objects"] = float(np.std([v.mean() for v in values], ddof=1)) if spread else None
    return found


def _by_angle(scores: list[ObjectScores]) -> list[dict[str, float]]:
    angle, psnr, repeated = (
        np.concatenate([getattr(each, field) for each in scores]) for field in ("angle", "psnr", "repeated_psnr")
    )
    bins = np.minimum(angle // BIN_DEGREES, 180 // BIN_DEGREES - 1).astype(int)
    found = []
    for index in np.unique(bins).tolist():
        inside = bins == index
        found.append(
            {
                "from_degrees": index * BIN_DEGREES,
                "to_degrees": (index + 1) * BIN_DEGREES,
                "views": int(inside.sum()),
                "psnr": float(psnr[inside].mean()),
                "psnr_p10": float(np.percentile(psnr[inside], 10)),
                "psnr_p90": float(np.percentile(psnr[inside], 90)),
                "repeated_psnr": float(repeated[inside].mean()),
            }
        )
    return found
