"""Sinusoidal encodings of rays and of the noise level [7.1]. Always float32: bfloat16 has no bits left at 2^14 x."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def posenc_nerf(x: jax.Array, min_deg: int, max_deg: int) -> jax.Array:
    """NeRF encoding ``[x, sin(2^i x), sin(2^i x + pi/2)]`` for ``min_deg <= i < max_deg``.

    Args:
      x: (..., channel), any unit.
      min_deg, max_deg: degrees; equal degrees give ``x`` itself.

    Returns:
      (..., channel * (1 + 2 * (max_deg - min_deg))), float32. The unshifted sines of all degrees come first, then the
      shifted ones; inside each, degree is the slow index and channel the fast one.
    """
    x = x.astype(jnp.float32)
    if min_deg == max_deg:
        return x
    scales = 2.0 ** jnp.arange(min_deg, max_deg, dtype=jnp.float32)
    scaled = (x[..., None, :] * scales[:, None]).reshape(*x.shape[:-1], -1)
    return jnp.concatenate([x, jnp.sin(scaled), jnp.sin(scaled + 0.5 * jnp.pi)], axis=-1)


def posenc_ddpm(u: jax.Array, channels: int, max_time: float = 1.0) -> jax.Array:
    """DDPM's sinusoidal encoding of ``1000 u / max_time``.

    Args:
      u: (...,) in [0, max_time].
      channels: even number of channels, at least 4.

    Returns:
      (..., channels), float32: half sines, then half cosines, at frequencies ``exp(-i log(10000) / (channels/2 - 1))``.

    Raises:
      ValueError: if ``channels`` is odd or below 4.
    """
    if channels % 2 or channels < 4:
        raise ValueError(f"posenc_ddpm needs an even number of channels, at least 4; got {channels}")
    half = channels // 2
    frequencies = jnp.exp(-jnp.log(10000.0) / (half - 1) * jnp.arange(half, dtype=jnp.float32))
    angles = (1000.0 / max_time) * u.astype(jnp.float32)[..., None] * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
