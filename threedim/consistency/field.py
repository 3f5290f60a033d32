"""A neural field without view dependence [4, 7.4] and its volume rendering; mathematics only.

It can learn only what looks the same from all sides, so how well it predicts held-out views measures how consistent the
views are. A hash grid (instant-NGP, Müller et al. 2022) encodes positions, and two small networks turn the encoding
into density and color. `fit` fits it to views. `FieldSettings` holds all choices; docs/consistency.md explains those
that the paper leaves open.

Lengths are in world units, but in edges of the scene's box inside `density_and_color`.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Params = dict[str, Any]

# instant-NGP's spatial hash.
_PRIMES = np.asarray([1, 2654435761, 805459861], np.uint32)
_CORNERS = np.asarray([[i >> 2 & 1, i >> 1 & 1, i & 1] for i in range(8)], np.uint32)  # (corner, axis)
# exp(12) stops a ray within a thousandth of the box; float32 overflows at exp(88).
_MAX_LOG_DENSITY = 12.0
_PROPOSAL_LAG = 4
_PRECISION = jax.lax.Precision.HIGHEST


@dataclasses.dataclass(frozen=True)
class FieldSettings:
    """All choices of a fit besides the views and the seed. The defaults are frozen, so that scores compare."""

    levels: int = 6  # of the hash grid
    base_resolution: int = 16  # cells along the box at the coarsest level
    growth: float = 1.45  # factor between the resolutions of neighboring levels, which are rounded down
    table_size_log2: int = 16  # of a level's maximum entries; one with at most that many corners is stored densely
    features: int = 4  # numbers per entry
    width: int = 64  # of the hidden layers of both networks: 1 for density, 2 for color [7.4]
    geometry_features: int = 15  # outputs of the density network that the color network takes
    distortion_weight: float = 2e-3  # of this loss; the photometric loss has weight 1
    orientation_weight: float = 1e-3
    orientation_every: int = 4  # the orientation loss uses one ray in this many
    samples: int = 32  # intervals per ray in training; rendering uses twice as many
    proposal_bins: int = 64  # see `propose_edges`
    proposal_resolution: int = 32
    proposal_updates: int = 2048  # cells of the proposal that are updated per step
    num_steps: int = 1000  # of the optimizer
    # Sampled per step, an unbiased estimate (`fit.sample_pixels`); 0 uses all pixels in each step, as the paper does.
    rays_per_step: int = 0
    rays_per_chunk: int = 4096  # rays in memory at once, if a step uses all of them, and in rendering
    learning_rate: float = 1e-2  # linear from this to the final one, then constant
    final_learning_rate: float = 1e-3
    decay_steps: int = 100
    weight_decay: float = 0.1  # of AdamW, decoupled
    beta2: float = 0.99  # of Adam, like epsilon as in instant-NGP
    epsilon: float = 1e-15
    clip_norm: float = 1.0  # maximum norm of the gradient of all parameters
    average_decay: float = 0.995  # of the running average of the parameters, which is what is rendered; below 1

    def __post_init__(self):
        allowed_zero = ("distortion_weight", "orientation_weight", "rays_per_step", "weight_decay")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not np.isfinite(value) or value < 0 or (value == 0 and field.name not in allowed_zero):
                least = "0 or more" if field.name in allowed_zero else "positive"
                raise ValueError(f"{field.name} must be {least}, got {value}")
        if self.beta2 >= 1 or self.average_decay >= 1:
            raise ValueError("beta2 and average_decay must be below 1")
        if self.growth < 1 or self.table_size_log2 > 24:
            raise ValueError("growth must be at least 1 and table_size_log2 at most 24")

    def resolutions(self) -> list[int]:
        """Cells along the box, by level."""
        # The small term protects whole numbers from rounding.
        return [int(self.base_resolution * self.growth**level + 1e-6) for level in range(self.levels)]

    def table_sizes(self) -> list[int]:
        """Table entries, by level."""
        return [min((cells + 1) ** 3, 2**self.table_size_log2) for cells in self.resolutions()]


class Bounds(NamedTuple):
    """Bounds of a scene, world units."""

    near: float  # distances from a camera between which rays are sampled
    far: float
    half_width: float  # half the edge of the box around the origin; density is zero outside it


class Field(NamedTuple):
    """A fitted field."""

    params: Params  # see `init_params`
    proposal: jax.Array  # (cell, cell, cell) coarse density, see `propose_edges`


class Rendering(NamedTuple):
    """A rendered field."""

    colors: jax.Array  # (..., 3) in [0, 1], over white
    depth: jax.Array  # (...,) mean distance from the camera, world units; 0 where nothing is visible
    opacity: jax.Array  # (...,) in [0, 1]


def scene_bounds(r_min: float, r_max: float) -> Bounds:
    """Near 3/8 r_min and far 3/2 r_max, for cameras at distances r from the origin over the data set [7.4].

    The box reaches as far beyond the origin as the farthest camera sees: r_max / 2. Raises ValueError unless
    0 < r_min <= r_max.
    """
    if not 0 < r_min <= r_max < np.inf:
        raise ValueError(f"camera distances must be positive and in order, got {r_min} to {r_max}")
    return Bounds(3 * r_min / 8, 3 * r_max / 2, r_max / 2)


def init_params(key: jax.Array, settings: FieldSettings) -> Params:
    """Initial ``grid`` (entry of all levels, feature), and ``density`` and ``color``, lists of (kernel, bias)."""
    keys = jax.random.split(key, 6)
    encoded, width, geometry = settings.levels * settings.features, settings.width, settings.geometry_features
    layers = [(encoded, width), (width, 1 + geometry), (geometry, width), (width, width), (width, 3)]
    dense = [
        (jax.random.normal(k, shape) * np.sqrt(2 / shape[0]), jnp.zeros(shape[1]))
        for k, shape in zip(keys, layers, strict=False)
    ]
    grid = jax.random.uniform(keys[5], (sum(settings.table_sizes()), settings.features), minval=-1e-4, maxval=1e-4)
    return {"grid": grid, "density": dense[:2], "color": dense[2:]}


def locate(positions: jax.Array, settings: FieldSettings) -> tuple[jax.Array, jax.Array]:
    """The corners around positions (point, 3) in [0, 1], at every level.

    Returns:
      Indices (point, level, corner) int32 into ``params["grid"]``, and positions within the cell (point, level, 3) in
      [0, 1], differentiable. Corner 4 i + 2 j + k is at (i, j, k).
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
    # Axis by axis: half as many products as with eight weights.
    f = f[..., :4, :] * (1 - x[..., None]) + f[..., 4:, :] * x[..., None]
    f = f[..., :2, :] * (1 - y[..., None]) + f[..., 2:, :] * y[..., None]
    f = f[..., 0, :] * (1 - z) + f[..., 1, :] * z
    return f.reshape(f.shape[0], f.shape[1] * f.shape[2])


