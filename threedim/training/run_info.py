"""The settings a run was started with, kept beside its checkpoints in config.json, and what of them may change."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import ml_collections
import numpy as np
from etils import epath

from threedim import files
from threedim.errors import ExistsError, MissingError, UserError
from threedim.training import checkpoints

# Fields that decide what is learned and from which stream of examples: a run goes on only with the same ones.
# "model" stands for every field below it. The fingerprint of the data belongs here too.
FROZEN_FIELDS = ("model", "diffusion", "data.pose", "data.augment", "seed", "train.batch_size")

# Fields that came later: what runs did that do not have them in their config.json.
LATER_FIELDS = {
    "data.augment.orientation": False,
    "data.augment.scale": [1.0, 1.0],
    "data.augment.hue": 0.0,
    "mesh.cpu_devices": 0,
    "model.network": "xunet",
    "model.norm_groups": 32,
    "model.zero_init": True,
    "diffusion.logsnr_shift": 0.0,
    "diffusion.regression": False,
    "sample.conditioning": "stochastic",
    "sample.weights": "",
    "train.init_from": "",
    "train.color_weight": 1.0,
}

_CONFIG_FILE = "config.json"


def write_run_info(workdir: epath.PathLike, config: Mapping[str, Any], data_fingerprint: str) -> None:
    """Writes config.json of a new run: the resolved settings and the data's fingerprint. Call it on process 0.

    Args:
      config: `ml_collections.ConfigDict` or nested dict of numbers, strings, booleans, None and sequences of them.

    Raises:
      FileExistsError: if the folder holds checkpoints already: that run is continued, after `check_run_info`.
      ValueError: if a setting cannot be written as JSON.
    """
    step = checkpoints.latest_step(workdir)
    if step is not None:
        raise ExistsError(
            f"{workdir} holds a run with a checkpoint of step {step}; its {_CONFIG_FILE} is not replaced. Continue "
            "that run, or take another workdir."
        )
    _write_config(workdir, _plain(config), data_fingerprint)


def read_run_info(workdir: epath.PathLike) -> tuple[dict[str, Any], str]:
    """Settings (nested dicts; tuples have become lists) and data fingerprint of a run."""
    path = epath.Path(workdir) / _CONFIG_FILE
    if not path.exists():
        raise MissingError(f"{path} is missing: is {workdir} the workdir of a training run?")
    try:
        content = json.loads(path.read_text())
        return content["config"], content["data_fingerprint"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); it holds the settings of the run") from error


def check_run_info(
    workdir: epath.PathLike,
    config: Mapping[str, Any],
    data_fingerprint: str,
    allow_change: bool = False,
    write: bool = True,
) -> list[str]:
    """Compares a run that is to be continued with what it was started with, and records accepted changes.

    Args:
      config, data_fingerprint: as for `write_run_info`.
      allow_change: accepts changes of `FROZEN_FIELDS` and of the fingerprint as well.
      write: whether config.json is brought up to date; for process 0 only.

    Returns:
      The accepted differences, one line each, such as "train.num_steps: 1000 → 2000".

    Raises:
      ValueError: if a frozen field or the fingerprint differs; lists them all.
      FileNotFoundError: if config.json is missing.
    """
    config = _plain(config)
    old_config, old_fingerprint = read_run_info(workdir)
    old, new = (LATER_FIELDS | flatten(settings) for settings in (old_config, config))
    changed = [name for name in sorted(old.keys() | new.keys()) if _text(old, name) != _text(new, name)]
    lines = {name: f"{name}: {_text(old, name)} → {_text(new, name)}" for name in changed}
    frozen = [lines[name] for name in changed if any(f"{name}.".startswith(f"{field}.") for field in FROZEN_FIELDS)]
    accepted = [line for line in lines.values() if line not in frozen]
    if old_fingerprint != data_fingerprint:
        frozen.append(f"data fingerprint: {old_fingerprint} → {data_fingerprint}")
    if frozen and not allow_change:
        raise UserError(
            f"the run in {workdir} was started with other settings (then → now):\n  "
            + "\n  ".join(frozen)
            + "\nSet them back, take another workdir, or allow the change explicitly."
        )
    if write and (frozen or accepted):
        _write_config(workdir, config, data_fingerprint)
    return frozen + accepted


def _write_config(workdir: epath.PathLike, config: dict[str, Any], data_fingerprint: str) -> None:
    content = {"config": config, "data_fingerprint": data_fingerprint}
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    files.write_atomically(epath.Path(workdir) / _CONFIG_FILE, text + "\n")


def _plain(value: Any, name: str = "") -> Any:
    """The value as JSON reads it back."""
    if isinstance(value, ml_collections.ConfigDict):
        value = value.to_dict()
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{name}.{key}".lstrip(".")) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{name}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise UserError(f"config.{name} = {value!r} ({type(value).__name__}) cannot be written to {_CONFIG_FILE}")


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The settings of nested dicts by their dotted names."""
    flat = {}
    for key, value in config.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _text(flat: dict[str, Any], name: str) -> str:
    if name not in flat:
        return "(absent)"
    value = flat[name]
    # 1 and 1.0 are the same setting.
    value = int(value) if isinstance(value, float) and value.is_integer() else value
    return json.dumps(value, ensure_ascii=False)
