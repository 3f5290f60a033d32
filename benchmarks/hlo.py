"""Reads the text of a compiled program: what devices send each other, and what is multiplied in which dtype."""

from __future__ import annotations

import collections
import math
import re
from typing import Any, NamedTuple

BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "s32": 4, "u32": 4, "f32": 4}
BYTES |= {"s64": 8, "u64": 8, "f64": 8}
# Bytes that each device sends on a ring of n devices, for each byte of the result.
_WIRE = {
    "all-gather": lambda n: (n - 1) / n,
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "reduce-scatter": lambda n: n - 1,
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1,
}
# Opcodes and library calls that multiply: NVIDIA's are custom calls.
_PRODUCTS = ("convolution", "dot", "__cudnn$conv", "__cublas$", "__cudnn$fmha")


class Instruction(NamedTuple):
    """One instruction of a compiled program, of which ``text`` is the whole line."""

    name: str  # without "%"
    opcode: str  # as XLA spells it, such as "all-gather-start"; the target of a custom call
    arrays: tuple[tuple[str, tuple[int, ...]], ...]  # dtype and dimensions of its results on one device
    operands: tuple[str, ...]  # names of the instructions that it reads, as often as it does
    computation: str  # name of the computation that it is part of
    text: str


def instructions(text: str) -> list[Instruction]:
    """All instructions of a compiled program, in the order of the text.

    Raises:
      ValueError: if the text has no entry computation.
    """
    found, computation, entry = [], "", False
    for line in text.splitlines():
        if header := re.match(r"(ENTRY )?%?([\w.-]+) .*\{$", line):
            computation, entry = header[2], entry or bool(header[1])
        elif match := re.match(r"\s+(?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*)", line):
            name, kind, opcode, rest = match.groups()
            if opcode == "custom-call":
                opcode = re.search(r'custom_call_target="([^"]*)"', rest)[1]
            shapes = re.findall(r"(\w+)\[([\d,]*)\]", kind)
            arrays = tuple((dtype, tuple(int(d) for d in dims.split(",") if d)) for dtype, dims in shapes)
            operands = tuple(re.findall(r"%([\w.-]+)", rest.split("), ")[0]))
            found.append(Instruction(name, opcode, arrays, operands, computation, line))
    if not entry:
        raise ValueError("not the text of a compiled program: no line starts with ENTRY")
    return found


def collectives(program: list[Instruction]) -> dict[str, dict[str, Any]]:
    """What devices send each other, by kind of exchange, such as "all-gather".

    Returns:
      For each kind: "count", how many run; "bytes" of their results on one device; "wire_bytes" that each device sends
      on a ring; and "dtypes", the number of arrays of each. In loops, all runs count.
    """
    found: dict[str, dict[str, Any]] = {}
    channels, repeats = set(), loop_counts(program)
    for each in program:
        kind = each.opcode.removesuffix("-start")
        channel = re.search(r"channel_id=(\d+)", each.text)
        # The TPU compiler writes an exchange that overlaps with other work several times, with one channel.
        if kind not in _WIRE or (channel and channel[1] in channels):
            continue
        if channel:
            channels.add(channel[1])
        arrays, times = each.arrays, repeats[each.computation]
        if kind != each.opcode and len(arrays) > 1:
            arrays = arrays[len(arrays) // 2 :]  # the operands precede the results
        size = times * sum(BYTES.get(dtype, 4) * math.prod(dims) for dtype, dims in arrays)
        row = found.setdefault(kind, {"count": 0, "bytes": 0, "wire_bytes": 0.0, "dtypes": {}})
        row["count"] += times
        row["bytes"] += size
        row["wire_bytes"] += _WIRE[kind](_group_size(each.text)) * size
        for dtype, _ in arrays:
            row["dtypes"][dtype] = row["dtypes"].get(dtype, 0) + times
    return found


def products(program: list[Instruction]) -> dict[str, int]:
    """Number of convolutions and matrix products by the dtypes of their operands, such as "bf16 x f32"."""
    dtypes = {(each.computation, each.name): each.arrays[0][0] for each in program if each.arrays}
    found = collections.Counter(
        " x ".join(sorted(dtypes[each.computation, name] for name in each.operands[:2]))
        for each in program
        if each.opcode.startswith(_PRODUCTS)
    )
    return dict(found.most_common())


def loop_counts(program: list[Instruction]) -> collections.defaultdict[str, int]:
    """How often each computation runs, as far as the compiler knows the trip counts of loops; 1 otherwise."""
    callers: dict[str, tuple[str, int]] = {}
    for each in program:
        trips = re.search(r'known_trip_count"?[:=]\{"?n"?:"?(\d+)', each.text)
        for name in re.findall(r"\b(?:body|calls|to_apply)=%?([\w.-]+)", each.text):
            callers[name] = (each.computation, int(trips[1]) if trips and each.opcode == "while" else 1)
    counts = collections.defaultdict(lambda: 1)
    for name in callers:
        caller = name
        while caller in callers:
            caller, trips = callers[caller]
            counts[name] *= trips
    return counts


def _group_size(line: str) -> int:
    """How many devices take part in a collective. XLA writes it in one of four ways."""
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(found[1])
    if found := re.search(r"replica_groups=\{\{([\d,]*)\}", line):
        return len(found[1].split(","))
    if found := re.search(r"replica_groups=mesh\[(.*?)\].*?\{('.*?)\}", line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
        # An axis by its name, or a part of one: 'axis':(before)size.
        parts = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", found[2])
        return math.prod(int(size or sizes[axis]) for axis, size in parts)
    if "source_target_pairs=" in line:
        return 2
    raise ValueError(f"cannot tell how many devices take part in {line.strip()[:1000]}")
