"""Held-out loss while training."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from threedim import diffusion
from threedim.data import pipeline
from threedim.data.records import ObjectDataset
from threedim.diffusion import Process
from threedim.models.unet import UNet
from threedim.training import sharding
from threedim.training.step import Recipe, batch_images, named_key

# Not the seed of the run: curves of different runs can be compared.
SEED = 0


class HeldOutLoss:
    """The training loss of held-out pairs, without dropout and augmentation.

    Pairs, noise levels, noise, and which pairs are unconditional are the same at every call, in every run, and for
    every batch size.

    Args:
      network, process, recipe: what is trained, and how.
      dataset: held-out objects with at least two views each.
      examples: number of pairs.
      mesh: of the run. All processes call together.
    """

    def __init__(
        self,
        network: UNet,
        process: Process,
        recipe: Recipe,
        dataset: ObjectDataset,
        *,
        examples: int,
        mesh: jax.sharding.Mesh,
    ):
        # As many pairs at once as a training step holds in memory, and no more than needed.
        size = min(recipe.batch_size // recipe.microbatches, -(-examples // mesh.size) * mesh.size)
        rows = sharding.local_rows(mesh, size)
        options = {"batch_size": size, "size": network.image_size, "seed": SEED, "rows": rows}
        with pipeline.train_batches(dataset, **options) as batches:
            self._batches = [next(batches) | {"number": np.asarray(rows) + start} for start in range(0, examples, size)]
        self._put = lambda batch: sharding.put_batch(batch, mesh, size)
        self._examples = examples
        gathered = sharding.replicated(mesh)

        def losses(params: Any, batch: dict[str, jax.Array]) -> jax.Array:
            params = jax.lax.with_sharding_constraint(params, gathered)
            images, camera = batch_images(batch)
            if recipe.relative_poses:
                camera = camera.relative_to(camera[:, :1])

            def example(images, camera, number):  # of a batch of one
                key = jax.random.fold_in(named_key(jax.random.key(SEED), "held_out"), number)
                return diffusion.make_examples(images[None], camera[None], key, process, recipe.uncond_prob)

            made = jax.vmap(example)(images, camera, batch["number"])
            made = jax.tree.map(lambda leaf: leaf[:, 0], made)

            def apply(x, z, logsnr, camera, cond_mask):
                return network.apply({"params": params}, x, z, logsnr, camera, cond_mask, train=False)

            return diffusion.loss(apply, made, recipe.color_weight)[1]

        self._losses = jax.jit(losses, out_shardings=gathered)

    def __call__(self, params: Any) -> float:
        """The mean loss with these parameters."""
        losses = [np.asarray(self._losses(params, self._put(batch))) for batch in self._batches]
        return float(np.concatenate(losses)[: self._examples].mean(dtype=np.float64))
