"""Attention: what it computes, in which precision, and on which devices by cuDNN."""

import functools
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from slow_blocks import KEY, normal

from threedim.errors import UserError
from threedim.models.layers import AttentionBlock
from threedim.models.ops import _flash_attention, attend, has_flash_attention


def test_attention_kernel():
    q, k, v = (normal(2, 3, 5, 4, seed=seed) for seed in range(3))
    weights = np.exp(np.einsum("bhic,bhjc->bhij", q, k) / 2)
    expected = np.einsum("bhij,bhjc->bhic", weights / weights.sum(axis=-1, keepdims=True), v)
    np.testing.assert_allclose(attend(*(jnp.asarray(a) for a in (q, k, v))), expected, atol=1e-5)


def test_attention_softmax_is_float32():
    q, k, v = (jnp.asarray(8 * normal(1, 1, 16, 64, seed=seed), jnp.bfloat16) for seed in range(3))
    text = str(jax.make_jaxpr(attend)(q, k, v))
    assert "f32[1,1,16,16] = exp" in text
    assert "bf16[1,1,16,16] = exp" not in text
    assert attend(q, k, v).dtype == jnp.bfloat16


def test_attention_multiplies_bfloat16_in_both_directions():
    def gradient(q, k, v):
        return jax.grad(lambda *args: attend(*args).astype(jnp.float32).sum(), argnums=(0, 1, 2))(q, k, v)

    narrow = [jnp.asarray(2 * normal(1, 2, 16, 8, seed=seed), jnp.bfloat16) for seed in range(3)]
    equations = jax.make_jaxpr(gradient)(*narrow).eqns
    taken = [[str(a.aval.dtype) for a in e.invars] for e in equations if e.primitive.name == "dot_general"]
    assert taken == [["bfloat16"] * 2] * len(taken)
    assert len(taken) >= 4
    wide = [x.astype(jnp.float32) for x in narrow]
    run = jax.jit(gradient)
    for found, expected in zip(run(*narrow), run(*wide), strict=True):
        np.testing.assert_allclose(found.astype(jnp.float32), expected, atol=0.03 * np.abs(expected).max())


def gpu(capability="9.0", version="cuda 13000"):
    """As much of a GPU as is asked about it."""
    client = types.SimpleNamespace(platform_version=version)
    return types.SimpleNamespace(platform="gpu", client=client, compute_capability=capability)


@pytest.mark.parametrize(
    ("dtype", "dim", "device", "expected"),
    [
        (jnp.bfloat16, 128, gpu(), True),
        (jnp.bfloat16, 256, gpu(), True),  # the 471M network at 8 pixels
        (jnp.bfloat16, 448, gpu(), False),  # the 1.3B network there
        (jnp.bfloat16, 256, gpu("8.0"), False),
        (jnp.bfloat16, 128, gpu("8.0"), True),
        (jnp.bfloat16, 256, gpu("10.3"), True),
        (jnp.bfloat16, 64, gpu("7.5"), False),
        (jnp.bfloat16, 60, gpu(), False),
        (jnp.float32, 64, gpu(), False),
        (jnp.bfloat16, 64, gpu("gfx942", "rocm 60200"), False),
        (jnp.bfloat16, 64, jax.devices("cpu")[0], False),
    ],
)
def test_what_flash_attention_takes(dtype, dim, device, expected):
    assert has_flash_attention(jnp.dtype(dtype), dim, device) == expected


def test_flash_attention_is_the_same_function():
    """By the implementation that runs everywhere: what is to be seen here is axes, scale, and who attends to whom."""
    q, k, v = (normal(2, 3, length, 8, seed=seed) for seed, length in enumerate((5, 7, 7)))
    weights = normal(2, 3, 5, 8, seed=3)

    def total(function):
        run = jax.value_and_grad(lambda *qkv: jnp.sum(function(*qkv) * weights), argnums=(0, 1, 2))
        return jax.jit(run)(q, k, v)

    xla = functools.partial(_flash_attention, implementation="xla")
    np.testing.assert_allclose(xla(q, k, v), attend(q, k, v), atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), total(xla), total(attend))


@pytest.fixture
def cudnn(monkeypatch):
    """JAX believes that there are an H200 and cuDNN."""
    from jax._src.cudnn import fused_attention_stablehlo

    monkeypatch.setattr(jax, "local_devices", lambda: [gpu()])
    versions = types.SimpleNamespace(cudnn_get_version=lambda: 91200)
    monkeypatch.setattr(fused_attention_stablehlo, "cuda_versions", versions)
    monkeypatch.setattr(fused_attention_stablehlo, "check_compute_capability", lambda capability: True)


@pytest.mark.parametrize(
    ("size", "dim", "implementation", "flash"),
    [
        (4, 256, "cudnn", True),
        (32, 256, "auto", True),
        (32, 256, "plain", False),
        (32, 264, "auto", False),  # wider than cuDNN takes
        (16, 256, "auto", False),  # shorter than pays
        (40, 256, "auto", False),  # 1,600 pixels, no multiple of cuDNN's tile
    ],
)
def test_attention_is_lowered_to_cudnn(size, dim, implementation, flash, cudnn):
    """Forward and backward, for a CUDA device; and for the CPU of its host as ever."""
    h = jax.ShapeDtypeStruct((4, size, size, 2 * dim), jnp.bfloat16)
    module = AttentionBlock("cross", 2, dtype=jnp.bfloat16, implementation=implementation)
    params = jax.eval_shape(lambda h: module.init(KEY, h), h)
    gradient = jax.grad(lambda params, h: module.apply(params, h).astype(jnp.float32).sum(), argnums=(0, 1))
    traced = jax.jit(gradient).trace(params, h)

    def calls(platform):
        return re.findall(r"__cudnn\$(\w+)", traced.lower(lowering_platforms=(platform,)).as_text())

    assert sorted(set(calls("cuda"))) == (["fmhaSoftmax", "fmhaSoftmaxBackward"] if flash else [])
    assert calls("cpu") == []


def test_missing_cudnn_is_an_error(monkeypatch):
    """Were it passed over in silence, nobody would learn why training is slow."""
    monkeypatch.setattr(jax, "local_devices", lambda: [gpu()])
    x = jax.ShapeDtypeStruct((1, 2, 1024, 64), jnp.bfloat16)
    with pytest.raises(RuntimeError, match="cuDNN is not detected"):
        jax.eval_shape(attend, x, x, x)
    x = jax.ShapeDtypeStruct((1, 2, 16, 60), jnp.bfloat16)
    with pytest.raises(UserError, match="cuDNN has none for bfloat16 with 60 channels per head"):
        attend(x, x, x, "cudnn")
