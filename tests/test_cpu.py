"""The CPU as several devices, and options of its compiler."""

import jax
import jax.numpy as jnp
import pytest
from commands import run_python

from threedim import cpu
from threedim.errors import UserError


@pytest.fixture
def optimized():
    """Turns on the optimizations that tests compile without."""
    name = "jax_disable_most_optimizations"
    before = jax.config.read(name)
    jax.config.update(name, False)
    yield
    jax.config.update(name, before)


def test_large_programs_compile_at_a_lower_level(optimized, monkeypatch):
    options = cpu.compiler_options()
    assert options == {"xla_backend_optimization_level": 1}
    assert jax.jit(lambda x: x + 1, compiler_options=options)(jnp.ones(())) == 2  # this XLA knows the option
    jax.config.update("jax_disable_most_optimizations", True)
    assert cpu.compiler_options() is None
    jax.config.update("jax_disable_most_optimizations", False)
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert cpu.compiler_options() is None


@pytest.mark.parametrize(
    ("devices", "flags", "found"), [(2, "", 2), (2, "--xla_force_host_platform_device_count=3", 3)]
)
def test_a_cpu_as_several_devices(devices, flags, found):
    code = f"from threedim import cpu; cpu.split({devices}); import jax; print(jax.device_count())"
    done = run_python("-c", code, XLA_FLAGS=flags)
    assert done.stdout == f"{found}\n", done.stderr


def test_zero_devices_change_nothing_and_fewer_are_refused(monkeypatch):
    monkeypatch.setattr(jax.config, "update", lambda *args: pytest.fail("changed"))
    cpu.split(0)
    with pytest.raises(UserError, match=r"mesh\.cpu_devices must be 0 or more, got -1"):
        cpu.split(-1)
