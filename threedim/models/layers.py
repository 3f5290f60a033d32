"""Building blocks of the networks [7.1]: normalization, FiLM, residual and attention blocks.

Activations are (n, height, width, channel). Where two frames meet, they are folded into the first axis, frame index
fastest: ``n = 2 * batch``, so that every convolution is two-dimensional and a mesh that splits the batch splits ``n``.

Parameters and normalization statistics are float32; ``dtype`` is that of the convolutions and matrix products.
"""

from __future__ import annotations

import functools
import math
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp


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
    """Group normalization over each frame by itself: 32 groups, epsilon 1e-6 [7.1].

    A channel count that ``groups`` does not divide gets as many as divide both.

    Statistics are taken per channel first and then pooled over the channels of a group, and scale and shift are folded
    into one multiply-add per number: no reshape splits the channel axis of the large array, which costs more than the
    arithmetic on every backend.
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
            """(n, channel) means of each channel to those of its group, once per channel."""
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


def merge_residual(h: jax.Array, h_in: jax.Array) -> jax.Array:
    """The end of a residual branch: ``(h + h_in) / sqrt(2)`` [7.1].

    XLA's CPU compiler copies cheap elementwise work into each of its readers. Along residual branches the copies pile
    up: each block's gradient is computed anew from the end of the network, a quarter of all time. It leaves divisions
    alone, so there the constant is one that it cannot see through and turn into a product.
    """

    def divide(h: jax.Array, h_in: jax.Array) -> jax.Array:
        opaque_zero = jax.lax.stop_gradient(h.ravel()[0]) * 0.0
        return (h + h_in) / (opaque_zero + math.sqrt(2.0))

    return jax.lax.platform_dependent(h, h_in, cpu=divide, default=lambda h, h_in: (h + h_in) * math.sqrt(0.5))


class PoseConv(nn.Module):
    """Convolution 3x3 with a stride of ray encodings plus learned embeddings, to ``features`` channels [7.1].

    What it convolves is the sum of three parts, which are kept apart since each costs less by itself:

    * ``constant`` (n, c), the same at every pixel: encodings of the ray origin, which is the camera's center, and the
      learned embedding of the frame;
    * ``varying`` (n, H, W, v), the last ``v`` of the ``c`` channels: encodings of the ray direction, without gradient;
    * the learned embedding of the position, (1, H, W, c), which has no examples: ``position`` convolves it.

    Both frames have the same kernel; or, with ``stacked``, each its share of the kernel for both stacked along
    channels, and frame 1's share has the bias.
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
        """The position embedding's part of the sum, with the bias, (1, h, w, features)."""
        field = conv3x3(learned.astype(self.dtype), self._share(frame).astype(self.dtype), self.stride)
        return field if self.stacked and frame == 0 else field + self.bias.astype(self.dtype)

    def __call__(self, constant: jax.Array, varying: jax.Array, position: jax.Array, frame: int) -> jax.Array:
        """The whole sum, (n, h, w, features), with what ``position`` gave for this frame."""
        kernel, height, width = self._share(frame).astype(self.dtype), *varying.shape[1:3]
        # Its share of the FLOPs is small, and it holds the origin's encodings, which have many digits: float32.
        taps = jnp.einsum("nc,ijcf->nijf", constant, kernel, precision="highest")
        taps = _sum_of_taps(_sum_of_taps(taps, 2, width, self.stride), 1, height, self.stride)
        varying = jax.lax.stop_gradient(varying).astype(self.dtype)
        kernel = kernel[:, :, self.channels - varying.shape[-1] :]
        return conv3x3(varying, kernel, self.stride) + (position + taps.astype(self.dtype))


