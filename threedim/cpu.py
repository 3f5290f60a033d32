"""Settings of JAX's CPU backend. They change how fast programs compile and run, not what they compute."""

from __future__ import annotations

import os

import jax

from threedim.errors import UserError


def split(devices: int) -> None:
    """Makes JAX treat the CPU as several devices, which share each batch.

    XLA divides every operation among the cores and waits for the slowest of them. Small models leave cores idle that
    way; with several devices, cores wait for each other only once per step.

    Args:
      devices: number of devices. 0 changes nothing, and XLA_FLAGS takes precedence if it sets the number.

    Raises:
      UserError: if the number is negative.
      RuntimeError: if JAX has initialized its devices already.
    """
    if devices < 0:
        raise UserError(f"mesh.cpu_devices must be 0 or more, got {devices}")
    if devices and "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", devices)


def compiler_options() -> dict[str, int] | None:
    """For ``jax.jit(..., compiler_options=...)`` of large programs; None on other backends.

    LLVM's optimization level 1 compiles a fifth faster than the default of 3, and the programs run as fast. Level 0,
    which ``jax_disable_most_optimizations`` asks for, is left alone.
    """
    if jax.default_backend() != "cpu" or jax.config.read("jax_disable_most_optimizations"):
        return None
    return {"xla_backend_optimization_level": 1}
