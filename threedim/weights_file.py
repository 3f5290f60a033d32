"""Trained weights as one ``.safetensors`` file. Reading it executes nothing.

The file holds the averaged parameters by path ("down_blocks_0_0/res/conv1/kernel"), all in bfloat16 or all in float32,
and one metadata entry, "threedim": JSON with the format's version, the whole config, training steps, commit, card, a
checksum of each array, and one of all this.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy
from etils import epath

from threedim import arrays as arrays_lib
from threedim import config as config_lib
from threedim import files, provenance
from threedim import settings as settings_lib
from threedim.errors import ExistsError, MissingError, UserError
from threedim.training.step import abstract_params

PyTree = Any

SUFFIX = ".safetensors"
VERSION = 2

DTYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float32": np.dtype(np.float32)}
_FORMATS = {"BF16": DTYPES["bfloat16"], "F32": DTYPES["float32"]}  # as safetensors calls them
_KEY = "threedim"
_MAX_HEADER = 100_000_000  # bytes, the limit of the format


class WeightsError(UserError):
    """A weights file cannot be read or written; the message names the file and the cause."""


@dataclasses.dataclass(frozen=True)
class WeightsInfo:
    """The metadata of a weights file."""

    config: ml_collections.ConfigDict  # the whole config of the training run; tuples have become lists
    training_steps: int
    commit: str  # of the code that wrote the file; "" if it was not a git checkout
    card: dict[str, Any]  # data, scores, license and anything else, as JSON


def is_weights_file(path: epath.PathLike) -> bool:
    """Whether a path names a weights file rather than the folder of a run."""
    return epath.Path(path).suffix == SUFFIX


def check_new_file(path: epath.PathLike, overwrite: bool) -> None:
    """Raises unless a weights file may be written to ``path``."""
    if not is_weights_file(path):
        raise UserError(f"a weights file must end in {SUFFIX}, got {path}")
    if epath.Path(path).exists() and not overwrite:
        raise ExistsError(f"{path} exists: choose another file, or replace it with --overwrite")


def save_weights(
    path: epath.PathLike,
    params: PyTree,
    config: ml_collections.ConfigDict | Mapping[str, Any],
    *,
    training_steps: int,
    card: Mapping[str, Any] | None = None,
    dtype: str = "bfloat16",
    overwrite: bool = False,
) -> int:
    """Writes a weights file. The same arguments give the same bytes.

    Args:
      path: local or gs://; ends in ".safetensors".
      params: parameters of the network of ``config``, which is the whole config of the run.
      card: further information, as JSON can hold it.
      dtype: "bfloat16" (rounded) or "float32".

    Returns:
      The size of the file in bytes.

    Raises:
      ExistsError: if the file exists.
      UserError: on another suffix or dtype, or if config or card cannot be written as JSON.
      WeightsError: if the parameters do not fit the network, or are not finite.
    """
    path = epath.Path(path)
    check_new_file(path, overwrite)
    if dtype not in DTYPES:
        raise UserError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    with np.errstate(over="ignore"):  # reported as not finite
        arrays = {name: np.asarray(leaf).astype(DTYPES[dtype]) for name, leaf in arrays_lib.by_path(params).items()}
    commit = provenance.commit()
    metadata = {
        "version": VERSION,
        "config": settings_lib.plain(config),
        "training_steps": int(training_steps),
        "commit": f"{commit['hash']}{' with changes' if commit['modified'] else ''}" if commit else "",
        "card": settings_lib.plain(dict(card or {})),
        "checksums": arrays_lib.checksums(arrays),
    }
    metadata = sealed(metadata)
    _check_arrays(path, _info(path, metadata, len(arrays)).config, arrays)
    # One entry: safetensors writes several in no fixed order.
    data = safetensors.numpy.save(arrays, metadata={_KEY: json.dumps(metadata, sort_keys=True, ensure_ascii=False)})
    files.write_atomically(path, data)
    return len(data)


def read_info(path: epath.PathLike) -> WeightsInfo:
    """The metadata of a weights file; does not read the arrays.

    Raises:
      MissingError: if the file does not exist.
      WeightsError: if it is damaged, has another version, or is not of this project.
    """
    path = epath.Path(path)
    return _info(path, *_read_metadata(path))


def sealed(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata with the checksum of everything in it."""
    rest = {name: value for name, value in metadata.items() if name != "checksum"}
    return rest | {"checksum": hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()}


