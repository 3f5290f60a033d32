"""What the TPU's, the GPU's or the CPU's compiler makes of training and sampling. No TPU or GPU is needed.

    python -m benchmarks.compile --topology=v5e:4x4 --fsdp=4 --config=configs/base.py --config.train.batch_size=128
    python -m benchmarks.compile --topology=H200:8 --programs=training,evaluation
    python -m benchmarks.compile --topology=cpu:64 --fsdp=8 --config=configs/bench_cpu.py --config.train.batch_size=64

Compiles programs for a slice, and prints the device memory that they need, their FLOPs, what they multiply in which
dtype, and what devices send each other: how far training scales. For GPUs also the kernels that are launched, the bytes
that they move, and the time that both memory and arithmetic need at least. Nothing runs.

Topologies: v4, v5e, v5p and v6e with the shape of the slice (needs libtpu), H100 and H200 with the number of GPUs
(needs JAX's CUDA wheels), or cpu with any number of virtual devices. Programs: the training step, one network
evaluation as the sampler needs it, and the scan that samples a view. Batches are those of the whole slice.
"""

from __future__ import annotations

import math
import os
import pathlib
import re
import time
from typing import Any

import jax
import numpy as np
from absl import flags
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh
from ml_collections import config_flags

from benchmarks import hlo, kernels, record
from benchmarks.programs import Sampling, lower_training_step, placed
from threedim import config as config_lib
from threedim.errors import UserError
from threedim.training import hardware, sharding

PROGRAMS = ("training", "evaluation", "view")
# Kinds of devices by the first part of a topology.
KINDS = {"v4": "TPU v4", "v5e": "TPU v5 lite", "v5p": "TPU v5", "v6e": "TPU v6 lite"}
KINDS |= {"H100": "NVIDIA H100 80GB HBM3", "H200": "NVIDIA H200"}
# What an H100 has instead of the H200 that h200.txtpb describes.
H100 = {"151397597184": "85017493504", "4800000000000": "3352320000000", "H200 141GB HBM3e": "H100 80GB HBM3"}
# Fraction of its data-sheet rate that a well-tuned program reaches; for estimates.
UTILIZATION = 0.5
GIB = 2**30


def devices_of(topology: str) -> list[jax.Device]:
    """Devices to compile for.

    Raises:
      UserError: if there is no such topology, or its compiler is not installed.
    """
    kind, _, shape = topology.partition(":")
    if kind not in (*KINDS, "cpu") or not re.fullmatch(r"\d+(x\d+)*", shape):
        raise UserError(
            f"--topology must be one of cpu, {', '.join(KINDS)} with a shape, as in v5e:4x4; got {topology!r}"
        )
    if kind == "cpu":
        return jax.devices("cpu")
    if kind in kernels.RATES:
        spec = pathlib.Path(__file__).with_name("h200.txtpb").read_text()
        for h200, h100 in H100.items() if kind == "H100" else ():
            spec = spec.replace(h200, h100)
        platform, settings = "cuda", {"target_config": spec, "topology": f"1x1x{shape}"}
    else:
        platform, settings = "tpu", {"topology_name": topology}
    try:
        return topologies.get_topology_desc(platform=platform, **settings).devices
    except (RuntimeError, ImportError) as error:
        wheels = {"cuda": "jax[cuda13]", "tpu": "libtpu"}[platform]
        raise UserError(f"there is no compiler for {topology} (pip install '{wheels}' if missing): {error}") from error


def prepare(topology: str) -> None:
    """Settings under which JAX compiles for devices that do not exist. Must come before JAX looks for any.

    Without the last variable, a second process that uses libtpu at the same time fails.
    """
    jax.config.update("jax_platforms", "cpu")
    if topology.startswith("cpu:"):
        jax.config.update("jax_num_cpu_devices", int(topology.removeprefix("cpu:")))
    variables = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    os.environ.update(variables)


def compile_program(program: str, config, mesh: Mesh, chip: hardware.Chip | None) -> dict[str, Any]:
    """Figures of one of `PROGRAMS` on a mesh, with estimates if the devices' data sheet is known.

    Bytes and kernels are per device, FLOPs over all devices.
    """
    start = time.perf_counter()
    if program == "training":
        parts = config_lib.network(config), config_lib.process(config), config_lib.recipe(config)
        lowered, (state, _, _) = lower_training_step(*parts, mesh)
        params, flops = state.params, hardware.training_flops(*parts)
    else:
        sampling, objects = Sampling(config), config.sample.batch_size or 1
        state = params = placed(sampling.params, sharding.replicated(mesh))
        lowered = (sampling.lower if program == "view" else sampling.lower_evaluation)(objects, mesh)
        flops = objects * sampling.flops_per_view / (1 if program == "view" else sampling.evaluations)
    compiled = lowered.compile()
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
    instructions = hlo.instructions(compiled.as_text())
    exchanges = hlo.collectives(instructions)
    found = {
        "state_bytes": sum(
            math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)
        ),
        "parameter_bytes": 4 * sum(leaf.size for leaf in jax.tree.leaves(params)),
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "device_bytes": hardware.device_bytes(compiled),
        "flops": flops,
        "compiled_flops": cost.get("flops", 0.0) * mesh.size,
        "bytes_accessed": cost.get("bytes accessed", 0.0),
        "products": hlo.products(instructions),
        "collectives": exchanges,
        "wire_bytes": sum(each["wire_bytes"] for each in exchanges.values()),
        "compile_seconds": time.perf_counter() - start,
    }
    if chip is not None:
        found["memory_bytes"] = chip.memory
        if chip.name in kernels.RATES:
            found |= kernels.summary(kernels.kernels(instructions), kernels.RATES[chip.name])
        found |= scaling(flops, found["wire_bytes"], mesh.size, chip)
    return found


