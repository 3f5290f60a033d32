"""FLOPs and bytes that programs need."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from threedim import config as config_lib
from threedim.errors import UserError
from threedim.training import hardware
from threedim.training.step import Metrics, init_state, make_train_step


def product(a, b):
    return (a @ b).sum()


def test_flops_are_counted_from_shapes():
    a, b = jax.ShapeDtypeStruct((64, 32), np.float32), jax.ShapeDtypeStruct((32, 16), np.float32)
    counted = hardware.count_flops(product, a, b)
    assert 2 * 64 * 32 * 16 <= counted < 1.1 * 2 * 64 * 32 * 16
    # Where arrays are, and on which mesh, does not matter.
    mesh = jax.make_mesh((1, 1), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    split = jax.device_put(jnp.ones((64, 32)), NamedSharding(mesh, PartitionSpec("data")))
    with jax.set_mesh(mesh):
        assert hardware.count_flops(product, split, b) == counted


def test_counting_needs_the_cpu_backend(monkeypatch):
    monkeypatch.setattr(jax.extend.backend, "backends", lambda: {"cuda": object()})
    assert not hardware.can_count_flops()
    with pytest.raises(UserError, match="add cpu to JAX_PLATFORMS"):
        hardware.count_flops(product)


def test_recomputing_and_microbatches_do_not_count_as_work(tiny_config):
    c = tiny_config
    c.model.ch_mult, c.model.attn_resolutions = (1,), (8,)

    def parts(remat, microbatches):
        c.train.remat, c.train.microbatches = remat, microbatches
        return config_lib.network(c), config_lib.process(c), config_lib.recipe(c)

    network, process, recipe = parts("none", 1)
    state, metrics = jax.eval_shape(lambda: (init_state(network, recipe), Metrics.zeros()))
    lowered = jax.jit(make_train_step(network, process, recipe)).lower(state, metrics, hardware.batch_shapes(8, 4))
    needed = lowered.cost_analysis()["flops"]
    assert hardware.step_flops(lowered, network, process, recipe) == needed
    recomputing = parts("all", 2)
    assert hardware.step_flops(lowered, *recomputing) == hardware.training_flops(*recomputing) == needed


def test_bytes_of_a_compiled_program():
    """Arguments and results count, except for results that reuse an argument's memory."""
    x = jax.ShapeDtypeStruct((1000,), np.float32)
    kept, donated = (jax.jit(lambda x: x + 1, donate_argnums=d).lower(x).compile() for d in ((), (0,)))
    assert hardware.device_bytes(kept) - hardware.device_bytes(donated) == 4000
    assert hardware.device_bytes(donated) >= 4000
