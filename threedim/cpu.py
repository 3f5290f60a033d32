"""What makes XLA's programs faster on a CPU without changing what they compute; elsewhere it does nothing."""

from __future__ import annotations

import functools

import jax

# Of the groups of operations that XLA may give to its library of small kernels, all but convolutions: those run up to
# twice as fast by the compiler's own (benchmarks/README.md).
_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_REDUCE"}


def compiler_options() -> dict[str, str] | None:
    """For ``jax.jit(..., compiler_options=...)`` of programs with convolutions; None where there is nothing to say."""
    return _known_options() if jax.default_backend() == "cpu" else None


@functools.cache
def _known_options() -> dict[str, str] | None:
    """The options that this XLA has: they come and go with its versions, and one that it does not know is an error."""
    try:
        jax.jit(lambda: 0, compiler_options=_OPTIONS).lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" not in str(error):
            raise
        return None
    return _OPTIONS
