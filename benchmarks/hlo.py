"""Reading the text of a compiled program: what it multiplies, in which dtype, and what it only moves."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "s32": 4, "u32": 4, "f32": 4}
BYTES |= {"s64": 8, "u64": 8, "f64": 8}
# What hands on the numbers of its first operand, in another place, order or precision.
_SAME_NUMBERS = {
    "all-gather",
    "bitcast",
    "convert",
    "copy",
    "copy-done",
    "copy-start",
    "opt-barrier",
    "pad",
    "reshape",
    "reverse",
    "slice",
    "slice-done",
    "slice-start",
    "transpose",
}


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of a program: dtype, dimensions on one device, and their order in memory, fastest first."""

    dtype: str
    dims: tuple[int, ...]
    layout: tuple[int, ...] | None

    @property
    def size(self) -> int:
        """How many numbers."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        """Without what tiles fill up."""
        return self.size * BYTES.get(self.dtype, 4)

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.dims))}]"


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name, opcode: as XLA writes them.
      computation: the one that it stands in.
      arrays: what it puts out; more than one where it is a tuple, nested ones laid flat.
      operands: names of instructions of the same computation.
      attributes: all that stands behind the operands.
      root: whether it is what the computation puts out.
      literal: what stands in the parentheses: operands, or a parameter's number.
    """

    name: str
    opcode: str
    computation: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    attributes: str
    root: bool
    literal: str

    @property
    def op_name(self) -> str:
        """Where in the Python program it comes from, or the name of an argument; "" where XLA does not say."""
        found = re.search(r'op_name="((?:[^"\\]|\\.)*)"', self.attributes)
        return found[1] if found else ""

    def called(self, attribute: str) -> str | None:
        """The computation that an attribute ("calls", "body") names."""
        found = re.search(rf"\b{attribute}=%?([\w.-]+)", self.attributes)
        return found[1] if found else None


class Program:
    """A compiled program, one device's.

    Raises:
      ValueError: if the text has no entry computation.
    """

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Instruction]] = {}
        self.entry = ""
        current = ""
        for line in text.splitlines():
            if found := re.match(r"(ENTRY )?%?([\w.-]+) .*\{$", line):
                current = found[2]
                self.computations[current] = {}
                self.entry = current if found[1] else self.entry
            elif current and (instruction := _instruction(line, current)):
                self.computations[current][instruction.name] = instruction
        if not self.entry:
            raise ValueError("this is not the text of a compiled program: no line begins with ENTRY")
        # One each: the compiler gives every fusion and loop a computation of its own.
        self._callers: dict[str, Instruction] = {}
        for instruction in self:
            for attribute in ("calls", "body"):
                if (name := instruction.called(attribute)) is not None:
                    self._callers[name] = instruction

    def __iter__(self) -> Iterator[Instruction]:
        for computation in self.computations.values():
            yield from computation.values()

    def operand(self, instruction: Instruction, index: int) -> Instruction:
        """The instruction that an operand names."""
        return self.computations[instruction.computation][instruction.operands[index]]

    def argument(self, instruction: Instruction) -> Instruction | None:
        """The program's argument whose numbers these are, if nothing has computed with them; else None."""
        return self._argument(instruction, None)

    def within(self, instruction: Instruction) -> Iterator[Instruction]:
        """What a fusion computes, at any depth; of anything else, itself."""
        name = instruction.called("calls")
        if name not in self.computations:
            yield instruction
            return
        for each in self.computations[name].values():
            yield from self.within(each)

    @functools.cached_property
    def readers(self) -> dict[tuple[str, str], list[Instruction]]:
        """Who reads an instruction, by its computation's name and its own."""
        found: dict[tuple[str, str], list[Instruction]] = {}
        for each in self:
            for name in each.operands:
                found.setdefault((each.computation, name), []).append(each)
        return found

    @functools.cached_property
    def _roots(self) -> dict[str, Instruction]:
        return {each.computation: each for each in self if each.root}

    def _argument(self, instruction: Instruction, element: int | None) -> Instruction | None:
        """``element``: of a tuple, which part is asked for."""
        while True:
            opcode = instruction.opcode
            if opcode == "parameter":
                if instruction.computation == self.entry:
                    return instruction
                caller = self._callers.get(instruction.computation)
                if caller is None:
                    return None
                if caller.opcode == "while":
                    # What a loop carries is an argument if every turn hands it on as it was.
                    if element is None or not self._unchanged(caller, element):
                        return None
                    instruction = self.operand(caller, 0)
                else:
                    instruction, element = self.operand(caller, int(instruction.literal)), None
            elif opcode == "get-tuple-element":
                element = int(re.search(r"index=(\d+)", instruction.attributes)[1])
                instruction = self.operand(instruction, 0)
            elif opcode == "tuple" and element is not None:
                instruction, element = self.operand(instruction, element), None
            elif opcode == "while" and element is not None and self._unchanged(instruction, element):
                instruction = self.operand(instruction, 0)
            elif opcode == "fusion":
                instruction = self._roots[instruction.called("calls")]
            elif opcode in _SAME_NUMBERS and element is None:
                instruction = self.operand(instruction, 0)
            else:
                return None

    def _unchanged(self, loop: Instruction, element: int) -> bool:
        root = self._roots[loop.called("body")]
        if root.opcode != "tuple":
            return False
        handed_on = self.operand(root, element)
        while handed_on.opcode in ("bitcast", "copy", "copy-done", "copy-start"):
            handed_on = self.operand(handed_on, 0)
        return (
            handed_on.opcode == "get-tuple-element"
            and re.search(rf"index={element}\b", handed_on.attributes) is not None
            and self.operand(handed_on, 0).opcode == "parameter"
        )


