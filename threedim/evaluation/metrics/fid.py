"""Fréchet distance between the features of two sets of pictures, each seen once and never held whole: the FID."""

from __future__ import annotations

import dataclasses
import io
import math
import warnings
import zipfile
from collections.abc import Callable

import numpy as np
import scipy.linalg
from etils import epath

from threedim import files
from threedim.errors import MissingError, UserError

# Pictures whose features are held at once: merging costs a few passes over the matrix, whatever their number.
_BLOCK_PICTURES = 1024

# What the original code adds to the diagonals, and the imaginary part that it takes for rounding.
_DIAGONAL, _ROUNDING = 1e-6, 1e-3


class FeatureMoments:
    """Number, mean and covariance of feature vectors, in float64, from any number of parts in any order.

    Every part is centered at its own mean before it is squared, and parts are merged by the difference of their means
    (Chan et al. 1979), so nothing cancels as it would in a sum of squares. Parts may come from several processes:
    `save` and `load` keep every bit, while JAX's gathering would make float32 of them.

    Attributes:
      count: vectors seen.
      mean: (feature,) float64.
      scatter: (feature, feature) float64, sum over vectors of the outer product of their deviation from the mean.
    """

    def __init__(self, num_features: int):
        self.count = 0
        self.mean = np.zeros(num_features)
        self.scatter = np.zeros((num_features, num_features))

    def add(self, features: np.ndarray) -> None:
        """Adds vectors (vector, feature).

        Raises:
          ValueError: if they have another number of features, or are not all finite (none of them is added then).
        """
        if features.ndim != 2 or features.shape[1] != len(self.mean):
            raise UserError(f"features are {features.shape}, must be (vector, {len(self.mean)})")
        features = features.astype(np.float64)
        if not np.isfinite(features).all():
            raise UserError("features hold NaN or infinity; check the weights")
        if len(features):
            mean = features.mean(axis=0)
            features -= mean
            self._merge(len(features), mean, features.T @ features)

    def merge(self, other: FeatureMoments) -> None:
        """Adds all vectors that ``other`` has seen, and leaves ``other`` alone.

        Raises:
          ValueError: if they have another number of features.
        """
        if len(other.mean) != len(self.mean):
            raise UserError(f"{len(other.mean)} features cannot be merged into {len(self.mean)}")
        if other.count:
            self._merge(other.count, other.mean, other.scatter)

    def _merge(self, count: int, mean: np.ndarray, scatter: np.ndarray) -> None:
        total = self.count + count
        shift = mean - self.mean
        self.scatter += scatter
        self.scatter += np.outer(shift, shift * (self.count * count / total))
        self.mean += shift * (count / total)
        self.count = total

    def covariance(self) -> np.ndarray:
        """Unbiased covariance, (feature, feature) float64.

        Raises:
          ValueError: if fewer than 2 vectors have been seen.
        """
        if self.count < 2:
            raise UserError(f"a covariance needs at least 2 pictures, not {self.count}")
        return self.scatter / (self.count - 1)

    def save(self, path: epath.PathLike) -> None:
        """Writes them to a .npz, whole or not at all."""
        buffer = io.BytesIO()
        np.savez(buffer, count=self.count, mean=self.mean, scatter=self.scatter)
        files.write_atomically(path, buffer.getvalue())

    @classmethod
    def load(cls, path: epath.PathLike) -> FeatureMoments:
        """Reads what `save` wrote.

        Raises:
          FileNotFoundError: if there is no such file.
          ValueError: if it holds something else.
        """
        if not epath.Path(path).is_file():
            raise MissingError(f"{path}: no such file of feature moments")
        try:
            with np.load(io.BytesIO(epath.Path(path).read_bytes()), allow_pickle=False) as arrays:
                count, mean, scatter = (arrays[name] for name in ("count", "mean", "scatter"))
        except (ValueError, TypeError, KeyError, EOFError, OSError, zipfile.BadZipFile) as error:
            raise UserError(f"{path}: not a file of feature moments: {error}") from error
        if count.shape != () or mean.ndim != 1 or scatter.shape != 2 * mean.shape or int(count) < 0:
            raise UserError(
                f"{path}: count {count.shape}, mean {mean.shape} and scatter {scatter.shape} do not belong together"
            )
        moments = cls(len(mean))
        moments.count = int(count)
        moments.mean, moments.scatter = mean.astype(np.float64), scatter.astype(np.float64)
        return moments