def _sum_of_taps(taps: jax.Array, axis: int, size: int, stride: int) -> jax.Array:
    """A convolution of what is constant along an axis of ``size`` pixels, with three taps and zeros around.

    Everywhere it is the sum of all taps, but for the first and the last output, where a tap may stand on the zeros.

    Args:
      taps: each tap's part, with 3 along ``axis``.
      axis: which becomes that of the output's pixels.
      size, stride: of the input, and of the convolution.
    """
    (before, after), out = jax.lax.padtype_to_pads((size,), (3,), (stride,), "SAME")[0], -(-size // stride)
    first, _, last = jnp.split(taps, 3, axis=axis)
    sums = jnp.broadcast_to(taps.sum(axis=axis, keepdims=True), [*taps.shape[:axis], out, *taps.shape[axis + 1 :]])

    def at_end(tap: jax.Array, low: int, high: int) -> jax.Array:
        return jnp.pad(tap, [(low, high) if i == axis else (0, 0) for i in range(tap.ndim)])

    if before:
        sums -= at_end(first, 0, out - 1)
    if after:
        sums -= at_end(last, out - 1, 0)
    return sums


def frame_share(kernel: jax.Array, frame: int) -> jax.Array:
    """Of a kernel (3, 3, 2 * c, features) for two frames stacked along channels, what meets one of them."""
    return jnp.split(kernel, 2, axis=2)[frame]


def conv3x3(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Convolution of (batch, h, w, c) with (3, 3, c, features), zeros around the picture, no bias."""
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=layout)


def dropout(x: jax.Array, rate: float, key: jax.Array) -> jax.Array:
    """Zeroes each number with probability ``rate`` (to 1/65536) and divides the others by ``1 - rate``.

    Half a random word decides each number: drawing random bits is what dropout costs.
    """
    *axes, channels = x.shape
    words = jax.random.bits(key, (*axes, -(-channels // 2)))
    halves = jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(*axes, -1)[..., :channels]
    keep = halves >= round(rate * 2**16)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros((), x.dtype))


def last_init(zero: bool) -> nn.initializers.Initializer:
    """How the kernel of a last layer begins: at zero, as in the paper [7.1], or like every other kernel."""
    return nn.initializers.zeros if zero else nn.initializers.lecun_normal()


class ResnetBlock(nn.Module):
    """BigGAN residual block with FiLM conditioning [7.1].

    Attributes:
      features: output channels; None keeps those of the input.
      resample: None, "down" (average pool 2x2) or "up" (nearest x2), applied to both branches.
      dropout: rate of the dropout before the last convolution.
      groups: of the normalizations.
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
            h = dropout(h, self.dropout, self.make_rng("dropout"))
        h = nn.Conv(features, (3, 3), dtype=self.dtype, kernel_init=nn.initializers.zeros, name="conv2")(h)
        if channels != features:
            h_in = nn.Dense(features, dtype=self.dtype, name="shortcut")(h_in)
        return merge_residual(h, h_in)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(equation: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """``jnp.einsum`` to float32, whose gradient is rounded to the operands' dtype before it is multiplied.

    JAX's own gradient multiplies it as it is, float32 by bfloat16: more bytes on a TPU, and a slower product on a GPU.
    """
    return jnp.einsum(equation, a, b, preferred_element_type=jnp.float32)


def _product_forward(equation, a, b):
    return _product(equation, a, b), (a, b)


def _product_backward(equation, saved, gradient):
    a, b = saved
    gradient = gradient.astype(a.dtype)
    (to_a,) = jax.linear_transpose(lambda a: jnp.einsum(equation, a, b), a)(gradient)
    (to_b,) = jax.linear_transpose(lambda b: jnp.einsum(equation, a, b), b)(gradient)
    return to_a, to_b


_product.defvjp(_product_forward, _product_backward)


def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Scaled dot-product attention, softmax in float32; on NVIDIA GPUs by cuDNN where ``has_flash_attention``.

    What cuDNN does not take is decided before, from dtype, shape and device. What it then refuses is an error.

    Args:
      q, k, v: (batch, head, length, dim), of one dtype; keys may be of another length than queries.

    Returns:
      (batch, head, length, dim) of that dtype.
    """
    # Asked at trace time, since JAX looks for cuDNN while it traces the call, and raises where there is none, though
    # the branch were never lowered. Where there is a GPU, what runs on its host's CPU still takes the other branch.
    if not has_flash_attention(q.dtype, q.shape[-1], jax.local_devices()[0]):
        return _softmax_attention(q, k, v)
    return jax.lax.platform_dependent(q, k, v, cuda=_flash_attention, default=_softmax_attention)


def has_flash_attention(dtype: Any, dim: int, device: jax.Device) -> bool:
    """Whether cuDNN's flash attention and its gradient take this: bfloat16, from Ampere on, and heads not too wide.

    The limits of ``dim``, channels of a head, are those of ``jax.nn.dot_product_attention``: a multiple of 8, at most
    256 from Hopper on and 128 before.
    """
    if device.platform != "gpu" or "cuda" not in device.client.platform_version:
        return False
    capability = tuple(int(part) for part in device.compute_capability.split("."))
    widest = 256 if capability >= (9, 0) else 128
    return capability >= (8, 0) and dtype == jnp.bfloat16 and dim % 8 == 0 and dim <= widest


def _flash_attention(q: jax.Array, k: jax.Array, v: jax.Array, implementation: str = "cudnn") -> jax.Array:
    """``attend`` by one of JAX's implementations, which take (batch, length, head, dim).

    Here and in ``AttentionBlock`` heads change places with length; XLA cancels the two.
    """
    q, k, v = (y.swapaxes(1, 2) for y in (q, k, v))
    return jax.nn.dot_product_attention(q, k, v, implementation=implementation).swapaxes(1, 2)


def _softmax_attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """``attend`` in plain operations.

    One batch axis over examples and heads is the layout that XLA's CPU compiler multiplies fastest.
    """
    logits = _product("bhqd,bhkd->bhqk", q * (1.0 / math.sqrt(q.shape[-1])), k)
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
    # Normalized after the product, where there are fewer numbers to divide.
    out = _product("bhqk,bhkd->bhqd", weights.astype(v.dtype), v)
    return (out / weights.sum(axis=-1, keepdims=True)).astype(v.dtype)


class AttentionBlock(nn.Module):
    """Attention of frames, each on itself ("self") or, of two frames, on the other ("cross") [7.1].

    One set of weights serves all frames. In "cross", queries, keys and values all come from the block's input: neither
    frame sees the other's update.

    Input and output: (n, h, w, c), for "cross" with frames folded.
    """

    kind: Literal["self", "cross"]
    heads: int
    dtype: Any = jnp.float32
    groups: int = 32
    zero_init: bool = True  # the last projection begins at zero

    @nn.compact
    def __call__(self, h_in: jax.Array) -> jax.Array:
        n, height, width, channels = h_in.shape
        if channels % self.heads:
            raise ValueError(f"{channels} channels do not divide into {self.heads} attention heads")
        h = GroupNorm(dtype=self.dtype, groups=self.groups, name="norm")(h_in)
        h = h.reshape(n, height * width, channels)
        seen = h
        if self.kind == "cross":
            # Here, not after the projections: one array changes places instead of two.
            seen = jnp.flip(h.reshape(n // 2, 2, *h.shape[1:]), axis=1).reshape(h.shape)

        def project(name: str, h: jax.Array) -> jax.Array:
            y = nn.Dense(channels, dtype=self.dtype, name=name)(h)
            return y.reshape(n, height * width, self.heads, -1).transpose(0, 2, 1, 3)  # (n, head, length, dim)

        q, k, v = project("query", h), project("key", seen), project("value", seen)
        h = attend(q, k, v).transpose(0, 2, 1, 3).reshape(h_in.shape)
        h = nn.Dense(channels, dtype=self.dtype, kernel_init=last_init(self.zero_init), name="out")(h)
        return merge_residual(h, h_in)


class XUNetBlock(nn.Module):
    """A residual block and, where ``attention`` is set, self- and then, with ``cross``, cross-attention [2.3, 7.1]."""

    features: int
    attention: bool
    heads: int
    dropout: float = 0.0
    dtype: Any = jnp.float32
    cross: bool = True
    groups: int = 32
    zero_init: bool = True

    @nn.compact
    def __call__(self, h: jax.Array, emb: jax.Array, train: bool) -> jax.Array:
        h = ResnetBlock(self.features, None, self.dropout, self.dtype, self.groups, name="res")(h, emb, train=train)
        attention = functools.partial(
            AttentionBlock, heads=self.heads, dtype=self.dtype, groups=self.groups, zero_init=self.zero_init
        )
        if self.attention:
            h = attention("self", name="attn_self")(h)
        if self.attention and self.cross:
            h = attention("cross", name="attn_cross")(h)
        return h