def load_weights(path: epath.PathLike, sharding: jax.sharding.Sharding | None = None) -> PyTree:
    """Reads the float32 parameters of a weights file onto a sharding, or onto the first local device.

    Raises:
      MissingError: if the file does not exist.
      WeightsError: if it is damaged, has another version, or its arrays do not fit its config.
    """
    path = epath.Path(path)
    metadata, count = _read_metadata(path)
    info = _info(path, metadata, count)
    try:
        content = safetensors.deserialize(path.read_bytes())
    except safetensors.SafetensorError as error:
        raise _damaged(path, str(error)) from error
    if wrong := [f"{name}: {c['dtype']}" for name, c in content if c["dtype"] not in _FORMATS]:
        raise WeightsError(f"{path}: arrays must be {' or '.join(DTYPES)}, but found\n  {arrays_lib.listed(wrong)}")
    arrays = {name: np.frombuffer(c["data"], _FORMATS[c["dtype"]]).reshape(c["shape"]) for name, c in content}
    shapes = _check_arrays(path, info.config, arrays)
    sums = arrays_lib.checksums(arrays)
    changed = [name for name in arrays if metadata["checksums"].get(name) != sums[name]]
    if changed:
        raise _damaged(path, f"the checksum does not match in\n  {arrays_lib.listed(changed)}")
    params = arrays_lib.like(shapes, {name: array.astype(np.float32) for name, array in arrays.items()})
    return jax.device_put(params, sharding)


def _read_metadata(path: epath.Path) -> tuple[Any, int]:
    """The metadata and the number of arrays."""
    if not files.is_file(path):
        raise MissingError(f"{path}: no such weights file")
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(min(length, _MAX_HEADER))
    if not 0 < length <= _MAX_HEADER or len(header) < length:
        raise _damaged(path, "its header is truncated or not that of a .safetensors file")
    try:
        arrays = json.loads(header)
        entries = arrays.pop("__metadata__", {})
        metadata = json.loads(entries[_KEY]) if _KEY in entries else None
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise _damaged(path, f"its header cannot be read: {error}") from error
    if metadata is None:
        raise WeightsError(f"{path} is not a weights file of this project: its metadata has no {_KEY!r}")
    return metadata, len(arrays)


def _info(path: epath.Path, metadata: Any, count: int) -> WeightsInfo:
    """Checks metadata of a file of ``count`` arrays."""
    kinds = {"version": int, "config": dict, "training_steps": int, "commit": str, "card": dict, "checksums": dict}
    kinds["checksum"] = str
    found = metadata if isinstance(metadata, dict) else {}
    if isinstance(found.get("version"), int) and found["version"] != VERSION:
        raise WeightsError(f"{path} has format version {found['version']}; this code reads version {VERSION}")
    if wrong := [name for name, kind in kinds.items() if not isinstance(found.get(name), kind)]:
        raise _damaged(path, f"its metadata has no valid {', '.join(wrong)}")
    if sealed(found)["checksum"] != found["checksum"]:
        raise _damaged(path, "the checksum of its metadata does not match")
    config = ml_collections.ConfigDict(found["config"])
    try:
        network = config_lib.denoiser(config).network
        config_lib.process(config)
        missing = config_lib.missing_fields(config)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{path}: its config does not describe a network of this project: {error}") from error
    if missing:
        raise WeightsError(f"{path}: its config lacks {', '.join(missing)}")
    # Before such a network is traced, which takes memory and minutes.
    if network.num_res_blocks * len(network.ch_mult) > count:
        raise WeightsError(f"{path}: its config asks for {network.num_res_blocks} blocks a level, of {count} arrays")
    return WeightsInfo(config, found["training_steps"], found["commit"], found["card"])


def _check_arrays(path: epath.Path, config: ml_collections.ConfigDict, arrays: Mapping[str, np.ndarray]) -> PyTree:
    """The shapes of the network's parameters; raises WeightsError unless the arrays are those parameters."""
    shapes = abstract_params(config_lib.network(config))
    if problems := arrays_lib.mismatches(arrays, arrays_lib.by_path(shapes), dtypes=False):
        raise WeightsError(f"{path} does not fit the network of its config:\n  {arrays_lib.listed(problems)}")
    dtypes = {array.dtype.name for array in arrays.values()}
    if len(dtypes) > 1:
        raise WeightsError(f"{path}: arrays must all have one dtype, but found {' and '.join(sorted(dtypes))}")
    if bad := [name for name, array in arrays.items() if not np.isfinite(array.astype(np.float32)).all()]:
        raise WeightsError(f"{path}: numbers that are not finite in\n  {arrays_lib.listed(bad)}")
    return shapes


def _damaged(path: epath.Path, problem: str) -> WeightsError:
    return WeightsError(f"{path} is damaged: {problem}. Download or export it again.")
