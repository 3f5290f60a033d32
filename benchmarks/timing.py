"""Timing, and what this machine can do at best."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax


def timed(run: Callable[[], Any], repeats: int) -> list[float]:
    """Seconds of each of so many runs, until their results are there."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return times


def matmul_rate(dtype: Any, repeats: int = 10) -> float:
    """FLOP/s of a large square matrix product in ``dtype``: the best of some runs.

    Of random numbers: a GPU multiplies constant ones faster, since its clock falls with the bits that change.
    """
    n = 2048 if jax.default_backend() == "cpu" else 8192
    a = jax.random.normal(jax.random.key(0), (n, n), dtype)
    product = jax.jit(lambda a: a @ a)
    jax.block_until_ready(product(a))
    return 2 * n**3 / min(timed(lambda: product(a), repeats))
