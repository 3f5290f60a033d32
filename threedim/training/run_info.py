"""A run's config.json: the settings of its last step, how they changed, and the fingerprint of its data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import ml_collections
from etils import epath

from threedim import config as config_lib
from threedim import files
from threedim import settings as settings_lib
from threedim.errors import MissingError

_FILE = "config.json"


def write_run_info(
    workdir: epath.PathLike,
    config: ml_collections.ConfigDict,
    data_fingerprint: str,
    step: int = 0,
    changes: Sequence[str] = (),
) -> None:
    """Writes config.json, with the changes that were made at this step and at earlier ones. Call it on process 0."""
    path, content = epath.Path(workdir) / _FILE, {"config": settings_lib.plain(config)}
    history = files.read_json(path).get("history", []) if path.exists() else []
    content |= {"data_fingerprint": data_fingerprint, "history": history}
    if changes:
        content["history"] = [*history, {"step": step, "changes": list(changes)}]
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False)
    files.write_atomically(path, text + "\n")


def read_run_info(workdir: epath.PathLike) -> tuple[dict[str, Any], str]:
    """Settings (nested dicts; tuples have become lists) and data fingerprint of a run.

    Raises:
      MissingError: if config.json does not exist.
      UserError: if it is damaged.
    """
    path = epath.Path(workdir) / _FILE
    if not path.exists():
        raise MissingError(f"{path} is missing: is {workdir} the workdir of a training run?")
    content = files.read_json(path)
    with files.interpreting(path, "it holds the settings of the run"):
        config, fingerprint = content["config"], content["data_fingerprint"]
        if not isinstance(config, dict) or not isinstance(fingerprint, str):
            raise TypeError("config must be an object and data_fingerprint a text")
        return config, fingerprint


def check_run_info(
    workdir: epath.PathLike, config: ml_collections.ConfigDict, data_fingerprint: str, allow_change: bool = False
) -> list[str]:
    """Compares the settings of a run with those it is to be resumed with.

    Args:
      workdir: folder of the run.
      config, data_fingerprint: as now given.
      allow_change: accepts changes of the frozen settings and of the data.

    Returns:
      The accepted differences, one line each, such as "train.num_steps: 1000 → 2000".

    Raises:
      UserError: if a frozen setting (`config.FROZEN`) or the data's fingerprint differs.
    """
    before, fingerprint = read_run_info(workdir)
    after = settings_lib.plain(config)
    frozen = settings_lib.differences(before, after, only=config_lib.FROZEN, ignore=config_lib.EXECUTION)
    frozen += settings_lib.differences({"data fingerprint": fingerprint}, {"data fingerprint": data_fingerprint})
    if not allow_change:
        advice = "Change them back, use another workdir, or accept the change with --allow_change."
        settings_lib.refuse(f"the run in {workdir} was started with other settings", frozen, advice)
    return frozen + [line for line in settings_lib.differences(before, after) if line not in frozen]