@dataclasses.dataclass(frozen=True)
class FrechetDistance:
    """A distance, and what must be said beside it.

    Attributes:
      value: squared distance of the two normal distributions, at least 0; the FID for Inception features.
      warnings: a sentence for everything that makes it less than exact; empty as a rule.
    """

    value: float
    warnings: tuple[str, ...] = ()


def frechet_distance(first: FeatureMoments, second: FeatureMoments) -> FrechetDistance:
    """Squared Fréchet (2-Wasserstein) distance between normal distributions of the given moments (Heusel et al. 2017).

    ``|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))``, with SciPy's root of the product as in the original code. With no
    more vectors than features the covariances are singular, and the root of a product with eigenvalues that rounding
    made negative is complex: imaginary parts of up to 1e-3 on its diagonal are dropped, as in the original. Where the
    root is not finite, 1e-6 is added to the diagonals of both covariances, as there, and a warning says so; the same
    is done about a larger imaginary part, at which the original gives up. Rounding below 0 is returned as 0. Fewer
    vectors give larger distances: compare only those of equal numbers. 2048 features take about 15 s of one core.

    Raises:
      ValueError: if the numbers of features differ, a set has fewer than 2 vectors, or no root is found.
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
    trace = _trace_of_root(*covariances)
    if trace is None:
        notes.append(
            f"the product of the covariances has no finite real root; {_DIAGONAL:g} was added to their diagonals"
        )
        offset = _DIAGONAL * np.eye(len(first.mean))
        trace = _trace_of_root(*(covariance + offset for covariance in covariances))
    if trace is None:
        raise UserError(
            "the product of the covariances has no finite real root, not even with 1e-6 on their diagonals; are "
            "features constant, or pictures too few?"
        )
    shift = first.mean - second.mean
    value = float(shift @ shift + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * trace)
    if not math.isfinite(value):
        raise UserError(f"the distance is {value}: the features are too large")
    return FrechetDistance(max(value, 0.0), tuple(dict.fromkeys(notes)))


def _trace_of_root(first: np.ndarray, second: np.ndarray) -> float | None:
    """None where there is no root, or it is not finite or not real."""
    with warnings.catch_warnings():
        # Only that the product is singular, which is judged here by what comes of it.
        warnings.simplefilter("ignore", scipy.linalg.LinAlgWarning)
        try:
            root = scipy.linalg.sqrtm(first @ second)
        except scipy.linalg.LinAlgError:
            return None
    diagonal = np.diagonal(root)
    if not np.isfinite(root).all() or np.abs(diagonal.imag).max() > _ROUNDING:
        return None
    return float(diagonal.real.sum())


class PictureMoments:
    """Moments of the features of pictures that come in batches; two of these make an FID.

    ``frechet_distance(generated.moments, truth.moments)``, each fed by `add`.
    """

    def __init__(self, extract: Callable[[np.ndarray], np.ndarray], num_features: int):
        """Sees no picture yet.

        Args:
          extract: features (picture, feature) of (picture, height, width, 3) uint8: an `inception.FeatureExtractor`,
            which may serve any number of these.
          num_features: of each picture.
        """
        self._extract = extract
        self.moments = FeatureMoments(num_features)

    def add(self, images: np.ndarray) -> None:
        """Adds pictures (..., height, width, 3) uint8; the sizes of batches mean nothing.

        Raises:
          ValueError: if they are of another shape or dtype.
        """
        if images.dtype != np.uint8 or images.ndim < 3 or images.shape[-1] != 3:
            raise UserError(f"pictures are {images.dtype} {images.shape}, must be uint8 (..., height, width, 3)")
        images = images.reshape(math.prod(images.shape[:-3]), *images.shape[-3:])
        for start in range(0, len(images), _BLOCK_PICTURES):
            self.moments.add(self._extract(images[start : start + _BLOCK_PICTURES]))
