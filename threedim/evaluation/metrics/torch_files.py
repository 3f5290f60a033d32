"""Published weights of other frameworks as NumPy arrays: PyTorch's own files, and the plain .npz and .safetensors.

A PyTorch file holds a pickle, and unpickling runs what the file asks for. So no unpickler is used here, not even a
restricted one: `pickletools` splits the bytes into instructions without acting on them, and `_interpret` below carries
out the few that a dictionary of tensors consists of. Names of functions and classes in the file are compared with a
list and never looked up; nothing is imported, called or constructed on the file's behalf.
"""

from __future__ import annotations

import dataclasses
import io
import math
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy
from etils import epath

from threedim.errors import MissingError, UserError

_TORCH_SUFFIXES = (".pth", ".pt", ".bin")

_ZIP_MAGIC, _LEGACY_MAGIC, _LEGACY_PROTOCOL = b"PK\x03\x04", 0x1950A86A20F9469CFC6C, 1001

# What zipfile, struct and NumPy raise about damaged bytes; RuntimeError is about passwords and unknown versions.
_DAMAGED = (ValueError, OverflowError, EOFError, OSError, RuntimeError, struct.error, zlib.error, zipfile.BadZipFile)

_DTYPES = {
    "torch FloatStorage": np.dtype("<f4"),
    "torch DoubleStorage": np.dtype("<f8"),
    "torch HalfStorage": np.dtype("<f2"),
    "torch BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch LongStorage": np.dtype("<i8"),
    "torch IntStorage": np.dtype("<i4"),
    "torch ShortStorage": np.dtype("<i2"),
    "torch CharStorage": np.dtype("i1"),
    "torch ByteStorage": np.dtype("u1"),
    "torch BoolStorage": np.dtype("?"),
}
# Written from a GPU, as files seldom are that somebody publishes; their bytes are the same.
_DTYPES |= {name.replace("torch ", "torch.cuda "): dtype for name, dtype in _DTYPES.items()}
_CALLABLES = (
    "collections OrderedDict",
    "torch._utils _rebuild_tensor",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    # Of 2017, as the published VGG networks are.
    "torch.nn.parameter Parameter",
    "torch Size",
)


def read_state_dict(path: epath.PathLike) -> dict[str, np.ndarray]:
    """Reads named arrays from a file of weights, executing nothing in it.

    Args:
      path: a `.pth`, `.pt` or `.bin` written by ``torch.save(model.state_dict(), ...)`` (both its formats: the zip
        archive, and the one of before version 1.6 and after 0.1.9), a `.npz`, or a `.safetensors`. May be remote.

    Returns:
      Arrays by name, in the file's order and dtype; torch's bfloat16 as that of ml_dtypes.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if the file is of another kind, damaged, or holds anything else than named arrays.
    """
    path = epath.Path(path)
    readers = {".npz": _read_npz, ".safetensors": _read_safetensors} | dict.fromkeys(_TORCH_SUFFIXES, _read_torch)
    if path.suffix not in readers:
        raise UserError(f"{path}: weights are read from files named {', '.join(readers)}")
    if not path.is_file():
        raise MissingError(f"{path}: no such file of weights")
    return readers[path.suffix](path.read_bytes(), str(path))


def check_entries(state: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]], source: str) -> None:
    """Raises ValueError, listing everything that is wrong, unless ``state`` has the names and shapes in ``shapes``."""
    wrong = [f"missing: {name} {tuple(shape)}" for name, shape in shapes.items() if name not in state]
    wrong += [f"not expected: {name} {array.shape}" for name, array in state.items() if name not in shapes]
    wrong += [
        f"{name} is {state[name].shape}, must be {tuple(shape)}"
        for name, shape in shapes.items()
        if name in state and state[name].shape != tuple(shape)
    ]
    if wrong:
        raise UserError(f"{source}: not the weights expected, {len(wrong)} entries differ:\n  " + "\n  ".join(wrong))


def _read_npz(data: bytes, source: str) -> dict[str, np.ndarray]:
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return dict(arrays)
    except (TypeError, *_DAMAGED) as error:
        raise UserError(f"{source}: not a readable .npz of plain arrays: {error}") from error


def _read_safetensors(data: bytes, source: str) -> dict[str, np.ndarray]:
    try:
        return safetensors.numpy.load(data)
    except safetensors.SafetensorError as error:
        raise UserError(f"{source}: not a readable .safetensors: {error}") from error
    except KeyError as error:
        raise UserError(f"{source}: NumPy has no dtype for entries of {error}; save them as float32") from error


@dataclasses.dataclass(frozen=True)
class _Global:
    """Name of a function or class in a file, "module name": only ever compared."""

    name: str


@dataclasses.dataclass(frozen=True)
class _Storage:
    """A flat array that lies elsewhere in the file."""

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


