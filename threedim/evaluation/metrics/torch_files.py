"""Reads published weights as NumPy arrays: PyTorch's own files, .npz and .safetensors.

A PyTorch file contains a pickle, and unpickling runs whatever the file asks for. Nothing is unpickled here:
`pickletools` splits the bytes into opcodes, and `_interpret` handles the few that a dictionary of tensors needs. Names
of functions and classes are compared with a list, and never looked up, imported or called.
"""

from __future__ import annotations

import copy
import dataclasses
import io
import math
import pickletools
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
import safetensors.numpy
from etils import epath

from threedim import arrays, files
from threedim.errors import MissingError, UserError

_ZIP_MAGIC, _LEGACY_MAGIC, _LEGACY_PROTOCOL = b"PK\x03\x04", 0x1950A86A20F9469CFC6C, 1001

# What zipfile, struct and NumPy raise on damaged bytes; RuntimeError is about passwords and unknown versions.
_DAMAGED = (ValueError, OverflowError, EOFError, OSError, RuntimeError, Warning)
_DAMAGED += (struct.error, zlib.error, zipfile.BadZipFile)

_DTYPES = {"Float": "<f4", "Double": "<f8", "Half": "<f2", "BFloat16": ml_dtypes.bfloat16, "Bool": "?"}
_DTYPES |= {"Long": "<i8", "Int": "<i4", "Short": "<i2", "Char": "i1", "Byte": "u1"}
_STORAGES = {f"torch {kind}Storage": np.dtype(dtype) for kind, dtype in _DTYPES.items()}
# Tensors saved from a GPU have the same bytes.
_STORAGES |= {name.replace("torch ", "torch.cuda "): dtype for name, dtype in _STORAGES.items()}
_DICT, _SIZE = "collections OrderedDict", "torch Size"
_TENSOR = ("torch._utils _rebuild_tensor", "torch._utils _rebuild_tensor_v2")
# The second name dates from 2017; the published VGG networks use it.
_PARAMETER = ("torch._utils _rebuild_parameter", "torch.nn.parameter Parameter")
_WRAPPED = "module."
_ALLOWED = {_DICT, _SIZE, *_TENSOR, *_PARAMETER, *_STORAGES}


def read_state_dict(path: epath.PathLike) -> dict[str, np.ndarray]:
    """Reads named arrays, in their order and dtype, from a file of weights without executing anything in it.

    A `.pth`, `.pt` or `.bin` written by ``torch.save(model.state_dict(), ...)``, in the zip format or that of PyTorch
    0.1.10 to 1.5; or a `.npz` or `.safetensors`. May be remote. Raises `MissingError` if it does not exist, `UserError`
    if it is of another kind, damaged, or holds anything other than named arrays.
    """
    path = epath.Path(path)
    kinds = {".npz": "a readable .npz of plain arrays", ".safetensors": "a readable .safetensors"}
    kinds |= dict.fromkeys((".pth", ".pt", ".bin"), "readable as a PyTorch file of named tensors")
    if path.suffix not in kinds:
        raise UserError(f"{path}: weights must be in a file named {', '.join(kinds)}")
    if not files.is_file(path):
        raise MissingError(f"{path}: no such file of weights")
    data = path.read_bytes()
    try:
        if path.suffix == ".npz":
            with zipfile.ZipFile(io.BytesIO(data)) as archive:  # NumPy does not compare the checksums
                files.check_zip(archive)
                if name := archive.testzip():
                    raise UserError(f"{path} is damaged: the checksum of {name} does not match")
            with np.load(io.BytesIO(data), allow_pickle=False) as found:
                entries = dict(found)
            if wrong := [name for name, array in entries.items() if not isinstance(array, np.ndarray)]:
                raise ValueError(f"{wrong[0]} is no array")
            return entries
        if path.suffix == ".safetensors":
            return safetensors.numpy.load(data)
        if data.startswith(b"<"):
            raise UserError("a page of text, not weights; did the download return an error page?")
        with warnings.catch_warnings(action="error"):  # Python only warns of damaged escapes in a text
            return _read_zip(data) if data.startswith(_ZIP_MAGIC) else _read_legacy(data)
    except KeyError as error:
        raise UserError(f"{path}: NumPy has no dtype for entries of {error}; save them as float32") from error
    except (TypeError, safetensors.SafetensorError, *_DAMAGED) as error:
        raise UserError(f"{path}: not {kinds[path.suffix]}: {error}") from error


def check_entries(
    state: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]], source: str, unused: Container[str] = ()
) -> None:
    """Raises a UserError that lists the differences unless ``state`` has just the names and shapes in ``shapes``.

    Entries of ``unused`` may be missing, but have these shapes where they are: they tell networks apart.
    """
    if state and all(name.startswith(_WRAPPED) for name in state):
        raise UserError(
            f"{source}: all names begin with {_WRAPPED!r}, which torch.nn.DataParallel adds; save "
            "model.module.state_dict() instead"
        )
    wrong = [f"missing: {name} {shape}" for name, shape in shapes.items() if name not in state and name not in unused]
    wrong += [f"not expected: {name} {array.shape}" for name, array in state.items() if name not in shapes]
    found = {name: state[name].shape for name in shapes if name in state}
    wrong += [f"{name} is {shape}, must be {shapes[name]}" for name, shape in found.items() if shape != shapes[name]]
    if wrong:
        raise UserError(f"{source}: not the expected weights, {len(wrong)} entries differ:\n  {arrays.listed(wrong)}")


