"""The parts of a GLB or glTF 2.0 file, checked: JSON, buffers, accessors, pictures.

Nothing is allocated that the file's own bytes do not back.
"""

from __future__ import annotations

import base64
import json
import pathlib
import struct
import urllib.parse
from typing import NoReturn

import numpy as np

from threedim.errors import UserError
from threedim.rendering import assets
from threedim.rendering.surfaces import BadMeshError

_GLB, _JSON, _BIN = b"glTF", b"JSON", b"BIN\0"
_TYPES = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}
_DTYPES = {5120: "i1", 5121: "u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
# An accessor without data is all zeros: as many as the file has bytes, or these.
_MAX_ZEROS = 1 << 20
_DRACO = "KHR_draco_mesh_compression"


class Document:
    """An open file.

    Attributes:
      json: the root object.
      warnings: a line for each thing in the file that is not read.
    """

    def __init__(self, path: pathlib.Path):
        self.path = path
        self.warnings: list[str] = []
        self._cache: dict = {}
        try:
            data = assets.read(path)
        except UserError as error:
            raise BadMeshError(str(error)) from error
        self._bytes = len(data)
        text, self._chunk = self._chunks(data) if data[:4] == _GLB else (data, None)
        try:
            self.json = json.loads(text.decode("utf-8-sig"))
            version = str(self.json["asset"]["version"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            self.unreadable(error)
        if not version.startswith("2."):
            self.fail(f"is of glTF version {version}; only 2.0 is read: export or convert it again")

    def fail(self, problem: str) -> NoReturn:
        """Raises an error that names the file."""
        raise BadMeshError(f"{self.path}: {problem}")

    def unreadable(self, error: Exception) -> NoReturn:
        """Raises an error for a file that is not what the format says."""
        problem = f"cannot be read as {self.path.suffix[1:].upper()} ({type(error).__name__}: {error})"
        raise BadMeshError(f"{self.path}: {problem}") from error

    def warn(self, problem: str) -> None:
        """Adds a warning that names the file, once."""
        if (line := f"{self.path}: {problem}") not in self.warnings:
            self.warnings.append(line)

    def item(self, kind: str, index: int) -> dict:
        """An object of one of the root's lists."""
        items = self.json.get(kind, [])
        if not isinstance(index, int) or not 0 <= index < len(items):
            self.fail(f"refers to {kind}[{index}], but there are {len(items)}; export it again")
        return items[index]

    def accessor(self, index: int) -> np.ndarray:
        """(count, component) of an accessor, not to be written to. Normalized integers are floats."""
        if ("accessor", index) not in self._cache:
            self._cache["accessor", index] = self._read_accessor(index)
        return self._cache["accessor", index]

    def like(self, index: int, data: np.ndarray) -> np.ndarray:
        """Decoded data of an accessor, as `accessor` would return them."""
        accessor = self.item("accessors", index)
        data = data.reshape(len(data), -1).astype(self._dtype(accessor))
        return _normalized(data) if accessor.get("normalized") else data

    def image(self, index: int) -> np.ndarray | None:
        """(height, width, 4) uint8 RGBA. None, and a warning, if it cannot be read."""
        if ("image", index) not in self._cache:
            self._cache["image", index] = self._read_image(index)
        return self._cache["image", index]

    def draco(self, index: int):
        """The mesh in a buffer view compressed by Draco."""
        try:
            import DracoPy  # not everybody needs it
        except ImportError as error:
            raise BadMeshError(f"{self.path}: is compressed by Draco; to read it, `pip install DracoPy`") from error
        if ("draco", index) not in self._cache:
            try:
                self._cache["draco", index] = DracoPy.decode(bytes(self._view(index)))
            except (DracoPy.FileTypeException, ValueError, RuntimeError) as error:
                self.fail(f"bufferViews[{index}] is not whole Draco data ({error})")
        return self._cache["draco", index]

    def _chunks(self, data: bytes) -> tuple[bytes, bytes | None]:
        """The JSON and the binary chunk of a GLB file."""
        version, length = struct.unpack_from("<II", data.ljust(12, b"\0"), 4)
        if version != 2:
            self.fail(f"is of glTF version {version}; only 2.0 is read: export or convert it again")
        if length > len(data):
            self.fail(f"is cut off: {len(data)} of {length} bytes")
        chunks: dict[bytes, bytes] = {}
        start = 12
        while start + 8 <= length:
            size, kind = struct.unpack_from("<I4s", data, start)
            if start + 8 + size > length:
                self.fail(f"is damaged: a chunk of {size} bytes at byte {start} of {length}")
            chunks.setdefault(kind, data[start + 8 : start + 8 + size])
            start += 8 + size
        if _JSON not in chunks:
            self.fail("is damaged: it has no JSON chunk")
        return chunks[_JSON], chunks.get(_BIN)

    def _uri(self, uri: str) -> bytes:
        if uri.startswith("data:"):
            head, _, body = uri.partition(",")
            body = urllib.parse.unquote_to_bytes(body)
            return base64.b64decode(body) if head.endswith(";base64") else body
        try:
            return assets.read(assets.find(self.path.parent, urllib.parse.unquote(uri)))
        except FileNotFoundError:
            return assets.read(assets.find(self.path.parent, uri))  # exporters forget to encode a "%"

    def _buffer(self, index: int) -> bytes:
        if ("buffer", index) not in self._cache:
            buffer = self.item("buffers", index)
            name = _name(buffer, f"buffers[{index}]")
            try:
                data = self._uri(buffer["uri"]) if "uri" in buffer else self._chunk
            except (UserError, ValueError) as error:
                self.fail(str(error) if isinstance(error, UserError) else f"{name} cannot be decoded ({error})")
            if data is None or (index and "uri" not in buffer):
                self.fail(f"{name} has no data{' (EXT_meshopt_compression)' if 'extensions' in buffer else ''}")
            if len(data) < buffer["byteLength"]:
                self.fail(f"{name} is cut off: {len(data)} of {buffer['byteLength']} bytes")
            self._cache["buffer", index], self._bytes = data, self._bytes + len(data)
        return self._cache["buffer", index]

    def _view(self, index: int) -> memoryview:
        view = self.item("bufferViews", index)
        buffer = self._buffer(view["buffer"])
        start, length = view.get("byteOffset", 0), view["byteLength"]
        if not 0 <= start <= start + length <= len(buffer):
            self.fail(
                f"bufferViews[{index}] covers bytes {start} to {start + length} of {len(buffer)}; export it again"
            )
        return memoryview(buffer)[start : start + length]

    def _dtype(self, item: dict) -> np.dtype:
        if item["componentType"] not in _DTYPES:
            self.fail(f"has an accessor of unknown componentType {item['componentType']}")
        return np.dtype(_DTYPES[item["componentType"]])

    def _read_accessor(self, index: int) -> np.ndarray:
        accessor, name = self.item("accessors", index), f"accessors[{index}]"
        count, width, dtype = accessor["count"], _TYPES.get(accessor["type"]), self._dtype(accessor)
        if not isinstance(count, int) or count < 1 or width is None:
            self.fail(f"{name} has count {count} and type {accessor['type']}; export it again")
        if "bufferView" in accessor:
            data = self._elements(accessor, count, width, dtype, name)
        elif count > max(self._bytes, _MAX_ZEROS):
            self.fail(f"{name} has {count} elements without data; export it again")
        else:
            data = np.zeros((count, width), dtype)
        if sparse := accessor.get("sparse"):
            changed = sparse["count"]
            indices = self._elements(sparse["indices"], changed, 1, self._dtype(sparse["indices"]), name)[:, 0]
            if indices.max(initial=0) >= count:
                self.fail(f"{name} changes element {indices.max()} of {count}; export it again")
            data = data.copy()
            data[indices] = self._elements(sparse["values"], changed, width, dtype, name)
        return _normalized(data) if accessor.get("normalized") else data

    def _elements(self, item: dict, count: int, width: int, dtype: np.dtype, name: str) -> np.ndarray:
        view, size = self._view(item["bufferView"]), width * dtype.itemsize
        stride = self.item("bufferViews", item["bufferView"]).get("byteStride", 0) or size
        start = item.get("byteOffset", 0)
        if count < 0 or start < 0 or stride < size or start + stride * (count - 1) + size > len(view):
            self.fail(f"{name} reaches beyond its {len(view)} bytes ({count} elements); it is cut off or damaged")
        return np.ndarray((count, width), dtype, view, start, (stride, dtype.itemsize))

    def _read_image(self, index: int) -> np.ndarray | None:
        picture = self.item("images", index)
        name = _name(picture, f"images[{index}]")
        try:
            data = self._uri(picture["uri"]) if "uri" in picture else bytes(self._view(picture["bufferView"]))
            return assets.image(data, f"texture {name}")
        except BadMeshError:
            raise
        except UserError as error:
            self.warn(f"{error}; its surfaces are plain")
        except ValueError as error:  # of base64
            self.warn(f"texture {name} cannot be decoded ({error}); its surfaces are plain")
        return None


def _normalized(data: np.ndarray) -> np.ndarray:
    """Integers as [0, 1] or [-1, 1]; floats unchanged."""
    if data.dtype.kind == "f":
        return data
    return np.maximum(data / np.float32(np.iinfo(data.dtype).max), -1)


def _name(item: dict, default: str) -> str:
    uri = item.get("uri", "data:")
    return str(item.get("name", default) if uri.startswith("data:") else uri)[:120]
