"""Building blocks of the networks [7.1]: normalization, FiLM, residual and attention blocks.

Activations are (n, height, width, channel). Two frames are folded into the first axis, frame index fastest:
``n = 2 * batch``, so that convolutions are two-dimensional and a mesh that shards the batch shards ``n``.

Parameters and normalization statistics are float32; ``dtype`` is that of convolutions and matrix products.
"""

from __future__ import annotations

import functools
import math
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from threedim.models import ops


def fold_frames(frame0: jax.Array, frame1: jax.Array) -> jax.Array:
    """Two (batch, ...) frames to (2 * batch, ...), frame index fastest."""
    return jnp.stack([frame0, frame1], axis=1).reshape(-1, *frame0.shape[1:])


def take_frame(folded: jax.Array, frame: int) -> jax.Array:
    """One frame, (batch, ...), of (2 * batch, ...)."""
    return folded.reshape(-1, 2, *folded.shape[1:])[:, frame]


def downsample(x: jax.Array) -> jax.Array:
    """Average pool 2x2: (n, h, w, c) to (n, h/2, w/2, c)."""
    n, h, w, c = x.shape
    return x.reshape(n, h // 2, 2, w // 2, 2, c).mean(axis=(2, 4))


def upsample(x: jax.Array) -> jax.Array:
    """Nearest neighbor x2: (n, h, w, c) to (n, 2h, 2w, c)."""
    n, h, w, c = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None], (n, h, 2, w, 2, c)).reshape(n, 2 * h, 2 * w, c)


