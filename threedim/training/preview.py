"""Previews while training: input view, true view and sample of held-out objects."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from threedim import pixels
from threedim.cameras import Camera
from threedim.data.records import ObjectDataset
from threedim.output import sheets
from threedim.sampling import Sampler


class Preview:
    """A few held-out pairs, the same ones at every call, so that different steps can be compared.

    Args:
      sampler: how views are sampled.
      dataset: held-out objects.
      rows: number of pairs.
      seed: chooses objects, views and noise.
      sharding: over all devices that hold the parameters; all processes of a run sample together.
    """

    def __init__(
        self, sampler: Sampler, dataset: ObjectDataset, *, rows: int, seed: int, sharding: jax.sharding.Sharding
    ):
        rng = np.random.default_rng(seed)
        pairs, cameras = [], []
        for index in rng.permutation(len(dataset))[:rows]:
            views = rng.choice(dataset.num_views(index), 2, replace=False)
            pictures, camera = dataset.views(index, views, sampler.denoiser.network.image_size)
            pairs.append(pictures)
            cameras.append(camera)
        self._pairs = np.stack(pairs)  # (row, 2, height, width, 3)
        self._cameras = Camera.stack(cameras)  # (row, 2)
        self._keys = np.asarray(jax.random.key_data(jax.random.split(jax.random.key(seed), len(pairs))))
        self._sampler, self._sharding = sampler, sharding

    def sample(self, params: Any) -> tuple[np.ndarray, float]:
        """A grid with one row per object: input view, true view, sample; (height, width, 3) uint8.

        And the mean PSNR of the samples, dB.
        """
        inputs, cameras, keys = jax.device_put(
            (pixels.to_float(self._pairs[:, :1]), self._cameras, self._keys), self._sharding
        )
        sampled = self._sampler.sample_views(
            params, inputs, cameras[:, :1], cameras[:, 1:], jax.random.wrap_key_data(keys)
        )
        columns = np.concatenate([self._pairs, pixels.to_uint8(np.asarray(sampled))], axis=1)
        psnr = float(pixels.psnr(columns[:, 2], columns[:, 1]).mean())
        return sheets.make_grid(columns, col_labels=("input", "truth", "sample")), psnr
