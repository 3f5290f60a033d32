"""Reads OBJ files with their material libraries.

Own code, since no kept package with wheels reads vertex colors beside materials, transparency and texture options.
NumPy parses all statements of a kind at once: a million faces take seconds.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
import warnings as python_warnings

import numpy as np

from threedim.errors import UserError
from threedim.rendering import assets, mtl, polygons
from threedim.rendering.mtl import Material, Texture
from threedim.rendering.surfaces import DEFAULT_GRAY, BadMeshError, Surface, srgb_to_linear

# Statements that would be visible, but are not rendered.
_UNREAD = {
    "lines": {b"l"},
    "points": {b"p"},
    "free-form curves and surfaces": {b"curv", b"curv2", b"surf", b"bzp", b"bsp", b"cdc", b"cdp", b"res"},
    "calls of other files": {b"call", b"csh"},
}


def read(path: pathlib.Path) -> tuple[list[Surface], list[str]]:
    """The surfaces of a file, one or two for each material, and its warnings.

    Vertex colors multiply the diffuse color, and a texture replaces it. Faces before the first `usemtl` have the only
    material of the libraries, or are gray.

    Raises:
      BadMeshError: if a number cannot be read, or a face refers to a vertex that does not exist.
    """
    warnings: list[str] = []
    statements = _Statements.scan(path)
    vertices, colors = _vertices(statements)
    uvs, normals = statements.table(statements.uv, 2, 2), statements.table(statements.normal, 2, 3)
    sizes, indices = _corners(statements, warnings)
    triangles, faces = polygons.triangulate(vertices[indices[0]], sizes)
    if small := int((sizes < 3).sum()):
        warnings.append(f"{path}: {small} faces of fewer than three corners are left out")

    used = np.zeros(len(statements.face), int)  # number of a material by face
    uses, libraries = _other_statements(statements, warnings)
    names = dict.fromkeys([None, *(name for _, name in uses)])
    if uses:
        number_of = {name: number for number, name in enumerate(names)}
        numbers = np.array([0] + [number_of[name] for _, name in uses])
        used = numbers[np.searchsorted([line for line, _ in uses], statements.face, side="right")]
    used = used[faces]
    present, counts = np.unique(used, return_counts=True)
    present_names = [list(names)[number] for number in present]
    materials = _find_materials(path, present_names, libraries, warnings)
    textures = _Textures(warnings)
    surfaces = []
    groups = np.split(np.argsort(used, kind="stable"), np.cumsum(counts)[:-1]) if len(used) else []
    for chosen, material in zip(groups, materials, strict=True):
        vertex, uv, normal = (index[triangles[chosen]] for index in indices)
        rgba = np.ones((*vertex.shape, 4), np.float32)
        if colors is not None:
            rgba[..., :3] = srgb_to_linear(colors[vertex])
        surface = Surface(vertices[vertex], _rows(normals, normal), rgba, _rows(uvs, uv))
        surfaces += _apply(surface, material, (uv >= 0).all(axis=1), colors is not None, textures)
    if surfaces and all(surface.colors[..., 3].max() == 0 for surface in surfaces):
        warnings.append(f"{path}: every material is fully transparent (d or Tr); all are shown opaque")
        for surface in surfaces:
            surface.colors[..., 3] = 1
    else:
        clear = [name for name, material in zip(present_names, materials, strict=True) if material.opacity == 0]
        warnings += [f"{path}: material {name!r} is fully transparent (d or Tr)" for name in clear]
    return surfaces, warnings


@dataclasses.dataclass(frozen=True)
class _Statements:
    """The text, with the places of its lines and the numbers of those that begin with v, vt, vn, f or a letter."""

    path: pathlib.Path
    text: bytes
    starts: np.ndarray  # (line,) places of their first bytes
    ends: np.ndarray  # (line,) places of their newlines
    vertex: np.ndarray
    uv: np.ndarray
    normal: np.ndarray
    face: np.ndarray
    other: np.ndarray

    @classmethod
    def scan(cls, path: pathlib.Path) -> _Statements:
        text = mtl.text_of(path.read_bytes()).replace(b"\t", b" ") + b"\n\n\n"
        if text.startswith(b" ") or b"\n " in text:
            text = re.sub(rb"(?m)^ +", b"", text)
        array = np.frombuffer(text, np.uint8)
        ends = np.flatnonzero(array == ord("\n"))[:-2]
        starts = np.concatenate([[0], ends[:-1] + 1])
        first, second, third = (array[starts + i] for i in range(3))
        v, spaced = first == ord("v"), third == ord(" ")
        kinds = [v & (second == ord(" ")), v & (second == ord("t")) & spaced, v & (second == ord("n")) & spaced]
        kinds.append((first == ord("f")) & (second == ord(" ")))
        kinds.append(~np.any(kinds, axis=0) & (first != ord("\n")) & (first != ord("#")))
        return cls(path, text, starts, ends, *(np.flatnonzero(kind) for kind in kinds))

    def line(self, number: int) -> bytes:
        return self.text[self.starts[number] : self.ends[number]]

    def without_keywords(self, lines: np.ndarray, keyword: int) -> bytes:
        """The text of some lines without their first ``keyword`` bytes and without comments."""
        starts, ends = self.starts[lines] + keyword, self.ends[lines] + 1
        text = b"".join([self.text[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)])
        return re.sub(rb"#[^\n]*", b"", text) if b"#" in text else text

    def numbers(self, lines: np.ndarray, text: bytes, dtype: type) -> np.ndarray:
        """All numbers of the text of some lines."""
        with python_warnings.catch_warnings():
            python_warnings.simplefilter("error", DeprecationWarning)
            try:
                return np.fromstring(text, dtype, sep=" ")
            except (DeprecationWarning, ValueError):
                pass
        pattern = {float: rb"[\s\d.eE+-]*", int: rb"[\s\d+-]*"}[dtype]
        wrong = (line for line, t in zip(lines, text.split(b"\n"), strict=False) if not re.fullmatch(pattern, t))
        line = next(wrong, lines[0])
        raise BadMeshError(f"{self.path}: line {line + 1} cannot be read: {assets.decode(self.line(line))[:80]!r}")

    def table(self, lines: np.ndarray, keyword: int, width: int) -> np.ndarray:
        """(line, width) float64: the first numbers of each line; NaN where it has fewer."""
        text = self.without_keywords(lines, keyword)
        numbers, (_, counts) = self.numbers(lines, text, float), _words(text)
        if len(lines) and counts.min() == counts.max() >= width:
            return numbers.reshape(len(lines), -1)[:, :width]
        columns = np.arange(len(numbers)) - np.repeat(np.cumsum(counts) - counts, counts)
        table = np.full((len(lines), width), np.nan)
        table[np.repeat(np.arange(len(lines)), counts)[columns < width], columns[columns < width]] = numbers[
            columns < width
        ]
        return table


def _words(text: bytes) -> tuple[np.ndarray, np.ndarray]:
    """(word,) places of the words of a text, and the (line,) numbers of words in its lines."""
    array = np.frombuffer(text, np.uint8)
    newline = array == ord("\n")
    blank = newline | (array == ord(" "))
    starts = np.flatnonzero(~blank & np.concatenate([[True], blank[:-1]]))
    return starts, np.diff(np.searchsorted(starts, np.flatnonzero(newline)), prepend=0)


def _vertices(statements: _Statements) -> tuple[np.ndarray, np.ndarray | None]:
    """(vertex, 3) positions, and sRGB colors in [0, 1] if there are any."""
    table = statements.table(statements.vertex, 1, 6)
    colored = ~np.isnan(table[:, 5])  # a fourth number alone is a weight
    if colored.any():
        colors = table[:, 3:] / (255 if table[colored, 3:].max() > 1 else 1)
        colors[~colored] = 1
    else:
        colors = _polypaint(statements, len(table))
    return table[:, :3], None if colors is None else np.clip(colors, 0, 1)


def _polypaint(statements: _Statements, count: int) -> np.ndarray | None:
    """ZBrush's colors: comments of 8 hexadecimal digits a vertex, the first two of which are a mask."""
    if b"#MRGB" not in statements.text:
        return None
    digits = b"".join(re.findall(rb"(?m)^#MRGB +([0-9a-fA-F]+)", statements.text))
    if not count or len(digits) != 8 * count:
        return None
    return np.frombuffer(bytes.fromhex(digits.decode()), np.uint8).reshape(count, 4)[:, 1:] / 255


