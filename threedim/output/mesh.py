"""Exports an object's views as a mesh with vertex colors, for Blender and other programs that read glTF.

    python -m threedim.output.mesh --views runs/cars/views/step_N/views/OBJECT --out mesh.glb

fits the neural field of the 3D consistency score (docs/consistency.md) to all views in a folder of any layout that is
read as data, and extracts its surface. Scale, position and axes are those of the cameras, with z up in Blender.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import trimesh
from etils import epath

from threedim import errors, files, pixels
from threedim.consistency import fit, flags, surface
from threedim.consistency.field import FieldSettings, render, scene_bounds
from threedim.consistency.rows import rays_of
from threedim.data.objects import read_object
from threedim.data.views import ReadSettings
from threedim.errors import ExistsError, UserError
from threedim.output.glb import write_glb
from threedim.progress import Progress
from threedim.rendering import raycast

_NEEDED = {"skimage": "scikit-image", "manifold3d": "manifold3d"}


def export(
    folder: epath.PathLike,
    out: epath.PathLike,
    settings: FieldSettings,
    *,
    read: ReadSettings | None = None,
    faces: int = 20_000,
    resolution: int = 160,
    seed: int = 0,
    overwrite: bool = False,
) -> trimesh.Trimesh:
    """Fits a field to an object's views, writes its surface, and returns it in world coordinates.

    Args:
      folder: one object's views, in any layout of docs/data.md.
      out: file to write, ending in .glb, local or gs://.
      settings: of the fit.
      read: how the folder is read; the defaults if None.
      faces: about the largest number of triangles.
      resolution: points along each edge of the scene's box at which the field is looked at.
      seed: of the fit.
      overwrite: replaces an existing file.

    Raises:
      ExistsError: if ``out`` exists.
      UserError: if a package is missing, a number or the folder is wrong, or the field has no surface.
    """
    # Check everything before the fit, which takes minutes.
    missing = [package for module, package in _NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise UserError(f"a mesh needs {' and '.join(missing)}: pip install {' '.join(_NEEDED.values())}")
    raycast.check_supported()
    if epath.Path(out).suffix.lower() != ".glb":
        raise UserError(f"a mesh file must end in .glb, got {out}")
    if epath.Path(out).exists() and not overwrite:
        raise ExistsError(f"{out} exists: choose another file, or replace it with --overwrite")
    if faces < 4 or not 16 <= resolution <= 512:
        raise UserError(f"faces must be at least 4, and resolution in [16, 512]; got {faces} and {resolution}")
    views = read_object(folder, read or ReadSettings())
    views.print_warnings(folder)
    pictures, cameras = views.decode()
    if len(pictures) < 2:
        raise UserError(f"{folder}: a surface needs at least two views")
    distances = np.linalg.norm(cameras.t, axis=-1)
    try:
        bounds = scene_bounds(float(distances.min()), float(distances.max()))
    except ValueError as error:
        raise UserError(f"{folder}: {error}") from error
    rays = rays_of(pictures, cameras)
    with Progress(settings.num_steps, desc="fitting, steps") as bar:
        batch = jax.tree.map(lambda leaf: leaf[None], rays)
        fields = fit.fit(jax.random.key(seed)[None], batch, bounds, settings, lambda steps, _: bar.set(steps))
    field = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), fields)
    rendered = render(field, rays.origins, rays.directions, bounds, settings)
    rendered = pixels.to_uint8(2 * np.asarray(rendered.colors).reshape(pictures.shape) - 1)
    log = surface.log_density(field, settings, resolution)
    grid = surface.fuse(log, surface.outlines(pictures), cameras, bounds)
    mesh = surface.extract(grid, bounds.half_width, faces)
    write_glb(out, mesh.vertices, mesh.faces, surface.vertex_colors(mesh, rendered, cameras))
    return mesh


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser("python -m threedim.output.mesh", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--views", type=files.path, required=True, metavar="DIR", help="Folder of one object's views.")
    add("--out", type=files.path, required=True, help="File to write, ending in .glb.")
    add("--faces", type=int, default=20_000, help="About the largest number of triangles.")
    add("--resolution", type=int, default=160, help="Points along each edge of the scene's box.")
    add("--overwrite", action="store_true", help="Replace an existing file.")
    flags.add_fit_flags(parser)
    given = parser.parse_args(argv)
    with errors.one_line():
        settings, read = flags.fit_settings(given)
        options = {name: getattr(given, name) for name in ("faces", "resolution", "seed", "overwrite")}
        mesh = export(given.views, given.out, settings, read=read, **options)
    size = " x ".join(f"{extent:.3g}" for extent in mesh.extents)
    closed = "closed" if mesh.is_watertight else "NOT closed"
    print(f"{given.out}: {len(mesh.faces):,} triangles, {closed}, {size} (x, y, z), volume {mesh.volume:.3g}")


if __name__ == "__main__":
    main()
