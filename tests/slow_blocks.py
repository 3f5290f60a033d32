"""The blocks of the networks once more, in loops over NumPy arrays, and what their tests fill and run them with."""

import jax
import jax.numpy as jnp
import numpy as np
from tiny import fill

KEY = jax.random.key(0)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def filled(module, *args, seed=0, **kwargs):
    """Parameters without zeros for a module."""
    args = [jnp.asarray(a) for a in args]
    return fill(jax.eval_shape(lambda: module.init(KEY, *args, **kwargs))["params"], seed)


def apply(module, params, *args, **kwargs):
    run = jax.jit(lambda params, *args: module.apply({"params": params}, *args, **kwargs))
    return run(params, *(jnp.asarray(a) for a in args))


def leaves(params):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)


def slow_swish(x):
    return x / (1 + np.exp(-x))


def slow_group_norm(x, scale, bias, groups):
    x = np.asarray(x, np.float64)
    out, per_group = np.empty_like(x), x.shape[-1] // groups
    for frame in range(x.shape[0]):
        for group in range(groups):
            channels = slice(group * per_group, (group + 1) * per_group)
            numbers = x[frame, ..., channels]
            normalized = (numbers - numbers.mean()) / np.sqrt(numbers.var() + 1e-6)
            out[frame, ..., channels] = normalized * scale[channels] + bias[channels]
    return out


def slow_conv(x, kernel, bias):
    """3x3, zero-padded, at every pixel."""
    n, h, w, _ = x.shape
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    out = np.zeros((n, h, w, kernel.shape[-1]))
    for i in range(h):
        for j in range(w):
            out[:, i, j] = np.einsum("nabc,abcd->nd", padded[:, i : i + 3, j : j + 3], kernel) + bias
    return out


def slow_downsample(x):
    out = np.empty((x.shape[0], x.shape[1] // 2, x.shape[2] // 2, x.shape[3]))
    for i, j in np.ndindex(out.shape[1:3]):
        out[:, i, j] = x[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean(axis=(1, 2))
    return out


def slow_upsample(x):
    out = np.empty((x.shape[0], 2 * x.shape[1], 2 * x.shape[2], x.shape[3]))
    for i, j in np.ndindex(out.shape[1:3]):
        out[:, i, j] = x[:, i // 2, j // 2]
    return out


def slow_film(x, emb, dense):
    both = slow_swish(emb) @ dense["kernel"] + dense["bias"]
    return x * (1 + both[..., : x.shape[-1]]) + both[..., x.shape[-1] :]


def slow_resnet(h_in, emb, p, resample, groups):
    h = slow_swish(slow_group_norm(h_in, **p["norm1"], groups=groups[0]))
    if resample is not None:
        resize = {"down": slow_downsample, "up": slow_upsample}[resample]
        h, h_in = resize(h), resize(h_in)
    h = slow_conv(h, **p["conv1"])
    h = slow_film(slow_group_norm(h, **p["norm2"], groups=groups[1]), emb, p["film"]["dense"])
    h = slow_conv(slow_swish(h), **p["conv2"])
    if "shortcut" in p:
        h_in = h_in @ p["shortcut"]["kernel"] + p["shortcut"]["bias"]
    return (h + h_in) / np.sqrt(2)


def slow_attention(x, p, heads, kind, groups):
    """Pixel by pixel; frames of an example are neighbors in the first axis."""
    n, height, width, channels = x.shape
    h = slow_group_norm(x, **p["norm"], groups=groups).reshape(n, height * width, channels)
    q, k, v = (h @ p[name]["kernel"] + p[name]["bias"] for name in ("query", "key", "value"))
    dim, out = channels // heads, np.empty_like(h)
    for frame in range(n):
        other = frame if kind == "self" else (frame + 1 if frame % 2 == 0 else frame - 1)
        for head in range(heads):
            one = slice(head * dim, (head + 1) * dim)
            for pixel in range(height * width):
                logits = np.array([q[frame, pixel, one] @ key[one] for key in k[other]]) / np.sqrt(dim)
                weights = np.exp(logits - logits.max())
                out[frame, pixel, one] = (weights / weights.sum()) @ v[other, :, one]
    out = (out @ p["out"]["kernel"] + p["out"]["bias"]).reshape(x.shape)
    return (out + x) / np.sqrt(2)


# --- frames and resolution ---
