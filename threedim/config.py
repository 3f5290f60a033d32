"""The only reader of configurations: from ``ml_collections`` to the plain objects that the rest of the code takes.

A value that one of these objects refuses becomes a `UserError` that names the section of the config.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from threedim import configs, files
from threedim.augmentation import Augmentation
from threedim.diffusion import Process
from threedim.errors import UserError
from threedim.models.concat_unet import ConcatUNet
from threedim.models.unet import NetworkDenoiser, UNet
from threedim.models.xunet import XUNet
from threedim.sampling import Sampler, Settings
from threedim.training import sharding
from threedim.training.step import Recipe

CONFIGS = pathlib.Path(configs.__path__[0])

_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}

NETWORKS = {"xunet": XUNet, "concat_unet": ConcatUNet}

# Sampler presets. Fields that a preset does not set keep the defaults of ``Settings``.
PRESETS = {
    "paper": {"num_steps": 250},
    "fast": {"num_steps": 32, "solver": "dpm_solver_2m_sde", "guidance_interval": (-1.0, 3.0)},
    "draft": {"num_steps": 8, "solver": "dpm_solver_2m_sde", "guidance_interval": (-1.0, 3.0)},
}

# Fields that hold a path.
PATHS = ("data.dir", "data.source", "train.init_from", "sample.object", "sample.weights", "sample.out")
PATHS += ("sample.image", "sample.mask")
PATHS += ("evaluate.views", "evaluate.inception", "evaluate.lpips_backbone", "evaluate.lpips_lin", "evaluate.out")

SEEDS = ("seed", "data.split_seed", "data.procedural.seed", "sample.seed", "sample.objects_seed", "evaluate.seed")

# How a network is computed, not what: what is compared leaves it out.
EXECUTION = ("model.dtype", "model.attention")

# Settings that must not change while a run trains: they decide what is learned, from what, and from which stream of
# examples.
FROZEN = ("model", "diffusion", "data.pose", "data.augment", "seed", "train.batch_size", "train.init_from")


def find(given: str) -> str:
    """What ``--config=FILE[:ARGUMENT]`` or ``--config=NAME[:ARGUMENT]`` stands for, as FILE[:ARGUMENT].

    NAME, such as "srn_cars" or "ablations/regression", is a config of the package. A file of that name comes first.
    """
    name, colon, argument = files.path(given).partition(":")
    packaged = CONFIGS / f"{name}.py"
    is_file = pathlib.Path(name).is_file() or not packaged.is_file()
    return f"{name if is_file else packaged}{colon}{argument}"


def names() -> list[str]:
    """The package's configs, as `find` takes them."""
    paths = sorted(path.relative_to(CONFIGS) for path in CONFIGS.rglob("[!_]*.py"))
    return [path.with_suffix("").as_posix() for path in paths]


def expand_paths(config: ml_collections.ConfigDict) -> None:
    """Replaces ``~`` and environment variables in all paths of a config; see `files.path`."""
    for section, field in (name.split(".") for name in PATHS):
        config[section][field] = files.path(config[section][field])


def check_seeds(config: ml_collections.ConfigDict) -> None:
    """Raises `UserError` if a seed is out of range: JAX takes them modulo 2**32, so that others would be the same."""
    for name in SEEDS:
        *sections, field = name.split(".")
        seed = functools.reduce(lambda node, section: node[section], sections, config)[field]
        if seed is not None and not 0 <= seed < 2**32:
            raise UserError(f"config.{name} must be in [0, 2**32), got {seed}")


def network(config: ml_collections.ConfigDict) -> UNet:
    """The network of ``config.model``."""
    fields = dict(config.model)
    cls = NETWORKS[_choice("model.network", fields.pop("network"), NETWORKS)]
    dtype = _DTYPES[_choice("model.dtype", fields.pop("dtype"), _DTYPES)]
    with _section("model"):
        # Tuples, not lists: a network is a key of the compilation cache.
        fields = {name: tuple(value) if isinstance(value, list | tuple) else value for name, value in fields.items()}
        return cls(**fields, dtype=dtype, remat=config.train.remat)


