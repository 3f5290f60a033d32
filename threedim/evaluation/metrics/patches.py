"""How alike two sets of pictures are, by their local patches; no trained network is needed (Karras et al. 2018, 5)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import scipy.ndimage

from threedim.errors import UserError
from threedim.progress import Progress, progress

_PATCH = 7
_SMALLEST_LEVEL = 16
_BLUR = np.array([1, 4, 6, 4, 1], np.float32) / 16

# Bounds on what is held beside the patches: pictures whose pyramids are built at once, and numbers in one array of
# projections (64 MiB each, a handful at a time).
_PYRAMID_PIXELS, _PROJECTIONS = 2**20, 2**24

# Standard deviation of the error of rounding to whole gray levels: what varies less than this carries no picture.
_ROUNDING = 1 / np.sqrt(12)


def sliced_wasserstein(
    images: np.ndarray,
    truth: np.ndarray,
    *,
    seed: int = 0,
    patches_per_picture: int = 128,
    num_directions: int = 512,
) -> float:
    """Sliced Wasserstein distance between the patches of two sets of pictures, times 1000, as its paper prints it.

    Each picture becomes a Laplacian pyramid, halved while the smaller side stays at least 16 px (a 16 px picture is its
    own only level). At each level the patches of 7 x 7 px and 3 colors of a set form a cloud of points; both clouds are
    projected on random unit directions, and the mean Wasserstein-1 distance of the projections is taken. The result
    is the mean over levels. It compares distributions: which picture belongs to which is never looked at, and the order
    within a set means nothing. Three things differ from the original:

    - Patches are scaled by the **truth's** standard deviation of each color, at that level. The original shifts and
      scales each set by its own mean and deviation, and so cannot see a tint, or a contrast, that is wrong in all
      pictures. (The truth's mean would be subtracted from both sets, and cancels.) Swapping the arguments changes the
      scale and nothing else.
    - One draw of positions serves all pictures of both sets, instead of a draw for each. So the distance from a set
      to itself in another order is 0, not the noise of the draws, and a small difference is not drowned by it. A level
      with no more positions than ``patches_per_picture`` (16 px has 100) uses all of them.
    - The sets may differ in size: the distance between the two step functions of quantiles is integrated exactly. It
      needs no random subset, and for equal sizes it is the original's mean difference of sorted projections.

    Two finite sets of the same source are never at 0: compare with the distance between two halves of the truth.
    The patches held take about 75 kB for each picture and level at 128 patches; time is mostly that of sorting
    ``patches * num_directions`` numbers for each level and set.

    Args:
      images, truth: (..., height, width, 3) uint8, at least 16 px high and wide; sets of one size in pixels, whose
        leading axes need not be alike.
      seed: of positions and directions; numbers to be compared must share it.
      patches_per_picture: positions drawn at each level.
      num_directions: directions at each level.

    Returns:
      Non-negative; unit: thousandths of the truth's standard deviation.

    Raises:
      ValueError: if shapes, dtypes or counts are not those, or a set is empty.
    """
    for name, each in (("images", images), ("truth", truth)):
        if each.dtype != np.uint8 or each.ndim < 3 or each.shape[-1] != 3:
            raise UserError(
                f"sliced_wasserstein: {name} is {each.dtype} {each.shape}, must be uint8 (..., height, width, 3)"
            )
        if not each.size:
            raise UserError(f"sliced_wasserstein: {name} {each.shape} has no picture")
    if images.shape[-3:] != truth.shape[-3:]:
        raise UserError(
            f"sliced_wasserstein: images of {_size(images)} px and truth of {_size(truth)} px must be of one size; "
            "resize one set"
        )
    if min(truth.shape[-3:-1]) < _SMALLEST_LEVEL:
        raise UserError(f"sliced_wasserstein: pictures of {_size(truth)} px are smaller than {_SMALLEST_LEVEL} px")
    if patches_per_picture < 1 or num_directions < 1:
        raise UserError(
            f"sliced_wasserstein: patches_per_picture {patches_per_picture} and num_directions {num_directions} "
            "must be at least 1"
        )

    rng = np.random.default_rng(seed)
    shapes = _level_shapes(*truth.shape[-3:-1])
    positions = [_draw_positions(rng, shape, patches_per_picture) for shape in shapes]
    set_patches = [_patches(each.reshape(-1, *each.shape[-3:]), positions) for each in (images, truth)]
    distances = []
    with progress(len(shapes) * num_directions, desc="comparing patches") as bar:
        for ours, true in zip(*set_patches, strict=True):
            directions = rng.normal(size=(num_directions, _PATCH * _PATCH * 3))
            directions /= np.linalg.norm(directions, axis=1, keepdims=True)
            distances.append(_projected_distance(ours, true, directions, bar))
    return 1e3 * float(np.mean(distances))


def _size(images: np.ndarray) -> str:
    return f"{images.shape[-2]} x {images.shape[-3]}"


def _level_shapes(height: int, width: int) -> list[tuple[int, int]]:
    """Heights and widths of the pyramid's levels, finest first."""
    shapes = [(height, width)]
    while min(shape := tuple((side + 1) // 2 for side in shapes[-1])) >= _SMALLEST_LEVEL:
        shapes.append(shape)
    return shapes


def _draw_positions(rng: np.random.Generator, shape: tuple[int, int], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the patches' upper left corners, each pair once."""
    rows, columns = (side - _PATCH + 1 for side in shape)
    drawn = rng.choice(rows * columns, min(count, rows * columns), replace=False)
    return np.divmod(drawn, columns)


def _patches(images: np.ndarray, positions: list[tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray]:
    """(picture * position, channel * row * column) float32 in gray levels, for each level of the pyramids."""
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
        # Zeros between the samples; the mirrored border keeps samples and zeros in turn.
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
    pairs = _quantile_pairs(len(images), len(truth))
    step = max(1, _PROJECTIONS // max(len(images), len(truth)))
    total = 0.0
    for start in range(0, len(directions), step):
        chunk = directions[start : start + step]
        ours, true = (np.sort(chunk @ patches.T, axis=1) for patches in (images, truth))
        total += float(_quantile_distance(ours, true, pairs).sum())
        bar.advance(len(chunk))
    return total / len(directions)


def _quantile_pairs(first: int, second: int) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Pieces on which the quantile functions of two samples are both constant: index in each, and length.

    None for samples of equal size, whose pieces are their elements.
    """
    if first == second:
        return None
    # Counted in 1 / (first * second), so that ends common to both are met exactly.
    ends = np.union1d(np.arange(1, first + 1) * second, np.arange(1, second + 1) * first)
    return (ends - 1) // second, (ends - 1) // first, np.diff(ends, prepend=0) / (first * second)


def _quantile_distance(
    ours: np.ndarray, true: np.ndarray, pairs: tuple[np.ndarray, np.ndarray, np.ndarray] | None
) -> np.ndarray:
    """Integral of the difference of the quantile functions of sorted samples (..., sample), over the last axis."""
    if pairs is None:
        return np.abs(ours - true).mean(axis=-1, dtype=np.float64)
    in_ours, in_true, length = pairs
    return np.abs(ours[..., in_ours] - true[..., in_true]) @ length
