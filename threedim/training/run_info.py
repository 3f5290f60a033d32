"""A run's config.json: the settings of its last step, how they changed, and the fingerprint of its data."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Any

import jax
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
    content |= {"data_fingerprint": data_fingerprint, "history": history, "jax": _jax_settings()}
    content["batch_sizes"] = _batch_sizes(path, step, config.train.batch_size)
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


def resized_at(workdir: epath.PathLike, step: int, batch_size: int) -> tuple[int, int]:
    """For a run that goes on from a step: since which step it has this batch size, and the examples seen by then."""
    sizes = _batch_sizes(epath.Path(workdir) / _FILE, step, batch_size)
    parts = [(end - begin) * size for (begin, size), (end, _) in itertools.pairwise(sizes)]
    return sizes[-1][0], sum(parts)


def _batch_sizes(path: epath.Path, step: int, batch_size: int) -> list[list[int]]:
    """The steps from which a run has had a batch size, and the sizes; the last is the present one."""
    sizes = []
    if step and path.exists():
        content = files.read_json(path)
        with files.interpreting(path, "it holds the settings of the run"):
            sizes = content.get("batch_sizes", [[0, content["config"]["train"]["batch_size"]]])
            sizes = [[int(begin), int(size)] for begin, size in sizes if begin < step]
    return sizes if sizes and sizes[-1][1] == batch_size else [*sizes, [step, batch_size]]


def _jax_settings() -> dict[str, Any]:
    """What the environment may set, and changes results (`main` fixes the others)."""
    return {"default_matmul_precision": jax.config.jax_default_matmul_precision}


def check_run_info(
    workdir: epath.PathLike,
    config: ml_collections.ConfigDict,
    data_fingerprint: str | None = None,
    allow_change: bool = False,
) -> list[str]:
    """Compares the settings of a run with those it is to be resumed with.

    Args:
      workdir: folder of the run.
      config: as now given.
      data_fingerprint: of the present data; None if it is not known yet.
      allow_change: accepts changes of the frozen settings and of the data.

    Returns:
      The accepted differences, one line each, such as "train.num_steps: 1000 → 2000".

    Raises:
      UserError: if a frozen setting (`config.FROZEN`) or the data's fingerprint differs.
    """
    before, fingerprint = read_run_info(workdir)
    after, now = settings_lib.plain(config), fingerprint if data_fingerprint is None else data_fingerprint
    frozen = settings_lib.differences(before, after, only=config_lib.FROZEN, ignore=config_lib.EXECUTION)
    frozen += settings_lib.differences({"data fingerprint": fingerprint}, {"data fingerprint": now})
    if not allow_change:
        advice = "Change them back, use another workdir, or accept the change with --allow_change."
        settings_lib.refuse(f"the run in {workdir} was started with other settings", frozen, advice)
    jax_before = files.read_json(epath.Path(workdir) / _FILE).get("jax", _jax_settings())
    free = settings_lib.differences(before | {"jax": jax_before}, after | {"jax": _jax_settings()})
    return frozen + [line for line in free if line not in frozen]