def _corners(statements: _Statements, warnings: list[str]) -> tuple[np.ndarray, list[np.ndarray]]:
    """(face,) numbers of corners, and (corner,) indices of vertices, texture coordinates and normals; -1 for none."""
    lines = statements.face
    text = statements.without_keywords(lines, 1).replace(b"//", b"/0/").replace(b"/ ", b"/0 ").replace(b"/\n", b"/0\n")
    starts, sizes = _words(text)
    slashes = np.flatnonzero(np.frombuffer(text, np.uint8) == ord("/"))
    fields = 1 + np.diff(np.searchsorted(slashes, starts), append=len(slashes))  # of each corner
    numbers = statements.numbers(lines, text.replace(b"/", b" "), int)
    if len(numbers) != fields.sum():
        raise BadMeshError(f"{statements.path}: faces cannot be read; export the mesh again")
    numbers = np.append(numbers, [0, 0])
    first = np.cumsum(fields) - fields
    indices = []
    kinds = (statements.vertex, "vertices"), (statements.uv, "texture coordinates"), (statements.normal, "normals")
    for i, (table, what) in enumerate(kinds):
        index = np.where(fields > i, numbers[first + i], 0)
        before = np.repeat(np.searchsorted(table, lines), sizes)  # negative numbers count back from here
        missing = index == 0
        index = np.where(index < 0, before + index, index - 1)
        wrong = ((index < 0) & ~missing) | (index >= len(table))
        if i == 0 and (missing | wrong).any():
            line = lines[np.searchsorted(np.cumsum(sizes), np.argmax(missing | wrong), side="right")]
            problem = f"line {line + 1} refers to a vertex that does not exist; export the mesh again"
            raise BadMeshError(f"{statements.path}: {problem}")
        if wrong.any():
            warnings.append(f"{statements.path}: {wrong.sum()} corners refer to {what} that do not exist")
        indices.append(np.where(wrong, -1, index))
    return sizes, indices


