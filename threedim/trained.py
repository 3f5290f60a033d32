"""Opens what is trained: the folder of a run, a ``.safetensors`` file, or weights that come with the package."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any

import jax
import ml_collections
from etils import epath

from threedim import config as config_lib
from threedim import files, provenance, weights_file
from threedim import settings as settings_lib
from threedim.errors import MissingError, UserError
from threedim.training import checkpoints, run_info
from threedim.training.step import abstract_params

PyTree = Any

PACKAGED = epath.Path(__file__).parent / "pretrained"


@dataclasses.dataclass(frozen=True)
class Trained:
    """Trained weights that have been found but not read yet."""

    name: str  # of the run or file, for messages
    config: ml_collections.ConfigDict  # what they were trained with
    step: int  # training steps
    identity: str  # sha256 of a file, or of the checksums of a run's averaged parameters
    params: Callable[..., PyTree]  # reads the averaged ones, float32, onto a sharding (the first local device if None)

    def check_config(self, config: ml_collections.ConfigDict) -> None:
        """Raises `UserError` unless ``config`` has the network and process that the weights were trained with."""
        before, now = settings_lib.plain(self.config), settings_lib.plain(config)
        changes = settings_lib.differences(
            before,
            now,
            only=("model", "diffusion", "data.pose"),
            ignore=(*config_lib.EXECUTION, "model.dropout"),
        )
        what, advice = f"{self.name} was trained with other settings", "Use the config that it was trained with."
        settings_lib.refuse(what, changes, advice)

    def check_layers(self, config: ml_collections.ConfigDict) -> None:
        """Raises `UserError` unless layers do what these did, as far as no parameter's shape shows it."""
        fields = ("model.attn_heads", "model.norm_groups")
        changes = settings_lib.differences(settings_lib.plain(self.config), settings_lib.plain(config), only=fields)
        settings_lib.refuse(f"{self.name} was trained with other layers", changes, "Use the values before.")


def open_trained(source: epath.PathLike, step: int | None = None) -> Trained:
    """Finds trained weights.

    Args:
      source: the folder of a run or a ``.safetensors`` file, local or gs://; or the name of weights that come with the
        package, such as "shapes64": a word without suffix that is no file or folder in the working directory.
      step: checkpoint of the run; the newest if None, the one with the lowest held-out loss if -1.

    Raises:
      MissingError: if there is no such run, checkpoint, file or name.
      UserError: if config.json or the file is damaged, or ``step`` is given for a file.
    """
    path = epath.Path(source)
    if not weights_file.is_weights_file(path) and (path.exists() or os.sep in os.fspath(path) or path.suffix):
        return open_run(path, step)
    if step is not None:
        raise UserError(f"{source} holds the weights of a single step; a checkpoint step cannot be chosen")
    if not weights_file.is_weights_file(path):
        path = PACKAGED / f"{source}{weights_file.SUFFIX}"
        if not path.exists():
            kinds = f"neither a run's folder, nor a {weights_file.SUFFIX} file, nor the name of packaged weights"
            raise MissingError(f"{source}: {kinds} ({', '.join(packaged_names())})")
    info, identity = weights_file.read_info(path), provenance.file_identity(path)["sha256"]
    load = functools.partial(weights_file.load_weights, path)
    return Trained(f"the network in {source}", info.config, info.training_steps, identity, load)


def read(find: Callable[[], Trained], sharding: jax.sharding.Sharding | None = None) -> tuple[Trained, PyTree]:
    """Finds weights and reads them; finds others if a running trainer has removed the checkpoint meanwhile."""
    trained = find()
    while True:
        try:
            return trained, trained.params(sharding)
        except UserError:
            before, trained = trained, find()
            if trained.step == before.step:
                raise


def open_run(workdir: epath.PathLike, step: int | None = None) -> Trained:
    """Finds the weights of a run; see `open_trained`."""
    step = checkpoints.find_step(workdir, step)
    with files.interpreting(epath.Path(workdir) / "config.json", "it holds the settings of the run"):
        config = ml_collections.ConfigDict(run_info.read_run_info(workdir)[0])
        config_lib.sampler(config)

    def params(sharding: jax.sharding.Sharding | None = None) -> PyTree:
        shapes = abstract_params(config_lib.network(config))
        placed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)
        return checkpoints.restore_params(workdir, placed, step)

    return Trained(f"the run in {workdir}", config, step, checkpoints.identity(workdir, step), params)


def packaged_names() -> list[str]:
    """Names of the weights that come with the package."""
    return sorted(path.stem for path in PACKAGED.glob(f"*{weights_file.SUFFIX}"))
