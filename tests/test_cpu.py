"""Options for XLA's CPU compiler, and a CPU as several devices."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from threedim import cpu
from threedim.models.blocks import conv3x3


@pytest.fixture(autouse=True)
def asked_anew():
    """What this XLA knows is asked once a process."""
    cpu._known_options.cache_clear()
    yield
    cpu._known_options.cache_clear()


@pytest.fixture
def optimized():
    """Tests compile without most optimizations; here as users do."""
    name = "jax_disable_most_optimizations"
    before = jax.config.read(name)
    jax.config.update(name, False)
    yield
    jax.config.update(name, before)


def test_this_xla_knows_the_options(optimized):
    assert cpu.compiler_options() == cpu._OPTIONS
    jax.config.update("jax_disable_most_optimizations", True)
    assert cpu.compiler_options().keys() == cpu._OPTIONS.keys() - {"xla_backend_optimization_level"}
    x, kernel = jnp.ones((1, 8, 8, 4)), jnp.ones((3, 3, 4, 4))
    convolve = jax.jit(conv3x3, static_argnums=2, compiler_options=cpu.compiler_options())
    assert "ynn" not in convolve.lower(x, kernel, 1).compile().as_text()


def test_another_xla_goes_without(monkeypatch):
    monkeypatch.setattr(cpu, "_OPTIONS", {"xla_cpu_no_such_thing": "1"})
    assert cpu.compiler_options() is None


def test_what_else_is_wrong_is_an_error(monkeypatch):
    monkeypatch.setattr(cpu, "_OPTIONS", {"xla_cpu_experimental_ynn_fusion_type": "NO_SUCH_GROUP"})
    with pytest.raises(jax.errors.JaxRuntimeError):
        cpu.compiler_options()


def test_other_devices_are_told_nothing(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert cpu.compiler_options() is None


@pytest.mark.parametrize(
    ("asked", "flags", "found"), [(2, "", 2), (0, "", 1), (2, "--xla_force_host_platform_device_count=3", 3)]
)
def test_a_cpu_as_several_devices(asked, flags, found):
    code = f"from threedim import cpu; cpu.split({asked}); import jax; print(jax.device_count())"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == f"{found}\n", done.stderr
