"""Fits neural fields to views: losses, optimizer and steps [7.4]; mathematics only."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from threedim.consistency import field as field_lib
from threedim.consistency.field import Bounds, Field, FieldSettings, Params


class Rays(NamedTuple):
    """Pixels of views."""

    origins: jax.Array  # (view, 3) world units
    directions: jax.Array  # (view, pixel, 3) of length 1
    colors: jax.Array  # (view, pixel, 3) float32 in [0, 1]


class FitState(NamedTuple):
    """State of a fit."""

    params: Params  # of the field
    average: Params  # their running average, which is rendered: the last steps are noisy
    opt_state: Any
    proposal: jax.Array  # (cell, cell, cell), see `propose_edges`
    key: jax.Array  # random key of the next step
    step: jax.Array  # steps done


def distortion_loss(weights: jax.Array, edges: jax.Array) -> jax.Array:
    """Distortion loss of mip-NeRF 360 (Barron et al. 2022, eq. 15), (ray,), in linear instead of quadratic time.

    Of weights (ray, sample) and edges (ray, sample + 1), ascending from 0 at near to 1 at far.
    """
    middles, lengths = (edges[:, 1:] + edges[:, :-1]) / 2, jnp.diff(edges, axis=-1)
    weight_before = jnp.cumsum(weights, axis=-1) - weights
    moment_before = jnp.cumsum(weights * middles, axis=-1) - weights * middles
    between = 2 * jnp.sum(weights * (middles * weight_before - moment_before), axis=-1)
    return between + jnp.sum(weights**2 * lengths, axis=-1) / 3


def orientation_loss(weights: jax.Array, normals: jax.Array, directions: jax.Array) -> jax.Array:
    """Orientation loss of Ref-NeRF (eq. 11), (ray,): visible surfaces must not face away from the camera.

    Of weights (ray, sample), normals (ray, sample, 3), and directions (ray, 3) from the camera into the scene.
    """
    away = jnp.maximum(0.0, jnp.sum(normals * directions[:, None], axis=-1))
    return jnp.sum(weights * away**2, axis=-1)


def _losses(params, proposal, origins, directions, colors, weight, key, bounds, settings):
    """The weighted sums over rays of the total loss and of the squared error."""
    num_rays, samples = len(origins), settings.samples
    jitter = jax.random.uniform(key, (num_rays, samples - 1))
    edges = field_lib.propose_edges(proposal, origins, directions, bounds, samples, settings.proposal_bins, jitter)
    # The first rays are as random as the others.
    oriented = -(-num_rays // settings.orientation_every) if settings.orientation_weight else 0
    rendered, weights, normals = field_lib.trace(params, origins, directions, edges, bounds, settings, oriented)
    error = jnp.mean((rendered - colors) ** 2, axis=-1)
    loss = error
    if settings.distortion_weight:
        normalized = (edges - bounds.near) / (bounds.far - bounds.near)
        loss = loss + settings.distortion_weight * distortion_loss(weights, normalized)
    total = jnp.sum(loss * weight)
    if oriented:
        facing = orientation_loss(weights[:oriented], normals, directions[:oriented])
        total += settings.orientation_weight * (num_rays / oriented) * jnp.sum(facing * weight[:oriented])
    return total, jnp.sum(error * weight)


def learning_rate(settings: FieldSettings) -> optax.Schedule:
    """Learning rate by step: linear, then constant [7.4]."""
    return optax.linear_schedule(settings.learning_rate, settings.final_learning_rate, settings.decay_steps)


def make_optimizer(settings: FieldSettings) -> optax.GradientTransformation:
    """AdamW after gradient clipping [7.4].

    Weight decay is decoupled: as an L2 term, 0.1 would outweigh the photometric gradient of every table entry by orders
    of magnitude. The paper gives no β₂ and ε; these are instant-NGP's, since table entries get few and tiny gradients,
    which Adam's usual ε of 1e-8 would suppress.
    """
    s = settings
    adam = optax.adamw(learning_rate(s), b1=0.9, b2=s.beta2, eps=s.epsilon, weight_decay=s.weight_decay)
    return optax.chain(optax.clip_by_global_norm(s.clip_norm), adam)


def init_state(key: jax.Array, settings: FieldSettings) -> FitState:
    """Initial state of a fit."""
    for_params, key = jax.random.split(key)
    params = field_lib.init_params(for_params, settings)
    proposal = jnp.ones((settings.proposal_resolution,) * 3)
    return FitState(params, params, make_optimizer(settings).init(params), proposal, key, jnp.zeros((), jnp.int32))


def sample_pixels(key: jax.Array, colors: jax.Array, seen: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Samples pixels of a step with weights, such that the weighted sum of a loss estimates its mean over all pixels.

    Half of them are sampled from the pixels that are not white, which are few and informative, half from all.

    Args:
      key: random key.
      colors: (pixel of all views, 3).
      seen: (pixel of all views,) int32, the cumulative number of pixels that are not white.
      count: of the returned indices and weights.
    """
    one, two = jax.random.split(key)
    total, half = len(seen), count // 2
    anywhere = jax.random.randint(one, (count,), 0, total)
    chosen = jnp.searchsorted(seen, jax.random.randint(two, (half,), 0, jnp.maximum(seen[-1], 1)), side="right")
    share = jnp.where(seen[-1] > 0, half / count, 0.0)
    indices = jnp.concatenate([jnp.where(share > 0, chosen, anywhere[:half]), anywhere[half:]])
    odds = 1 - share + share * _is_seen(colors[indices]) * total / jnp.maximum(seen[-1], 1)
    # Shuffled, so that the first ones are as random as the rest.
    order = np.random.default_rng(0).permutation(count)
    return indices[order], 1 / (count * odds[order])


