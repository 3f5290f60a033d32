"""FLOPs and bytes that programs need."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from threedim.errors import UserError
from threedim.training import hardware


def product(a, b):
    return (a @ b).sum()


def test_flops_are_counted_from_shapes():
    a, b = jax.ShapeDtypeStruct((64, 32), np.float32), jax.ShapeDtypeStruct((32, 16), np.float32)
    counted = hardware.count_flops(product, a, b)
    assert 2 * 64 * 32 * 16 <= counted < 1.1 * 2 * 64 * 32 * 16
    mesh = jax.make_mesh((1, 1), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    split = jax.device_put(jnp.ones((64, 32)), NamedSharding(mesh, PartitionSpec("data")))
    with jax.set_mesh(mesh):
        assert hardware.count_flops(product, split, b) == counted


def test_counting_needs_the_cpu_backend(monkeypatch):
    monkeypatch.setattr(jax.extend.backend, "backends", lambda: {"cuda": object()})
    assert not hardware.can_count_flops()
    with pytest.raises(UserError, match="add cpu to JAX_PLATFORMS"):
        hardware.count_flops(product)


def test_a_lowered_step_is_counted_without_tracing_it_again(monkeypatch):
    lowered = jax.jit(product).lower(jnp.ones((64, 32)), jnp.ones((32, 16)))
    counted = lowered.cost_analysis()["flops"]
    monkeypatch.setattr(hardware, "training_flops", lambda *parts: 1e12)

    def flops(remat="none", microbatches=1, platform="cpu"):
        network, recipe = types.SimpleNamespace(remat=remat), types.SimpleNamespace(microbatches=microbatches)
        return hardware.step_flops(lowered, platform, network, None, recipe)

    assert flops() == counted
    assert flops("all") == flops("none", 2) == flops(platform="gpu") == flops(platform="tpu") == 1e12
    monkeypatch.setattr(jax.extend.backend, "backends", lambda: {"cuda": object()})
    assert flops(platform="gpu") is None


def test_bytes_of_a_compiled_program():
    """Arguments and results count, except for results that reuse an argument's memory."""
    x = jax.ShapeDtypeStruct((1000,), np.float32)
    kept, donated = (jax.jit(lambda x: x + 1, donate_argnums=d).lower(x).compile() for d in ((), (0,)))
    assert hardware.device_bytes(kept) - hardware.device_bytes(donated) == 4000
    assert hardware.device_bytes(donated) >= 4000