def _read_torch(data: bytes, source: str) -> dict[str, np.ndarray]:
    if data[:1] == b"<":
        raise UserError(f"{source}: a page of text, not weights; was the download answered by an error page?")
    try:
        return _read_zip(data) if data.startswith(_ZIP_MAGIC) else _read_legacy(data)
    except _DAMAGED as error:
        raise UserError(f"{source}: not readable as a PyTorch file of named tensors: {error}") from error


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
            # torch.save never compresses; without this a small file could fill the memory.
            if members[name].compress_type != zipfile.ZIP_STORED or members[name].flag_bits & 1:
                raise UserError(f"{name} in its archive is compressed or encrypted; torch.save does neither")
            return archive.read(name)

        def flat(storage: _Storage) -> np.ndarray:
            return _flat(read(f"{folder}data/{storage.key}"), storage)

        if f"{folder}byteorder" in members and read(f"{folder}byteorder") != b"little":
            raise UserError("it was written on a big-endian machine")
        return _arrays(_interpret(io.BytesIO(read(pickles[0]))), flat)


def _read_legacy(data: bytes) -> dict[str, np.ndarray]:
    """Five pickles (magic number, version, about the machine, the tensors, keys of storages), then the storages."""
    if data[257:262] == b"ustar":
        raise UserError("written before PyTorch 0.1.10; load it there and save it again")
    file = io.BytesIO(data)
    magic, protocol = _interpret(file), _interpret(file)
    if (magic, protocol) != (_LEGACY_MAGIC, _LEGACY_PROTOCOL):
        raise UserError("it does not start with PyTorch's magic number and version")
    machine = _interpret(file)
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise UserError("it was written on a big-endian machine")
    root, keys = _interpret(file), _interpret(file)
    declared = {tensor.storage.key: tensor.storage for tensor in _tensors(root).values()}
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or set(keys) != set(declared):
        raise UserError("its list of storages is not that of its tensors")
    flat = {}
    for key in keys:
        storage, count = declared[key], int.from_bytes(file.read(8), "little", signed=True)
        if count != storage.count:
            raise UserError(f"storage {key} has {count} elements instead of {storage.count}")
        flat[key] = _flat(file.read(min(count * storage.dtype.itemsize, len(data))), storage)
    return _arrays(root, lambda storage: flat[storage.key])


def _flat(data: bytes, storage: _Storage) -> np.ndarray:
    if len(data) != storage.count * storage.dtype.itemsize:
        raise UserError(f"storage {storage.key} has {len(data)} bytes for {storage.count} of {storage.dtype}")
    return np.frombuffer(data, storage.dtype)


def _tensors(root: Any) -> dict[str, _Tensor]:
    if not isinstance(root, dict) or not root:
        raise UserError("it holds no dictionary of tensors; save model.state_dict()")
    storages: dict[str, _Storage] = {}
    for name, tensor in root.items():
        if not isinstance(name, str) or not isinstance(tensor, _Tensor):
            raise UserError(f"entry {name!r} is a {type(tensor).__name__}, not a tensor; save model.state_dict()")
        if storages.setdefault(tensor.storage.key, tensor.storage) != tensor.storage:
            raise UserError(f"entry {name!r} contradicts another one about their common storage")
    return root


def _arrays(root: Any, flat: Callable[[_Storage], np.ndarray]) -> dict[str, np.ndarray]:
    """Copies of the tensors, so that none of them holds on to the whole file."""
    arrays = {}
    for name, tensor in _tensors(root).items():
        shape, strides, storage = tensor.shape, tensor.strides, flat(tensor.storage)
        if 0 in shape:
            arrays[name] = np.empty(shape, storage.dtype)
            continue
        last = tensor.offset + sum((side - 1) * stride for side, stride in zip(shape, strides, strict=True))
        # A view of more elements than its storage (stride 0) could fill the memory, and is nobody's weights.
        if last >= storage.size or math.prod(shape) > storage.size:
            raise UserError(f"entry {name!r} reaches beyond its storage")
        # The stride of an axis of length 1 means nothing, and may be anything.
        steps = tuple(stride * storage.itemsize if side > 1 else 0 for side, stride in zip(shape, strides, strict=True))
        view = np.lib.stride_tricks.as_strided(storage[tensor.offset :], shape, steps)
        arrays[name] = np.array(view, order="C")
    return arrays


