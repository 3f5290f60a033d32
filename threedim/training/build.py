"""From a config to the plain objects that the rest of the code takes: the one place where these sections are read."""

from __future__ import annotations

import jax.numpy as jnp
import ml_collections

from threedim.diffusion import Process
from threedim.models.xunet import XUNet
from threedim.sampling import Settings
from threedim.training.state import Recipe

_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def network(config: ml_collections.ConfigDict) -> XUNet:
    """The network of ``config.model``.

    Raises:
      ValueError: on an unknown dtype.
    """
    fields = dict(config.model)
    if fields["dtype"] not in _DTYPES:
        raise ValueError(f"model.dtype must be one of {', '.join(_DTYPES)}, got {fields['dtype']!r}")
    # Tuples, not lists: a network is a key of the compilation cache.
    fields = {name: tuple(value) if isinstance(value, list | tuple) else value for name, value in fields.items()}
    return XUNet(**{**fields, "dtype": _DTYPES[fields["dtype"]]})


def process(config: ml_collections.ConfigDict) -> Process:
    """The diffusion process of ``config.diffusion``."""
    return Process(**config.diffusion)


def recipe(config: ml_collections.ConfigDict) -> Recipe:
    """What the training step needs of ``config.train``."""
    t = config.train
    return Recipe(
        batch_size=t.batch_size,
        learning_rate=t.learning_rate,
        warmup_examples=t.warmup_examples,
        adam_b1=t.adam_b1,
        adam_b2=t.adam_b2,
        ema_half_life=t.ema_half_life,
        ema_rampup=t.ema_rampup,
        uncond_prob=t.uncond_prob,
        seed=config.seed,
    )


def sample_settings(config: ml_collections.ConfigDict, num_steps: int | None = None) -> Settings:
    """How ``config.sample`` draws a view, in ``num_steps`` steps if given."""
    s = config.sample
    return Settings(num_steps or s.num_steps, s.guidance_weight, s.fresh_uncond_noise)
