"""The library in a few lines: load trained weights, sample views of a picture, look at them, save them."""

from __future__ import annotations

import dataclasses
import functools
import html
import os
import pathlib
import sys
import tempfile
import webbrowser
from collections.abc import Callable, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath

from threedim import config as config_lib
from threedim import files, pixels
from threedim.cameras import Camera
from threedim.errors import UserError
from threedim.output import object_folder, page
from threedim.photos import View
from threedim.progress import Progress
from threedim.sampling import Sampler, Settings
from threedim.trained import open_trained, read

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Model:
    """A trained 3DiM."""

    sampler: Sampler  # network, process, and the sampler settings of its config
    params: PyTree  # averaged parameters
    config: ml_collections.ConfigDict  # what it was trained with
    step: int  # training steps

    def sample(
        self,
        views: View | Sequence[View],
        targets: Camera | Callable[[Camera], Camera],
        *,
        seed: int = 0,
        settings: Settings | None = None,
        progress: bool = False,
    ) -> Sampled:
        """Samples novel views of one object one after another; each one joins the conditioning views [2.2].

        Compiles once for each number of input and target views.

        Args:
          views: one or more known views, which are resized to the network's image size.
          targets: cameras to sample, axes (views,); or a function that returns them for the camera of the first view,
            such as ``threedim.orbit(24)``.
          seed: random seed.
          settings: sampler settings instead of the model's own.
          progress: shows a progress bar.

        Raises:
          UserError: if there is no view, or the targets are no cameras.
        """
        size = self.sampler.denoiser.network.image_size
        known = [view.resized(size) for view in ([views] if isinstance(views, View) else views)]
        if not known:
            raise UserError("sampling needs at least one view")
        targets = targets(known[0].camera) if callable(targets) else targets
        if targets.t.ndim != 2:
            raise UserError(f"targets must have axes (views,), got {targets.t.shape[:-1]}")
        sampler = dataclasses.replace(self.sampler, settings=settings) if settings else self.sampler
        inputs, cameras = np.stack([view.image for view in known]), Camera.stack([view.camera for view in known])
        batch = jax.tree.map(lambda leaf: leaf[None], (pixels.to_float(inputs), cameras, targets, jax.random.key(seed)))
        with Progress(len(targets), desc="views", enabled=progress) as bar:
            sampled = sampler.sample_views(self.params, *batch, on_view=lambda *_: bar.advance())
        used = dataclasses.asdict(sampler.settings) | {"seed": seed}
        return Sampled(pixels.to_uint8(np.asarray(sampled[0])), targets, inputs, cameras, used)


@dataclasses.dataclass(frozen=True, eq=False)
class Sampled:
    """Sampled views of one object. In a notebook it shows the object, which turns."""

    images: np.ndarray  # (views, height, width, 3) uint8
    cameras: Camera  # axes (views,)
    inputs: np.ndarray  # the known views, (inputs, height, width, 3) uint8
    input_cameras: Camera  # axes (inputs,)
    settings: dict[str, Any]  # sampler settings and seed

    def save(self, folder: epath.PathLike) -> None:
        """Writes views, cameras, animation, video and page to a new folder, as ``--mode=sample`` does for an object.

        Raises:
          ExistsError: if the folder exists.
        """
        views = (self.inputs, self.input_cameras, self.images, self.cameras)
        object_folder.write(files.path(os.fspath(folder)), *views, settings=self.settings)

    def show(self) -> None:
        """Shows the page: in a notebook below the cell, elsewhere in a browser."""
        if "IPython" in sys.modules and sys.modules["IPython"].get_ipython() is not None:
            sys.modules["IPython"].display.display(self)
            return
        with tempfile.NamedTemporaryFile("w", suffix=".html", delete=False, encoding="utf-8") as file:
            file.write(self._page())
        webbrowser.open(pathlib.Path(file.name).as_uri())

    def _page(self) -> str:
        views = (self.inputs, self.input_cameras, self.images[None], self.cameras)
        return page.render("Sampled views", *views, settings=self.settings)

    def _repr_html_(self) -> str:
        return f'<iframe srcdoc="{html.escape(self._page())}" width="100%" height="760" frameborder="0"></iframe>'


def load(source: epath.PathLike, step: int | None = None) -> Model:
    """Loads a trained model; arguments and errors as for `open_trained`."""
    found, params = read(functools.partial(open_trained, files.path(os.fspath(source)), step))
    return Model(config_lib.sampler(found.config), params, found.config, found.step)