class Product(NamedTuple):
    """A convolution or matrix product: operands, result, and where it comes from."""

    operands: tuple[Array, Array]
    result: Array
    place: str


def products(program: Program) -> list[Product]:
    """All convolutions and matrix products. The TPU compiler writes the second as the first."""
    return [
        Product(tuple(program.operand(each, i).arrays[0] for i in (0, 1)), each.arrays[0], each.op_name)
        for each in program
        if each.opcode in ("convolution", "dot")
    ]


def moves(program: Program) -> list[Instruction]:
    """What writes numbers in another order and computes nothing: copies to another layout, transposes, reverses.

    A copy to another memory in the same order is not one: the TPU compiler brings operands near before they are used.
    """
    return [
        each
        for each in program
        if each.opcode in ("transpose", "reverse")
        or (each.opcode == "copy" and _order(each.arrays[0]) != _order(program.operand(each, 0).arrays[0]))
    ]


def paddings(program: Program) -> tuple[list[Instruction], list[Instruction]]:
    """Paddings that stand alone, and those that are parts of a concatenation.

    The TPU compiler writes a concatenation as arrays padded to its size, with the lowest number or zero, and their
    maximum or sum, all in one fusion: nothing padded is ever written.
    """

    def joined(instruction: Instruction) -> bool:
        readers = program.readers.get((instruction.computation, instruction.name), [])
        return bool(readers) and all(
            reader.opcode in ("add", "maximum", "or") or (reader.opcode in ("bitcast", "convert") and joined(reader))
            for reader in readers
        )

    found: tuple[list[Instruction], list[Instruction]] = ([], [])
    for each in program:
        if each.opcode == "pad":
            found[joined(each)].append(each)
    return found


def foreign_calls(program: Program) -> dict[str, int]:
    """How often each function is called that the compiler does not make itself, or makes in a way of its own."""
    targets = [
        re.search(r'custom_call_target="([^"]*)"', each.attributes)[1]
        for each in program
        if each.opcode == "custom-call"
    ]
    return {target: targets.count(target) for target in sorted(set(targets))}


def estimated_cycles(program: Program) -> dict[str, int]:
    """Cycles of one device by the TPU compiler's own estimate: of all, of what has a product in it, of bare moves.

    A loop's body is counted once. Other compilers estimate none: all are 0.
    """
    total = dict.fromkeys(("all", "products", "moves"), 0)
    bare = {(each.computation, each.name) for each in moves(program)}
    for each in program:
        found = re.search(r'"estimated_cycles":"(\d+)"', each.attributes)
        if found is None:
            continue
        inside = list(program.within(each))
        total["all"] += int(found[1])
        if any(part.opcode in ("convolution", "dot") for part in inside):
            total["products"] += int(found[1])
        elif all((part.computation, part.name) in bare or part.opcode in _FREE for part in inside):
            total["moves"] += int(found[1])
    return total


# Beside a move in a fusion, these make it no more than a move.
_FREE = {"bitcast", "constant", "get-tuple-element", "parameter", "tuple"}


def _order(array: Array) -> tuple[int, ...]:
    """Dimensions of more than one number, slowest first, as they lie in memory."""
    layout = array.layout or tuple(reversed(range(len(array.dims))))
    return tuple(axis for axis in reversed(layout) if array.dims[axis] > 1)


def _instruction(line: str, computation: str) -> Instruction | None:
    found = re.match(r"\s+(ROOT )?%?([\w.-]+) = ", line)
    if found is None:
        return None
    rest = line[found.end() :]
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    kind, rest = rest[:end], rest[end:].lstrip()
    opcode, _, _ = rest.partition("(")
    close = _closing(rest, len(opcode))
    literal, attributes = rest[len(opcode) + 1 : close], rest[close + 1 :]
    arrays = tuple(
        Array(
            dtype,
            tuple(int(d) for d in dims.split(",") if d),
            tuple(int(d) for d in layout.split(",") if d) if layout is not None else None,
        )
        for dtype, dims, layout in re.findall(r"(\w+)\[([\d,]*)\](?:\{([\d,]*))?", kind)
    )
    operands = tuple(re.findall(r"%([\w.-]+)", literal))
    return Instruction(found[2], opcode, computation, arrays, operands, attributes, bool(found[1]), literal)


def _closing(text: str, opening: int) -> int:
    """Where the parenthesis that opens there is closed."""
    depth = 0
    for index in range(opening, len(text)):
        depth += (text[index] == "(") - (text[index] == ")")
        if depth == 0:
            return index
    raise ValueError(f"a parenthesis is never closed in {text[:200]}")
