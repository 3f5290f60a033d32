"""Pictures to look at while training: input view, truth and sample of objects that training does not see."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from threedim.cameras import Camera
from threedim.data.records import ObjectDataset
from threedim.diffusion import Process
from threedim.models.unet import NetworkDenoiser
from threedim.output import images
from threedim.sampling import Settings, sample_views


class Preview:
    """A few held-out pairs, the same ones at every call, so that grids of different steps can be compared.

    Args:
      denoiser, process, settings: as for ``sample_views``.
      dataset: held-out objects.
      rows: how many pairs.
      seed: chooses objects, views and noise.
      sharding: over all the devices that hold the parameters; of one run, all processes draw together.
    """

    def __init__(
        self,
        denoiser: NetworkDenoiser,
        process: Process,
        settings: Settings,
        dataset: ObjectDataset,
        *,
        rows: int,
        seed: int,
        sharding: jax.sharding.Sharding,
    ):
        rng = np.random.default_rng(seed)
        objects = rng.permutation(len(dataset))[:rows]
        pairs, cameras = [], []
        for index in objects:
            views = rng.choice(dataset.num_views(index), 2, replace=False)
            pictures, camera = dataset.views(index, views, denoiser.network.image_size)
            pairs.append(pictures)
            cameras.append(camera)
        self._pairs = np.stack(pairs)  # (row, 2, height, width, 3)
        self._cameras = Camera.stack(cameras)  # (row, 2)
        self._denoiser, self._process, self._settings = denoiser, process, settings
        self._keys = np.asarray(jax.random.key_data(jax.random.split(jax.random.key(seed), len(objects))))
        self._sharding = sharding

    def draw(self, params: Any) -> np.ndarray:
        """A grid, one row per object: input view, truth, sample; (height, width, 3) uint8."""
        inputs, cameras, keys = jax.device_put(
            (images.to_float(self._pairs[:, :1]), self._cameras, self._keys), self._sharding
        )
        drawn = sample_views(
            self._denoiser,
            params,
            inputs,
            cameras[:, :1],
            cameras[:, 1:],
            jax.random.wrap_key_data(keys),
            process=self._process,
            settings=self._settings,
        )
        columns = np.concatenate([self._pairs, images.to_uint8(np.asarray(drawn))], axis=1)
        return images.make_grid(columns, col_labels=("input", "truth", "sample"))
