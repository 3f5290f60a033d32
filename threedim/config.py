"""From a config to the plain objects that the rest of the code takes: the one place where these sections are read."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import ml_collections

from threedim.augmentation import Augmentation
from threedim.diffusion import Process
from threedim.errors import UserError
from threedim.models.concat_unet import ConcatUNet
from threedim.models.unet import NetworkDenoiser, UNet
from threedim.models.xunet import XUNet
from threedim.sampling import Settings
from threedim.training import run_info, sharding
from threedim.training.step import Recipe

_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}

NETWORKS = {"xunet": XUNet, "concat_unet": ConcatUNet}

# Settings of the sampler by name; what they do not say is as in ``Settings``.
PRESETS = {
    "paper": {"num_steps": 250},
    "fast": {"num_steps": 32, "solver": "dpm_solver_2m_sde", "guidance_interval": (-1.0, 3.0)},
}


def network(config: ml_collections.ConfigDict) -> UNet:
    """The network of ``config.model``.

    Raises:
      ValueError: on an unknown network or dtype.
    """
    fields = dict(config.model)
    # Runs from before there was a choice say nothing.
    name = fields.pop("network", run_info.LATER_FIELDS["model.network"])
    if name not in NETWORKS:
        raise UserError(f"model.network must be one of {', '.join(NETWORKS)}, got {name!r}")
    if fields["dtype"] not in _DTYPES:
        raise UserError(f"model.dtype must be one of {', '.join(_DTYPES)}, got {fields['dtype']!r}")
    # Tuples, not lists: a network is a key of the compilation cache.
    fields = {name: tuple(value) if isinstance(value, list | tuple) else value for name, value in fields.items()}
    return NETWORKS[name](**{**fields, "dtype": _DTYPES[fields["dtype"]]}, remat=config.train.remat)


def relative_poses(config: ml_collections.ConfigDict) -> bool:
    """Whether the network knows cameras in the coordinates of the pair's clean view."""
    if config.data.pose not in ("absolute", "relative"):
        raise UserError(f'data.pose must be "absolute" or "relative", got {config.data.pose!r}')
    return config.data.pose == "relative"


def denoiser(config: ml_collections.ConfigDict) -> NetworkDenoiser:
    """The network of ``config.model`` as the sampler wants it."""
    return NetworkDenoiser(network(config), relative_poses(config))


def mesh(config: ml_collections.ConfigDict) -> jax.sharding.Mesh:
    """The mesh of ``config.mesh`` over all devices.

    Raises:
      ValueError: on an unknown preset, or if the mesh does not cover the devices.
    """
    m = config.mesh
    if m.preset and m.preset not in sharding.PRESETS:
        raise UserError(f"mesh.preset must be one of {', '.join(sharding.PRESETS)}, got {m.preset!r}")
    data, fsdp = sharding.PRESETS[m.preset or "cpu"]
    return sharding.make_mesh(data if m.data is None else m.data, fsdp if m.fsdp is None else m.fsdp)


def process(config: ml_collections.ConfigDict) -> Process:
    """The diffusion process of ``config.diffusion``."""
    return Process(**config.diffusion)


def recipe(config: ml_collections.ConfigDict) -> Recipe:
    """What the training step needs of ``config.train``, and of ``config.data`` what it does to pairs.

    Raises:
      ValueError: if a setting is out of its range, or a regression is to have unconditional pairs.
    """
    if config.diffusion.get("regression") and config.train.uncond_prob > 0:
        raise UserError(
            "with diffusion.regression nothing is guided, so train.uncond_prob must be 0, got "
            f"{config.train.uncond_prob}"
        )
    t, a = config.train, config.data.augment
    return Recipe(
        batch_size=t.batch_size,
        learning_rate=t.learning_rate,
        warmup_examples=t.warmup_examples,
        adam_b1=t.adam_b1,
        adam_b2=t.adam_b2,
        ema_half_life=t.ema_half_life,
        ema_rampup=t.ema_rampup,
        uncond_prob=t.uncond_prob,
        relative_poses=relative_poses(config),
        augmentation=Augmentation(a.orientation, tuple(a.scale), a.hue),
        seed=config.seed,
        microbatches=t.microbatches,
        color_weight=t.get("color_weight", run_info.LATER_FIELDS["train.color_weight"]),
    )


def sample_settings(config: ml_collections.ConfigDict, num_steps: int | None = None) -> Settings:
    """How ``config.sample`` draws a view: the preset, and what is set beside it; in ``num_steps`` steps if given.

    Raises:
      ValueError: on an unknown preset, a setting out of its range, or one that does not fit ``config.diffusion``.
    """
    s = config.sample
    if s.preset not in PRESETS:
        raise UserError(f"sample.preset must be one of {', '.join(PRESETS)}, got {s.preset!r}")
    names = [field.name for field in dataclasses.fields(Settings)]
    given = {name: s[name] for name in names if s.get(name) is not None}
    fields = PRESETS[s.preset] | given | ({"num_steps": num_steps} if num_steps else {})
    settings = Settings(**{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()})
    settings.check(process(config))
    return settings
