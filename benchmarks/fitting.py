"""The largest batch that fits on a device, found by asking the compiler: nothing is run, so nothing runs out."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable

import jax
import tqdm
from jax.sharding import AxisType, Mesh

from benchmarks import record
from benchmarks.compiling import compile_training_step
from threedim import config as config_lib
from threedim.training import hardware


def memory_limit(gib: float | None = None) -> int:
    """Bytes of one device: as given, else what JAX may use of it or its data sheet says; of a CPU, physical memory.

    Raises:
      ValueError: if the device's memory is not known.
    """
    if gib is not None:
        return int(gib * 2**30)
    device = jax.local_devices()[0]
    if (found := record.device_memory(device)) is not None:
        return found
    if device.platform != "cpu":
        raise ValueError(f"the memory of a {device.device_kind} is not known; say it with --memory_gib")
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def program_bytes(compile_program: Callable[[], jax.stages.Compiled]) -> float:
    """Bytes of a device that a program needs; infinite if the compiler itself says that there are not enough."""
    try:
        return hardware.device_bytes(compile_program())
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return math.inf


def largest(bytes_of: Callable[[int], float], limit: float, start: int = 1, most: int = 2**16) -> tuple[int, float]:
    """The largest batch, up to ``most``, that needs at most ``limit`` bytes, and how many it needs; (0, 0) for none.

    Doubles (or halves) from ``start``, then bisects, on the assumption that a larger batch needs no less.
    """
    asked: dict[int, float] = {}
    with tqdm.tqdm(desc="asking the compiler", unit="program", leave=False) as bar:

        def fits(batch: int) -> bool:
            if batch not in asked:
                asked[batch] = bytes_of(batch)
                bar.set_postfix_str(f"batch {batch}: {asked[batch] / 2**30:.2f} GiB")
                bar.update()
            return asked[batch] <= limit

        low, high = 0, min(start, most)
        while high <= most and fits(high):
            low, high = high, max(high + 1, min(2 * high, most))
        if low == 0:
            while high > 1 and not fits(high // 2):
                high //= 2
            low = high // 2
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
    return low, asked.get(low, 0)


def largest_training_batch(config, limit: int) -> dict:
    """The largest batch of pairs that one device trains on with ``config``, as figures."""
    network, process, recipe = config_lib.network(config), config_lib.process(config), config_lib.recipe(config)
    mesh = Mesh([[jax.local_devices()[0]]], ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)

    def bytes_of(pairs: int) -> float:
        whole = dataclasses.replace(recipe, batch_size=pairs * recipe.microbatches)
        return program_bytes(lambda: compile_training_step(network, process, whole, mesh)[1])

    pairs, needed = largest(bytes_of, limit, start=max(1, recipe.batch_size // recipe.microbatches))
    return {
        "batch_size": pairs * recipe.microbatches,
        "microbatches": recipe.microbatches,
        "remat": config.train.remat,
        "device_bytes": needed,
        "limit_bytes": limit,
    }
