"""Command-line flags of the programs that fit neural fields to folders of views."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax

from threedim import compilation_cache, files
from threedim.consistency.field import FieldSettings
from threedim.data.views import ReadSettings
from threedim.errors import UserError

# Rays per step on a CPU, where all pixels would take hours.
CPU_RAYS_PER_STEP = 1536


def add_fit_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that `fit_settings` reads, and --seed."""
    add = parser.add_argument
    add("--seed", type=int, default=0, help="Seed of the fits.")
    add("--rays_per_step", type=int, help=f"Random rays per step; 0 for all pixels of all views. Defaults to "
        f"{CPU_RAYS_PER_STEP} on a CPU, else 0. Only rows with equal numbers compare.")  # fmt: skip
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="Change a frozen field setting; repeatable.")
    add("--data", action="append", default=[], metavar="NAME=VALUE", help="How folders are read, as --config.data.NAME "
        "of threedim.main, such as axes=opengl or fit=pad; repeatable.")  # fmt: skip
    cache = "Folder of compiled programs; empty for none."
    add("--compilation_cache", type=files.path, default="~/.cache/threedim/xla", help=cache)


def fit_settings(given: argparse.Namespace) -> tuple[FieldSettings, ReadSettings]:
    """The settings of a fit, and how folders are read; turns the compilation cache on.

    Raises:
      UserError: if a name or a value is wrong.
    """
    compilation_cache.use(given.compilation_cache)
    read = ReadSettings(**changes("--data", given.data, dataclasses.asdict(ReadSettings())))
    return field_settings(given.rays_per_step, given.set), read


def field_settings(rays_per_step: int | None, given: Sequence[str]) -> FieldSettings:
    """The frozen settings with changes, NAME=VALUE."""
    defaults = dataclasses.asdict(FieldSettings())
    changed = changes("--set", given, defaults)
    if rays_per_step is None:
        rays_per_step = CPU_RAYS_PER_STEP if jax.default_backend() == "cpu" else defaults["rays_per_step"]
    try:
        return FieldSettings(**{"rays_per_step": rays_per_step} | changed)
    except ValueError as error:
        raise UserError(f"--set: {error}") from error


def changes(flag: str, given: Sequence[str], defaults: dict[str, Any]) -> dict[str, Any]:
    """The values of NAME=VALUE, of the same types as the defaults; None stands for a truth value."""
    changed = {}
    for change in given:
        name, _, value = change.partition("=")
        if name not in defaults:
            raise UserError(f"{flag} {change}: no setting {name!r}; the settings are {', '.join(defaults)}")
        is_bool = defaults[name] is None or isinstance(defaults[name], bool)
        if is_bool and value not in ("True", "False"):
            raise UserError(f"{flag} {change}: expected True or False")
        try:
            changed[name] = value == "True" if is_bool else type(defaults[name])(value)
        except ValueError as error:
            raise UserError(f"{flag} {change}: {error}") from error
    return changed
