"""The diffusion process [2.1, 7.2]: noise schedule, forward process, posterior, and the training loss.

The noise level is λ, the log signal-to-noise ratio (``logsnr``); ``alpha² = sigmoid(λ)``, ``sigma² = sigmoid(-λ)``.
Everything is float32.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from threedim.cameras import Camera

# (x, z, logsnr (batch, 2), camera (batch, 2), cond_mask (batch,)) -> output for z.
Network = Callable[[jax.Array, jax.Array, jax.Array, Camera, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Process:
    """The diffusion process.

    Attributes:
      prediction: what the network predicts: "eps" (the paper's), "v" = alpha eps - sigma x, or "x".
      logsnr_min, logsnr_max: ends of the schedule [7.2].
      logsnr_shift: shifts the schedule between its ends; 0 in the paper. -2 log n gives images of n times the
        resolution the same noise over coarse structures (arXiv 2301.11093).
      uncond_logsnr: noise level of the noise frame that replaces the clean view of an unconditional example. The paper
        leaves it open; logsnr_min is "the maximum noise level".
      regression: trains at logsnr_min alone to predict x from noise, the paper's ablation [3.2]. Such a network is
        sampled in one step. With "v", which is -x there, it can continue as a diffusion model.

    Raises:
      ValueError: on an unknown prediction, a regression of eps, or an empty range of noise levels.
    """

    prediction: Literal["eps", "v", "x"] = "eps"
    logsnr_min: float = -20.0
    logsnr_max: float = 20.0
    logsnr_shift: float = 0.0
    uncond_logsnr: float = -20.0
    regression: bool = False

    def __post_init__(self):
        if self.prediction not in ("eps", "v", "x"):
            raise ValueError(f'prediction must be "eps", "v" or "x", got {self.prediction!r}')
        if self.regression and self.prediction == "eps":
            raise ValueError('regression needs prediction "x" or "v", got "eps"')
        if not self.logsnr_min < self.logsnr_max:
            raise ValueError(f"logsnr_min {self.logsnr_min} must be below logsnr_max {self.logsnr_max}")

    def logsnr(self, t: jax.Array) -> jax.Array:
        """λ at times t in [0, 1]; t = 0 is clean, t = 1 is noise."""
        return logsnr_schedule(t, self.logsnr_min, self.logsnr_max, self.logsnr_shift)

    def target(self, x: jax.Array, eps: jax.Array, logsnr: jax.Array) -> jax.Array:
        """What the network is trained to predict."""
        if self.prediction == "eps":
            return eps
        if self.prediction == "x":
            return x
        alpha, sigma = alpha_sigma(logsnr, x.ndim)
        return alpha * eps - sigma * x

    def predict_x(self, output: jax.Array, z: jax.Array, logsnr: jax.Array) -> jax.Array:
        """x̂ from the network's output, unclipped."""
        if self.prediction == "x":
            return output
        alpha, sigma = alpha_sigma(logsnr, z.ndim)
        return (z - sigma * output) / alpha if self.prediction == "eps" else alpha * z - sigma * output


def logsnr_schedule(t: jax.Array, logsnr_min: float = -20.0, logsnr_max: float = 20.0, shift: float = 0.0) -> jax.Array:
    """λ(t) = -2 log tan(a t + b) + shift, with λ(0) = logsnr_max and λ(1) = logsnr_min [7.2]."""
    b = jnp.arctan(jnp.exp(jnp.float32(-0.5 * (logsnr_max - shift))))
    a = jnp.arctan(jnp.exp(jnp.float32(-0.5 * (logsnr_min - shift)))) - b
    return -2.0 * jnp.log(jnp.tan(a * t + b)) + shift


def alpha_sigma(logsnr: jax.Array, ndim: int) -> tuple[jax.Array, jax.Array]:
    """Signal and noise scale, with trailing axes added up to ``ndim``."""
    logsnr = logsnr.reshape(logsnr.shape + (1,) * (ndim - logsnr.ndim))
    return jnp.sqrt(jax.nn.sigmoid(logsnr)), jnp.sqrt(jax.nn.sigmoid(-logsnr))


def q_sample(x: jax.Array, eps: jax.Array, logsnr: jax.Array) -> jax.Array:
    """z at noise level λ: ``alpha x + sigma eps``. ``x`` and ``eps`` (batch, ...), ``logsnr`` (batch,)."""
    alpha, sigma = alpha_sigma(logsnr, x.ndim)
    return alpha * x + sigma * eps


def posterior(z: jax.Array, x_hat: jax.Array, logsnr_t: jax.Array, logsnr_s: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and variance of q(z_s | z_t, x̂) for ``logsnr_s > logsnr_t``, with the lower variance [2.2].

    ``z`` and ``x_hat`` are (batch, ...), the noise levels (batch,) or scalars. The variance broadcasts.
    """
    alpha_t, _ = alpha_sigma(logsnr_t, z.ndim if logsnr_t.ndim else 0)
    alpha_s, sigma_s = alpha_sigma(logsnr_s, z.ndim if logsnr_s.ndim else 0)
    log_r = (logsnr_t - logsnr_s).reshape(alpha_t.shape)
    r, c = jnp.exp(log_r), -jnp.expm1(log_r)
    return alpha_s * (r * z / alpha_t + c * x_hat), sigma_s**2 * c


class Examples(NamedTuple):
    """Noised pairs: the network's inputs and what it is to predict. Leading axes (batch,)."""

    x: jax.Array  # clean views, (batch, height, width, 3) in [-1, 1]; noise if the pair is unconditional
    z: jax.Array  # noisy targets, same shape
    logsnr: jax.Array  # noise levels of both frames, (batch, 2)
    camera: Camera  # of both frames, axes (batch, 2)
    cond_mask: jax.Array  # (batch,) bool, False if the pair is unconditional
    label: jax.Array  # what the network is to predict, shaped like ``z``
    t: jax.Array  # (batch,), time of the target frame


def make_examples(images: jax.Array, camera: Camera, key: jax.Array, process: Process, uncond_prob: float) -> Examples:
    """Samples noise levels, noise, and which pairs are unconditional [2.1, 7.2].

    Args:
      images: pairs of views, (batch, 2, height, width, 3) in [-1, 1]; frame 0 is the clean view, frame 1 the target.
      camera: their cameras, axes (batch, 2).
      key, process: a key used for nothing else, and the diffusion process.
      uncond_prob: probability of making a pair unconditional: pose encodings zeroed, clean frame replaced by noise.
    """
    batch = images.shape[0]
    x, target = images[:, 0], images[:, 1]
    key_t, key_eps, key_mask, key_noise = jax.random.split(key, 4)
    t = jnp.ones((batch,)) if process.regression else jax.random.uniform(key_t, (batch,))
    logsnr = process.logsnr(t)
    eps = jax.random.normal(key_eps, target.shape)
    z = q_sample(target, eps, logsnr)

    cond_mask = jax.random.uniform(key_mask, (batch,)) >= uncond_prob
    x = jnp.where(cond_mask[:, None, None, None], x, jax.random.normal(key_noise, x.shape))
    logsnr_x = jnp.where(cond_mask, process.logsnr_max, process.uncond_logsnr)
    label = process.target(target, eps, logsnr)
    return Examples(x, z, jnp.stack([logsnr_x, logsnr], axis=1), camera, cond_mask, label, t)


def loss(network: Network, examples: Examples, color_weight: float = 1.0) -> tuple[jax.Array, jax.Array]:
    """Mean squared error of the network's output on the target frame [2.1, 7.2].

    ``color_weight`` is the weight of the error's deviation from its mean over channels, at full noise; it approaches 1
    with the noise's share of the variance. 1 in the paper.

    Returns:
      The mean over the batch, and the loss of each example, (batch,).
    """
    e = examples
    error = network(e.x, e.z, e.logsnr, e.camera, e.cond_mask) - e.label
    per_example = jnp.mean(error**2, axis=(1, 2, 3))
    if color_weight != 1:
        color = error - error.mean(axis=-1, keepdims=True)
        noise = jax.nn.sigmoid(-e.logsnr[:, 1])
        per_example += (color_weight - 1) * noise * jnp.mean(color**2, axis=(1, 2, 3))
    return jnp.mean(per_example), per_example
