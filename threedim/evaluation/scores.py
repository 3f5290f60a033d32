"""Figures of drawn views against true ones, object by object: a test set's pictures are never held whole."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Protocol

import numpy as np

from threedim.evaluation.metrics import fid, patches
from threedim.evaluation.metrics import image as image_metrics
from threedim.tasks import Task, Views

# The patch distance sorts all patches it compares, so that it is taken of at most so many views.
PATCH_VIEWS = 1000
BIN_DEGREES = 15


class Extractor(Protocol):
    """What gives the features of the FID: `inception.FeatureExtractor`."""

    num_features: int

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """(picture, feature) of (picture, height, width, 3) uint8."""


class Comparer(Protocol):
    """What gives LPIPS: `lpips.PerceptualDistance`."""

    name: str
    smallest: int

    def __call__(self, truth: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
        """(picture,) for each of the others, of (picture or 1, height, width, 3) uint8."""


@dataclasses.dataclass(frozen=True)
class ObjectScores:
    """One object's figures, arrays (view,) float64 in the order of ``views``.

    Attributes:
      name: of the object.
      input_views, views: numbers of the given views, and of the drawn ones.
      angle: degrees between the optical axes of a view's camera and the first input's.
      psnr: dB, at most `psnr_limit`.
      ssim: None where pictures are too small for it.
      lpips: None where pictures are too small for it, or without its network.
      equal: how many views equal the truth in every pixel.
      repeated_psnr, repeated_ssim, repeated_lpips: the same of the input view, taken for every view: a baseline.
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
    """The highest PSNR that two unequal pictures can have: one number of one pixel differs by 1. 95 dB at 128 px.

    Equal pictures, whose PSNR is infinite, are given it, so that means stay finite and nothing ranks above them.
    """
    return 10 * math.log10(255**2 * height * width * 3)


def angles(task_views: Views) -> np.ndarray:
    """Degrees in [0, 180] between the optical axes of the target cameras and the first input camera's, (view,)."""
    axes, given = task_views.targets.R[..., :, 2], task_views.cameras.R[0, :, 2]
    axes, given = np.asarray(axes, np.float64), np.asarray(given, np.float64)
    # Not by the cosine, which is flat where the angle is small.
    sine = np.linalg.norm(np.cross(axes, given), axis=-1)
    return np.degrees(np.arctan2(sine, axes @ given))


def score_object(task: Task, views: Views, drawn: np.ndarray, compare: Comparer | None = None) -> ObjectScores:
    """Scores the drawn views (view, height, width, 3) uint8 of an object, with ``compare`` also by LPIPS.

    Raises:
      ValueError: if they are not as many and as large as the true ones.
    """
    height, width = views.truth.shape[-3:-1]
    limit = psnr_limit(height, width)
    repeated = np.ascontiguousarray(np.broadcast_to(views.inputs[0], views.truth.shape))

    def psnr(images: np.ndarray) -> np.ndarray:
        return np.minimum(image_metrics.psnr(images, views.truth).astype(np.float64), limit)

    def ssim(images: np.ndarray) -> np.ndarray | None:
        return None if ssim_refusal(height) else image_metrics.ssim(images, views.truth).astype(np.float64)

    lpips = repeated_lpips = None
    if compare and not lpips_refusal(height, compare):
        # One input picture stands for its repetitions, as nothing else depends on the view.
        lpips, repeated_lpips = compare(views.truth, drawn, views.inputs[:1])
    return ObjectScores(
        task.name,
        task.input_views,
        task.target_views,
        angles(views),
        psnr(drawn),
        ssim(drawn),
        lpips,
        int(np.all(drawn == views.truth, axis=(1, 2, 3)).sum()),
        psnr(repeated),
        ssim(repeated),
        repeated_lpips,
    )


def ssim_refusal(size: int) -> str | None:
    """Why there is no SSIM of pictures of that size; None if there is."""
    return None if size >= 11 else f"pictures of {size} px are smaller than its window of 11 px"


def lpips_refusal(size: int, compare: Comparer) -> str | None:
    """Why there is no LPIPS of pictures of that size; None if there is."""
    if size >= compare.smallest:
        return None
    return f"pictures of {size} px are smaller than the {compare.smallest} px that {compare.name} needs"


def patch_refusal(size: int) -> str | None:
    """Why there is no patch distance of pictures of that size; None if there is."""
    return None if size >= 16 else f"pictures of {size} px are smaller than the 16 px of its smallest level"


class Distances:
    """What compares all drawn views with all true ones: FID, and the patch distance of some of them."""

    def __init__(self, num_views: int, seed: int, extract: Extractor | None):
        """Sees no view yet.

        Args:
          num_views: how many will come.
          seed: of the choice of views for the patch distance, and of its patches.
          extract: features for the FID; None leaves it out.
        """
        chosen = np.random.default_rng(seed).permutation(num_views)[:PATCH_VIEWS]
        self._wanted = np.zeros(num_views, bool)
        self._wanted[chosen] = True
        self._seen, self._seed = 0, seed
        self._subset: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._moments = [fid.PictureMoments(extract, extract.num_features) for _ in "ab"] if extract else None

    def add(self, views: Views, drawn: np.ndarray) -> None:
        """Adds an object's views."""
        mine = self._wanted[self._seen : self._seen + len(drawn)]
        self._seen += len(drawn)
        repeated = np.broadcast_to(views.inputs[0], views.truth.shape)
        self._subset.append((drawn[mine], views.truth[mine], repeated[mine]))
        if self._moments:
            for moments, pictures in zip(self._moments, (drawn, views.truth), strict=True):
                moments.add(pictures)

    def fid(self) -> fid.FrechetDistance | None:
        """None without features."""
        if not self._moments:
            return None
        return fid.frechet_distance(self._moments[0].moments, self._moments[1].moments)

    def patch_distances(self) -> tuple[float, float]:
        """Of the drawn views, and of the repeated input view, to the true ones."""
        drawn, truth, repeated = (np.concatenate(pictures) for pictures in zip(*self._subset, strict=True))
        return tuple(patches.sliced_wasserstein(each, truth, seed=self._seed) for each in (drawn, repeated))


def summary(scores: list[ObjectScores]) -> dict[str, Any]:
    """Means over all views as in the paper [3], and how much objects differ. Plain numbers, None for what there is not.

    Returns:
      "dataset" with "psnr", "ssim" and "lpips", each also "..._std_over_objects"; the same of the repeated input as
      "repeated"; and "psnr_by_angle", a list of bins with views in them.
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
