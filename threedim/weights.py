"""Trained weights as one file: what is needed to draw views, and where it comes from.

    python -m threedim.weights --workdir=runs/demo --out=demo.safetensors

A ``.safetensors`` file of this project holds the averaged parameters by path ("down_blocks_0_0/Conv_0/kernel"), all in
bfloat16 or all in float32, and one entry of metadata, "threedim": JSON with the format's version, the whole config,
training steps, commit, card, and a checksum of each array. Reading it executes nothing that is in it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections
import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy
from etils import epath

from threedim import config as config_lib
from threedim import files, provenance
from threedim.errors import ExistsError, MissingError, UserError
from threedim.training import checkpoints, leaves, run_info
from threedim.training.step import abstract_params

PyTree = Any

SUFFIX = ".safetensors"
VERSION = 1

_DTYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float32": np.dtype(np.float32)}
_FORMAT_NAMES = {"BF16": "bfloat16", "F32": "float32"}  # safetensors' own
_KEY = "threedim"
_MAX_HEADER = 100_000_000  # bytes, the format's own limit
_MAX_LISTED = 20


class WeightsError(UserError):
    """A file of weights could not be read, or would not be readable; the message names the file and the cause."""


@dataclasses.dataclass(frozen=True)
class WeightsInfo:
    """What a file says about its parameters.

    Attributes:
      config: of the run that trained them, whole; tuples have become lists.
      training_steps: behind them.
      commit: of the code that wrote the file, "" if that was in no checkout.
      card: anything else worth saying: data, scores, licence.
    """

    config: ml_collections.ConfigDict
    training_steps: int
    commit: str
    card: dict[str, Any]


def is_weights_file(path: epath.PathLike) -> bool:
    """Whether a path names a file of weights, and not the folder of a run."""
    return epath.Path(path).suffix == SUFFIX


def save_weights(
    path: epath.PathLike,
    params: PyTree,
    config: Mapping[str, Any],
    *,
    training_steps: int,
    card: Mapping[str, Any] | None = None,
    dtype: str = "bfloat16",
    overwrite: bool = False,
) -> int:
    """Writes a file that `load_weights` reads; the same arguments give the same bytes.

    Args:
      path: to write, local or gs://; ends in ".safetensors".
      params: parameters of the network of ``config``.
      config: of the run, `ml_collections.ConfigDict` or nested dict.
      training_steps: behind the parameters.
      card: what else is to be said, as JSON can hold it.
      dtype: "bfloat16", to which they are rounded, or "float32".
      overwrite: replaces an existing file.

    Returns:
      The size of the file in bytes.

    Raises:
      FileExistsError: if the file is there and not to be replaced.
      ValueError: on another ending or dtype, or if config or card cannot be written as JSON.
      WeightsError: if the parameters do not fit the network, or one is not finite.
    """
    path = epath.Path(path)
    _check_target(path, overwrite)
    if dtype not in _DTYPES:
        raise UserError(f"dtype of weights must be one of {', '.join(_DTYPES)}, got {dtype!r}")
    settings = json.loads(config.to_json()) if isinstance(config, ml_collections.ConfigDict) else dict(config)
    with np.errstate(over="ignore"):  # told as not finite
        arrays = {name: np.asarray(leaf).astype(_DTYPES[dtype]) for name, leaf in leaves.by_path(params).items()}
    commit = provenance.commit()
    metadata = {
        "version": VERSION,
        "config": settings,
        "training_steps": int(training_steps),
        "commit": f"{commit['hash']}{' with changes' if commit['modified'] else ''}" if commit else "",
        "card": dict(card or {}),
        "checksums": leaves.checksums(arrays),
    }
    try:
        text = json.dumps(metadata, sort_keys=True, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: config or card cannot be written as JSON: {error}") from error
    _check_arrays(path, _info(path, metadata).config, arrays)
    # One entry, not one for each field: safetensors writes several in an order that changes from time to time.
    data = safetensors.numpy.save(arrays, metadata={_KEY: text})
    files.write_atomically(path, data)
    return len(data)


def read_info(path: epath.PathLike) -> WeightsInfo:
    """What a file says about its parameters; reads only the beginning.

    Raises:
      FileNotFoundError: if there is no such file.
      WeightsError: if it is damaged, of another version, or not one of this project.
    """
    path = epath.Path(path)
    return _info(path, _read_metadata(path))


def load_weights(path: epath.PathLike, sharding: jax.sharding.Sharding | None = None) -> tuple[WeightsInfo, PyTree]:
    """Reads a file that `save_weights` wrote.

    Args:
      path: local or gs://.
      sharding: of all parameters; without one, the first local device.

    Returns:
      What the file says, and the parameters of the network of its config, float32.

    Raises:
      FileNotFoundError: if there is no such file.
      WeightsError: if it is damaged, of another version, or not one of this project; if arrays are missing, left over,
        of a wrong shape or dtype, or hold what is not finite. Names the file and the arrays.
    """
    path = epath.Path(path)
    metadata = _read_metadata(path)
    info = _info(path, metadata)
    try:
        content = safetensors.deserialize(path.read_bytes())
    except safetensors.SafetensorError as error:
        raise _damaged(path, str(error)) from error
    wrong = [f"{name}: {c['dtype']}" for name, c in content if c["dtype"] not in _FORMAT_NAMES]
    if wrong:
        raise WeightsError(f"{path}: arrays must be {' or '.join(_DTYPES)}, but there are\n  {_listed(wrong)}")
    arrays = {
        name: np.frombuffer(c["data"], _DTYPES[_FORMAT_NAMES[c["dtype"]]]).reshape(c["shape"]) for name, c in content
    }
    shapes = _check_arrays(path, info.config, arrays)
    sums = leaves.checksums(arrays)
    changed = [name for name in arrays if metadata["checksums"].get(name) != sums[name]]
    if changed:
        raise _damaged(path, f"numbers have changed since writing in\n  {_listed(changed)}")
    params = [arrays[name].astype(np.float32) for name in leaves.by_path(shapes)]
    return info, jax.device_put(jax.tree.unflatten(jax.tree.structure(shapes), params), sharding)


def _read_metadata(path: epath.Path) -> dict[str, Any]:
    if not path.is_file():
        raise MissingError(f"{path}: no such file of weights")
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(min(length, _MAX_HEADER))
    if not 0 < length <= _MAX_HEADER or len(header) < length:
        raise _damaged(path, "its header is cut off or not one of a .safetensors file")
    try:
        entries = json.loads(header).get("__metadata__", {})
        metadata = json.loads(entries[_KEY]) if _KEY in entries else None
    except (ValueError, AttributeError, TypeError) as error:
        raise _damaged(path, f"its header cannot be read: {error}") from error
    if metadata is None:
        raise WeightsError(f"{path} holds no weights of this project: its metadata has no {_KEY!r}")
    return metadata


def _info(path: epath.Path, metadata: Any) -> WeightsInfo:
    kinds = {"version": int, "config": dict, "training_steps": int, "commit": str, "card": dict, "checksums": dict}
    found = metadata if isinstance(metadata, dict) else {}
    if isinstance(found.get("version"), int) and found["version"] != VERSION:
        raise WeightsError(f"{path} has version {found['version']} of the format; this code reads version {VERSION}")
    wrong = [name for name, kind in kinds.items() if not isinstance(found.get(name), kind)]
    if wrong:
        raise _damaged(path, f"its metadata has no valid {', '.join(wrong)}")
    config = ml_collections.ConfigDict(found["config"])
    try:
        config_lib.denoiser(config)
        config_lib.process(config)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{path}: its config describes no network that this code knows: {error}") from error
    return WeightsInfo(config, found["training_steps"], found["commit"], found["card"])


def _check_arrays(path: epath.Path, config: ml_collections.ConfigDict, arrays: Mapping[str, np.ndarray]) -> PyTree:
    """The parameters' shapes in their tree; raises WeightsError unless the arrays are those parameters."""
    shapes = abstract_params(config_lib.network(config))
    wanted = leaves.by_path(shapes)
    problems = []
    for name in sorted(wanted.keys() | arrays.keys()):
        if name not in arrays:
            problems.append(f"{name}: missing, should be {list(wanted[name].shape)}")
        elif name not in wanted:
            problems.append(f"{name}: {list(arrays[name].shape)}, but the network has no such parameter")
        elif arrays[name].shape != wanted[name].shape:
            problems.append(f"{name}: {list(arrays[name].shape)} instead of {list(wanted[name].shape)}")
    if problems:
        raise WeightsError(f"{path} does not fit the network of its config:\n  {_listed(problems)}")
    dtypes = {array.dtype.name for array in arrays.values()}
    if len(dtypes) > 1:
        raise WeightsError(f"{path}: arrays must be all of one dtype, but there are {' and '.join(sorted(dtypes))}")
    bad = [name for name, array in arrays.items() if not np.isfinite(array.astype(np.float32)).all()]
    if bad:
        raise WeightsError(f"{path}: numbers that are not finite in\n  {_listed(bad)}")
    return shapes