def missing_fields(config: ml_collections.ConfigDict) -> list[str]:
    """Fields of ``config.model`` and ``config.diffusion`` that the config lacks, but for how a network is computed."""
    fields = {"model": NETWORKS[config.model.network], "diffusion": Process}
    names = [f"{section}.{field.name}" for section, cls in fields.items() for field in dataclasses.fields(cls)]
    elsewhere = {*EXECUTION, "model.remat", "model.parent", "model.name"}
    return [name for name in names if name not in elsewhere and name.split(".")[1] not in config[name.split(".")[0]]]


def denoiser(config: ml_collections.ConfigDict) -> NetworkDenoiser:
    """The network of ``config.model`` as the sampler takes it."""
    return NetworkDenoiser(network(config), _relative_poses(config))


def process(config: ml_collections.ConfigDict) -> Process:
    """The diffusion process of ``config.diffusion``."""
    with _section("diffusion"):
        return Process(**config.diffusion)


def recipe(config: ml_collections.ConfigDict) -> Recipe:
    """The training recipe of ``config.train``, with what ``config.data`` does to pairs."""
    if process(config).regression and config.train.uncond_prob > 0:
        problem = "uncond_prob must be 0 with diffusion.regression, which uses no guidance"
        raise UserError(f"config.train: {problem}; got {config.train.uncond_prob}")
    with _section("data.augment"):
        augmentation = Augmentation(**{k: tuple(v) if k == "scale" else v for k, v in config.data.augment.items()})
    fields = {f.name: config.train[f.name] for f in dataclasses.fields(Recipe) if f.name in config.train}
    with _section("train"):
        return Recipe(**fields, seed=config.seed, relative_poses=_relative_poses(config), augmentation=augmentation)


def sampler_settings(config: ml_collections.ConfigDict, num_steps: int | None = None) -> Settings:
    """The sampler settings of ``config.sample``: its preset, and the fields set beside it.

    ``num_steps`` replaces the number of denoising steps of the config.

    Raises:
      UserError: on an unknown preset, a value out of range, or settings that do not fit ``config.diffusion``.
    """
    s = config.sample
    preset = PRESETS[_choice("sample.preset", s.preset, PRESETS)]
    fields = preset | {f.name: s[f.name] for f in dataclasses.fields(Settings) if s.get(f.name) is not None}
    if num_steps is not None:
        fields["num_steps"] = num_steps
    with _section("sample"):
        settings = Settings(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})
        settings.check(process(config))
    return settings


def sampler(config: ml_collections.ConfigDict, num_steps: int | None = None) -> Sampler:
    """The sampler: network, process and settings; see `sampler_settings`."""
    return Sampler(denoiser(config), process(config), sampler_settings(config, num_steps))


def mesh(config: ml_collections.ConfigDict) -> jax.sharding.Mesh:
    """The mesh of ``config.mesh`` over all devices."""
    m = config.mesh
    data, fsdp = sharding.PRESETS[_choice("mesh.preset", m.preset or "cpu", sharding.PRESETS)]
    with _section("mesh"):
        return sharding.make_mesh(data if m.data is None else m.data, fsdp if m.fsdp is None else m.fsdp)


def _relative_poses(config: ml_collections.ConfigDict) -> bool:
    return _choice("data.pose", config.data.pose, ("absolute", "relative")) == "relative"


def _choice(name: str, value: Any, known: Sequence[str] | Mapping[str, Any]) -> Any:
    if value not in known:
        raise UserError(f"config.{name} must be one of {', '.join(known)}, got {value!r}")
    return value


@contextlib.contextmanager
def _section(name: str) -> Iterator[None]:
    """Turns a ValueError or TypeError about a value into a `UserError` that names the section."""
    try:
        yield
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        raise UserError(f"config.{name}: {error}") from error
