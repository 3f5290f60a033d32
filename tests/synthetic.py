"""Small object folders in SRN format, and meshes."""

import numpy as np
import trimesh

from threedim import cameras
from threedim.data import srn


def make_views(views=4, size=16, seed=0, channels=3):
    """Random pictures, in which no two pixels are alike by construction, and random cameras that see the origin."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (views, size, size, channels), dtype=np.uint8)
    positions = rng.normal(size=(views, 3))
    positions *= 1.3 / np.linalg.norm(positions, axis=-1, keepdims=True)
    K = cameras.intrinsics(1.1 * size, size, (0.5 * size + 0.25, 0.5 * size - 0.5))
    return images, cameras.look_at(positions, (0.0, 0.0, 0.0), K)


def make_objects(folder, count=3, views=4, size=16, seed=0, channels=3, prefix="object"):
    """Writes objects; returns their folders, sorted."""
    folders = [folder / f"{prefix}_{index:03d}" for index in range(count)]
    for index, one in enumerate(folders):
        srn.write_object(one, *make_views(views, size, 1000 * seed + index, channels))
    return folders


def box(center, extents, color=None):
    mesh = trimesh.creation.box(extents=extents, transform=trimesh.transformations.translation_matrix(center))
    if color is not None:
        mesh.visual = trimesh.visual.ColorVisuals(mesh, face_colors=np.tile([*color, 255], (len(mesh.faces), 1)))
    return mesh
