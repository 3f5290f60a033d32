"""Scores of sampled against true views [3], one object after another: a test set's images never fit into memory."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from threedim.evaluation.metrics import fid, inception, lpips, patches
from threedim.evaluation.metrics import image as image_metrics
from threedim.tasks import Task, Views

# The patch distance sorts all patches that it compares, so it takes at most this many views.
PATCH_VIEWS = 1000
BIN_DEGREES = 15
# Pixels of a view below which there is no SSIM or patch distance: its window, its coarsest level.
_SSIM_SIZE, _PATCH_SIZE = 11, 16

_VIEW_METRICS = ("psnr", "ssim", "lpips")
_NO_LPIPS = (
    "the paper has none, and no weights are given with --config.evaluate.lpips_backbone=FILE "
    f"--config.evaluate.lpips_lin=FILE; {lpips.HOW_TO_GET_WEIGHTS}"
)
_NO_FID = f"no weights are given with --config.evaluate.inception=FILE; {inception.HOW_TO_GET_WEIGHTS}"


class Extractor(Protocol):
    """Computes the features of the FID, as `inception.FeatureExtractor` does."""

    num_features: int

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """(image, feature) of (image, height, width, 3) uint8."""


class Comparer(Protocol):
    """Computes LPIPS, as `lpips.PerceptualDistance` does."""

    name: str
    smallest: int

    def __call__(self, truth: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
        """(image,) for each of the others, which are (image or 1, height, width, 3) uint8."""


@dataclasses.dataclass(frozen=True)
class ObjectScores:
    """Scores of one object; arrays (view,) float64 in the order of ``views``.

    Attributes:
      input_views, views: numbers of the given views and of the sampled ones.
      angle: degrees between the optical axes of each view's camera and the first input's.
      equal: number of sampled views that equal the truth in every pixel.
      sampled: "psnr" in dB, at most `psnr_limit`, "ssim" and "lpips"; None if not computed.
      repeated: the same of the input view, taken for every view: a baseline.
    """

    input_views: list[int]
    views: list[int]
    angle: np.ndarray
    equal: int
    sampled: dict[str, np.ndarray | None]
    repeated: dict[str, np.ndarray | None]

    def to_json(self) -> dict[str, Any]:
        """The object's entry in results.json, rounded to five digits, more than float32 has."""

        def mean(values: np.ndarray | None) -> float | None:
            return None if values is None else round(float(values.mean()), 5)

        each_view = {"angle_degrees": self.angle} | self.sampled
        return {
            **{name: mean(values) for name, values in self.sampled.items()},
            **{f"repeated_{name}": mean(values) for name, values in self.repeated.items()},
            "input_views": self.input_views,
            "views": {"number": self.views}
            | {name: None if values is None else np.round(values, 5).tolist() for name, values in each_view.items()},
        }


