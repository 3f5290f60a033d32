"""Reads GLB and glTF 2.0 files: what the default scene shows, in its default pose.

Read are https://registry.khronos.org/glTF/specs/2.0/glTF-2.0.html but for animations, cameras, points and lines, and
the extensions in `_READ`. Those in `_HARMLESS` do not change a surface without gloss.
"""

from __future__ import annotations

import pathlib

import numpy as np

from threedim.errors import UserError
from threedim.rendering import gltf_materials
from threedim.rendering.gltf_file import Document
from threedim.rendering.surfaces import Surface, cofactor

_READ = {
    "EXT_mesh_gpu_instancing",
    "EXT_texture_webp",
    "KHR_draco_mesh_compression",
    "KHR_lights_punctual",
    "KHR_materials_emissive_strength",
    "KHR_materials_pbrSpecularGlossiness",
    "KHR_materials_transmission",
    "KHR_materials_unlit",
    "KHR_mesh_quantization",
    "KHR_node_visibility",
    "KHR_texture_transform",
}
_HARMLESS = {
    "EXT_mesh_features",
    "EXT_structural_metadata",
    "FB_ngon_encoding",
    "KHR_animation_pointer",
    "KHR_materials_anisotropy",
    "KHR_materials_clearcoat",
    "KHR_materials_dispersion",
    "KHR_materials_ior",
    "KHR_materials_iridescence",
    "KHR_materials_sheen",
    "KHR_materials_specular",
    "KHR_materials_variants",
    "KHR_materials_volume",
    "KHR_texture_basisu",  # of use only to textures without another picture, which warn
    "KHR_xmp",
    "KHR_xmp_json_ld",
}
_POINTS_AND_LINES = (0, 1, 2, 3)
_TRIANGLES, _STRIP, _FAN = 4, 5, 6
# Instances multiply what a file holds.
_MAX_FACES = 20_000_000


def read(path: pathlib.Path) -> tuple[list[Surface], list[str]]:
    """Reads a file with its textures.

    Returns:
      Surfaces, y up, and warnings: a line for each thing in the file that the surfaces lack.

    Raises:
      BadMeshError: if the file is damaged, or requires an extension that is not read.
    """
    document = Document(path)
    try:
        _check_extensions(document)
        world = _world_matrices(document)
        surfaces: list[Surface] = []
        faces = 0
        for index in _visible_nodes(document):
            node = document.item("nodes", index)
            if "mesh" not in node:
                continue
            matrices = _instances(document, node, world[index])
            mesh = document.item("meshes", node["mesh"])
            for number, part in enumerate(mesh["primitives"]):
                primitive = _Primitive(document, part, f"meshes[{node['mesh']}].primitives[{number}]")
                faces += len(primitive.faces) * len(matrices)
                if faces > _MAX_FACES:
                    document.fail(f"shows more than {_MAX_FACES:,} triangles, counting instances; simplify it")
                if len(primitive.faces):
                    weights = node.get("weights", mesh.get("weights", ()))
                    joints = _joint_matrices(document, node["skin"], world) if "skin" in node else None
                    surfaces.append(primitive.surface(matrices, weights, joints))
    except UserError:
        raise
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError) as error:
        document.unreadable(error)
    return surfaces, document.warnings


def _check_extensions(document: Document) -> None:
    """Refuses what the file requires and is not read; warns of what it merely uses."""
    root, known = document.json, _READ | _HARMLESS
    required = set(root.get("extensionsRequired", ()))
    if refused := sorted((required - known) | (required & {"KHR_texture_basisu"})):
        document.fail(f"requires {', '.join(refused)}, which is not read; export it without")
    if ignored := sorted(set(root.get("extensionsUsed", ())) - known):
        document.warn(f"ignored {', '.join(ignored)}, which is not read")
    if count := len(root.get("animations", ())):
        document.warn(f"its animations ({count}) are not played; it is shown in its default pose")
    if count := len(root.get("extensions", {}).get("KHR_lights_punctual", {}).get("lights", ())):
        document.warn(f"its lights ({count}) are not used; all objects are lit alike")
    if (count := len(root.get("scenes", ()))) > 1:
        document.warn(f"only scene {root.get('scene', 0)} of {count} is shown")


def _world_matrices(document: Document) -> list[np.ndarray]:
    """(4, 4) from each node to the world. Refuses nodes with two parents, and so cycles."""
    nodes = document.json.get("nodes", [])
    parents = [-1] * len(nodes)
    for index, node in enumerate(nodes):
        for child in node.get("children", ()):
            document.item("nodes", child)
            if parents[child] != -1:
                document.fail(f"nodes[{child}] has two parents; export it again")
            parents[child] = index
    order = [index for index, parent in enumerate(parents) if parent == -1]
    for index in order:  # grows
        order += nodes[index].get("children", ())
    if len(order) < len(nodes):
        document.fail("has nodes that contain themselves; export it again")
    world = [np.eye(4)] * len(nodes)
    for index in order:
        local = _local_matrix(nodes[index])
        world[index] = local if parents[index] == -1 else world[parents[index]] @ local
    return world