def not_as_published(metric: str, file: Mapping[str, str], digits: str) -> list[str]:
    """A warning if a file, given by "name" and "sha256", is not the published one by the first digits of its sha256.

    PyTorch's downloads have these digits in their names. Other networks have entries of the same names and shapes.
    """
    if file["sha256"].startswith(digits):
        return []
    return [
        f"{metric}: {file['name']} is not the published file of weights ({digits}...) by its sha256; unless it was "
        "converted from that file, compare its results only with each other"
    ]


@dataclasses.dataclass(frozen=True)
class _Global:
    """The name of a function or class in a pickle, "module name". Only ever compared."""

    name: str


@dataclasses.dataclass(frozen=True)
class _Storage:
    """A flat array stored elsewhere in the file."""

    key: str
    dtype: np.dtype
    count: int


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """A view of a storage; offset and strides in elements."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _read_zip(data: bytes) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {member.filename: member for member in archive.infolist()}
        pickles = [name for name in members if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise UserError(f"its archive has {len(pickles)} files data.pkl instead of one")
        folder = pickles[0].removesuffix("data.pkl")

        def read(name: str) -> bytes:
            if name not in members:
                raise UserError(f"its archive has no {name}")
            # torch.save never compresses, and a small compressed file could fill the memory.
            if members[name].compress_type != zipfile.ZIP_STORED or members[name].flag_bits & 1:
                raise UserError(f"{name} in its archive is compressed or encrypted; torch.save does neither")
            return archive.read(name)

        if f"{folder}byteorder" in members and read(f"{folder}byteorder") != b"little":
            raise UserError("it was written on a big-endian machine")
        root = _interpret(io.BytesIO(read(pickles[0])))
        _storages(root)
        return _arrays(root, lambda key: read(f"{folder}data/{key}"))


def _read_legacy(data: bytes) -> dict[str, np.ndarray]:
    """Five pickles (magic number, version, machine, tensors, keys of the storages), then the storages."""
    if data[257:262] == b"ustar":
        raise UserError("written before PyTorch 0.1.10; load it there and save it again")
    file = io.BytesIO(data)
    if (_interpret(file), _interpret(file)) != (_LEGACY_MAGIC, _LEGACY_PROTOCOL):
        raise UserError("it does not start with PyTorch's magic number and version")
    machine, root = _interpret(file), _interpret(file)
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise UserError("it was written on a big-endian machine")
    storages, keys, stored = _storages(root), _interpret(file), {}
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or set(keys) != set(storages):
        raise UserError("its list of storages is not that of its tensors")
    for key in keys:
        storage = storages[key]
        if (count := int.from_bytes(file.read(8), "little", signed=True)) != storage.count:
            raise UserError(f"storage {key} has {count} elements instead of {storage.count}")
        stored[key] = file.read(min(count * storage.dtype.itemsize, len(data)))
    return _arrays(root, stored.__getitem__)


def _storages(root: Any) -> dict[str, _Storage]:
    """The storages of the tensors by key; `UserError` if ``root`` is no dictionary of tensors."""
    if not isinstance(root, dict) or not root:
        raise UserError("it holds no dictionary of tensors; save model.state_dict()")
    storages: dict[str, _Storage] = {}
    for name, tensor in root.items():
        if not isinstance(name, str) or not isinstance(tensor, _Tensor):
            raise UserError(f"entry {name!r} is a {type(tensor).__name__}, not a tensor; save model.state_dict()")
        if storages.setdefault(tensor.storage.key, tensor.storage) != tensor.storage:
            raise UserError(f"entry {name!r} contradicts another one about their common storage")
    return storages


def _arrays(tensors: Mapping[str, _Tensor], read: Callable[[str], bytes]) -> dict[str, np.ndarray]:
    """Copies of the tensors, so that none of them keeps the whole file in memory."""
    copies = {}
    for name, tensor in tensors.items():
        key, dtype, count = dataclasses.astuple(tensor.storage)
        shape, strides = tensor.shape, tensor.strides
        if len(data := read(key)) != count * dtype.itemsize:
            raise UserError(f"storage {key} has {len(data)} bytes instead of {count} {dtype}")
        last = tensor.offset + sum((side - 1) * stride for side, stride in zip(shape, strides, strict=True))
        # With stride 0 a small storage could fill the memory; real weights have no more elements than their storage.
        if 0 not in shape and (last >= count or math.prod(shape) > count):
            raise UserError(f"entry {name!r} reaches beyond its storage")
        view = np.frombuffer(data, dtype)[tensor.offset :]
        view = np.lib.stride_tricks.as_strided(view, shape, [stride * dtype.itemsize for stride in strides])
        copies[name] = np.array(view, order="C")
    return copies


class _Mark:
    """Stands on the stack where a list, tuple or dictionary begins."""


_LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"}
_LITERALS.add("SHORT_BINSTRING")  # text of Python 2, which wrote the LPIPS weights
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_LIST": [], "EMPTY_DICT": {}, "MARK": _Mark}
# Opcodes that take several items from the stack: how many, or None for all above the mark.
_TAKES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "TUPLE": None}
_TAKES |= {"APPEND": 1, "APPENDS": None, "SETITEM": 2, "SETITEMS": None}


def _interpret(file: BinaryIO) -> Any:
    """What one pickle describes: numbers, text, tuples, lists, dictionaries, `_Global`, `_Tensor`; else `UserError`."""
    stack, memo = [], {}
    try:
        for opcode, argument, _ in pickletools.genops(file):
            name = opcode.name
            if name == "STOP":
                (result,) = stack
                return result
            if name in _LITERALS:
                stack.append(argument)
            elif name in _CONSTANTS:
                stack.append(copy.copy(_CONSTANTS[name]))
            elif name in ("BINPUT", "LONG_BINPUT"):
                memo[argument] = stack[-1]
            elif name in ("BINGET", "LONG_BINGET"):
                stack.append(memo[argument])
            elif name in _TAKES:
                items = _pop(stack, _TAKES[name])
                if name.startswith("APPEND"):
                    _expect(stack[-1], list).extend(items)
                elif name.startswith("SETITEM"):
                    _set_items(_expect(stack[-1], dict), zip(items[::2], items[1::2], strict=True))
                else:
                    stack.append(tuple(items))
            elif name == "GLOBAL":
                if argument not in _ALLOWED:
                    raise UserError(f"it asks for {argument!r}, which tensors do not need; nothing was executed")
                stack.append(_Global(argument))
            elif name == "BINPERSID":
                stack.append(_storage(stack.pop()))
            elif name == "REDUCE":
                function, arguments = _pop(stack, 2)
                stack.append(_rebuild(_expect(function, _Global).name, _expect(arguments, tuple)))
            elif name == "BUILD":
                # Ignored: a state dict's "_metadata" holds versions of layers, the three attributes of a parameter of
                # 2017 flags for training. Any others could hold the numbers themselves.
                attributes = stack.pop()
                if not (isinstance(stack[-1], _Tensor) and isinstance(attributes, tuple) and len(attributes) == 3):
                    _expect(attributes, dict)
                    _expect(stack[-1], dict)
            elif name != "PROTO":
                raise UserError(f"it has the opcode {name}, which tensors do not need; nothing was executed")
    except (IndexError, KeyError, TypeError) as error:
        raise UserError(f"its pickle is damaged ({type(error).__name__}: {error})") from error
    raise UserError("its pickle has no end")


def _pop(stack: list[Any], count: int | None) -> list[Any]:
    """Removes and returns the last ``count`` items; with None those above the mark, which is removed too."""
    items = iter(stack.pop, _Mark) if count is None else (stack.pop() for _ in range(count))
    return list(items)[::-1]


def _expect(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise UserError(f"its pickle has a {type(value).__name__} where a {kind.__name__.strip('_')} belongs")
    return value


def _set_items(target: dict, pairs: Iterable[Any]) -> dict:
    for key, value in pairs:
        # Hashing deeply nested tuples could exhaust the stack.
        if not isinstance(key, str | int):
            raise UserError(f"its pickle has a dictionary with a {type(key).__name__} for a key")
        target[key] = value
    return target


def _storage(identity: Any) -> _Storage:
    # ("storage", type, key, device, number of elements), in the legacy format with a sixth item that is always None.
    match identity:
        case ("storage", _Global(kind), str(key), _, int(count), *rest) if rest in ([], [None]):
            if kind in _STORAGES and count >= 0:
                return _Storage(key, _STORAGES[kind], count)
    raise UserError("its pickle refers to something other than a storage of numbers")


def _rebuild(function: str, arguments: tuple[Any, ...]) -> Any:
    """The stand-in for what ``function`` would have returned."""
    if function == _DICT:
        return _set_items({}, arguments[0] if arguments else ())
    if function == _SIZE:
        return _expect(arguments[0], tuple)
    if function in _PARAMETER:
        return _expect(arguments[0], _Tensor)
    if function not in _TENSOR:
        raise UserError(f"it calls {function!r}; nothing was executed")
    storage, offset, shape, strides = arguments[:4]
    if not all(isinstance(number, int) and number >= 0 for number in (offset, *shape, *strides)):
        raise UserError("its pickle has a tensor whose shape, strides or offset are not natural numbers")
    if len(shape) != len(strides):
        raise UserError(f"its pickle has a tensor of {len(shape)} axes with {len(strides)} strides")
    return _Tensor(_expect(storage, _Storage), offset, tuple(shape), tuple(strides))