def _check_target(path: epath.Path, overwrite: bool) -> None:
    if not is_weights_file(path):
        raise UserError(f"a file of weights must end in {SUFFIX}, got {path}")
    if path.exists() and not overwrite:
        raise ExistsError(f"{path} is there already: name another file, or replace it with --overwrite")


def _damaged(path: epath.Path, problem: str) -> WeightsError:
    return WeightsError(f"{path} is damaged: {problem}. Get or write it again.")


def _listed(lines: Sequence[str]) -> str:
    more = [f"and {len(lines) - _MAX_LISTED} more"] if len(lines) > _MAX_LISTED else []
    return "\n  ".join([*lines[:_MAX_LISTED], *more])


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: the averaged parameters of a run as one file."""
    parser = argparse.ArgumentParser(prog="python -m threedim.weights", description=main.__doc__)
    parser.add_argument("--workdir", required=True, help="folder of the run, local or gs://")
    parser.add_argument("--out", required=True, help=f"file to write, ending in {SUFFIX}")
    parser.add_argument("--step", type=int, help="which checkpoint; the newest if not given")
    parser.add_argument("--dtype", default="bfloat16", choices=_DTYPES, help="bfloat16 (default) is half as large")
    parser.add_argument("--card", help="JSON file with an object that goes into the file: data, scores, licence")
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it is there")
    given = parser.parse_args(argv)
    try:
        _check_target(epath.Path(given.out), given.overwrite)
        card = _read_card(epath.Path(given.card)) if given.card else {}
        config = ml_collections.ConfigDict(run_info.read_run_info(given.workdir)[0])
        step = checkpoints.latest_step(given.workdir) if given.step is None else given.step
        if step is None:
            raise MissingError(f"no checkpoint in {given.workdir}")
        params = checkpoints.restore_params(given.workdir, abstract_params(config_lib.network(config)), step=step)
        size = save_weights(
            given.out,
            params,
            config,
            training_steps=step,
            card=card,
            dtype=given.dtype,
            overwrite=given.overwrite,
        )
    except UserError as error:
        sys.exit(f"error: {error}")
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    print(f"{given.out}: {count:,} parameters of step {step:,} in {given.dtype}, {size / 1e6:.2f} MB")


def _read_card(path: epath.Path) -> dict[str, Any]:
    if not path.is_file():
        raise MissingError(f"{path}: no such card")
    try:
        card = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not a JSON file ({error})") from error
    if not isinstance(card, dict):
        raise UserError(f"{path}: a card must be a JSON object, got a {type(card).__name__}")
    return card


if __name__ == "__main__":
    main()
