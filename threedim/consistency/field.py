"""A neural field without view dependence [4, 7.4], and its rendering.

It can only represent what looks the same from all sides, so how well it explains held-out views says how consistent the
views are. A hash grid (instant-NGP, Müller et al. 2022) encodes positions; two small networks compute density and
color. `FieldSettings` has all settings, also those that the paper leaves open (docs/consistency.md).

Lengths are in world units outside, and in edges of the scene's box in `density_and_color`.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from threedim.errors import UserError

Params = dict[str, Any]

# instant-NGP's spatial hash.
_PRIMES = np.asarray([1, 2654435761, 805459861], np.uint32)
_CORNERS = np.asarray([[i >> 2 & 1, i >> 1 & 1, i & 1] for i in range(8)], np.uint32)  # (corner, axis)
# Beyond exp of this a ray is stopped within a thousandth of the box, and float32 overflows at 88.
_MAX_LOG_DENSITY = 12.0
_PROPOSAL_LAG = 4
_PRECISION = jax.lax.Precision.HIGHEST


@dataclasses.dataclass(frozen=True)
class FieldSettings:
    """Everything that a fit depends on besides views and seed. The defaults are frozen: only then do scores compare.

    Attributes:
      levels: of the hash grid.
      base_resolution: cells along the box of the coarsest level.
      growth: factor between the resolutions of one level and the next, which are rounded down.
      table_size_log2: entries of a level's table, at most; a level with no more corners than that is stored densely.
      features: numbers per entry.
      width: of both networks' hidden layers: 1 for density, 2 for color [7.4].
      geometry_features: numbers that the first network hands to the second.
      distortion_weight, orientation_weight: of these losses; the photometric loss has weight 1.
      orientation_every: the orientation loss is taken on one ray of so many.
      samples: intervals of a ray, in training; rendering takes twice as many.
      proposal_bins, proposal_resolution, proposal_updates: see `propose_edges`; the last is how many cells
        are looked at anew in a step.
      num_steps: of the optimizer.
      rays_per_step: rays drawn for a step, an unbiased estimate (`_draw_pixels`); 0 takes every pixel of every view in
        each step, as the paper does.
      rays_per_chunk: rays that are held at once, where a step takes all of them, and in rendering.
      learning_rate, final_learning_rate, decay_steps: linear from the first to the second, then constant.
      weight_decay: of Adam, decoupled from the gradients.
      beta2, epsilon: of Adam; instant-NGP's.
      clip_norm: of the gradient of all parameters together.
      average_decay: of the running average of the parameters that is rendered, below 1.
    """

    levels: int = 6
    base_resolution: int = 16
    growth: float = 1.45
    table_size_log2: int = 16
    features: int = 4
    width: int = 64
    geometry_features: int = 15
    distortion_weight: float = 2e-3
    orientation_weight: float = 1e-3
    orientation_every: int = 4
    samples: int = 32
    proposal_bins: int = 64
    proposal_resolution: int = 32
    proposal_updates: int = 2048
    num_steps: int = 1000
    rays_per_step: int = 0
    rays_per_chunk: int = 4096
    learning_rate: float = 1e-2
    final_learning_rate: float = 1e-3
    decay_steps: int = 100
    weight_decay: float = 0.1
    beta2: float = 0.99
    epsilon: float = 1e-15
    clip_norm: float = 1.0
    average_decay: float = 0.995

    def __post_init__(self):
        allowed_zero = ("distortion_weight", "orientation_weight", "rays_per_step", "weight_decay")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not np.isfinite(value) or value < 0 or (value == 0 and field.name not in allowed_zero):
                least = "0 or more" if field.name in allowed_zero else "positive"
                raise UserError(f"field setting {field.name} must be {least}, got {value}")
        if self.beta2 >= 1 or self.average_decay >= 1:
            raise UserError("field settings: beta2 and average_decay must be below 1")
        if self.growth < 1 or self.table_size_log2 > 24:
            raise UserError("field settings: growth must be at least 1 and table_size_log2 at most 24")

    def resolutions(self) -> list[int]:
        """Cells along the box, level by level."""
        return [int(self.base_resolution * self.growth**level + 1e-6) for level in range(self.levels)]

    def table_sizes(self) -> list[int]:
        """Entries of each level's table."""
        return [min((cells + 1) ** 3, 2**self.table_size_log2) for cells in self.resolutions()]


class Bounds(NamedTuple):
    """Bounds of a scene, world units.

    Attributes:
      near, far: ends of a ray, distances from the camera.
      half_width: density is zero outside of the cube around the origin of this half edge.
    """

    near: float
    far: float
    half_width: float


