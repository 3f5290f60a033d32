"""Scores of sampled against true views [3], one object after another: a test set's images never fit into memory."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from threedim import pixels
from threedim.evaluation.metrics import fid, inception, lpips, patches
from threedim.evaluation.metrics import image as image_metrics
from threedim.tasks import Task, Views

# The patch distance sorts all patches that it compares, so it takes at most this many views.
PATCH_VIEWS = 1000
# That of a single object, of so many of its views, spread evenly.
PATCH_VIEWS_OF_OBJECT = 24
BIN_DEGREES = 15
# Pixels of a view below which there is no such figure: SSIM's windows, the coarsest level of the patch distance.
_SMALLEST = {"ssim": image_metrics.WINDOW, "ssim_uniform": image_metrics.UNIFORM_WINDOW, "patch_distance": 16}

_VIEW_METRICS = ("psnr", "ssim", "ssim_uniform", "lpips")
_NO_LPIPS = (
    "the paper has none, and no weights are given with --config.evaluate.lpips_backbone=FILE "
    f"--config.evaluate.lpips_lin=FILE; {lpips.HOW_TO_GET_WEIGHTS}"
)
_NO_FID = f"no weights are given with --config.evaluate.inception=FILE; {inception.HOW_TO_GET_WEIGHTS}"
# What each figure is, for results.json and the report.
MEASURES = {
    "means": "Means are over views: all that were sampled, and no input view. Objects with more views count more.",
    "psnr": "PSNR is the mean of the views' dB, which is more than the dB of their mean error.",
    "ssim": "SSIM has the Gaussian window of Wang et al. 2004 (11 px, sigma 1.5), SSIM (uniform) that of SRN, "
    "PixelNeRF and LFN (7 px, sample covariance). Both are means over colors and all windows in the picture, without "
    "padding.",
    "fid": "FID is pytorch-fid's, whose resizing and scaling make it differ from the TensorFlow original's by some "
    "percent. It compares all sampled views with the true ones from the same cameras. Fewer views give a larger FID: "
    "compare only FIDs of equally many.",
    "patch_distance": "Patch distance: sliced Wasserstein distance of 7x7 patches; only figures of this project "
    "compare. It asks whether views look real, not whether they are right: the repeated input has true patches.",
}


@dataclasses.dataclass(frozen=True)
class ObjectScores:
    """Scores of one object.

    Attributes:
      input_views, views: numbers of the given views and of the sampled ones.
      angle: degrees between the optical axes of each view's camera and the first input's, (view,) float64.
      equal: number of sampled views that equal the truth in every pixel.
      patch_distance: of up to 24 views spread evenly, or None. Larger than that of all objects together, since few
        views are compared; for comparisons on the same object.
      figures: (view,) float64 in the order of ``views``, or None if not computed: "psnr" in dB, "ssim", "ssim_uniform"
        and "lpips"; and "repeated_..." of the input view in place of every view, a baseline.
    """

    input_views: list[int]
    views: list[int]
    angle: np.ndarray
    equal: int
    patch_distance: float | None
    figures: dict[str, np.ndarray | None]

    def to_json(self) -> dict[str, Any]:
        """The object's entry in results.json, rounded to five digits, more than float32 has."""
        known = {name: values is not None for name, values in self.figures.items()}
        means = {name: round(float(v.mean()), 5) if known[name] else None for name, v in self.figures.items()}
        means["patch_distance"] = None if self.patch_distance is None else round(self.patch_distance, 5)
        each_view = {"angle_degrees": self.angle} | {name: self.figures[name] for name in _VIEW_METRICS}
        rounded = {name: None if v is None else np.round(v, 5).tolist() for name, v in each_view.items()}
        return means | {"input_views": self.input_views, "views": {"number": self.views} | rounded}