def _is_seen(colors: jax.Array) -> jax.Array:
    return jnp.any(colors < 1, axis=-1)


def _gradient(state: FitState, rays: Rays, seen: jax.Array, key: jax.Array, bounds: Bounds, settings: FieldSettings):
    """Mean squared error, and gradient of the mean loss, over the rays of a step."""
    views, pixels = rays.directions.shape[:2]
    directions, colors = rays.directions.reshape(-1, 3), rays.colors.reshape(-1, 3)
    total = views * pixels
    evaluate = jax.value_and_grad(_losses, has_aux=True)

    def at(indices, valid, key):
        origins = rays.origins[indices // pixels]
        chosen = origins, directions[indices], colors[indices], valid
        return evaluate(state.params, state.proposal, *chosen, key, bounds, settings)

    for_rays, for_samples = jax.random.split(key)
    if settings.rays_per_step:
        indices, weights = sample_pixels(for_rays, colors, seen, settings.rays_per_step)
        (_, error), gradient = at(indices, weights, for_samples)
    else:
        chunk = min(settings.rays_per_chunk, total)
        num_chunks = -(-total // chunk)
        shift = jax.random.randint(for_rays, (), 0, total)
        # Rays of a chunk, also its first ones, are spread over all views.
        places = np.random.default_rng(0).permutation(chunk) * num_chunks

        def add(carry, number):
            valid = (number + places < total) / total
            indices = (number + places + shift) % total
            (_, error), gradient = at(indices, valid, jax.random.fold_in(for_samples, number))
            return jax.tree.map(jnp.add, carry, (error, gradient)), None

        zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, state.params))
        (error, gradient), _ = jax.lax.scan(add, zero, jnp.arange(num_chunks))
    return error, gradient


def _update_proposal(proposal: jax.Array, params: Params, key: jax.Array, settings: FieldSettings) -> jax.Array:
    """Decays some random cells, to no less than the density at a random point in them."""
    cells = settings.proposal_resolution
    where, inside = jax.random.split(key)
    chosen = jax.random.randint(where, (settings.proposal_updates,), 0, cells**3)
    cell = jnp.stack(jnp.unravel_index(chosen, (cells,) * 3), axis=-1)
    positions = (cell + jax.random.uniform(inside, cell.shape)) / cells
    flat = proposal.reshape(-1)
    seen = jnp.maximum(flat[chosen] * 0.9, field_lib.density(params, positions, settings))
    return flat.at[chosen].set(seen).reshape(proposal.shape)


def _step(state: FitState, rays: Rays, seen: jax.Array, bounds: Bounds, settings: FieldSettings):
    """The next state, and the mean squared error."""
    key, for_gradient, for_proposal = jax.random.split(state.key, 3)
    error, gradient = _gradient(state, rays, seen, for_gradient, bounds, settings)
    updates, opt_state = make_optimizer(settings).update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    # Shorter at first, to forget the initial parameters.
    decay = jnp.minimum(settings.average_decay, (1 + state.step) / (10 + state.step))
    average = optax.incremental_update(params, state.average, 1 - decay)
    proposal = _update_proposal(state.proposal, params, for_proposal, settings)
    return FitState(params, average, opt_state, proposal, key, state.step + 1), error


@functools.partial(jax.jit, static_argnames="settings")
def _init_states(key: jax.Array, settings: FieldSettings) -> FitState:
    return jax.vmap(lambda one: init_state(one, settings))(key)


@functools.partial(jax.jit, static_argnames=("settings", "num_steps"), donate_argnums=0)
def _steps(states, rays, bounds, *, settings, num_steps):
    def one(state, rays):
        seen = jnp.cumsum(_is_seen(rays.colors.reshape(-1, 3)))
        return jax.lax.scan(lambda carry, _: _step(carry, rays, seen, bounds, settings), state, length=num_steps)

    return jax.vmap(one)(states, rays)


def fit(
    key: jax.Array,
    rays: Rays,
    bounds: Bounds,
    settings: FieldSettings,
    on_steps: Callable[[int, np.ndarray], None] | None = None,
    steps_per_call: int = 50,
) -> Field:
    """Fits one field to each of several objects, side by side; the fields have a leading object axis.

    Compiled once per number of objects, views and pixels.

    Args:
      key: (object,) random keys; a field depends only on its own key and rays.
      rays: with a leading object axis: origins (object, view, 3), directions and colors (object, view, pixel, 3).
      bounds: of the scenes.
      settings: of the fit.
      on_steps: called with the number of finished steps, and the mean squared error (object,) of the last one.
      steps_per_call: steps between these calls.

    Raises:
      ValueError: if the shapes of the rays do not agree.
      FloatingPointError: if an error is not finite.
    """
    objects, views = rays.origins.shape[:2]
    if rays.directions.shape[:2] != (objects, views) or rays.colors.shape != rays.directions.shape:
        shapes = ", ".join(str(leaf.shape) for leaf in rays)
        raise ValueError(f"origins, directions, colors must be (object, view, [pixel,] 3) alike, got {shapes}")
    state = _init_states(key, settings)
    done = 0
    while done < settings.num_steps:
        count = min(steps_per_call, settings.num_steps - done)
        state, errors = _steps(state, rays, bounds, settings=settings, num_steps=count)
        done += count
        last = np.asarray(errors[:, -1])
        if not np.all(np.isfinite(last)):
            raise FloatingPointError(f"the field's error is not finite after {done} steps")
        if on_steps:
            on_steps(done, last)
    return Field(state.average, state.proposal)