def _dense(x: jax.Array, layer: tuple[jax.Array, jax.Array]) -> jax.Array:
    return jnp.dot(x, layer[0], precision=_PRECISION) + layer[1]


def _geometry(params: Params, corner_features: jax.Array, fractions: jax.Array) -> jax.Array:
    """Log density, and the inputs of the color network, (point, 1 + geometry feature)."""
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
    """The field at positions (point, 3) in [0, 1], and the normals of its surfaces at some of the points.

    Returns:
      Densities (point,) per edge of the box, colors (point, 3) in [0, 1], and normals (chosen, 3): the negative
      gradient of the density at unit length (Ref-NeRF, Verbin et al. 2022), shorter where the gradient vanishes.
    """
    indices, fractions = locate(positions, settings)
    # The only lookup: normals differentiate the interpolation of the same features, so that all gradients go back into
    # the table in one scatter.
    corner_features = params["grid"][indices]
    geometry = _geometry(params, corner_features, fractions)
    x = jax.nn.relu(_dense(geometry[:, 1:], params["color"][0]))
    x = jax.nn.relu(_dense(x, params["color"][1]))
    colors = jax.nn.sigmoid(_dense(x, params["color"][2]))
    # The log density has the same direction, and its gradient neither overflows nor vanishes.
    slope_of = jax.grad(lambda f, c: jnp.sum(_geometry(params, c, f)[:, 0]))
    slope = slope_of(fractions[normals_of], corner_features[normals_of])
    gradient = jnp.sum(slope * np.asarray(settings.resolutions(), np.float32)[:, None], axis=1)
    normals = -gradient / jnp.sqrt(jnp.sum(gradient**2, axis=-1, keepdims=True) + 1e-6)
    return _density(geometry[:, 0]), colors, normals


