"""What makes XLA's programs faster on a CPU without changing what they compute; elsewhere it does nothing."""

from __future__ import annotations

import functools
import os

import jax

from threedim.errors import UserError

_LEVEL = "xla_backend_optimization_level"
# LLVM's, of 0 to 3: a fifth less to compile than with 3, and as fast (benchmarks/README.md).
_OPTIONS = {_LEVEL: 1}
# Of the groups of operations that XLA may give to its library of small kernels, all but convolutions: those run up to
# twice as fast by the compiler's own (benchmarks/README.md). Not within loops: there, with several devices, the
# compiler's own got the first rows of the first picture of each device wrong (jaxlib 0.10.2; tests/test_cpu.py).
_CONVOLUTIONS = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_REDUCE"}


def split(devices: int) -> None:
    """Makes JAX see the CPU as several devices, among which it divides the batch.

    XLA divides the work of one operation among the cores, and waits for the last of them after each. Small pictures
    give too little work for that; devices wait for each other once a step (benchmarks/README.md).

    Args:
      devices: how many; with 0, or where XLA_FLAGS already say how many, nothing is done.

    Raises:
      ValueError: if it is negative.
      RuntimeError: if JAX has looked for devices before.
    """
    if devices < 0:
        raise UserError(f"mesh.cpu_devices must be 0 or more, got {devices}")
    if devices and "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", devices)


def compiler_options(*, loops: bool) -> dict[str, str | int] | None:
    """For ``jax.jit(..., compiler_options=...)`` of large programs; None where there is nothing to say.

    Args:
      loops: whether the program computes convolutions in a loop, such as ``jax.lax.scan``.
    """
    if jax.default_backend() != "cpu":
        return None
    options = _known_options(loops)
    if options and jax.config.read("jax_disable_most_optimizations"):
        # The user's wish, which is level 0.
        return {name: value for name, value in options.items() if name != _LEVEL}
    return options


@functools.cache
def _known_options(loops: bool) -> dict[str, str | int] | None:
    """The options that this XLA has: they come and go with its versions, and one that it does not know is an error."""
    options = _OPTIONS if loops else _OPTIONS | _CONVOLUTIONS
    try:
        jax.jit(lambda: 0, compiler_options=options).lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" not in str(error):
            raise
        return None
    return options