def _rows(table: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Rows of a table; zeros for index -1 and for numbers that a row lacks."""
    return np.nan_to_num(np.concatenate([table, np.zeros((1, table.shape[1]))]))[index]


def _other_statements(statements: _Statements, warnings: list[str]) -> tuple[list[tuple[int, str]], list[str]]:
    """Lines and names of materials in use, and what the `mtllib` statements say."""
    uses, libraries, unread = [], [], dict.fromkeys(_UNREAD, 0)
    for number in statements.other:
        keyword, _, rest = statements.line(number).partition(b" ")
        if keyword == b"usemtl":
            uses.append((number, assets.decode(rest).strip()))
        elif keyword == b"mtllib":
            libraries.append(assets.decode(rest).strip())
        else:
            for what, keywords in _UNREAD.items():
                unread[what] += keyword in keywords
    warnings += [f"{statements.path}: {count} {what} are not rendered" for what, count in unread.items() if count]
    return uses, libraries


def _find_materials(
    path: pathlib.Path, names: list[str | None], libraries: list[str], warnings: list[str]
) -> list[Material]:
    """The materials of these names; None stands for faces without `usemtl`."""
    known: dict[str, Material] = {}
    problems = []
    for name in [name for text in libraries for name in _library_names(path.parent, text)]:
        try:
            # The first library that has a material counts.
            known = mtl.read_library(assets.search(path.parent, name), warnings.append) | known
        except (UserError, OSError) as error:
            problems.append(f"material library {error}")
    folded = {name.casefold(): material for name, material in known.items()}
    only = next(iter(known.values())) if len(known) == 1 else None
    found = [(known.get(name) or folded.get(name.casefold())) if name else only for name in names]
    lost = [name for name, material in zip(names, found, strict=True) if material is None]
    if any(lost) or (lost and libraries):
        what = ", ".join(f"material {name!r}" if name else "faces without usemtl" for name in lost[:3])
        more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
        reason = "; ".join(problems) or ("no library has them" if libraries else "no library is named")
        warnings.append(f"{path}: {what}{more} shown gray: {reason}")
    return [material or Material() for material in found]


def _library_names(folder: pathlib.Path, text: str) -> list[str]:
    """The names in a `mtllib` statement: one with spaces, or several."""
    try:
        assets.search(folder, text)
        return [text]
    except UserError:
        return [match[0] for match in re.finditer(r'"[^"]+"|\S.*?\.mtl(?=\s|$)|\S+', text, re.IGNORECASE)]


class _Textures:
    """Decodes each texture once. One that is missing or damaged becomes a warning."""

    def __init__(self, warnings: list[str]):
        self.warnings = warnings
        self._read: dict[tuple[pathlib.Path, str], np.ndarray | None] = {}

    def get(self, texture: Texture | None) -> np.ndarray | None:
        if texture is None:
            return None
        key = texture.library, texture.name
        if key not in self._read:
            try:
                self._read[key] = texture.read()
            except (UserError, OSError) as error:
                self._read[key] = None
                self.warnings.append(f"{texture.library}: texture {error}")
        return self._read[key]


def _apply(
    surface: Surface, material: Material, has_uv: np.ndarray, has_colors: bool, textures: _Textures
) -> list[Surface]:
    """Gives a surface its material. Faces without texture coordinates become a second surface."""
    image, mask, glow = (textures.get(m) for m in (material.diffuse_map, material.opacity_map, material.emission_map))
    opacity = 1.0 if material.opacity is None else material.opacity
    surface.colors[..., 3] = opacity
    surface.alpha_cutoff = np.inf if opacity < 1 else 0.0
    plain = dataclasses.replace(surface, colors=surface.colors.copy())
    default = (1.0, 1.0, 1.0) if has_colors else DEFAULT_GRAY
    plain.colors[..., :3] *= srgb_to_linear(material.diffuse or default)
    emission = material.emission or (0, 0, 0)
    if any(emission):
        plain.emission = np.broadcast_to(srgb_to_linear(emission), surface.triangles.shape)
    if image is None and mask is None and glow is None:
        return [plain]
    textured = dataclasses.replace(plain)
    shown = material.diffuse_map
    if image is not None:
        textured.colors = np.ones_like(surface.colors) * [1, 1, 1, opacity]
    if mask is not None:
        shown = shown if image is not None else material.opacity_map
        image = mtl.with_opacity(image, mask)
    if image is not None:
        textured.image, textured.uv = image, shown.coordinates(surface.uv)
        textured.wrap = ("clamp", "clamp") if shown.clamp else ("repeat", "repeat")
        textured.alpha_cutoff = np.inf if opacity < 1 or image[..., 3].min() < 255 else 0.0
    if glow is not None:
        factor = srgb_to_linear(emission if any(emission) else (1, 1, 1))
        textured.emission = np.broadcast_to(factor, surface.triangles.shape)
        textured.emission_image, textured.emission_uv = glow, material.emission_map.coordinates(surface.uv)
        textured.emission_wrap = ("clamp", "clamp") if material.emission_map.clamp else ("repeat", "repeat")
    if not has_uv.all():
        library = (material.diffuse_map or material.opacity_map or material.emission_map).library
        textures.warnings.append(f"{library}: {(~has_uv).sum()} faces have no coordinates for their texture")
    return [_select(part, faces) for part, faces in ((textured, has_uv), (plain, ~has_uv)) if faces.any()]


def _select(surface: Surface, faces: np.ndarray) -> Surface:
    fields = ("triangles", "normals", "colors", "uv", "emission", "emission_uv")
    chosen = {name: getattr(surface, name) for name in fields}
    return dataclasses.replace(surface, **{k: None if v is None else v[faces] for k, v in chosen.items()})