class GroupNorm(nn.Module):
    """Group normalization of each frame by itself, epsilon 1e-6 [7.1].

    The number of groups is the greatest common divisor of ``groups`` and the number of channels. Statistics are
    computed per channel and then averaged over the channels of a group, since a reshape that splits the channel axis of
    the large array costs more than the arithmetic on every backend.
    """

    dtype: Any = jnp.float32
    groups: int = 32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        n, channels = x.shape[0], x.shape[-1]
        groups = math.gcd(self.groups, channels)
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))

        def pool(moment: jax.Array) -> jax.Array:
            """Means of channels, (n, channel), to means of their groups, (n, channel)."""
            means = moment.reshape(n, groups, -1).mean(axis=-1)
            return jnp.repeat(means, channels // groups, axis=-1)

        x32 = x.astype(jnp.float32)
        mean = pool(x32.mean(axis=(1, 2)))
        variance = jnp.maximum(pool((x32 * x32).mean(axis=(1, 2))) - mean * mean, 0.0)
        factor = scale * jax.lax.rsqrt(variance + 1e-6)
        offset = bias - mean * factor
        return (x32 * factor[:, None, None] + offset[:, None, None]).astype(self.dtype)


class FiLM(nn.Module):
    """Scale and shift by the conditioning: ``x (1 + scale) + shift``, both from ``Dense(swish(emb))`` [7.1].

    ``x`` is (n, h, w, c), ``emb`` (n, h, w, emb_ch).
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, emb: jax.Array) -> jax.Array:
        emb = nn.Dense(2 * x.shape[-1], dtype=self.dtype, name="dense")(nn.swish(emb))
        scale, shift = jnp.split(emb, 2, axis=-1)
        return x * (1.0 + scale) + shift


class PoseConv(nn.Module):
    """Strided 3x3 convolution of the ray encodings plus learned embeddings, to ``features`` channels [7.1].

    Its input is the sum of three parts, which are convolved separately because each is cheaper by itself:

    * ``constant`` (n, c), the same at every pixel: the encoding of the ray origin, which is the camera center, and the
      learned embedding of the frame;
    * ``varying`` (n, H, W, v), the last ``v`` of the ``c`` channels: the encoding of the ray direction, no gradient;
    * the learned position embedding, (1, H, W, c), the same for all examples: convolved by ``position``.

    Both frames share the kernel. With ``stacked`` the frames are stacked along channels: each has its half of the
    kernel, and frame 1's half the bias.
    """

    channels: int
    features: int
    stride: int
    dtype: Any = jnp.float32
    stacked: bool = False

    def setup(self):
        shape = (3, 3, self.channels * (2 if self.stacked else 1), self.features)
        self.kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        self.bias = self.param("bias", nn.initializers.zeros, (self.features,))

    def _share(self, frame: int) -> jax.Array:
        return frame_share(self.kernel, frame) if self.stacked else self.kernel

    def position(self, learned: jax.Array, frame: int) -> jax.Array:
        """The convolved position embedding, with the bias, (1, h, w, features)."""
        field = ops.conv3x3(learned.astype(self.dtype), self._share(frame).astype(self.dtype), self.stride)
        return field if self.stacked and frame == 0 else field + self.bias.astype(self.dtype)

    def __call__(self, constant: jax.Array, varying: jax.Array, position: jax.Array, frame: int) -> jax.Array:
        """The convolution of all three parts, (n, h, w, features); ``position`` is the result for this frame."""
        kernel, height, width = self._share(frame).astype(self.dtype), *varying.shape[1:3]
        # float32: it costs little, and bfloat16 has too few bits for the encoding of the origin.
        taps = jnp.einsum("nc,ijcf->nijf", constant, kernel, precision="highest")
        taps = ops.sum_of_taps(ops.sum_of_taps(taps, 2, width, self.stride), 1, height, self.stride)
        varying = jax.lax.stop_gradient(varying).astype(self.dtype)
        kernel = kernel[:, :, self.channels - varying.shape[-1] :]
        return ops.conv3x3(varying, kernel, self.stride) + (position + taps.astype(self.dtype))


def frame_share(kernel: jax.Array, frame: int) -> jax.Array:
    """The half of a kernel (3, 3, 2 * c, features) that applies to one of two frames stacked along channels."""
    return jnp.split(kernel, 2, axis=2)[frame]


def last_init(zero: bool) -> nn.initializers.Initializer:
    """Initializer of the kernel of a last layer: zero, as in the paper [7.1], or that of all other kernels."""
    return nn.initializers.zeros if zero else nn.initializers.lecun_normal()


class ResnetBlock(nn.Module):
    """BigGAN residual block with FiLM conditioning [7.1].

    Attributes:
      features: output channels; None keeps those of the input.
      resample: None, "down" (average pool 2x2) or "up" (nearest x2), applied to both branches.
      dropout: rate of the dropout before the last convolution.
      groups: number of groups of the normalizations.
    """

    features: int | None = None
    resample: Literal["down", "up"] | None = None
    dropout: float = 0.0
    dtype: Any = jnp.float32
    groups: int = 32

    @nn.compact
    def __call__(self, h_in: jax.Array, emb: jax.Array, train: bool) -> jax.Array:
        channels = h_in.shape[-1]
        features = self.features or channels
        h = nn.swish(GroupNorm(dtype=self.dtype, groups=self.groups, name="norm1")(h_in))
        if self.resample is not None:
            resize = downsample if self.resample == "down" else upsample
            h, h_in = resize(h), resize(h_in)
        h = nn.Conv(features, (3, 3), dtype=self.dtype, name="conv1")(h)
        h = GroupNorm(dtype=self.dtype, groups=self.groups, name="norm2")(h)
        h = nn.swish(FiLM(dtype=self.dtype, name="film")(h, emb))
        if train and self.dropout > 0:
            h = ops.dropout(h, self.dropout, self.make_rng("dropout"))
        h = nn.Conv(features, (3, 3), dtype=self.dtype, kernel_init=nn.initializers.zeros, name="conv2")(h)
        if channels != features:
            h_in = nn.Dense(features, dtype=self.dtype, name="shortcut")(h_in)
        return ops.merge_residual(h, h_in)


class AttentionBlock(nn.Module):
    """Attention of each frame to itself ("self") or of two frames to each other ("cross") [7.1].

    All frames share the weights. In "cross", queries, keys and values all come from the block's input: neither frame
    sees the update of the other.

    Input and output: (n, h, w, c); with frames folded for "cross".
    """

    kind: Literal["self", "cross"]
    heads: int
    dtype: Any = jnp.float32
    groups: int = 32
    zero_init: bool = True  # the last projection begins at zero
    implementation: ops.Attention = "auto"

    @nn.compact
    def __call__(self, h_in: jax.Array) -> jax.Array:
        n, height, width, channels = h_in.shape
        h = GroupNorm(dtype=self.dtype, groups=self.groups, name="norm")(h_in)
        h = h.reshape(n, height * width, channels)
        seen = h
        if self.kind == "cross":
            # Before the projections, so that one array is permuted instead of two.
            seen = jnp.flip(h.reshape(n // 2, 2, *h.shape[1:]), axis=1).reshape(h.shape)

        def project(name: str, h: jax.Array) -> jax.Array:
            y = nn.Dense(channels, dtype=self.dtype, name=name)(h)
            return y.reshape(n, height * width, self.heads, -1).transpose(0, 2, 1, 3)  # (n, head, length, dim)

        q, k, v = project("query", h), project("key", seen), project("value", seen)
        h = ops.attend(q, k, v, self.implementation).transpose(0, 2, 1, 3).reshape(h_in.shape)
        h = nn.Dense(channels, dtype=self.dtype, kernel_init=last_init(self.zero_init), name="out")(h)
        return ops.merge_residual(h, h_in)


class XUNetBlock(nn.Module):
    """A residual block, then with ``attention`` self-attention, and with ``cross`` cross-attention [2.3, 7.1]."""

    features: int
    attention: bool
    heads: int
    dropout: float = 0.0
    dtype: Any = jnp.float32
    cross: bool = True
    groups: int = 32
    zero_init: bool = True
    implementation: ops.Attention = "auto"

    @nn.compact
    def __call__(self, h: jax.Array, emb: jax.Array, train: bool) -> jax.Array:
        h = ResnetBlock(self.features, None, self.dropout, self.dtype, self.groups, name="res")(h, emb, train=train)
        attention = functools.partial(
            AttentionBlock,
            heads=self.heads,
            dtype=self.dtype,
            groups=self.groups,
            zero_init=self.zero_init,
            implementation=self.implementation,
        )
        if self.attention:
            h = attention("self", name="attn_self")(h)
        if self.attention and self.cross:
            h = attention("cross", name="attn_cross")(h)
        return h
