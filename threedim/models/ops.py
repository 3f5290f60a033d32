"""Operations that are written differently from the paper for the sake of a backend; the results are the same.

Activations are (n, height, width, channel).
"""

from __future__ import annotations

import functools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jax.experimental.layout import Layout, with_layout_constraint

from threedim.errors import UserError

Attention = Literal["auto", "plain", "cudnn"]


def merge_residual(h: jax.Array, h_in: jax.Array) -> jax.Array:
    """The end of a residual branch: ``(h + h_in) / sqrt(2)`` [7.1].

    XLA's CPU compiler duplicates cheap elementwise operations into each of their consumers. Along residual branches the
    copies pile up: each block's gradient is recomputed from the end of the network, which takes a quarter of the time.
    It does not duplicate divisions, so on a CPU this divides by a constant that it cannot fold into a product.
    """

    def divide(h: jax.Array, h_in: jax.Array) -> jax.Array:
        opaque_zero = jax.lax.stop_gradient(h.ravel()[0]) * 0.0
        return (h + h_in) / (opaque_zero + math.sqrt(2.0))

    return jax.lax.platform_dependent(h, h_in, cpu=divide, default=lambda h, h_in: (h + h_in) * math.sqrt(0.5))


def fusible(tree: Any) -> Any:
    """A pytree of arrays as it is, of which XLA's GPU compiler makes fewer kernels.

    What is done to each of hundreds of parameters takes a kernel for each. XLA merges kernels of the same shape if they
    read an array in common that is not a scalar. So each array is multiplied by a one that the compiler cannot see.

    Arrays also keep their layout: XLA would compute Adam in the layout of cuDNN's convolution kernels, and copy the
    state there and back.
    """

    def multiply(tree: Any) -> Any:
        ones = jax.lax.optimization_barrier(jnp.ones(2))

        def one(x: jax.Array) -> jax.Array:
            return with_layout_constraint(x * ones[0].astype(x.dtype), Layout(tuple(range(x.ndim))))

        return jax.tree.map(one, tree)

    return jax.lax.platform_dependent(tree, cuda=multiply, default=lambda tree: tree)


def norm(tree: Any) -> jax.Array:
    """The global norm of a pytree of arrays.

    XLA reduces each array to a number in two kernels on a GPU; to the sums of its rows in one, and then all rows.
    """

    def by_rows(tree: Any) -> jax.Array:
        rows = [jnp.square(jnp.atleast_1d(leaf)).sum(axis=-1).ravel() for leaf in jax.tree.leaves(tree)]
        return jnp.sqrt(jax.lax.optimization_barrier(jnp.concatenate(rows)).sum())

    return jax.lax.platform_dependent(tree, cuda=by_rows, default=optax.tree.norm)


