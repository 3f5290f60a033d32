"""Data-sheet figures of accelerators, and what a program needs: device memory and FLOPs."""

from __future__ import annotations

import dataclasses
import math
import os
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.extend
import numpy as np

from threedim.diffusion import Process
from threedim.errors import UserError
from threedim.models.unet import UNet
from threedim.training.step import Metrics, Recipe, init_state, make_train_step


class Chip(NamedTuple):
    """One device, from its vendor's data sheet.

    Attributes:
      name: its common name.
      flops: dense bfloat16 FLOP/s.
      memory: bytes.
      link: bandwidth to other devices of the slice or host, bytes/s per direction, all links together.
    """

    name: str
    flops: float
    memory: float
    link: float


# Keyed by `jax.Device.device_kind`. TPU: docs.cloud.google.com/tpu/docs, per chip, which is one device; the published
# interconnect figures count both directions and are halved here. GPU: NVIDIA data sheets of the SXM modules, NVLink.
CHIPS = {
    "TPU v4": Chip("TPU v4", 275e12, 32 * 2**30, 300e9),
    "TPU v5 lite": Chip("TPU v5e", 197e12, 16 * 2**30, 200e9),
    "TPU v5": Chip("TPU v5p", 459e12, 95 * 2**30, 600e9),
    "TPU v6 lite": Chip("TPU v6e", 918e12, 32 * 2**30, 400e9),
    "NVIDIA A100-SXM4-80GB": Chip("A100", 312e12, 80e9, 300e9),
    "NVIDIA H100 80GB HBM3": Chip("H100", 989e12, 80e9, 450e9),
    "NVIDIA H200": Chip("H200", 989e12, 141e9, 450e9),
}


def device_bytes(compiled: jax.stages.Compiled) -> int:
    """Device memory that a compiled program needs, in bytes: arguments, results, temporaries and its code."""
    memory = compiled.memory_analysis()
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes
    )


def device_memory(device: jax.Device) -> int | None:
    """Bytes that JAX may use of an accelerator, or else those of its data sheet; None if neither is known (CPU)."""
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return int(stats["bytes_limit"])
    chip = CHIPS.get(device.device_kind)
    return int(chip.memory) if chip else None


def memory_limit(gib: float | None = None) -> int:
    """Bytes of one device: ``gib`` if given, else what JAX may use or its data sheet says; physical memory of a CPU.

    Raises:
      UserError: if the device's memory is unknown.
    """
    if gib is not None:
        return int(gib * 2**30)
    device = jax.local_devices()[0]
    if (found := device_memory(device)) is not None:
        return found
    if device.platform != "cpu":
        raise UserError(f"the memory of a {device.device_kind} is unknown; set --memory_gib or sample.batch_size")
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def program_bytes(compile_program: Callable[[], jax.stages.Compiled]) -> float:
    """Bytes of device memory that a program needs; infinite if the compiler itself finds that it does not fit."""
    try:
        return device_bytes(compile_program())
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return math.inf


def largest(
    bytes_of: Callable[[int], float], limit: float, start: int = 1, most: int = 2**16, within: float = 0.0
) -> tuple[int, float]:
    """The largest batch up to ``most`` that needs at most ``limit`` bytes, and its bytes; (0, 0) if none fits.

    Doubles or halves from ``start``, then bisects until the batch may be too small by at most the fraction ``within``.
    Assumes that larger batches never need less.
    """
    asked: dict[int, float] = {}

    def fits(batch: int) -> bool:
        if batch not in asked:
            asked[batch] = bytes_of(batch)
            print(f"batch {batch} needs {asked[batch] / 2**30:.2f} GiB", file=sys.stderr)
        return asked[batch] <= limit

    low, high = 0, min(start, most)
    while high <= most and fits(high):
        low, high = high, max(high + 1, min(2 * high, most))
    if low == 0:
        while high > 1 and not fits(high // 2):
            high //= 2
        low = high // 2
    while high - low > max(1, within * low):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low, asked.get(low, 0)


def can_count_flops() -> bool:
    """Whether JAX has its CPU backend, which `count_flops` needs: JAX_PLATFORMS may leave it out."""
    return "cpu" in jax.extend.backend.backends()


def count_flops(function: Callable[..., Any], *args: Any) -> float:
    """FLOPs of one call of ``function``, counted before the compiler optimizes anything.

    Lowers for the CPU whatever the default device is: other backends count nothing, or leave out what they give to
    libraries such as cuDNN. The body of a loop counts once.

    Args:
      function: not yet jitted.
      *args: pytrees of arrays or of their shapes.

    Raises:
      UserError: if JAX was told to leave out its CPU backend.
    """
    if not can_count_flops():
        raise UserError("counting FLOPs needs JAX's CPU backend: add cpu to JAX_PLATFORMS, or unset it")
    host = jax.local_devices(backend="cpu")[0]
    # Without their shardings, which name other devices.
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), args)
    with jax.default_device(host):
        return jax.jit(function).lower(*shapes).cost_analysis()["flops"]


def training_flops(network: UNet, process: Process, recipe: Recipe) -> float:
    """FLOPs that one training step needs over all devices.

    What ``remat`` computes a second time is not needed. The batch is counted as a whole, whatever the number of
    microbatches.
    """
    network, recipe = network.clone(remat="none"), dataclasses.replace(recipe, microbatches=1)
    state, metrics = jax.eval_shape(lambda: (init_state(network, recipe), Metrics.zeros()))
    batch = batch_shapes(network.image_size, recipe.batch_size)
    return count_flops(make_train_step(network, process, recipe), state, metrics, batch)


def step_flops(
    lowered: jax.stages.Lowered, platform: str, network: UNet, process: Process, recipe: Recipe
) -> float | None:
    """`training_flops` of a step that is lowered already, which on a CPU spares tracing it again.

    None if FLOPs cannot be counted, as `can_count_flops` says.
    """
    if platform == "cpu" and network.remat == "none" and recipe.microbatches == 1:
        return lowered.cost_analysis()["flops"]
    return training_flops(network, process, recipe) if can_count_flops() else None


def batch_shapes(
    size: int, batch_size: int, sharding: jax.sharding.Sharding | None = None
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a batch of pairs as the data pipeline yields it, at ``size`` pixels."""
    kinds = {"image": ((size, size, 3), np.uint8), "R": ((3, 3), np.float32), "t": ((3,), np.float32)}
    kinds["K"] = kinds["R"]
    return {
        name: jax.ShapeDtypeStruct((batch_size, 2, *shape), dtype, sharding=sharding)
        for name, (shape, dtype) in kinds.items()
    }
