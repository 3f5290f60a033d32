"""Solvers: steps from one noise level to the next, and the spacing of the levels.

A solver takes the noisy image and the network's estimates at this noise level and at the previous one, and returns mean
and standard deviation of the image at the next level. Symbols are those of the papers: z_t at log signal-to-noise ratio
λ_t goes to z_s at λ_s > λ_t; ``alpha² = sigmoid(λ)``, ``sigma² = sigmoid(-λ)``; h = (λ_s - λ_t) / 2, since DPM-Solver's
λ is log(alpha / sigma), half of ours. Everything is float32.

A step can replace the fraction 1 - exp(-2h) of the noise; DDIM replaces η² of that. Ancestral sampling is DDIM with
η = 1, and the two forms of DPM-Solver++ 2M are DDIM with η = 0 and 1 plus an extrapolation of the estimate along λ.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from threedim.diffusion import Process, alpha_sigma, posterior


class Estimate(NamedTuple):
    """The network's estimate at one noise level."""

    x_hat: jax.Array  # (batch, height, width, channel) in [-1, 1]
    logsnr: jax.Array  # λ, a scalar


# (z, now, before, logsnr_s) -> mean of z_s, and its standard deviation or None if it has none.
Solver = Callable[[jax.Array, Estimate, Estimate, jax.Array], tuple[jax.Array, jax.Array | None]]


def ancestral(z: jax.Array, now: Estimate, before: Estimate, logsnr_s: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The paper's sampler: q(z_s | z_t, x̂) with the lower variance [2.2]."""
    del before
    mean, variance = posterior(z, now.x_hat, now.logsnr, logsnr_s)
    return mean, jnp.sqrt(variance)


def ddim(
    z: jax.Array, now: Estimate, before: Estimate, logsnr_s: jax.Array, *, eta: float = 0.0
) -> tuple[jax.Array, jax.Array | None]:
    """DDIM (Song et al. 2021, arXiv 2010.02502, equation 12); ``eta`` = 0 adds no noise, 1 is ancestral sampling."""
    del before
    alpha_t, sigma_t = alpha_sigma(now.logsnr, 0)
    alpha_s, sigma_s = alpha_sigma(logsnr_s, 0)
    eps_hat = (z - alpha_t * now.x_hat) / sigma_t
    if eta == 0:
        return alpha_s * now.x_hat + sigma_s * eps_hat, None
    c = -jnp.expm1(now.logsnr - logsnr_s)
    return alpha_s * now.x_hat + sigma_s * jnp.sqrt(1.0 - eta**2 * c) * eps_hat, eta * sigma_s * jnp.sqrt(c)


def dpm_solver_2m(z: jax.Array, now: Estimate, before: Estimate, logsnr_s: jax.Array) -> tuple[jax.Array, None]:
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2): second order, no noise."""
    _, sigma_t = alpha_sigma(now.logsnr, 0)
    alpha_s, sigma_s = alpha_sigma(logsnr_s, 0)
    h = (logsnr_s - now.logsnr) / 2
    return sigma_s / sigma_t * z - alpha_s * jnp.expm1(-h) * _extrapolate(now, before, h), None


def dpm_solver_2m_sde(
    z: jax.Array, now: Estimate, before: Estimate, logsnr_s: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """SDE-DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095): the same with new noise at each step."""
    _, sigma_t = alpha_sigma(now.logsnr, 0)
    alpha_s, sigma_s = alpha_sigma(logsnr_s, 0)
    h = (logsnr_s - now.logsnr) / 2
    c = -jnp.expm1(-2 * h)
    mean = sigma_s / sigma_t * jnp.exp(-h) * z + alpha_s * c * _extrapolate(now, before, h)
    return mean, sigma_s * jnp.sqrt(c)


def _extrapolate(now: Estimate, before: Estimate, h: jax.Array) -> jax.Array:
    """D, the line through the last two estimates, at the middle of the step; first order if they are equal."""
    r = (now.logsnr - before.logsnr) / 2 / h
    return now.x_hat + (now.x_hat - before.x_hat) / (2 * r)


SOLVERS: dict[str, Solver] = {f.__name__: f for f in (ancestral, ddim, dpm_solver_2m, dpm_solver_2m_sde)}


def spaced_in_t(process: Process, num_steps: int) -> np.ndarray:
    """Levels of steps equally spaced in t from 1 to 0 [7.3]: (num_steps + 1,) float32, rising."""
    with jax.ensure_compile_time_eval():
        return np.asarray(process.logsnr(jnp.linspace(1.0, 0.0, num_steps + 1)))


def spaced_in_logsnr(process: Process, num_steps: int, logsnr_range: tuple[float, float]) -> np.ndarray:
    """Levels of steps equally spaced in λ: (num_steps + 1,) float32, rising.

    The network is evaluated at ``num_steps`` levels from one end of the range to the other; a last step goes to
    logsnr_max. Little changes below λ = -10 and above 10, so a narrower range saves steps.

    Raises:
      ValueError: if the range is empty or not within that of the process.
    """
    low, high = logsnr_range
    least, most = process.logsnr_min, process.logsnr_max
    if not least <= low < high < most:
        raise ValueError(f"logsnr_range must rise within [{least}, {most}), got {(low, high)}")
    return np.append(np.linspace(low, high, num_steps), most).astype(np.float32)
