"""Sampling by stochastic conditioning [2.2, 7.3].

A view is drawn by ``num_steps`` denoising steps, and at *every* step the network sees another of the views known so
far, drawn uniformly. A finished view joins the known ones. So views drawn one after another agree with each other,
though the network only ever sees a pair.

A known set is a fixed-capacity array plus a count: one compiled function draws every view of a rollout. It holds what
the network computes from a clean view alone, which is the same at every step.

What joins the known set is rounded to 8 bits, as it is written to disk: a rollout that goes on from its own PNG files
equals one that was never interrupted.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from threedim.cameras import Camera
from threedim.diffusion import Process, posterior
from threedim.models.blocks import fold_frames, take_frame

PyTree = Any


class Denoiser(Protocol):
    """What the sampler asks of a network. Hashable; leading axes are (batch,) throughout.

    ``threedim.models.xunet.XUNetDenoiser`` is one; the tests have others.
    """

    def encode_view(
        self, params: PyTree, x: jax.Array, logsnr: jax.Array, camera: Camera, cond_mask: jax.Array
    ) -> PyTree:
        """Features of clean views (batch, height, width, 3)."""

    def embed_camera(self, params: PyTree, camera: Camera, cond_mask: jax.Array) -> PyTree:
        """Embeddings of target cameras."""

    def denoise(self, params: PyTree, z: jax.Array, logsnr: jax.Array, target: PyTree, view: PyTree) -> jax.Array:
        """The network's output (eps or v) for noisy targets, given one view's features each."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a view is drawn.

    Attributes:
      num_steps: denoising steps, equally spaced in t from 1 to 0.
      guidance_weight: w in ``(1 + w) eps_cond - w eps_uncond``; 0 leaves the unconditional branch out.
      fresh_uncond_noise: the unconditional branch sees a noise frame in the clean view's place. False draws it once per
        view, so that its features are computed once; True draws a new one at every step.

    Raises:
      ValueError: on fewer than one step or a guidance weight that is negative or not finite.
    """

    num_steps: int = 250
    guidance_weight: float = 3.0
    fresh_uncond_noise: bool = False

    def __post_init__(self):
        if self.num_steps < 1:
            raise ValueError(f"sample.num_steps must be at least 1, got {self.num_steps}")
        if not 0 <= self.guidance_weight < float("inf"):
            raise ValueError(f"sample.guidance_weight must be finite and not negative, got {self.guidance_weight}")


class KnownViews(NamedTuple):
    """The views that conditioning draws from.

    Attributes:
      features: of each known view; leaves are (batch, capacity, ...). Entries from ``count`` on are never read.
      count: (batch,) int32, how many are known, at least 1.
    """

    features: PyTree
    count: jax.Array


def choose_view(key: jax.Array, count: jax.Array) -> jax.Array:
    """The index of a known view, uniform on ``range(count)``. ``key`` and ``count`` are (batch,)."""
    return jax.vmap(lambda k, n: jax.random.randint(k, (), 0, n))(key, count)


def _normal(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """One draw per example from its own key: an example's noise does not depend on what else is in the batch."""
    return jax.vmap(lambda k: jax.random.normal(k, shape))(key)


def _fold_in(key: jax.Array, data: jax.Array | int) -> jax.Array:
    return jax.vmap(lambda k: jax.random.fold_in(k, data))(key)


def sample_view(
    denoiser: Denoiser,
    params: PyTree,
    known: KnownViews,
    camera: Camera,
    key: jax.Array,
    shape: tuple[int, int, int],
    process: Process,
    settings: Settings,
) -> jax.Array:
    """Draws one view per example by ancestral sampling, a ``jax.lax.scan`` over the steps [2.2, 7.3].

    Args:
      denoiser: the network, and ``params`` its parameters.
      known: the views known so far.
      camera: target cameras, axes (batch,).
      key: (batch,) keys, used for nothing else.
      shape: (height, width, channel) of a view.
      process: the diffusion process that the network was trained for.
      settings: steps and guidance.

    Returns:
      (batch, height, width, channel) in [-1, 1], float32.
    """
    batch = key.shape[0]
    key_start, key_uncond, key_steps = (_fold_in(key, stream) for stream in range(3))
    guided = settings.guidance_weight > 0
    conditional, unconditional = jnp.ones((batch,), bool), jnp.zeros((batch,), bool)

    def encode_noise(key: jax.Array) -> PyTree:
        logsnr = jnp.full((batch,), process.uncond_logsnr)
        return denoiser.encode_view(params, _normal(key, shape), logsnr, camera, unconditional)

    # All that does not change from step to step.
    target = denoiser.embed_camera(params, camera, conditional)
    if guided:
        target = jax.tree.map(fold_frames, denoiser.embed_camera(params, camera, unconditional), target)
        noise_features = encode_noise(key_uncond)

    def predict_x(z: jax.Array, logsnr: jax.Array, key: jax.Array) -> jax.Array:
        index = choose_view(_fold_in(key, 0), known.count)
        view = jax.tree.map(lambda leaf: jax.vmap(lambda row, i: row[i])(leaf, index), known.features)
        logsnr = jnp.full((batch,), logsnr)
        if not guided:
            return process.predict_x(denoiser.denoise(params, z, logsnr, target, view), z, logsnr)
        uncond = encode_noise(_fold_in(key, 2)) if settings.fresh_uncond_noise else noise_features
        # Both branches in one batch. eps, v and x are affine in one another at fixed z, so that mixing the outputs,
        # with weights that sum to 1, is mixing eps.
        output = denoiser.denoise(
            params,
            fold_frames(z, z),
            fold_frames(logsnr, logsnr),
            target,
            jax.tree.map(fold_frames, uncond, view),
        )
        w = settings.guidance_weight
        return process.predict_x((1 + w) * take_frame(output, 1) - w * take_frame(output, 0), z, logsnr)

    logsnrs = process.logsnr(jnp.linspace(1.0, 0.0, settings.num_steps + 1))

    def step(z: jax.Array, i: jax.Array) -> tuple[jax.Array, None]:
        key = _fold_in(key_steps, i)
        logsnr_t, logsnr_s = logsnrs[i], logsnrs[i + 1]
        x_hat = jnp.clip(predict_x(z, logsnr_t, key), -1.0, 1.0)
        mean, variance = posterior(z, x_hat, logsnr_t, logsnr_s)
        noise = jnp.where(i + 1 < settings.num_steps, jnp.sqrt(variance), 0.0) * _normal(_fold_in(key, 1), shape)
        return mean + noise, None

    z, _ = jax.lax.scan(step, _normal(key_start, shape), jnp.arange(settings.num_steps))
    return jnp.clip(z, -1.0, 1.0)


