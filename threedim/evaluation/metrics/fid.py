"""FID: the Fréchet distance between the features of two sets of pictures, which are never held in memory as a whole."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.linalg

from threedim.errors import UserError
from threedim.evaluation.metrics.batches import check_pictures

# Pictures whose features are held at once. Merging costs a few passes over the matrix, whatever their number.
_BLOCK_PICTURES = 1024

# What the original code adds to the diagonals, and the imaginary part that it attributes to rounding.
_DIAGONAL, _ROUNDING = 1e-6, 1e-3


class FeatureMoments:
    """Number, mean and covariance of feature vectors, in float64, from parts of any size in any order.

    Each part is centered at its own mean before it is squared, and parts are merged by the difference of their means
    (Chan et al. 1979), which avoids the cancellation of a sum of squares. ``scatter`` (feature, feature) is the sum
    over vectors of the outer product of their deviation from the mean.
    """

    def __init__(self, num_features: int):
        self.count, self.mean, self.scatter = 0, np.zeros(num_features), np.zeros((num_features, num_features))

    def add(self, features: np.ndarray) -> None:
        """Adds vectors (vector, feature); UserError if they have another number of features or are not finite."""
        if features.ndim != 2 or features.shape[1] != len(self.mean):
            raise UserError(f"features must be (vector, {len(self.mean)}), got {features.shape}")
        features = features.astype(np.float64)
        if not np.isfinite(features).all():
            raise UserError("features have NaN or infinity; check the weights")
        if not len(features):
            return
        mean = features.mean(axis=0)
        features -= mean
        total = self.count + len(features)
        shift = mean - self.mean
        self.scatter += features.T @ features
        self.scatter += np.outer(shift, shift * (self.count * len(features) / total))
        self.mean += shift * (len(features) / total)
        self.count = total

    def covariance(self) -> np.ndarray:
        """Unbiased covariance, (feature, feature) float64; UserError for fewer than 2 vectors."""
        if self.count < 2:
            raise UserError(f"a covariance needs at least 2 pictures, got {self.count}")
        return self.scatter / (self.count - 1)


class PictureMoments:
    """Moments of the features that ``extract`` computes of pictures; two of these make an FID."""

    def __init__(self, extract: Callable[[np.ndarray], np.ndarray], num_features: int):
        self._extract, self.moments = extract, FeatureMoments(num_features)

    def add(self, images: np.ndarray) -> None:
        """Adds pictures (..., height, width, 3) uint8, in batches of any size."""
        images = check_pictures("fid: pictures", images)
        for start in range(0, len(images), _BLOCK_PICTURES):
            self.moments.add(self._extract(images[start : start + _BLOCK_PICTURES]))


class FrechetDistance(NamedTuple):
    """A squared distance, at least 0, and a sentence for each reason why it is inexact; usually none."""

    value: float
    warnings: tuple[str, ...]


def frechet_distance(first: FeatureMoments, second: FeatureMoments) -> FrechetDistance:
    """Squared Fréchet (2-Wasserstein) distance between normal distributions of the given moments (Heusel et al. 2017).

    ``|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))``, with SciPy's root of the product as in the original code. Also as
    there, imaginary parts of up to 1e-3 on the root's diagonal, which rounding causes when covariances are singular,
    are dropped; if they are larger or the root is not finite, 1e-6 is added to the diagonals of both covariances, with
    a warning. Fewer vectors give larger distances: compare equal numbers only. 2048 features take 15 s on one core.

    Raises `UserError` if the numbers of features differ, a set has fewer than 2 vectors, or there is no root.
    """
    if len(first.mean) != len(second.mean):
        raise UserError(f"sets of {len(first.mean)} and {len(second.mean)} features cannot be compared")
    covariances = first.covariance(), second.covariance()
    notes = [
        f"a set has {each.count} pictures for {len(each.mean)} features, so its covariance is singular and the "
        "distance is biased upwards"
        for each in (first, second)
        if each.count <= len(each.mean)
    ]
    no_root = "the product of the covariances has no finite real root"
    trace = _trace_of_root(*covariances)
    if trace is None:
        notes.append(f"{no_root}; {_DIAGONAL:g} was added to their diagonals")
        offset = _DIAGONAL * np.eye(len(first.mean))
        trace = _trace_of_root(*(covariance + offset for covariance in covariances))
    if trace is None:
        raise UserError(f"{no_root}, even with {_DIAGONAL:g} on their diagonals; too few pictures, or constant ones?")
    shift = first.mean - second.mean
    value = float(shift @ shift + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * trace)
    if not math.isfinite(value):
        raise UserError(f"the distance is {value}: the features are too large")
    return FrechetDistance(max(value, 0.0), tuple(dict.fromkeys(notes)))


def _trace_of_root(first: np.ndarray, second: np.ndarray) -> float | None:
    """None if there is no root, or it is not finite or not real."""
    with warnings.catch_warnings():
        # SciPy warns about a singular product; the result shows whether that matters.
        warnings.simplefilter("ignore", scipy.linalg.LinAlgWarning)
        try:
            root = scipy.linalg.sqrtm(first @ second)
        except scipy.linalg.LinAlgError:
            return None
    diagonal = np.diagonal(root)
    if not np.isfinite(root).all() or np.abs(diagonal.imag).max() > _ROUNDING:
        return None
    return float(diagonal.real.sum())