class Scores:
    """Scores of a test set.

    Attributes:
      objects: what `add` has seen, by name.
      not_computed: why a metric is missing, by its name.
    """

    def __init__(
        self,
        num_views: int,
        size: int,
        seed: int,
        extract: Extractor | None = None,
        compare: Comparer | None = None,
    ):
        """Starts without views.

        Args:
          num_views: views of all objects that will be added.
          size: height and width of a view.
          seed: chooses the views and patches of the patch distance.
          extract: features for the FID; None leaves it out.
          compare: LPIPS; None leaves it out.
        """
        self.objects: dict[str, ObjectScores] = {}
        small, none = f"pictures of {size} px are smaller than ", ""
        reasons = {
            "ssim": f"{small}its window of {_SSIM_SIZE} px" if size < _SSIM_SIZE else none,
            "lpips": _NO_LPIPS if not compare else none,
            "patch_distance": f"{small}the {_PATCH_SIZE} px of its smallest level" if size < _PATCH_SIZE else none,
            "fid": _NO_FID if not extract else "a covariance needs at least 2 views" if num_views < 2 else none,
        }
        if compare and size < compare.smallest:
            reasons["lpips"] = f"{small}the {compare.smallest} px that {compare.name} needs"
        self.not_computed = {name: reason for name, reason in reasons.items() if reason}
        self._size, self._seed, self._compare = size, seed, compare
        self._moments = [fid.PictureMoments(extract, extract.num_features) for _ in "ab"] if extract else []
        self._in_patches = np.zeros(num_views, bool)
        self._in_patches[np.random.default_rng(seed).permutation(num_views)[:PATCH_VIEWS]] = True
        self._patch_views: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._seen = 0

    def add(self, task: Task, views: Views, sampled: np.ndarray) -> None:
        """Scores the sampled views of an object, (view, height, width, 3) uint8.

        Raises:
          UserError: if their number or size differs from that of the true ones.
        """
        truth = views.truth
        repeated = np.ascontiguousarray(np.broadcast_to(views.inputs[0], truth.shape))
        distances = (None, None)
        if "lpips" not in self.not_computed:
            # One input view stands for its repetitions: LPIPS depends on nothing else.
            distances = self._compare(truth, sampled, views.inputs[:1])

        def measure(images: np.ndarray, distance: np.ndarray | None) -> dict[str, np.ndarray | None]:
            psnr = np.minimum(image_metrics.psnr(images, truth).astype(np.float64), psnr_limit(*truth.shape[1:3]))
            ssim = None if "ssim" in self.not_computed else image_metrics.ssim(images, truth).astype(np.float64)
            return {"psnr": psnr, "ssim": ssim, "lpips": distance}

        self.objects[task.name] = ObjectScores(
            task.input_views,
            task.target_views,
            angles(views),
            int(np.all(sampled == truth, axis=(1, 2, 3)).sum()),
            measure(sampled, distances[0]),
            measure(repeated, distances[1]),
        )
        chosen = self._in_patches[self._seen : self._seen + len(sampled)]
        self._seen += len(sampled)
        self._patch_views.append((sampled[chosen], truth[chosen], repeated[chosen]))
        for moments, images in zip(self._moments, (sampled, truth), strict=False):
            moments.add(images)

    def results(self) -> dict[str, Any]:
        """Entries of results.json: means over all views as in the paper [3], and the spread over objects.

        Returns:
          "dataset", a row (`published.Row`) with the "..._std_over_objects"; the row of the repeated input view in
          "baselines"; "psnr_by_angle", bins that have views; "not_computed" and "warnings", sentences; and counts.
        """
        dataset, repeated = self._row(lambda one: one.sampled), self._row(lambda one: one.repeated)
        warnings = []
        if "patch_distance" not in self.not_computed:
            views, truth, inputs = (np.concatenate(images) for images in zip(*self._patch_views, strict=True))
            dataset["patch_distance"] = patches.sliced_wasserstein(views, truth, seed=self._seed)
            repeated["patch_distance"] = patches.sliced_wasserstein(inputs, truth, seed=self._seed)
        if "fid" not in self.not_computed:
            distance = fid.frechet_distance(*(each.moments for each in self._moments))
            dataset["fid"], warnings = distance.value, [f"FID: {warning}" for warning in distance.warnings]
        return {
            "dataset": dataset,
            "baselines": {"input view repeated": repeated},
            "num_objects": len(self.objects),
            "num_views": self._seen,
            "equal_views": sum(one.equal for one in self.objects.values()),
            "psnr_of_equal_views": psnr_limit(self._size, self._size),
            "patch_distance_views": min(self._seen, PATCH_VIEWS),
            "not_computed": self.not_computed,
            "warnings": warnings,
            "psnr_by_angle": self._psnr_by_angle(),
        }

    def _row(self, values_of: Callable[[ObjectScores], dict[str, np.ndarray | None]]) -> dict[str, float | None]:
        row: dict[str, float | None] = {"fid": None, "patch_distance": None}
        for name in _VIEW_METRICS:
            values = [values_of(one)[name] for one in self.objects.values()]
            known = all(each is not None for each in values)
            row[name] = float(np.concatenate(values).mean()) if known else None
            spread = known and len(values) > 1
            row[f"{name}_std_over_objects"] = float(np.std([v.mean() for v in values], ddof=1)) if spread else None
        return row

    def _psnr_by_angle(self) -> list[dict[str, float]]:
        scored = self.objects.values()
        angle, psnr, repeated = map(
            np.concatenate,
            zip(*[(one.angle, one.sampled["psnr"], one.repeated["psnr"]) for one in scored], strict=True),
        )
        bins = np.minimum(angle // BIN_DEGREES, 180 // BIN_DEGREES - 1).astype(int)
        return [
            {
                "from_degrees": index * BIN_DEGREES,
                "to_degrees": (index + 1) * BIN_DEGREES,
                "views": int(inside.sum()),
                "psnr": float(psnr[inside].mean()),
                "psnr_p10": float(np.percentile(psnr[inside], 10)),
                "psnr_p90": float(np.percentile(psnr[inside], 90)),
                "repeated_psnr": float(repeated[inside].mean()),
            }
            for index in np.unique(bins).tolist()
            for inside in [bins == index]
        ]


def psnr_limit(height: int, width: int) -> float:
    """The highest PSNR that two different images can have: a single value differs by 1. 95 dB at 128 px.

    Equal images get it instead of infinity, so that means stay finite and nothing ranks above them.
    """
    return 10 * math.log10(255**2 * height * width * 3)


def angles(views: Views) -> np.ndarray:
    """Degrees in [0, 180] between the optical axes of the target cameras and the first input camera's, (view,)."""
    axes = np.asarray(views.targets.R[..., :, 2], np.float64)
    given = np.asarray(views.cameras.R[0, :, 2], np.float64)
    # Not by the cosine, which is flat for small angles.
    sine = np.linalg.norm(np.cross(axes, given), axis=-1)
    return np.degrees(np.arctan2(sine, axes @ given))
