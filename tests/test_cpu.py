"""Options for XLA's CPU compiler, and a CPU as several devices."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from threedim import cpu
from threedim.models.ops import conv3x3


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
    assert cpu.compiler_options(loops=True) == cpu._OPTIONS
    assert cpu.compiler_options(loops=False) == cpu._OPTIONS | cpu._CONVOLUTIONS
    jax.config.update("jax_disable_most_optimizations", True)
    assert cpu.compiler_options(loops=False) == cpu._CONVOLUTIONS
    x, kernel = jnp.ones((1, 8, 8, 4)), jnp.ones((3, 3, 4, 4))
    convolve = jax.jit(conv3x3, static_argnums=2, compiler_options=cpu.compiler_options(loops=False))
    assert "ynn" not in convolve.lower(x, kernel, 1).compile().as_text()


def test_another_xla_goes_without(monkeypatch):
    monkeypatch.setattr(cpu, "_OPTIONS", {"xla_cpu_no_such_thing": "1"})
    assert cpu.compiler_options(loops=False) is None


def test_what_else_is_wrong_is_an_error(monkeypatch):
    monkeypatch.setattr(cpu, "_OPTIONS", {"xla_cpu_experimental_ynn_fusion_type": "NO_SUCH_GROUP"})
    with pytest.raises(jax.errors.JaxRuntimeError):
        cpu.compiler_options(loops=True)


def test_other_devices_are_told_nothing(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert cpu.compiler_options(loops=True) is None


@pytest.mark.parametrize(
    ("asked", "flags", "found"), [(2, "", 2), (0, "", 1), (2, "--xla_force_host_platform_device_count=3", 3)]
)
def test_a_cpu_as_several_devices(asked, flags, found):
    code = f"from threedim import cpu; cpu.split({asked}); import jax; print(jax.device_count())"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == f"{found}\n", done.stderr


_COPIES = """
import jax, numpy as np
import threedim
from threedim import cpu, sampling
from threedim.cameras import Camera, look_at

cpu.split(2)
model = threedim.load("shapes64")
mesh = jax.sharding.Mesh(np.asarray(jax.devices()), ("batch",))
split, whole = (jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes)) for axes in (["batch"], []))
K = [[131.0, 0.0, 32.0], [0.0, 131.0, 32.0], [0.0, 0.0, 1.0]]
cameras = Camera.stack([look_at(position, (0, 0, 0), K) for position in ((2.2, 1.0, 1.0), (-1.0, 2.2, 1.0))])
image = np.random.default_rng(0).uniform(-1, 1, (1, 64, 64, 3)).astype(np.float32)
known, target = (jax.tree.map(lambda leaf: np.stack([leaf[i : i + 1]] * 8), cameras) for i in range(2))
placed = jax.device_put((np.stack([image] * 8), known, target, jax.numpy.stack([jax.random.key(0)] * 8)), split)
settings = sampling.Settings(num_steps=32, guidance_weight=0.0)
params = jax.device_put(model.params, whole)
drawn = np.asarray(sampling.sample_views(model.denoiser, params, *placed, process=model.process, settings=settings))
print(np.abs(drawn - drawn[-1:]).max())
"""


@pytest.mark.slow
def test_copies_in_a_batch_are_drawn_alike():
    """XLA's own convolutions in a loop on two devices drew the first of each device's four otherwise."""
    environment = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    environment.pop("JAX_DISABLE_MOST_OPTIMIZATIONS", None)
    done = subprocess.run([sys.executable, "-c", _COPIES], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1e-3