class Field(NamedTuple):
    """A fitted field.

    Attributes:
      params: see `init_params`.
      proposal: (cell, cell, cell) coarse memory of its density in the box; see `propose_edges`.
    """

    params: Params
    proposal: jax.Array


class Rendering(NamedTuple):
    """Pixels of a field.

    Attributes:
      colors: (..., 3) in [0, 1], over white.
      depth: (...,) mean distance from the camera of what is seen, world units; 0 where nothing is.
      opacity: (...,) in [0, 1].
    """

    colors: jax.Array
    depth: jax.Array
    opacity: jax.Array


def scene_bounds(r_min: float, r_max: float) -> Bounds:
    """Near 3/8 r_min and far 3/2 r_max of the cameras' distances r to the origin over the data set [7.4].

    The scene's box reaches as far from the origin as the far bound of the farthest camera that looks at it: r_max / 2.

    Raises:
      ValueError: unless 0 < r_min <= r_max.
    """
    if not 0 < r_min <= r_max < np.inf:
        raise UserError(f"camera distances must be positive and in order, got {r_min} to {r_max}")
    return Bounds(3 * r_min / 8, 3 * r_max / 2, r_max / 2)


# --------------------------------------------------------------------------------------------------------- the field


def init_params(key: jax.Array, settings: FieldSettings) -> Params:
    """Fresh parameters: ``grid`` (entry of all levels, feature), ``density`` and ``color``, lists of (kernel, bias)."""
    keys = jax.random.split(key, 6)
    encoded = settings.levels * settings.features
    layers = [
        (encoded, settings.width),
        (settings.width, 1 + settings.geometry_features),
        (settings.geometry_features, settings.width),
        (settings.width, settings.width),
        (settings.width, 3),
    ]
    dense = [
        (jax.random.normal(k, shape) * np.sqrt(2 / shape[0]), jnp.zeros(shape[1]))
        for k, shape in zip(keys, layers, strict=False)
    ]
    grid = jax.random.uniform(keys[5], (sum(settings.table_sizes()), settings.features), minval=-1e-4, maxval=1e-4)
    return {"grid": grid, "density": dense[:2], "color": dense[2:]}


def locate(positions: jax.Array, settings: FieldSettings) -> tuple[jax.Array, jax.Array]:
    """Corners around positions on every level.

    Args:
      positions: (point, 3) in [0, 1].

    Returns:
      Indices (point, level, corner) int32 into ``params["grid"]``, and positions inside the cell (point, level, 3) in
      [0, 1], differentiable. Corner 4 i + 2 j + k lies at (i, j, k).
    """
    indices, fractions, offset = [], [], 0
    for cells, size in zip(settings.resolutions(), settings.table_sizes(), strict=True):
        scaled = positions * cells
        cell = jnp.clip(jnp.floor(jax.lax.stop_gradient(scaled)), 0, cells - 1)
        fractions.append(scaled - cell)
        corner = cell.astype(jnp.uint32)[:, None] + _CORNERS  # (point, corner, axis)
        if (cells + 1) ** 3 <= size:
            index = (corner[..., 0] * (cells + 1) + corner[..., 1]) * (cells + 1) + corner[..., 2]
        else:
            index = corner[..., 0] * _PRIMES[0] ^ corner[..., 1] * _PRIMES[1] ^ corner[..., 2] * _PRIMES[2]
            index = index & np.uint32(size - 1)
        indices.append(index.astype(jnp.int32) + offset)
        offset += size
    return jnp.stack(indices, axis=1), jnp.stack(fractions, axis=1)


def interpolate(corner_features: jax.Array, fractions: jax.Array) -> jax.Array:
    """Trilinear: (point, level, corner, feature) and (point, level, 3) to (point, level * feature)."""
    x, y, z = (fractions[..., axis, None] for axis in range(3))
    f = corner_features
    # One axis after the other: half as many products as with eight weights.
    f = f[..., :4, :] * (1 - x[..., None]) + f[..., 4:, :] * x[..., None]
    f = f[..., :2, :] * (1 - y[..., None]) + f[..., 2:, :] * y[..., None]
    f = f[..., 0, :] * (1 - z) + f[..., 1, :] * z
    return f.reshape(f.shape[0], f.shape[1] * f.shape[2])


def _dense(x: jax.Array, layer: tuple[jax.Array, jax.Array]) -> jax.Array:
    return jnp.dot(x, layer[0], precision=_PRECISION) + layer[1]


