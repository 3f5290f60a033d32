"""A trained network with all that is needed to draw views: what notebooks use."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath

from threedim import config as config_lib
from threedim import pretrained, weights
from threedim.cameras import Camera
from threedim.diffusion import Process
from threedim.errors import MissingError, UserError
from threedim.models.unet import NetworkDenoiser
from threedim.output import images
from threedim.sampling import Settings, sample_views
from threedim.training import checkpoints, run_info
from threedim.training.step import abstract_params


@dataclasses.dataclass(frozen=True)
class Model:
    """A trained 3DiM.

    Attributes:
      denoiser: the network and how it knows cameras.
      params: its averaged parameters.
      process: the diffusion process that it was trained for.
      settings: the steps and guidance of its config.
      step: training steps behind it.
    """

    denoiser: NetworkDenoiser
    params: Any
    process: Process
    settings: Settings
    step: int

    def sample(
        self,
        views: np.ndarray,
        cameras: Camera,
        targets: Camera,
        *,
        seed: int = 0,
        settings: Settings | None = None,
        on_view: Callable[[int, np.ndarray], None] | None = None,
    ) -> np.ndarray:
        """Draws new views of one object, each of which joins the known ones [2.2].

        Args:
          views: known pictures, (height, width, 3) or (inputs, height, width, 3) uint8, of the network's image size.
          cameras: their cameras, one or with axes (inputs,), in OpenCV axes; K in pixels of the pictures.
          targets: cameras to draw, axes (views,).
          seed: decides the noise.
          settings: instead of the model's own.
          on_view: called with the index and the (height, width, 3) uint8 picture of each view as it is finished.

        Returns:
          (views, height, width, 3) uint8.

        Raises:
          ValueError: if pictures and cameras do not fit together or the network.
        """
        views = np.asarray(views)
        if views.ndim == 3:
            views = views[None]
        if cameras.t.ndim == 1:
            cameras = Camera.stack([cameras])
        size = self.denoiser.network.image_size
        if views.dtype != np.uint8 or views.shape[1:] != (size, size, 3):
            raise UserError(f"views must be uint8 (inputs, {size}, {size}, 3), got {views.dtype} {views.shape}")
        if targets.t.ndim != 2:
            raise UserError(f"targets must have axes (views,), got {targets.t.shape[:-1]}")

        def report(index: int, picture: jax.Array) -> None:
            on_view(index, images.to_uint8(np.asarray(picture[0])))

        drawn = sample_views(
            self.denoiser,
            self.params,
            images.to_float(views)[None],
            jax.tree.map(lambda leaf: leaf[None], cameras),
            jax.tree.map(lambda leaf: leaf[None], targets),
            jax.random.key(seed)[None],
            process=self.process,
            settings=settings or self.settings,
            on_view=report if on_view else None,
        )
        return images.to_uint8(np.asarray(drawn[0]))


def load(path: epath.PathLike, step: int | None = None) -> Model:
    """Loads the averaged weights of a training run.

    Args:
      path: folder of the run, or a .safetensors file made of it (`threedim.weights`), local or gs://; or the name of
        weights that come with the package, such as "shapes64".
      step: which checkpoint of the run; the newest if None.

    Raises:
      FileNotFoundError: if there is no run, no such checkpoint, no such file or no such name.
      CheckpointError, WeightsError: if the checkpoint or the file is damaged.
      ValueError: if a step of a file is asked for.
    """
    path = pretrained.resolve(path)
    if weights.is_weights_file(path):
        if step is not None:
            raise UserError(f"{path} holds the weights of one step; step={step} asks for another thing")
        info, params = weights.load_weights(path)
        denoiser, step = config_lib.denoiser(info.config), info.training_steps
        return Model(denoiser, params, config_lib.process(info.config), config_lib.sample_settings(info.config), step)
    saved, _ = run_info.read_run_info(path)
    config = ml_collections.ConfigDict(saved)
    denoiser = config_lib.denoiser(config)
    if step is None:
        step = checkpoints.latest_step(path)
    if step is None:
        raise MissingError(f"no checkpoint in {path}")
    params = checkpoints.restore_params(path, abstract_params(denoiser.network), step=step)
    return Model(denoiser, params, config_lib.process(config), config_lib.sample_settings(config), step)