def conv3x3(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Convolution of (batch, h, w, c) with (3, 3, c, features), zero padding, no bias."""
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=layout)


def sum_of_taps(taps: jax.Array, axis: int, size: int, stride: int) -> jax.Array:
    """A convolution with three taps, zero padded, of an input that is constant along an axis.

    Each output is the sum of all taps, except for the first and the last one, where a tap may be on the padding.

    Args:
      taps: the product with each tap; length 3 along ``axis``.
      axis: the axis; in the result it has one entry per output pixel.
      size: input pixels along the axis.
      stride: of the convolution.
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


def dropout(x: jax.Array, rate: float, key: jax.Array) -> jax.Array:
    """Zeroes each number with probability ``rate`` (to 1/65536) and divides the others by ``1 - rate``.

    Uses 16 random bits per number instead of 32: generating random bits is the cost of dropout.
    """
    *axes, channels = x.shape
    words = jax.random.bits(key, (*axes, -(-channels // 2)))
    halves = jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(*axes, -1)[..., :channels]
    keep = halves >= round(rate * 2**16)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros((), x.dtype))


# cuDNN's bfloat16 gradient is reported to return values that are not finite on Hopper, for lengths such as 64 = 8 x 8
# pixels, 64 more than a multiple of 128 (pytorch/pytorch#196678, NVIDIA/cudnn-frontend#160 and #1072,
# huggingface/trl#7181); it probably ended a run after 7,400 steps. At 256 it would move fewer bytes than
# plain operations (63 against 79 GB a step of configs/gpu64.py, as compiled), but its gradient is not tested there yet.
_SAFE_MULTIPLE, _LONG = 128, 1024


def attend(q: jax.Array, k: jax.Array, v: jax.Array, implementation: Attention = "auto") -> jax.Array:
    """Scaled dot-product attention with softmax in float32.

    Args:
      q, k, v: (batch, head, length, dim), of one dtype; keys may have another length than queries.
      implementation: "plain" operations; "cudnn", NVIDIA's library; or "auto": cuDNN where it is available, for
        lengths of at least 1,024 that are multiples of 128. Programs for a CPU are always plain.

    Returns:
      (batch, head, length, dim) of that dtype.

    Raises:
      UserError: if "cudnn" does not support this dtype, ``dim`` or the GPU of this machine.
    """
    # Decided while tracing: JAX looks for cuDNN when it traces the call and raises without it, even if the branch is
    # never lowered. On a machine with a GPU, programs for the CPU still take the default branch.
    available = has_flash_attention(q.dtype, q.shape[-1], jax.local_devices()[0])
    pays = all(length >= _LONG and length % _SAFE_MULTIPLE == 0 for length in (q.shape[-2], k.shape[-2]))
    if implementation == "cudnn" and not available and jax.local_devices()[0].platform == "gpu":
        problem = f"cuDNN has none for {q.dtype} with {q.shape[-1]} channels per head on this GPU"
        raise UserError(f"model.attention=cudnn: {problem}; use auto or plain")
    if implementation == "plain" or not available or (implementation == "auto" and not pays):
        return _softmax_attention(q, k, v)
    return jax.lax.platform_dependent(q, k, v, cuda=_flash_attention, default=_softmax_attention)


def has_flash_attention(dtype: Any, dim: int, device: jax.Device) -> bool:
    """Whether cuDNN's flash attention and its gradient support this dtype, head width and device.

    They need bfloat16, an Ampere GPU or newer, and ``dim`` channels per head that are a multiple of 8 and at most 256
    from Hopper on, 128 before (as ``jax.nn.dot_product_attention`` requires).
    """
    if device.platform != "gpu" or "cuda" not in device.client.platform_version:
        return False
    capability = tuple(int(part) for part in device.compute_capability.split("."))
    widest = 256 if capability >= (9, 0) else 128
    return capability >= (8, 0) and dtype == jnp.bfloat16 and dim % 8 == 0 and dim <= widest


def _flash_attention(q: jax.Array, k: jax.Array, v: jax.Array, implementation: str = "cudnn") -> jax.Array:
    """``attend`` by one of JAX's implementations, which take (batch, length, head, dim).

    ``AttentionBlock`` transposes as well; XLA cancels the two transpositions.
    """
    q, k, v = (y.swapaxes(1, 2) for y in (q, k, v))
    return jax.nn.dot_product_attention(q, k, v, implementation=implementation).swapaxes(1, 2)


def _softmax_attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """``attend`` in plain operations, in the layout that XLA multiplies fastest on a CPU."""
    logits = _product("bhqd,bhkd->bhqk", q * (1.0 / math.sqrt(q.shape[-1])), k)
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
    # Normalized after the product, which has fewer numbers to divide.
    out = _product("bhqk,bhkd->bhqd", weights.astype(v.dtype), v)
    return (out / weights.sum(axis=-1, keepdims=True)).astype(v.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(equation: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """``jnp.einsum`` to float32 whose gradient is rounded to the operands' dtype before it is multiplied.

    JAX's own gradient multiplies float32 by bfloat16: more bytes on a TPU, and a slower product on a GPU.
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