def _local_matrix(node: dict) -> np.ndarray:
    if "matrix" in node:
        return np.asarray(node["matrix"], np.float64).reshape(4, 4).T
    parts = (node.get(key, default) for key, default in zip(_TRS, _TRS.values(), strict=True))
    return _trs(*(np.asarray(part, np.float64)[None] for part in parts))[0]


_TRS = {"translation": (0, 0, 0), "rotation": (0, 0, 0, 1), "scale": (1, 1, 1)}


def _trs(translation: np.ndarray, rotation: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """(n, 4, 4) matrices of (n, 3) translations, (n, 4) quaternions x, y, z, w and (n, 3) scales."""
    length = np.linalg.norm(rotation, axis=-1, keepdims=True)
    x, y, z, w = (rotation / np.where(length > 0, length, 1)).T
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)),
        (2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)),
        (2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)),
    )
    matrices = np.zeros((len(translation), 4, 4))
    matrices[:, :3, :3] = np.moveaxis(np.array(rows), -1, 0) * scale[:, None]
    matrices[:, :3, 3], matrices[:, 3, 3] = translation, 1
    return matrices


def _visible_nodes(document: Document) -> list[int]:
    """Nodes of the default scene; of all, if the file has no scenes."""
    nodes = document.json.get("nodes", [])
    if document.json.get("scenes"):
        found = list(document.item("scenes", document.json.get("scene", 0)).get("nodes", ()))
    else:
        children = {child for node in nodes for child in node.get("children", ())}
        found = [index for index in range(len(nodes)) if index not in children]
    visible = {}  # ordered, and without those that are listed twice
    for index in found:  # grows
        node = document.item("nodes", index)
        if node.get("extensions", {}).get("KHR_node_visibility", {}).get("visible", True):
            visible[index] = node
            found += node.get("children", ())
    return list(visible)


def _instances(document: Document, node: dict, world: np.ndarray) -> np.ndarray:
    """(instance, 4, 4) from a mesh to the world."""
    extension = node.get("extensions", {}).get("EXT_mesh_gpu_instancing")
    if extension is None:
        return world[None]
    given = {key.lower(): document.accessor(index) for key, index in extension["attributes"].items()}
    count = max((len(values) for values in given.values()), default=1)
    parts = (given.get(key, np.tile(default, (count, 1))) for key, default in _TRS.items())
    return world @ _trs(*(np.asarray(part, np.float64) for part in parts))


def _joint_matrices(document: Document, index: int, world: list[np.ndarray]) -> np.ndarray:
    """(joint, 4, 4) from a mesh in the pose that it was bound in to the world."""
    skin = document.item("skins", index)
    for joint in skin["joints"]:
        document.item("nodes", joint)
    matrices = np.array([world[joint] for joint in skin["joints"]])
    if "inverseBindMatrices" in skin:
        inverse = document.accessor(skin["inverseBindMatrices"])
        if len(inverse) < len(matrices):
            document.fail(f"skins[{index}] has {len(matrices)} joints, but {len(inverse)} matrices; export it again")
        matrices = matrices @ inverse[: len(matrices)].reshape(-1, 4, 4).swapaxes(1, 2)
    return matrices


