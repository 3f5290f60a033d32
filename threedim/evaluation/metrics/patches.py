"""How alike two sets of pictures are by their local patches, without a trained network (Karras et al. 2018, 5)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import scipy.ndimage

from threedim.errors import UserError
from threedim.evaluation.metrics.batches import check_pictures
from threedim.progress import Progress

_PATCH = 7
_SMALLEST_LEVEL = 16
_BLUR = np.array([1, 4, 6, 4, 1], np.float32) / 16

# Bounds on memory beyond the patches: pixels whose pyramids are built at once, and elements of an array of projections
# (64 MiB).
_PYRAMID_PIXELS, _PROJECTIONS = 2**20, 2**24

# Standard deviation of the error of rounding to whole gray levels, below which variation is noise.
_ROUNDING = 1 / np.sqrt(12)


def sliced_wasserstein(
    images: np.ndarray,
    truth: np.ndarray,
    *,
    seed: int = 0,
    patches_per_picture: int = 128,
    num_directions: int = 512,
    progress: bool = False,
) -> float:
    """Sliced Wasserstein distance between the patches of two sets of pictures, times 1000 as in its paper.

    Each picture becomes a Laplacian pyramid, halved while the smaller side stays at least 16 px. At each level the
    7 x 7 px patches of 3 colors of a set form a point cloud. Both clouds are projected onto random unit directions, and
    the Wasserstein-1 distances of the projections are averaged, then those of the levels.
    This compares distributions: the pairing and order of pictures do not matter. Three things differ from the original:

    - Patches are scaled by the **truth's** standard deviation of each color and level. The original normalizes each set
      by its own mean and deviation, and so cannot see a tint or contrast that is wrong in all pictures.
    - All pictures of both sets share the same random positions, so that the distance of a set from itself in another
      order is 0. A level with no more positions than ``patches_per_picture`` (16 px has 100) uses all of them.
    - The sets may differ in size: the difference of the two quantile functions is integrated exactly. For equal sizes
      that is the original's mean difference of sorted projections.

    Two finite sets of the same source never have distance 0: compare with the distance between two halves of the truth.
    At 128 patches, each picture and level needs about 75 kB; most of the time goes into sorting projections.

    Args:
      images, truth: (..., height, width, 3) uint8, of the same size of at least 16 px.
      seed: of positions and directions; distances are comparable only with the same seed.
      patches_per_picture, num_directions: at each level.
      progress: shows a progress bar, for sets of many pictures.

    Returns:
      Non-negative; in thousandths of the truth's standard deviation.

    Raises:
      UserError: if shapes, dtypes or counts are wrong, or a set is empty.
    """
    sets = []
    for name, each in (("images", images), ("truth", truth)):
        sets.append(check_pictures(f"sliced_wasserstein: {name}", each))
        if not each.size:
            raise UserError(f"sliced_wasserstein: {name} {each.shape} has no picture")
    if images.shape[-3:] != truth.shape[-3:] or min(truth.shape[-3:-1]) < _SMALLEST_LEVEL:
        raise UserError(
            f"sliced_wasserstein: images {images.shape} and truth {truth.shape} must have the same height and width, "
            f"at least {_SMALLEST_LEVEL} px"
        )
    if patches_per_picture < 1 or num_directions < 1:
        raise UserError(
            f"sliced_wasserstein: patches_per_picture and num_directions must be at least 1, got {patches_per_picture} "
            f"and {num_directions}"
        )

    rng = np.random.default_rng(seed)
    shapes = _level_shapes(*truth.shape[-3:-1])
    positions = [_random_positions(rng, shape, patches_per_picture) for shape in shapes]
    set_patches = [_patches(each, positions) for each in sets]
    distances = []
    with Progress(len(shapes) * num_directions, desc="comparing patches, directions", enabled=progress) as bar:
        for ours, true in zip(*set_patches, strict=True):
            directions = rng.normal(size=(num_directions, _PATCH * _PATCH * 3))
            directions /= np.linalg.norm(directions, axis=1, keepdims=True)
            distances.append(_projected_distance(ours, true, directions, bar))
    return 1e3 * float(np.mean(distances))


def sharpness(images: np.ndarray) -> float:
    """How much fine detail pictures have, wrong or right: what a blur of one pixel takes from them.

    The root mean square of each picture minus its blurred copy (binomial, 5 x 5 px), averaged over the pictures.

    Args:
      images: (..., height, width, 3) uint8, at least one.

    Returns:
      In gray levels; 0 for plain pictures. Comparable between pictures of the same size that show the same things.
    """
    images = check_pictures("sharpness: images", images)
    detail = [one - _blurred(one, _BLUR) for one in images[:, None].astype(np.float32)]
    return float(np.mean([np.sqrt(np.mean(each**2)) for each in detail], dtype=np.float64))


def _level_shapes(height: int, width: int) -> list[tuple[int, int]]:
    """Heights and widths of the pyramid's levels, finest first."""
    shapes = [(height, width)]
    while min(shape := tuple((side + 1) // 2 for side in shapes[-1])) >= _SMALLEST_LEVEL:
        shapes.append(shape)
    return shapes


def _random_positions(rng: np.random.Generator, shape: tuple[int, int], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of distinct upper left corners of patches."""
    rows, columns = (side - _PATCH + 1 for side in shape)
    chosen = rng.choice(rows * columns, min(count, rows * columns), replace=False)
    return np.divmod(chosen, columns)


def _patches(images: np.ndarray, positions: list[tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray]:
    """(picture * position, channel * row * column) float32 in gray levels, for each level of the pyramid."""
    found = [np.empty((len(images), len(rows), 3 * _PATCH * _PATCH), np.float32) for rows, _ in positions]
    step = max(1, _PYRAMID_PIXELS // (images.shape[1] * images.shape[2]))
    for start in range(0, len(images), step):
        chunk = images[start : start + step].astype(np.float32)
        for patches, (rows, columns), level in zip(found, positions, _pyramid(chunk, len(positions)), strict=True):
            windows = np.lib.stride_tricks.sliding_window_view(level, (_PATCH, _PATCH), axis=(1, 2))
            patches[start : start + step] = windows[:, rows, columns].reshape(len(chunk), len(rows), -1)
    return [patches.reshape(-1, patches.shape[-1]) for patches in found]


def _pyramid(images: np.ndarray, num_levels: int) -> Iterator[np.ndarray]:
    """Laplacian pyramid of (picture, height, width, channel) float32, finest level first (Burt and Adelson 1983)."""
    for _ in range(num_levels - 1):
        smaller = _blurred(images, _BLUR)[:, ::2, ::2]
        # Zeros between the samples; the mirrored border continues their alternation.
        spread = np.zeros_like(images)
        spread[:, ::2, ::2] = smaller
        yield images - _blurred(spread, 2 * _BLUR)
        images = smaller
    yield images


def _blurred(images: np.ndarray, weights: np.ndarray) -> np.ndarray:
    rows = scipy.ndimage.convolve1d(images, weights, axis=1, mode="mirror")
    return scipy.ndimage.convolve1d(rows, weights, axis=2, mode="mirror")


def _projected_distance(images: np.ndarray, truth: np.ndarray, directions: np.ndarray, bar: Progress) -> float:
    """Mean over directions of the Wasserstein-1 distance between the projections of two clouds of patches."""
    colors = np.moveaxis(truth.reshape(len(truth), 3, -1), 1, 0)
    deviation = np.maximum([color.std(dtype=np.float64) for color in colors], _ROUNDING)
    # Scaling the few directions instead of the many patches gives the same projections.
    directions = (directions / np.repeat(deviation, _PATCH * _PATCH)).astype(np.float32)
    step = max(1, _PROJECTIONS // max(len(images), len(truth)))
    total = 0.0
    for start in range(0, len(directions), step):
        chunk = directions[start : start + step]
        ours, true = (np.sort(chunk @ patches.T, axis=1) for patches in (images, truth))
        total += float(_quantile_distance(ours, true).sum())
        bar.advance(len(chunk))
    return total / len(directions)


def _quantile_distance(ours: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Integral of the difference of the quantile functions of sorted samples (..., sample), over the last axis."""
    if ours.shape == true.shape:
        return np.abs(ours - true).mean(axis=-1, dtype=np.float64)
    # Intervals on which both functions are constant: their ends in 1 / (first * second), so that common ones are equal.
    first, second = ours.shape[-1], true.shape[-1]
    ends = np.union1d(np.arange(1, first + 1) * second, np.arange(1, second + 1) * first)
    length = np.diff(ends, prepend=0) / (first * second)
    return np.abs(ours[..., (ends - 1) // second] - true[..., (ends - 1) // first]) @ length
