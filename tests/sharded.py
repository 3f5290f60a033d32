"""Runs on eight CPU devices, started by test_sharding.py: prints what the sharding functions made there as JSON.

The number of devices is settled when JAX starts, hence a process of its own.
"""

import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
from tiny import NETWORK, SIZE, fill, random_batch

from threedim.diffusion import Process
from threedim.training import sharding
from threedim.training.step import Metrics, Recipe, TrainState, abstract_params, make_train_step

RECIPE = Recipe(32, 1e-4, 0, 0.9, 0.99, 100.0, 1.0, 0.25, 0)


@dataclasses.dataclass(frozen=True)
class Dense:
    """Two layers with kernels large enough to be split; compiles in no time."""

    image_size: int = SIZE

    def init(self, key, *args, train):
        width = 3 * SIZE**2
        return {"params": {"in": jnp.zeros((2 * width, 512)), "out": jnp.zeros((512, width)), "bias": jnp.zeros(width)}}

    def apply(self, variables, x, z, logsnr, camera, cond_mask, *, train, rngs):
        p, flat = variables["params"], jnp.concatenate([x, z], axis=-1).reshape(len(z), -1)
        h = jnp.tanh(flat @ p["in"] + logsnr[:, 1:] + camera.t[:, 0, :1])
        return (h @ p["out"] + p["bias"]).reshape(z.shape)


def describe(mesh, shape):
    """The partition of an array of this shape, and the shape of one device's share."""
    where = sharding.state_shardings(mesh, jax.ShapeDtypeStruct(shape, jnp.float32))
    return [str(tuple(where.spec)), list(where.shard_shape(shape))]


def train(network, data, fsdp, microbatches=1):
    """Five steps as the loop does them, or on one device without a mesh for ``fsdp`` 0; and the parameters."""
    start = jax.tree.map(np.asarray, fill(abstract_params(network)))
    params, ema_params = (jax.tree.map(jnp.asarray, start) for _ in range(2))
    state = TrainState(jnp.zeros((), jnp.int32), params, ema_params, RECIPE.optimizer().init(params))
    batches, metrics = [random_batch(32, seed=seed) for seed in range(5)], Metrics.zeros()
    recipe = dataclasses.replace(RECIPE, microbatches=microbatches)
    step = make_train_step(network, Process("v"), recipe)
    if fsdp:
        mesh = sharding.make_mesh(data, fsdp)
        where, whole = sharding.state_shardings(mesh, state), sharding.replicated(mesh)
        step = make_train_step(network, Process("v"), recipe, whole)
        state, metrics = jax.device_put(state, where), jax.device_put(metrics, whole)
        batches = [sharding.put_batch(batch, mesh, 32) for batch in batches]
        given = (where, whole, sharding.batch_sharding(mesh))
        step = jax.jit(step, in_shardings=given, out_shardings=(where, whole), donate_argnums=(0, 1))
    else:
        step = jax.jit(step)
    losses = []
    for batch in batches:
        before = float(metrics.loss)
        state, metrics = step(state, metrics, batch)
        losses.append(float(metrics.loss) - before)
    kernels = [leaf for leaf in jax.tree.leaves(state) if leaf.size >= sharding.MIN_SPLIT_SIZE]
    split = sum(leaf.addressable_shards[0].data.size < leaf.size for leaf in kernels)
    moved = jax.tree.map(lambda a, b: np.abs(np.asarray(b) - a).max(), start, state.params)
    total = float(sum(np.abs(np.asarray(leaf)).sum() for leaf in jax.tree.leaves(state.ema_params)))
    return {
        "losses": losses,
        "grad_norm": float(metrics.grad_norm),
        "ema": total,
        "split": [split, len(kernels)],
        "moved": float(min(jax.tree.leaves(moved))),
    }, jax.tree.map(np.asarray, state.params)


EVERY_WAY = ((0, 0, 1), (8, 1, 1), (1, 8, 1), (2, 4, 1), (0, 0, 4), (2, 4, 4))


def steps(network, ways=EVERY_WAY):
    """What the same five steps come to on several meshes, and how far parameters are from those of one device.

    For each array: the share of numbers that differ by more than 1e-5, and the largest difference.
    """
    found = {}
    for data, fsdp, microbatches in ways:
        result, params = train(network, data, fsdp, microbatches)
        if not found:
            expected = params
        apart = jax.tree.leaves_with_path(jax.tree.map(lambda a, b: np.abs(a - b), params, expected))
        result["off"] = {jax.tree_util.keystr(path): (np.mean(a > 1e-5), float(a.max())) for path, a in apart}
        found[f"{data}x{fsdp} in {microbatches}"] = result
    return found


def layout():
    meshes, errors = {}, {}
    good, bad = (
        ((-1, 1), (8, 1), (-1, 4), (2, 4), (1, 8)),
        ((3, 2), (4, 4), (-1, 3), (-1, 0), (0, 8), (-2, 4), (-1, 16)),
    )
    for data, fsdp in good + bad:
        try:
            meshes[f"{data}x{fsdp}"] = dict(sharding.make_mesh(data, fsdp).shape)
        except ValueError as error:
            errors[f"{data}x{fsdp}"] = str(error)
    mesh = sharding.make_mesh(2, 4)
    shapes = {"kernel": (3, 3, 256, 512), "tall": (1024, 64), "odd_last": (4096, 17), "odd": (65_537, 3)}
    shapes |= {"large_enough": (256, 256), "small": (252, 260), "scalar": ()}
    batch = sharding.put_batch({"a": np.arange(16).reshape(16, 1), "b": np.arange(32).reshape(16, 2)}, mesh, 16)
    shards = {name: [one.data.ravel().tolist() for one in value.addressable_shards] for name, value in batch.items()}
    return {
        "devices": jax.device_count(),
        "meshes": meshes,
        "errors": errors,
        "splits": {name: describe(mesh, shape) for name, shape in shapes.items()},
        "splits_of_one": {name: describe(sharding.make_mesh(8, 1), shape) for name, shape in shapes.items()},
        "batch": {name: np.asarray(value).ravel().tolist() for name, value in batch.items()},
        "shards": shards,
        "replicated": list(sharding.replicated(mesh).shard_shape((16, 2))),
    }


if __name__ == "__main__":
    if sys.argv[1] == "network":
        sharding.MIN_SPLIT_SIZE = 1024  # nothing in this small network would be split
        # Two channels in each group of the normalization: the bias before a channel alone does nothing.
        answer = steps(NETWORK.clone(num_res_blocks=0, ch=64, dropout=0.0), EVERY_WAY[::3] + EVERY_WAY[-1:])
    else:
        answer = layout() | {"steps": steps(Dense())}
    print(json.dumps(answer))