def scaling(flops: float, wire_bytes: float, devices: int, chip: hardware.Chip) -> dict[str, float]:
    """Estimates from data-sheet rates how a program of ``flops`` scales when each device sends ``wire_bytes``.

    Returns:
      Seconds to compute at half of the peak rate, seconds to send, and the fraction of perfect scaling that is left if
      the two do not overlap at all.
    """
    compute, send = flops / devices / (chip.flops * UTILIZATION), wire_bytes / chip.link
    return {"compute_seconds": compute, "send_seconds": send, "scaling": compute / (compute + send)}


def report(figures: dict[str, Any]) -> str:
    """The figures of all programs as text."""
    lines = []
    for name in [name for name in PROGRAMS if name in figures]:
        f = figures[name]
        sizes = {size: f"{f[f'{size}_bytes'] / GIB:.2f}" for size in ("device", "state", "argument", "temporary")}
        memory = f" of {f['memory_bytes'] / GIB:.0f}" if "memory_bytes" in f else ""
        products = ", ".join(f"{count} {dtypes}" for dtypes, count in f["products"].items())
        lines += [
            f"{name} on {figures['slice']}: compiled in {f['compile_seconds']:.0f} s",
            f"  GiB per device: {sizes['device']}{memory} (parameters and optimizer {sizes['state']}, "
            f"arguments {sizes['argument']}, temporaries {sizes['temporary']})",
            f"  TFLOP: {f['flops'] / 1e12:.4g} needed, {f['compiled_flops'] / 1e12:.4g} compiled, loops once",
            f"  products: {products or 'none'}",
        ]
        if "kernels" in f:
            lines.append(
                f"  kernels: {f['kernels']:,} ({f['distinct_kernels']:,} distinct), {f['moved_bytes'] / 1e9:.1f} GB "
                f"moved, {f['kernel_flops'] / 1e12:.4g} TFLOP: {1e3 * f['roofline_seconds']:.1f} ms without launches"
            )
        for kind, each in f["collectives"].items():
            dtypes = ", ".join(f"{count} {dtype}" for dtype, count in each["dtypes"].items())
            multiple = each["wire_bytes"] / f["parameter_bytes"]
            lines.append(
                f"  {kind}: {each['count']} ({dtypes}), sends {each['wire_bytes'] / 1e6:.1f} MB, {multiple:.2f} times "
                "the parameters in float32"
            )
        if "scaling" in f:
            lines.append(
                f"  at half of the peak rate: {1e3 * f['compute_seconds']:.1f} ms to compute, "
                f"{1e3 * f['send_seconds']:.1f} ms to send; {f['scaling']:.2f} of perfect scaling without overlap"
            )
    return "\n".join(lines)


def measure(config, topology: str, fsdp: int, programs: list[str]) -> dict[str, Any]:
    """Figures of programs, by name.

    Raises:
      UserError: if the mesh does not fit the topology, or a program does not fit the devices.
    """
    if unknown := set(programs) - set(PROGRAMS):
        raise UserError(f"--programs must be of {', '.join(PROGRAMS)}; got {', '.join(sorted(unknown))}")
    devices = np.asarray(devices_of(topology))
    if devices.size % fsdp:
        raise UserError(f"--fsdp={fsdp} does not divide the {devices.size} devices of {topology}")
    mesh = Mesh(devices.reshape(-1, fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    chip = hardware.CHIPS.get(KINDS.get(topology.partition(":")[0]))
    figures: dict[str, Any] = {"slice": f"{topology}, mesh {devices.size // fsdp} x {fsdp}", "devices": devices.size}
    for name in programs:
        try:
            with kernels.cudnn_for(devices.flat[0]):
                figures[name] = compile_program(name, config, mesh, chip)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            used = re.search(r"Used \S+ of \S+ hbm", str(error))
            raise UserError(f"{name} does not fit on {topology}: {used[0] if used else error}") from error
    return figures


def _measure(given: flags.FlagValues) -> dict[str, Any]:
    prepare(given.topology)
    return measure(given.config, given.topology, given.fsdp, given.programs)


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", "configs/base.py", "Configuration to compile.")
    flags.DEFINE_string("topology", "cpu:8", "Devices to compile for, such as v5e:4x4, H200:8 or cpu:64.")
    flags.DEFINE_integer("fsdp", 1, "Devices that parameters are split over in training.", 1)
    flags.DEFINE_list("programs", ["training"], f"What to compile, of {', '.join(PROGRAMS)}.")
    record.run("compile", _measure, report, devices=False)