_MARK = object()
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"}
# Python 2 wrote text as SHORT_BINSTRING, and the LPIPS weights are from there.
_LITERALS |= {"BINUNICODE", "SHORT_BINUNICODE", "SHORT_BINSTRING"}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def _interpret(file: BinaryIO) -> Any:
    """The object that one pickle describes, made of numbers, text, tuples, lists, dictionaries and the stand-ins above.

    Reads up to the end of that pickle. Any other instruction, or one that does not fit, is a ValueError.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    try:
        for opcode, argument, _ in pickletools.genops(file):
            name = opcode.name
            if name == "STOP":
                (result,) = stack
                return result
            if name in _LITERALS:
                stack.append(argument)
            elif name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            elif name == "MARK":
                stack.append(_MARK)
            elif name in ("BINPUT", "LONG_BINPUT"):
                memo[argument] = stack[-1]
            elif name in ("BINGET", "LONG_BINGET"):
                stack.append(memo[argument])
            elif name == "EMPTY_TUPLE":
                stack.append(())
            elif name in _TUPLES:
                stack[-_TUPLES[name] :] = [tuple(stack[-_TUPLES[name] :])]
            elif name == "TUPLE":
                stack.append(tuple(_pop_mark(stack)))
            elif name == "EMPTY_LIST":
                stack.append([])
            elif name in ("APPEND", "APPENDS"):
                items = [stack.pop()] if name == "APPEND" else _pop_mark(stack)
                _expect(stack[-1], list).extend(items)
            elif name == "EMPTY_DICT":
                stack.append({})
            elif name in ("SETITEM", "SETITEMS"):
                items = [stack.pop(-2), stack.pop()] if name == "SETITEM" else _pop_mark(stack)
                _set_items(_expect(stack[-1], dict), zip(items[::2], items[1::2], strict=True))
            elif name == "GLOBAL":
                if argument not in _CALLABLES and argument not in _DTYPES:
                    raise UserError(f"it asks for {argument!r}, which tensors do not need; nothing was executed")
                stack.append(_Global(argument))
            elif name == "BINPERSID":
                stack.append(_storage(stack.pop()))
            elif name == "REDUCE":
                arguments = _expect(stack.pop(), tuple)
                stack.append(_rebuilt(_expect(stack.pop(), _Global).name, arguments))
            elif name == "BUILD":
                # The attributes of a state dict, its "_metadata": versions of layers, of no use here. Those of a
                # parameter of 2017 are flags for training; there were others before, with the numbers among them.
                attributes = stack.pop()
                if not (isinstance(stack[-1], _Tensor) and isinstance(attributes, tuple) and len(attributes) == 3):
                    _expect(attributes, dict)
                    _expect(stack[-1], dict)
            elif name != "PROTO":
                raise UserError(f"it has the instruction {name}, which tensors do not need; nothing was executed")
    except (IndexError, KeyError, TypeError) as error:
        raise UserError(f"its pickle is damaged ({type(error).__name__}: {error})") from error
    raise UserError("its pickle has no end")


def _pop_mark(stack: list[Any]) -> list[Any]:
    items = []
    while (item := stack.pop()) is not _MARK:
        items.append(item)
    return items[::-1]


def _expect(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise UserError(f"its pickle has a {type(value).__name__} where a {kind.__name__.strip('_')} belongs")
    return value


def _set_items(target: dict, pairs: Any) -> None:
    for key, value in pairs:
        # Hashing other things could run deep: a tuple in a tuple in a tuple ...
        if not isinstance(key, str | int):
            raise UserError(f"its pickle has a dictionary with a {type(key).__name__} for a key")
        target[key] = value


def _storage(identity: Any) -> _Storage:
    # ("storage", type, key, device, number of elements), and in the older format None, or a view that is not used.
    if not isinstance(identity, tuple) or len(identity) not in (5, 6) or identity[0] != "storage":
        raise UserError("its pickle refers to something else than a storage")
    _, kind, key, _, count, *view = identity
    if not isinstance(kind, _Global) or kind.name not in _DTYPES or view not in ([], [None]):
        raise UserError("its pickle has a storage of an unknown type")
    if not isinstance(key, str) or not isinstance(count, int) or count < 0:
        raise UserError("its pickle has a storage without key or size")
    return _Storage(key, _DTYPES[kind.name], count)


def _rebuilt(function: str, arguments: tuple[Any, ...]) -> Any:
    """The stand-in for what ``function`` would have returned."""
    if function == "collections OrderedDict":
        ordered: dict = {}
        _set_items(ordered, arguments[0] if arguments else ())
        return ordered
    if function in ("torch._utils _rebuild_parameter", "torch.nn.parameter Parameter"):
        return _expect(arguments[0], _Tensor)
    if function == "torch Size":
        return _expect(arguments[0], tuple)
    if not function.startswith("torch._utils _rebuild_tensor"):
        raise UserError(f"it calls {function!r}; nothing was executed")
    storage, offset, shape, strides = arguments[:4]
    shape, strides = tuple(shape), tuple(strides)
    if not all(isinstance(number, int) and number >= 0 for number in (offset, *shape, *strides)):
        raise UserError("its pickle has a tensor whose shape, strides or offset are not natural numbers")
    if len(shape) != len(strides):
        raise UserError(f"its pickle has a tensor of {len(shape)} axes with {len(strides)} strides")
    return _Tensor(_expect(storage, _Storage), offset, shape, strides)
