"""Writes small GLB files."""

import copy
import io
import json
import struct

import numpy as np
import PIL.Image

COMPONENTS = {"int8": 5120, "uint8": 5121, "int16": 5122, "uint16": 5123, "uint32": 5125, "float32": 5126}
TYPES = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4", 16: "MAT4"}

# Faces +z, the front in glTF. Texture coordinates with v down, so that the upper left corner is (0, 0).
QUAD = np.float32([[-0.6, -0.8, 0], [0.6, -0.8, 0], [0.6, 0.8, 0], [-0.6, 0.8, 0]])
UV = np.float32([[0, 1], [1, 1], [1, 0], [0, 0]])
FACES = np.uint16([[0, 1, 2], [0, 2, 3]])


class File:
    """A GLB file in the making. ``root`` is its JSON."""

    def __init__(self):
        self.chunk = b""
        self.root = {
            "asset": {"version": "2.0"},
            "bufferViews": [],
            "accessors": [],
            "meshes": [],
            "nodes": [{"mesh": 0}],
            "scenes": [{"nodes": [0]}],
        }

    def view(self, data: bytes) -> int:
        self.root["bufferViews"].append({"buffer": 0, "byteOffset": len(self.chunk), "byteLength": len(data)})
        self.chunk += data + bytes(-len(data) % 4)
        return len(self.root["bufferViews"]) - 1

    def accessor(self, values, **fields) -> int:
        """Of (count, component) or, for indices, of any shape if ``flat``."""
        values = np.asarray(values)
        values = values.reshape(len(values), -1)
        entry = {"bufferView": self.view(values.tobytes()), "componentType": COMPONENTS[values.dtype.name]}
        entry |= {"count": len(values), "type": TYPES[values.shape[1]]} | fields
        self.root["accessors"].append(entry)
        return len(self.root["accessors"]) - 1

    def add(self, attributes=None, faces=FACES, material=None, **fields) -> dict:
        """Appends a mesh of one primitive, a quad unless said otherwise; returns the primitive."""
        attributes = {"POSITION": QUAD, "TEXCOORD_0": UV} if attributes is None else attributes
        indices = {key: value if isinstance(value, int) else self.accessor(value) for key, value in attributes.items()}
        primitive = {"attributes": indices} | fields
        if faces is not None:
            primitive["indices"] = self.accessor(np.ravel(faces))
        if material is not None:
            self.root.setdefault("materials", []).append(copy.deepcopy(material))
            primitive["material"] = len(self.root["materials"]) - 1
        self.root["meshes"].append({"primitives": [primitive]})
        return primitive

    def texture(self, pixels, **sampler) -> dict:
        """Appends a picture with its texture and sampler; returns the texture info."""
        encoded = io.BytesIO()
        PIL.Image.fromarray(np.asarray(pixels)).save(encoded, "PNG")
        lists = {key: self.root.setdefault(key, []) for key in ("images", "samplers", "textures")}
        lists["textures"].append({"source": len(lists["images"]), "sampler": len(lists["samplers"])})
        lists["images"].append({"bufferView": self.view(encoded.getvalue())})
        lists["samplers"].append(sampler)
        return {"index": len(lists["textures"]) - 1}

    def write(self, path):
        self.root["buffers"] = [{"byteLength": len(self.chunk)}, *self.root.get("buffers", [])[1:]]
        text = json.dumps(self.root).encode()
        text += b" " * (-len(text) % 4)
        length = 12 + 8 + len(text) + 8 + len(self.chunk)
        head = b"glTF" + struct.pack("<IIII", 2, length, len(text), int.from_bytes(b"JSON", "little"))
        path.write_bytes(head + text + struct.pack("<I", len(self.chunk)) + b"BIN\0" + self.chunk)
        return path
