"""What a program compiled for a GPU launches: its kernels, the bytes that they move, their FLOPs, and a roofline."""

from __future__ import annotations

import collections
import contextlib
import math
import re
import types
from collections.abc import Iterator
from typing import Any, NamedTuple
from unittest import mock

import jax

from benchmarks.hlo import BYTES, Instruction, loop_counts
from threedim.models import ops

# What large copies (bytes/s) and large bfloat16 products (FLOP/s) reach: measured on an H200; an H100's memory is
# slower by the ratio of the data sheets.
RATES = {"H100": (3.0e12, 790e12), "H200": (4.3e12, 790e12)}
# Instructions that launch nothing.
_FREE = {"parameter", "constant", "bitcast", "tuple", "get-tuple-element", "after-all", "opt-barrier", "partition-id"}
# Instructions that run other computations, whose instructions are launched instead.
_CONTROL = {"while", "conditional", "call", "async-start"}
_CALLED = re.compile(r"\b(?:body|condition|to_apply|calls|\w+_computations?)=\{?((?:%[\w.-]+(?:, )?)+)")


class Kernel(NamedTuple):
    """One kernel, or one call of a library."""

    instruction: Instruction
    inside: tuple[Instruction, ...]  # of a fusion
    bytes: int  # read and written
    flops: int  # of convolutions, products and attention
    runs: int  # more than one in loops

    def seconds(self, rates: tuple[float, float]) -> float:
        """Time of one run at these bytes/s and FLOP/s, whichever takes longer."""
        return max(self.bytes / rates[0], self.flops / rates[1])


def kernels(program: list[Instruction]) -> list[Kernel]:
    """The kernels of a program, in the order of its text."""
    computations: dict[str, dict[str, Instruction]] = collections.defaultdict(dict)
    for each in program:
        computations[each.computation][each.name] = each
    # The entry comes last.
    launching, todo = set(), [program[-1].computation]
    while todo:
        launching.add(computation := todo.pop())
        for each in computations[computation].values():
            if each.opcode in _CONTROL:
                todo += _called(each)
    found, runs = [], loop_counts(program)
    for each in program:
        if each.computation not in launching or each.opcode in _FREE | _CONTROL or each.opcode.endswith("-done"):
            continue
        operands = [computations[each.computation][name] for name in each.operands]
        fused = computations[_called(each)[0]] if each.opcode == "fusion" else {}
        inside = tuple(fused.values())
        moved = _bytes(each) + _read(operands, inside)
        flops = sum(_flops(i, [fused[name] for name in i.operands]) for i in inside) or _flops(each, operands)
        found.append(Kernel(each, inside, moved, flops, runs[each.computation]))
    return found


def summary(found: list[Kernel], rates: tuple[float, float]) -> dict[str, Any]:
    """Figures of a program per device: numbers of kernels, bytes moved, and the roofline's seconds without launches."""
    distinct = {
        (k.instruction.opcode, k.instruction.arrays, tuple((i.opcode, i.arrays) for i in k.inside)) for k in found
    }
    return {
        "kernels": sum(k.runs for k in found),
        "distinct_kernels": len(distinct),
        "moved_bytes": sum(k.runs * k.bytes for k in found),
        "kernel_flops": sum(k.runs * k.flops for k in found),
        "roofline_seconds": sum(k.runs * k.seconds(rates) for k in found),
    }


@contextlib.contextmanager
def cudnn_for(device: jax.Device) -> Iterator[None]:
    """Traces attention as on a machine that has this GPU, with cuDNN 9.12. Changes nothing for other devices.

    `ops.attend` and JAX ask the machine that traces for a GPU and its cuDNN.
    """
    if device.platform != "gpu":
        yield
        return
    from jax._src.cudnn import fused_attention_stablehlo as cudnn  # JAX has no public switch

    client = types.SimpleNamespace(platform_version="cuda")
    gpu = types.SimpleNamespace(platform="gpu", client=client, compute_capability=device.compute_capability)
    supported = ops.has_flash_attention
    with (
        mock.patch.object(ops, "has_flash_attention", lambda dtype, dim, _: supported(dtype, dim, gpu)),
        mock.patch.object(cudnn, "check_cudnn_version", return_value=91200),
        mock.patch.object(cudnn, "check_compute_capability", return_value=True),
    ):
        yield


def _called(instruction: Instruction) -> list[str]:
    """Computations that an instruction names."""
    return [name for match in _CALLED.findall(instruction.text) for name in re.findall(r"%([\w.-]+)", match)]


def _bytes(instruction: Instruction) -> int:
    return sum(BYTES.get(dtype, 4) * math.prod(dims) for dtype, dims in instruction.arrays)


def _read(operands: list[Instruction], inside: tuple[Instruction, ...]) -> int:
    """Bytes that a kernel reads: of an operand that a fusion only slices, the slices. Each operand counts once."""
    readers = collections.defaultdict(list)
    for each in inside:
        for name in each.operands:
            readers[name].append(each)
    parameters = {int(re.search(r"parameter\((\d+)", i.text)[1]): i for i in inside if i.opcode == "parameter"}

    def sliced(instruction: Instruction) -> int:
        total = 0
        for reader in readers[instruction.name]:
            if reader.opcode in ("slice", "dynamic-slice"):
                total += _bytes(reader)
            elif reader.opcode == "bitcast":
                total += sliced(reader)
            else:
                return _bytes(instruction)
        return min(total, _bytes(instruction))

    whole = {operand.name: _bytes(operand) for operand in operands}
    for index, parameter in parameters.items():
        whole[operands[index].name] = min(whole[operands[index].name], sliced(parameter))
    return sum(whole.values())


def _flops(instruction: Instruction, operands: list[Instruction]) -> int:
    """FLOPs of a product, a convolution or attention; 0 of anything else."""
    opcode, text = instruction.opcode, instruction.text
    dims = [operand.arrays[0][1] for operand in operands if operand.arrays]
    if opcode == "dot" or opcode.startswith("__cublas$"):
        contracted = re.search(r'lhs_contracting_dim(?:s=\{|ensions": ?\[)([^}\]]*)', text)[1]
        return (
            2 * math.prod(instruction.arrays[0][1]) * math.prod(dims[0][int(i)] for i in re.findall(r"\d+", contracted))
        )
    if opcode.startswith("__cudnn$conv"):
        # Every output of the forward convolution takes a sum over one filter.
        forward = {"y": instruction.arrays[0][1], "k": dims[1]}
        if "BackwardInput" in opcode:
            forward = {"y": dims[0], "k": dims[1]}
        elif "BackwardFilter" in opcode:
            forward = {"y": dims[1], "k": instruction.arrays[0][1]}
        filters = forward["k"][re.search(r"dim_labels=\w+_(\w+)->", text)[1].index("o")]
        return 2 * math.prod(forward["y"]) * math.prod(forward["k"]) // filters
    if opcode.startswith("__cudnn$fmha"):
        logits = re.search(r'"intermediate_tensor_shape": ?\{.*?"dimensions": ?\[([^\]]*)\]', text)[1]
        products = 2.5 if "Backward" in opcode else 1  # five instead of two
        return int(4 * products * math.prod(map(int, re.findall(r"\d+", logits))) * dims[0][-1])
    return 0
