"""Material libraries of OBJ files (MTL): colors, opacity, emission and their textures.

What has no place in the renderer, such as reflections and bump maps, is ignored.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Callable

import numpy as np
import PIL.Image

from threedim.rendering import assets

# Options of a texture, with the number of values; those of -s, -o and -t are one to three numbers.
_OPTIONS = {"-blendu": 1, "-blendv": 1, "-cc": 1, "-clamp": 1, "-colorspace": 1, "-texres": 1, "-bm": 1, "-boost": 1}
_OPTIONS |= {"-imfchan": 1, "-type": 1, "-mm": 2, "-s": 3, "-o": 3, "-t": 3}
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"


@dataclasses.dataclass(frozen=True)
class Texture:
    """A texture as a material names it."""

    library: pathlib.Path  # the file that names it
    name: str
    scale: tuple[float, float] = (1.0, 1.0)  # texture coordinates are multiplied by it,
    offset: tuple[float, float] = (0.0, 0.0)  # then this is added
    clamp: bool = False  # the edge goes on, instead of repeating the picture

    def read(self) -> np.ndarray:
        """(height, width, 4) uint8 RGBA. `UserError` if there is no such picture, or it cannot be decoded."""
        return assets.image(assets.read(assets.search(self.library.parent, self.name)), self.name)

    def coordinates(self, uv: np.ndarray) -> np.ndarray:
        """Of the picture, for texture coordinates of the mesh."""
        return uv * np.array(self.scale) + np.array(self.offset)


@dataclasses.dataclass
class Material:
    """What a material says. Colors are sRGB in [0, 1]."""

    diffuse: tuple[float, float, float] | None = None
    opacity: float | None = None
    emission: tuple[float, float, float] | None = None
    diffuse_map: Texture | None = None
    opacity_map: Texture | None = None
    emission_map: Texture | None = None


def text_of(data: bytes) -> bytes:
    """The text of an OBJ or MTL file: UTF-8 without byte order mark, lines that end in a newline, none continued."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        data = data.decode("utf-16", "replace").encode()
    data = data.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    if re.search(rb"\\[ \t]*\n", data):
        # A comment may end in a backslash, such as that of a path, without taking in the next line.
        data = re.sub(rb"(?m)^[ \t]*#.*$", b"", data)
        data = re.sub(rb"\\[ \t]*\n", b" ", data)
    return data


def read_library(path: pathlib.Path, warn: Callable[[str], None]) -> dict[str, Material]:
    """The materials of a library by name."""
    materials: dict[str, Material] = {}
    material = Material()
    for line in text_of(path.read_bytes()).split(b"\n"):
        keyword, _, rest = assets.decode(line).strip().replace("\t", " ").partition(" ")
        keyword, rest = keyword.lower(), rest.strip()
        if keyword == "newmtl":
            material = materials.setdefault(rest, Material())
        elif keyword in ("map_kd", "map_d", "map_ke"):
            setattr(material, _FIELDS[keyword], _texture(path, rest))
        elif keyword in ("kd", "ke", "d", "tr"):
            numbers = [float(word) for word in re.findall(_NUMBER, rest.partition("#")[0])]
            if not numbers or re.match(r"(?i)spectral|xyz", rest):
                warn(f"{path}: {keyword} {rest!r} is not read")
            elif keyword in ("kd", "ke"):
                color = numbers[:3] if len(numbers) >= 3 else [numbers[0]] * 3
                setattr(material, _FIELDS[keyword], tuple(np.clip(color, 0, 1).tolist()))
            elif keyword == "d":
                material.opacity = min(max(numbers[-1], 0.0), 1.0)
            elif material.opacity is None:  # if both are given, d is clearer: some programs write 1 - Tr as Tr
                material.opacity = 1 - min(max(numbers[0], 0.0), 1.0)
    return materials


_FIELDS = {"kd": "diffuse", "ke": "emission", "map_kd": "diffuse_map", "map_d": "opacity_map", "map_ke": "emission_map"}


def _texture(library: pathlib.Path, text: str) -> Texture:
    """Takes the options off: the rest, with its spaces, is the file's name."""
    options: dict[str, tuple[float, float]] = {}
    clamp = False
    while (match := re.match(r"(-[a-z]+)\s+", text, re.IGNORECASE)) and match[1].lower() in _OPTIONS:
        option, text = match[1].lower(), text[match.end() :]
        value = rf"(?:{_NUMBER}\s+){{1,3}}" if _OPTIONS[option] == 3 else rf"(?:\S+\s+){{{_OPTIONS[option]}}}"
        if not (values := re.match(value, text)):
            break
        text, words = text[values.end() :], values[0].split()
        if _OPTIONS[option] == 3:
            default = "1" if option == "-s" else "0"
            u, v = [*words, default][:2]
            options[option] = (float(u), float(v))
        clamp = clamp or (option == "-clamp" and words[0].lower() == "on")
    return Texture(library, text, options.get("-s", (1.0, 1.0)), options.get("-o", (0.0, 0.0)), clamp)


def with_opacity(image: np.ndarray | None, opacity: np.ndarray) -> np.ndarray:
    """A picture, or white, whose alpha is multiplied by a picture of opacity: its own alpha if it has one."""
    height, width = max((image, opacity), key=lambda each: 0 if each is None else each.size).shape[:2]
    values = opacity[..., 3] if opacity[..., 3].min() < 255 else opacity[..., :3].mean(axis=-1).round().astype(np.uint8)
    values = np.asarray(PIL.Image.fromarray(values).resize((width, height)))
    if image is None:
        image = np.full((1, 1, 4), 255, np.uint8)
    if image.shape[:2] != (height, width):
        image = np.asarray(PIL.Image.fromarray(image).resize((width, height)))
    # The picture's own alpha is often the same mask again.
    return np.concatenate([image[..., :3], np.minimum(image[..., 3], values)[..., None]], axis=-1)