def clip_to_box(origins: jax.Array, directions: jax.Array, bounds: Bounds) -> tuple[jax.Array, jax.Array]:
    """Distances (ray,) where rays (ray, 3) enter and leave the box, within near and far; equal if they miss it."""
    safe = jnp.where(jnp.abs(directions) < 1e-9, 1e-9, directions)
    to_low, to_high = (-bounds.half_width - origins) / safe, (bounds.half_width - origins) / safe
    enter = jnp.max(jnp.minimum(to_low, to_high), axis=-1)
    leave = jnp.min(jnp.maximum(to_low, to_high), axis=-1)
    enter = jnp.clip(enter, bounds.near, bounds.far)
    return enter, jnp.maximum(jnp.clip(leave, bounds.near, bounds.far), enter)


def volume_weights(densities: jax.Array, lengths: jax.Array) -> jax.Array:
    """Weights of intervals in a ray's color, transmittance up to each times its opacity; all are (ray, sample)."""
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
    """Samples intervals along rays, short ones near surfaces.

    ``proposal`` (cell, cell, cell) is a running maximum of the field's density in the box, per edge of the box. Its
    volume weights in equal bins of a ray, dilated by one bin on either side plus a constant, are the density of the
    interval edges. The inner edges are at equal quantiles (with jitter, at a random place in each stratum).

    Args:
      proposal: as above.
      origins, directions: (ray, 3).
      bounds: of the scene.
      num_samples, num_bins: intervals, and bins of the ray's path through the box.
      jitter: (ray, num_samples - 1) in [0, 1), or None for the middle of each stratum.

    Returns:
      (ray, num_samples + 1) distances, ascending, from where the ray enters the box to where it leaves.
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
    """World points (..., 3) to box coordinates in [0, 1], clipped."""
    return jnp.clip(points / (2 * bounds.half_width) + 0.5, 0.0, 1.0)


def trace(
    params: Params,
    origins: jax.Array,
    directions: jax.Array,
    edges: jax.Array,
    bounds: Bounds,
    settings: FieldSettings,
    oriented: int = 0,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Volume rendering over white of rays (ray, 3) with intervals between ``edges`` (ray, sample + 1).

    Returns:
      Colors (ray, 3), weights (ray, sample), and normals (oriented, sample, 3) of the first ``oriented`` rays.
    """
    rays, samples = len(edges), edges.shape[1] - 1
    middles = (edges[:, 1:] + edges[:, :-1]) / 2
    positions = to_box(origins[:, None] + directions[:, None] * middles[..., None], bounds).reshape(-1, 3)
    densities, rgb, normals = density_and_color(params, positions, settings, slice(oriented * samples))
    weights = volume_weights(densities.reshape(rays, samples), jnp.diff(edges, axis=-1) / (2 * bounds.half_width))
    colors = jnp.sum(weights[..., None] * rgb.reshape(rays, samples, 3), axis=1)
    colors = colors + 1 - jnp.sum(weights, axis=-1, keepdims=True)
    return colors, weights, normals.reshape(oriented, samples, 3)


@functools.partial(jax.jit, static_argnames="settings")
def render(
    field: Field, origins: jax.Array, directions: jax.Array, bounds: Bounds, settings: FieldSettings
) -> Rendering:
    """Renders pixels (view, pixel), over white.

    Args:
      field: one object's, without object axis.
      origins: (view, 3) world units.
      directions: (view, pixel, 3) of length 1.
      bounds, settings: those of the fit.
    """

    def chunk(indices: jax.Array) -> Rendering:
        chosen = flat_origins[indices], flat_directions[indices]
        samples = 2 * settings.samples
        edges = propose_edges(field.proposal, *chosen, bounds, samples, settings.proposal_bins, None)
        colors, weights, _ = trace(field.params, *chosen, edges, bounds, settings)
        opacity = jnp.sum(weights, axis=-1)
        depth = jnp.sum(weights * ((edges[:, 1:] + edges[:, :-1]) / 2), axis=-1) / jnp.maximum(opacity, 1e-6)
        return Rendering(colors, depth, opacity)

    shape = directions.shape[:-1]
    flat_origins = jnp.broadcast_to(origins[:, None], directions.shape).reshape(-1, 3)
    flat_directions = directions.reshape(-1, 3)
    total = len(flat_directions)
    size = min(settings.rays_per_chunk, total)
    # The last chunk is padded with copies of the last ray.
    indices = jnp.minimum(jnp.arange(-(-total // size) * size), total - 1).reshape(-1, size)
    rendered = jax.lax.map(chunk, indices)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:total].reshape(*shape, *x.shape[2:]), rendered)
