"""Throughput, utilization and profiles."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from threedim.training import hardware, sharding, throughput
from threedim.training.step import Metrics, Recipe

RECIPE = Recipe(8, 1e-3, 0, 0.9, 0.99, 100.0, 1.0, 0.1, 0, microbatches=2)


@pytest.fixture(scope="module")
def compiled():
    return jax.jit(lambda a, b: (a @ b).sum()).lower(jnp.ones((64, 32)), jnp.ones((32, 16))).compile()


def test_cost_counts_flops_and_bytes(compiled):
    mesh, counts = sharding.make_mesh(-1, 1), iter([7e9])
    cost = throughput.Cost(compiled, mesh, RECIPE, lambda: next(counts))
    assert cost.flops == cost.flops == 7e9  # counted once
    assert cost.bytes_per_device >= 4 * (64 * 32 + 32 * 16)
    assert cost.peak is None  # the peak of a CPU is not known
    line = cost.describe()
    assert line.startswith("8 pairs a step in 2 microbatches, 8 a device; 1 cpu device(s), mesh data 1 x fsdp 1; ")
    assert line.endswith(" GiB a device")


def test_utilization_is_of_the_data_sheet(compiled, monkeypatch):
    mesh = sharding.make_mesh(-1, 1)
    monkeypatch.setitem(hardware.CHIPS, "cpu", hardware.Chip("cpu", 1e9, 1e9, 1e9))
    cost = throughput.Cost(compiled, mesh, RECIPE, lambda: 7e9)
    clock = iter([10.0, 11.0, 11.5, 14.0])
    monkeypatch.setattr(throughput, "time", types.SimpleNamespace(perf_counter=lambda: next(clock)))
    window = throughput.Window(mesh, RECIPE, cost)
    with window.waiting():
        pass
    window.metrics = Metrics.zeros().replace(steps=jnp.float32(5), loss=jnp.float32(10))
    scalars = window.scalars(7)
    assert scalars["loss"] == 2
    expected = {"seconds_per_step": 4 / 5, "examples_per_second": 10, "examples_per_second_per_device": 10}
    for name, value in (expected | {"data_wait_fraction": 0.5 / 4, "mfu": 7e9 * 5 / 4 / 1e9}).items():
        np.testing.assert_allclose(scalars[name], value)
    # Where FLOPs cannot be counted, there is no utilization.
    monkeypatch.setattr(throughput, "time", types.SimpleNamespace(perf_counter=iter([1.0, 2.0]).__next__))
    window = throughput.Window(mesh, RECIPE, throughput.Cost(compiled, mesh, RECIPE, lambda: None))
    window.metrics = Metrics.zeros().replace(steps=jnp.float32(1))
    assert "mfu" not in window.scalars(8)


def test_trace_of_chosen_steps(tmp_path):
    with throughput.Trace(tmp_path, start=3, steps=2) as trace:
        for done in range(6):
            trace.before_step(done)
            y = jax.jit(lambda x: x + 1)(jnp.ones(3))
            trace.after_step(done + 1, y)
            written = list(tmp_path.rglob("*.xplane.pb"))
            assert bool(written) == (done + 1 >= 4)
    with throughput.Trace(tmp_path / "none", start=0, steps=2) as trace:
        trace.before_step(0)
        trace.after_step(1, y)
    assert not (tmp_path / "none").exists()
    # Left in the middle: what there is, is written.
    with throughput.Trace(tmp_path / "cut", start=1, steps=9) as trace:
        trace.before_step(0)
    assert list((tmp_path / "cut").rglob("*.xplane.pb"))
    with pytest.raises(ValueError, match=r"profile\.steps 1 or more, got 1 and 0"):
        throughput.Trace(tmp_path, 1, 0)
