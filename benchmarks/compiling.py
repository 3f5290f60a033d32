"""Compiling a training step for devices that need not be there, and reading what the compiler made of it."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from benchmarks.hlo import BYTES
from benchmarks.inputs import batch_shapes
from threedim.training import sharding
from threedim.training.step import Metrics, init_state, make_train_step

# Bytes that each device sends, on a ring of n, for each byte of the result.
_WIRE = {
    "all-gather": lambda n: (n - 1) / n,
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "reduce-scatter": lambda n: n - 1,
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1,
}


def placed(shapes, places):
    """Shapes with the places where they go: a sharding for each, or one for all."""
    if isinstance(places, jax.sharding.Sharding):
        places = jax.tree.map(lambda _: places, shapes)
    return jax.tree.map(lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), shapes, places)


def compile_training_step(network, process, recipe, mesh: Mesh):
    """The training step as the loop compiles it: lowered, compiled, and the state's shapes with their places."""
    lowered, (state, _, _) = lower_training_step(network, process, recipe, mesh)
    return lowered, lowered.compile(), state


def lower_training_step(network, process, recipe, mesh: Mesh, options: dict[str, str | int] | None = None):
    """The training step as the loop compiles it, not yet compiled; and shapes and places of all that it takes.

    ``options`` are for the compiler.
    """
    shapes = jax.eval_shape(lambda: init_state(network, recipe))
    state = placed(shapes, sharding.state_shardings(mesh, shapes))
    metrics = jax.eval_shape(Metrics.zeros)
    metrics = placed(metrics, sharding.replicated(mesh))
    batch = batch_shapes(network.image_size, recipe.batch_size, sharding.batch_sharding(mesh))
    places = jax.tree.map(lambda leaf: leaf.sharding, (state, metrics, batch))
    step = jax.jit(
        make_train_step(network, process, recipe, sharding.replicated(mesh)),
        in_shardings=places,
        out_shardings=places[:2],
        donate_argnums=(0, 1),
        compiler_options=options,
    )
    return step.lower(state, metrics, batch), (state, metrics, batch)


def state_bytes(state) -> int:
    """Bytes of one device's share of parameters, average and optimizer state."""
    return sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)
    )


def wire_bytes(text: str) -> dict[str, float]:
    """Bytes that each device sends in each kind of collective of a compiled program, as if all were rings.

    What stands in a loop is counted once.
    """
    totals = dict.fromkeys(_WIRE, 0.0)
    for each in collectives(text):
        totals[each.kind] += each.wire_bytes
    return totals


class Collective(NamedTuple):
    """One exchange between devices.

    Attributes:
      kind: as XLA calls it, "all-gather" and so on.
      arrays: results on one device, as (dtype, dimensions).
      bytes: of these results.
      wire_bytes: what each device sends, as if on a ring.
    """

    kind: str
    arrays: tuple[tuple[str, tuple[int, ...]], ...]
    bytes: int
    wire_bytes: float


def collectives(text: str) -> list[Collective]:
    """All exchanges between devices in a compiled program.

    The TPU compiler writes one that goes on beside others' work several times, with one channel: it is counted once.
    """
    found: list[Collective] = []
    channels = set()
    for line in text.splitlines():
        match = re.search(r"= (.*?) (" + "|".join(_WIRE) + r")(-start)?\(", line)
        if match is None:
            continue
        if channel := re.search(r"channel_id=(\d+)", line):
            if channel[1] in channels:
                continue
            channels.add(channel[1])
        shapes = re.findall(r"(\w+)\[([\d,]*)\]", match[1])
        if match[3] and len(shapes) > 1:
            shapes = shapes[len(shapes) // 2 :]  # of a pair that starts and ends, operands stand before the results
        arrays = tuple((dtype, tuple(int(d) for d in dims.split(",") if d)) for dtype, dims in shapes)
        result = sum(BYTES.get(dtype, 4) * math.prod(dims) for dtype, dims in arrays)
        found.append(Collective(match[2], arrays, result, _WIRE[match[2]](_group_size(line)) * result))
    return found


def _group_size(line: str) -> int:
    """How many devices take part in one collective; XLA writes it in one of three ways."""
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(found[1])
    if found := re.search(r"replica_groups=\{\{([\d,]*)\}", line):
        return len(found[1].split(","))
    if found := re.search(r"replica_groups=mesh\[(.*?)\].*?\{('.*?)\}", line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
        # An axis by its name, or a part of one: 'axis':(before)size.
        parts = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", found[2])
        return int(np.prod([int(size or sizes[axis]) for axis, size in parts]))
    if found := re.search(r"source_target_pairs=", line):
        return 2
    raise ValueError(f"cannot tell who takes part in {line.strip()[:1000]}")