sample_view_jit = jax.jit(sample_view, static_argnames=("denoiser", "shape", "process", "settings"))


@functools.partial(jax.jit, static_argnames=("denoiser", "process"), donate_argnames=("known",))
def _append(
    denoiser: Denoiser, params: PyTree, known: KnownViews, image: jax.Array, camera: Camera, process: Process
) -> KnownViews:
    batch = image.shape[0]
    image = jnp.round((image + 1.0) * 127.5) / 127.5 - 1.0
    logsnr = jnp.full((batch,), process.logsnr_max)
    new = denoiser.encode_view(params, image, logsnr, camera, jnp.ones((batch,), bool))
    place = jax.vmap(lambda row, value, i: row.at[i].set(value.astype(row.dtype)))
    features = jax.tree.map(lambda leaf, value: place(leaf, value, known.count), known.features, new)
    return KnownViews(features, known.count + 1)


def _empty(denoiser: Denoiser, params: PyTree, image: jax.Array, camera: Camera, capacity: int) -> KnownViews:
    batch = image.shape[0]
    features = jax.eval_shape(
        lambda: denoiser.encode_view(params, image, jnp.zeros((batch,)), camera, jnp.ones((batch,), bool))
    )
    zeros = jax.tree.map(lambda leaf: jnp.zeros((batch, capacity, *leaf.shape[1:]), leaf.dtype), features)
    return KnownViews(zeros, jnp.zeros((batch,), jnp.int32))


def sample_views(
    denoiser: Denoiser,
    params: PyTree,
    images: jax.Array,
    cameras: Camera,
    targets: Camera,
    key: jax.Array,
    *,
    process: Process,
    settings: Settings,
    drawn: jax.Array | None = None,
    on_view: Callable[[int, jax.Array], None] | None = None,
) -> jax.Array:
    """Draws views one after another, in the order given; each joins the known ones [2.2].

    Args:
      denoiser: the network, and ``params`` its parameters.
      images: the input views, (batch, inputs, height, width, 3) in [-1, 1]; at least one.
      cameras: their cameras, axes (batch, inputs).
      targets: cameras to draw, axes (batch, views).
      key: (batch,) keys, one per object: an object's views depend on its own key alone, not on its company.
      process: the diffusion process that the network was trained for.
      settings: steps and guidance.
      drawn: (batch, done, height, width, 3), the first views of an interrupted rollout; it goes on after them and
        returns what it would have returned uninterrupted.
      on_view: called with the index and the (batch, height, width, 3) picture of each view as it is finished.

    Returns:
      (batch, views, height, width, 3) in [-1, 1], float32.

    Raises:
      ValueError: if shapes do not fit together or there is no input view.
    """
    images = jnp.asarray(images, jnp.float32)
    cameras, targets = jax.tree.map(jnp.asarray, (cameras, targets))
    batch, inputs, *shape = images.shape
    views = targets.t.shape[1]
    if inputs < 1 or cameras.t.shape[:2] != (batch, inputs) or targets.t.shape[0] != batch or key.shape != (batch,):
        raise ValueError(
            f"sample_views: images {images.shape}, cameras {cameras.t.shape[:-1]}, targets {targets.t.shape[:-1]} and "
            f"keys {key.shape} must share the batch axis, with at least one input view and a camera for each"
        )
    if views < 1:
        raise ValueError("sample_views: no target cameras")
    if drawn is not None and (drawn.ndim != 5 or drawn.shape[0] != batch or list(drawn.shape[2:]) != shape):
        raise ValueError(f"sample_views: drawn views are {drawn.shape}, not {(batch, 'done', *shape)}")
    done = [] if drawn is None else [jnp.asarray(drawn[:, i], jnp.float32) for i in range(drawn.shape[1])]
    known = _empty(denoiser, params, images[:, 0], cameras[:, 0], inputs + views)
    for i in range(inputs):
        known = _append(denoiser, params, known, images[:, i], cameras[:, i], process)
    for i in range(views):
        if i >= len(done):
            view_key = _fold_in(key, i)
            picture = sample_view_jit(
                denoiser, params, known, targets[:, i], view_key, shape=tuple(shape), process=process, settings=settings
            )
            if on_view is not None:
                on_view(i, picture)
            done.append(picture)
        if i + 1 < views:
            known = _append(denoiser, params, known, done[i], targets[:, i], process)
    return jnp.stack(done[:views], axis=1)
