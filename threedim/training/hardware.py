"""Published figures of accelerators, and what a compiled program asks of a device."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax


class Chip(NamedTuple):
    """One device, by its maker's data sheet.

    Attributes:
      name: what people call it.
      flops: bfloat16 FLOP/s, dense.
      memory: bytes.
      link: to other devices of the slice or host, bytes/s in each direction, all links together.
    """

    name: str
    flops: float
    memory: float
    link: float


# By ``jax.Device.device_kind``. TPU: docs.cloud.google.com/tpu/docs, per chip, which is one device; its interconnect
# figures, both ways together, are halved. GPU: NVIDIA data sheets of the SXM modules, NVLink.
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
    """Bytes of a device that a compiled program needs while it runs: arguments, results and temporaries."""
    memory = compiled.memory_analysis()
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes
    )


def counted_flops(lowered: Any, compiled: jax.stages.Compiled, devices: int, microbatches: int = 1) -> float:
    """FLOPs of a step over all devices.

    Counted before any optimization where the platform can (a TPU that is not there cannot), else as compiled. Of a scan
    over microbatches both count the body once.
    """
    analysis = lowered.cost_analysis()
    flops = analysis["flops"] if analysis else compiled.cost_analysis()["flops"] * devices
    return flops * microbatches