class Scores:
    """Scores of a test set.

    Args:
      num_views: views of all objects that will be added.
      size: height and width of a view.
      seed: chooses the views and patches of the patch distance.
      extract, compare: for the FID and LPIPS; None leaves them out.

    Attributes:
      objects: what `add` has seen, by name.
      not_computed: why a metric is missing, by its name.
    """

    def __init__(
        self,
        num_views: int,
        size: int,
        seed: int,
        extract: inception.FeatureExtractor | None = None,
        compare: lpips.PerceptualDistance | None = None,
    ):
        self.objects: dict[str, ObjectScores] = {}
        needed = _SMALLEST | ({"lpips": compare.smallest} if compare else {})
        small = f"pictures of {size} px are smaller than the"
        self.not_computed = {
            name: f"{small} {least} px that it needs" for name, least in needed.items() if size < least
        }
        if not compare:
            self.not_computed["lpips"] = _NO_LPIPS
        if not extract or num_views < 2:
            self.not_computed["fid"] = "a covariance needs at least 2 views" if extract else _NO_FID
        self._size, self._seed, self._compare = size, seed, compare
        self._moments = [fid.PictureMoments(extract, extract.num_features) for _ in "ab"] if extract else []
        self._in_patches = np.zeros(num_views, bool)
        self._in_patches[np.random.default_rng(seed).permutation(num_views)[:PATCH_VIEWS]] = True
        self._patch_views: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._seen = 0

    def add(self, task: Task, views: Views, sampled: np.ndarray) -> None:
        """Scores the sampled views of an object, (view, height, width, 3) uint8."""
        truth = views.truth
        repeated = np.ascontiguousarray(np.broadcast_to(views.inputs[0], truth.shape))
        distances = (None, None)
        if "lpips" not in self.not_computed:
            # One input view stands for its repetitions: LPIPS depends on nothing else.
            distances = self._compare(truth, sampled, views.inputs[:1])
        figures = {}
        for prefix, images, distance in zip(("", "repeated_"), (sampled, repeated), distances, strict=True):
            for metric in (image_metrics.psnr, image_metrics.ssim, image_metrics.ssim_uniform):
                name, known = metric.__name__, metric.__name__ not in self.not_computed
                figures[prefix + name] = metric(images, truth).astype(np.float64) if known else None
            figures[f"{prefix}lpips"] = distance
        equal = int(np.all(sampled == truth, axis=(1, 2, 3)).sum())
        distance = None
        if "patch_distance" not in self.not_computed:
            places = np.unique(np.linspace(0, len(truth) - 1, PATCH_VIEWS_OF_OBJECT).round().astype(int))
            distance = patches.sliced_wasserstein(sampled[places], truth[places], seed=self._seed)
        numbers = (task.input_views, task.target_views)
        self.objects[task.name] = ObjectScores(*numbers, angles(views), equal, distance, figures)
        chosen = self._in_patches[self._seen : self._seen + len(sampled)]
        self._seen += len(sampled)
        self._patch_views.append((sampled[chosen], truth[chosen], repeated[chosen]))
        for moments, images in zip(self._moments, (sampled, truth), strict=False):
            moments.add(images)

    def results(self) -> dict[str, Any]:
        """Entries of results.json: means over all views as in the paper [3], and the spread over objects.

        Returns:
          "measures", what the figures are; "dataset", a row (`published.Row`) with the "..._std_over_objects"; the row
          of the repeated input view in "baselines"; "psnr_by_angle", bins that have views; sentences "not_computed" and
          "warnings"; and counts.
        """
        dataset, repeated = self._row(""), self._row("repeated_")
        warnings = []
        if "patch_distance" not in self.not_computed:
            views, truth, inputs = (np.concatenate(images) for images in zip(*self._patch_views, strict=True))
            dataset["patch_distance"] = patches.sliced_wasserstein(views, truth, seed=self._seed, progress=True)
            repeated["patch_distance"] = patches.sliced_wasserstein(inputs, truth, seed=self._seed, progress=True)
        if "fid" not in self.not_computed:
            distance = fid.frechet_distance(*(each.moments for each in self._moments))
            dataset["fid"], warnings = distance.value, [f"FID: {warning}" for warning in distance.warnings]
        return {
            "measures": MEASURES,
            "dataset": dataset,
            "baselines": {"input view repeated": repeated},
            "num_objects": len(self.objects),
            "num_views": self._seen,
            "equal_views": sum(one.equal for one in self.objects.values()),
            "psnr_of_equal_views": pixels.psnr_limit(self._size, self._size),
            "patch_distance_views": min(self._seen, PATCH_VIEWS),
            "not_computed": self.not_computed,
            "warnings": warnings,
            "psnr_by_angle": self._psnr_by_angle(),
        }

    def _row(self, prefix: str) -> dict[str, float | None]:
        row: dict[str, float | None] = {"fid": None, "patch_distance": None}
        for name in _VIEW_METRICS:
            values = [one.figures[prefix + name] for one in self.objects.values()]
            known = all(each is not None for each in values)
            row[name] = float(np.concatenate(values).mean()) if known else None
            spread = known and len(values) > 1
            row[f"{name}_std_over_objects"] = float(np.std([v.mean() for v in values], ddof=1)) if spread else None
        return row

    def _psnr_by_angle(self) -> list[dict[str, float]]:
        scored = [(one.angle, one.figures["psnr"], one.figures["repeated_psnr"]) for one in self.objects.values()]
        angle, psnr, repeated = map(np.concatenate, zip(*scored, strict=True))
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


def angles(views: Views) -> np.ndarray:
    """Degrees in [0, 180] between the optical axes of the target cameras and the first input camera's, (view,)."""
    axes = np.asarray(views.targets.R[..., :, 2], np.float64)
    given = np.asarray(views.cameras.R[0, :, 2], np.float64)
    # Not by the cosine, which is flat for small angles.
    sine = np.linalg.norm(np.cross(axes, given), axis=-1)
    return np.degrees(np.arctan2(sine, axes @ given))