class _Primitive:
    """A list of triangles of one material.

    Attributes:
      faces: (face, corner) indices into the vertices that are used.
    """

    def __init__(self, document: Document, primitive: dict, name: str):
        self.document, self.primitive, self.name = document, primitive, name
        self.attributes = primitive["attributes"]
        self.packed = primitive.get("extensions", {}).get("KHR_draco_mesh_compression")
        self.faces = np.zeros((0, 3), np.int64)
        mode = primitive.get("mode", _TRIANGLES)
        if mode in _POINTS_AND_LINES:
            document.warn("points and lines are not drawn")
        elif mode not in (_TRIANGLES, _STRIP, _FAN):
            document.fail(f"{name} has unknown mode {mode}; export it again")
        elif "POSITION" not in self.attributes:
            document.warn(f"{name} has no positions and is not drawn")
        else:
            self.count = len(self._vertices("POSITION", slice(None)))
            faces = self._indices(mode)
            if faces.max(initial=0) >= self.count:
                document.fail(f"{name} refers to vertex {faces.max()} of {self.count}; export it again")
            # Primitives often share long lists of vertices.
            self.used, self.faces = slice(None), faces
            if self.count > faces.size:
                self.used, self.faces = np.unique(faces, return_inverse=True)
                self.faces = self.faces.reshape(faces.shape)

    def surface(self, matrices: np.ndarray, weights, joints: np.ndarray | None) -> Surface:
        """All instances (instance, 4, 4), or if there are ``joints`` (joint, 4, 4), the only one in their pose."""
        positions = self._morphed("POSITION", 3, weights)
        normals = self._morphed("NORMAL", 3, weights) if "NORMAL" in self.attributes else np.zeros_like(positions)
        # (instance, vertex or 1, 4, 4). The node's own matrix does not count for a skin.
        matrices = matrices[:, None] if joints is None else self._skinned(joints)[None]
        points = np.einsum("...ij,...j->...i", matrices[..., :3, :3], positions) + matrices[..., :3, 3]
        normals = np.einsum("...ij,...j->...i", cofactor(matrices), normals)
        # A reflection turns faces inside out: their corners run the other way.
        mirrored = np.broadcast_to(np.linalg.det(matrices[..., :3, :3]) < 0, points.shape[:2])[:, self.faces[:, 0]]
        faces = np.where(mirrored[..., None], self.faces[:, ::-1], self.faces)  # (instance, face, corner)
        instance = np.arange(len(faces))[:, None, None]
        triangles, normals = (values[instance, faces].reshape(-1, 3, 3) for values in (points, normals))
        faces = faces.reshape(-1, 3)
        colors = np.ones((len(faces), 3, 4), np.float32)
        if "COLOR_0" in self.attributes:
            given = self._morphed("COLOR_0", None, weights)[faces]
            colors[..., : given.shape[-1]] = np.clip(given, 0, 1)
        surface = Surface(triangles, normals, colors, np.zeros((len(faces), 3, 2)))

        def coordinates(number: int) -> np.ndarray | None:
            key = f"TEXCOORD_{number}"
            return self._morphed(key, 2, weights)[faces] if key in self.attributes else None

        index = self.primitive.get("material")
        material = None if index is None else self.document.item("materials", index)
        gltf_materials.apply(surface, self.document, material, coordinates)
        return surface

    def _vertices(self, key: str, used) -> np.ndarray:
        """(vertex, component) of an attribute."""
        packed = (self.packed or {}).get("attributes", {})
        if key in packed:
            found = self.document.draco(self.packed["bufferView"]).get_attribute_by_unique_id(packed[key])
            if found is None:
                self.document.fail(f"{self.name} has no {key} in its Draco data; export it again")
            return self.document.like(self.attributes[key], found["data"])[used]
        return self.document.accessor(self.attributes[key])[used]

    def _morphed(self, key: str, width: int | None, weights) -> np.ndarray:
        """(vertex, component) float64 of an attribute, with the morph targets' default weights."""
        values = self._vertices(key, slice(None))
        if len(values) != self.count or (width and values.shape[1] != width):
            self.document.fail(
                f"{self.name}: {key} has {len(values)} elements of {values.shape[1]} numbers, "
                f"POSITION has {self.count}; export it again"
            )
        values = values[self.used].astype(np.float64)
        for weight, target in zip(weights, self.primitive.get("targets", ()), strict=False):
            if weight and key in target:
                values += weight * self.document.accessor(target[key])[self.used]
        return values

    def _skinned(self, joints: np.ndarray) -> np.ndarray:
        """(vertex, 4, 4) from the mesh to the world, blended from those of the joints."""
        total, matrices = 0.0, 0.0
        number = 0
        while f"JOINTS_{number}" in self.attributes:
            index, weight = (self._vertices(f"{key}_{number}", self.used) for key in ("JOINTS", "WEIGHTS"))
            if index.max(initial=0) >= len(joints):
                self.document.fail(f"{self.name} refers to joint {index.max()} of {len(joints)}; export it again")
            matrices = matrices + np.einsum("vj,vjkl->vkl", weight.astype(np.float64), joints[index])
            total = total + weight.sum(axis=1, dtype=np.float64)
            number += 1
        if not number:
            self.document.fail(f"{self.name} has a skin, but no JOINTS_0; export it again")
        return matrices / np.where(total > 0, total, 1)[:, None, None]

    def _indices(self, mode: int) -> np.ndarray:
        """(face, corner) of a list, strip or fan of triangles."""
        if self.packed is not None:
            # A strip, if there was one, is a list after decoding.
            return np.asarray(self.document.draco(self.packed["bufferView"]).faces, np.int64).reshape(-1, 3)
        if "indices" in self.primitive:
            order = self.document.accessor(self.primitive["indices"])[:, 0]
            if order.dtype.kind != "u":
                self.document.fail(f"indices of {self.name} are not unsigned integers; export it again")
            order = order.astype(np.int64)
        else:
            order = np.arange(self.count)
        if mode == _TRIANGLES:
            if len(order) % 3:
                self.document.warn(f"{self.name} ends within a triangle")
            return order[: len(order) // 3 * 3].reshape(-1, 3)
        first = np.arange(max(len(order) - 2, 0))
        if mode == _FAN:
            return order[np.stack([first + 1, first + 2, np.zeros_like(first)], axis=-1)]
        odd = first % 2
        return order[np.stack([first, first + 1 + odd, first + 2 - odd], axis=-1)]