def _geometry(params: Params, corner_features: jax.Array, fractions: jax.Array) -> jax.Array:
    """Logarithm of the density, then the features for the color, (point, 1 + geometry feature)."""
    hidden = jax.nn.relu(_dense(interpolate(corner_features, fractions), params["density"][0]))
    return _dense(hidden, params["density"][1])


def _density(log_density: jax.Array) -> jax.Array:
    return jnp.exp(jnp.minimum(log_density, _MAX_LOG_DENSITY))


def density(params: Params, positions: jax.Array, settings: FieldSettings) -> jax.Array:
    """Density (point,) at (point, 3) in [0, 1], per edge of the box."""
    indices, fractions = locate(positions, settings)
    return _density(_geometry(params, params["grid"][indices], fractions)[:, 0])


def density_and_color(
    params: Params, positions: jax.Array, settings: FieldSettings, normals_of: slice = slice(0)
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The field, and which way surfaces face.

    Args:
      params: as `init_params` makes them.
      positions: (point, 3) in [0, 1], coordinates of the box.
      settings: of the field.
      normals_of: points whose normals are wanted.

    Returns:
      Densities (point,) per edge of the box, colors (point, 3) in [0, 1], and normals of those points, (chosen, 3):
      the negative gradient of the density at unit length (Ref-NeRF, Verbin et al. 2022), shorter where there is none.
    """
    indices, fractions = locate(positions, settings)
    # The only look-up: the normals are derivatives of the interpolation between the same features, so that the gradient
    # of everything goes back into the table by one scatter.
    corner_features = params["grid"][indices]
    geometry = _geometry(params, corner_features, fractions)
    x = jax.nn.relu(_dense(geometry[:, 1:], params["color"][0]))
    x = jax.nn.relu(_dense(x, params["color"][1]))
    colors = jax.nn.sigmoid(_dense(x, params["color"][2]))
    # The logarithm rises where the density rises, and its gradient neither overflows nor vanishes.
    slope = jax.grad(lambda f, c: jnp.sum(_geometry(params, c, f)[:, 0]))(
        fractions[normals_of], corner_features[normals_of]
    )
    gradient = jnp.sum(slope * np.asarray(settings.resolutions(), np.float32)[:, None], axis=1)
    normals = -gradient / jnp.sqrt(jnp.sum(gradient**2, axis=-1, keepdims=True) + 1e-6)
    return _density(geometry[:, 0]), colors, normals


# --------------------------------------------------------------------------------------------------- along the rays


def clip_to_box(origins: jax.Array, directions: jax.Array, bounds: Bounds) -> tuple[jax.Array, jax.Array]:
    """Distances (ray,) at which rays (ray, 3) enter and leave the box between near and far; equal where they miss."""
    safe = jnp.where(jnp.abs(directions) < 1e-9, 1e-9, directions)
    to_low, to_high = (-bounds.half_width - origins) / safe, (bounds.half_width - origins) / safe
    enter = jnp.max(jnp.minimum(to_low, to_high), axis=-1)
    leave = jnp.min(jnp.maximum(to_low, to_high), axis=-1)
    enter = jnp.clip(enter, bounds.near, bounds.far)
    return enter, jnp.maximum(jnp.clip(leave, bounds.near, bounds.far), enter)


def volume_weights(densities: jax.Array, lengths: jax.Array) -> jax.Array:
    """Share of each interval in a ray's color, (ray, sample): transmittance up to it times its opacity.

    Args:
      densities: (ray, sample) per unit of length.
      lengths: (ray, sample).
    """
    optical = densities * lengths
    before = jnp.cumsum(optical, axis=-1) - optical
    return jnp.exp(-before) * -jnp.expm1(-optical)


def propose_edges(
    proposal: jax.Array,
    origins: jax.Array,
    directions: jax.Array,
    bounds: Bounds,
    num_samples: int,
    num_bins: int,
    jitter: jax.Array | None,
) -> jax.Array:
    """Intervals of rays, short where something is to be seen.

    ``proposal`` (cell, cell, cell) is a coarse memory of the field's density in the box. Its volume weights in equal
    bins of a ray, widened by a bin to either side and raised by a constant, are the density of the edges. Edges beyond
    the first and the last follow it at equal steps (or, with jitter, one anywhere in each step): stratified sampling.

    Args:
      proposal: as above, per edge of the box.
      origins, directions: (ray, 3).
      bounds: of the scene.
      num_samples: intervals.
      num_bins: of the ray's way through the box.
      jitter: (ray, num_samples - 1) in [0, 1), or None for the middles.

    Returns:
      (ray, num_samples + 1) distances, ascending, from where the ray enters the box to where it leaves it.
    """
    cells = proposal.shape[0]
    enter, leave = clip_to_box(origins, directions, bounds)
    length = leave - enter
    ends = jnp.arange(num_bins + 1) / num_bins
    middles = enter[:, None] + length[:, None] * (ends[1:] + ends[:-1]) / 2
    positions = to_box(origins[:, None] + directions[:, None] * middles[..., None], bounds)
    cell = jnp.clip((positions * cells).astype(jnp.int32), 0, cells - 1)
    known = proposal.reshape(-1)[(cell[..., 0] * cells + cell[..., 1]) * cells + cell[..., 2]]
    bin_length = length[:, None] / (2 * bounds.half_width * num_bins)
    optical = known * bin_length
    before = jnp.pad(jnp.cumsum(optical, axis=-1), ((0, 0), (_PROPOSAL_LAG, 0)))[:, :num_bins]
    weights = jnp.exp(-before) * -jnp.expm1(-optical)
    padded = jnp.pad(weights, ((0, 0), (1, 1)))
    widened = jnp.maximum(jnp.maximum(padded[:, :-2], padded[:, 2:]), weights) + 0.2 / num_bins
    cdf = jnp.cumsum(widened, axis=-1)
    cdf = jnp.pad(cdf / cdf[:, -1:], ((0, 0), (1, 0)))
    inner = num_samples - 1
    share = jnp.broadcast_to(jnp.asarray([0.0, 1.0]), (len(origins), 2))
    if inner:
        u = (jnp.arange(inner) + (0.5 if jitter is None else jitter)) / inner
        u = jnp.broadcast_to(u, (len(origins), inner))
        at = jax.vmap(lambda one, distribution: jnp.interp(one, distribution, ends))(u, cdf)
        share = jnp.concatenate([share[:, :1], at, share[:, 1:]], axis=-1)
    return jax.lax.stop_gradient(enter[:, None] + length[:, None] * share)


def to_box(points: jax.Array, bounds: Bounds) -> jax.Array:
    """World points (..., 3) to coordinates of the box, [0, 1]; clipped."""
    return jnp.clip(points / (2 * bounds.half_width) + 0.5, 0.0, 1.0)


# ----------------------------------------------------------------------------------------------------------- rendering


@functools.partial(jax.jit, static_argnames="settings")
def _render(field, origins, directions, bounds, *, settings):
    samples = 2 * settings.samples

    def chunk(batch):
        origins, directions = batch
        edges = propose_edges(field.proposal, origins, directions, bounds, samples, settings.proposal_bins, None)
        middles = (edges[:, 1:] + edges[:, :-1]) / 2
        positions = to_box(origins[:, None] + directions[:, None] * middles[..., None], bounds).reshape(-1, 3)
        densities, rgb, _ = density_and_color(field.params, positions, settings)
        lengths = jnp.diff(edges, axis=-1) / (2 * bounds.half_width)
        weights = volume_weights(densities.reshape(-1, samples), lengths)
        opacity = jnp.sum(weights, axis=-1)
        colors = jnp.sum(weights[..., None] * rgb.reshape(*weights.shape, 3), axis=1) + 1 - opacity[:, None]
        depth = jnp.sum(weights * middles, axis=-1) / jnp.maximum(opacity, 1e-6)
        return Rendering(colors, depth, opacity)

    shape = directions.shape[:-1]
    origins = jnp.broadcast_to(origins[:, None], directions.shape).reshape(-1, 3)
    directions = directions.reshape(-1, 3)
    total = len(directions)
    size = min(settings.rays_per_chunk, total)
    # The last chunk is filled up with rays that nobody sees.
    indices = jnp.minimum(jnp.arange(-(-total // size) * size), total - 1).reshape(-1, size)
    rendered = jax.lax.map(lambda chosen: chunk((origins[chosen], directions[chosen])), indices)
    return jax.tree.map(
        lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:total].reshape(*shape, *leaf.shape[2:]), rendered
    )


def render(
    field: Field, origins: jax.Array, directions: jax.Array, bounds: Bounds, settings: FieldSettings
) -> Rendering:
    """What cameras see of one field.

    Args:
      field: one object's, without object axis.
      origins: (view, 3) world units.
      directions: (view, pixel, 3) of length 1.
      bounds, settings: those of the fit.

    Returns:
      Pixels (view, pixel), over white.
    """
    return _render(field, origins, directions, bounds, settings=settings)
