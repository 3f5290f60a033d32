"""Views as a mesh: its surface, its file, and the command."""

import dataclasses
import importlib.util

import jax.numpy as jnp
import numpy as np
import pytest
import trimesh
from PIL import Image

from threedim import cameras as cameras_lib
from threedim.consistency import field as field_lib
from threedim.consistency import surface
from threedim.consistency.field import Field, FieldSettings, scene_bounds
from threedim.data import srn
from threedim.output import glb, mesh
from threedim.rendering import gltf, meshes, raycast, viewpoints
from threedim.rendering.surfaces import linear_to_srgb

HALF = np.float32([0.7, 0.35, 0.5])  # of the box, world units
COLORS = np.repeat([[220, 40, 40], [40, 180, 40], [60, 60, 220], [200, 180, 40], [180, 60, 180], [60, 180, 180]], 2, 0)
Y_UP_TO_Z_UP = np.float32([[1, 0, 0], [0, 0, -1], [0, 1, 0]])


def box_views(size, views, samples=1):
    """Pictures of a box with a color on each side from two orbits, and their cameras."""
    box = trimesh.creation.box(2 * HALF)
    order = np.argsort(np.abs(box.face_normals).argmax(axis=1) * 2 + (box.face_normals.sum(axis=1) > 0), kind="stable")
    colors = np.empty((12, 4))
    colors[order] = np.concatenate([COLORS, np.full((12, 1), 255)], axis=1)
    box.visual.face_colors = colors.astype(np.uint8)
    elevation = np.where(np.arange(views) < views // 2, 10.0, 50.0)
    K, scale = viewpoints.default_intrinsics(size), np.linalg.norm(HALF)
    cameras = cameras_lib.orbit(np.arange(views) * 720 / views, elevation, 2.6, K)
    return on_white(
        raycast.render_views(box, dataclasses.replace(cameras, t=cameras.t / scale), size, samples)
    ), cameras


def on_white(rgba):
    alpha = rgba[..., 3:] / 255
    return np.rint(rgba[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)


def box_grid(bounds, resolution, wall=np.inf):
    """Log density of a box of 2 `HALF`, empty deeper inside than its wall."""
    line = np.linspace(-bounds.half_width, bounds.half_width, resolution, dtype=np.float32)
    inside = (HALF - np.abs(np.stack(np.meshgrid(line, line, line, indexing="ij"), axis=-1))).min(axis=-1)
    return np.where((inside > 0) & (inside < wall), 7.0, -9.0).astype(np.float32)


@pytest.mark.parametrize("wall", [np.inf, 0.08])
def test_a_box_comes_back_closed_and_of_its_size(wall):
    """Its underside and its inside are not seen."""
    pictures, cameras = box_views(32, 8)
    bounds = scene_bounds(2.6, 2.6)
    grid = surface.fuse(box_grid(bounds, 80, wall), surface.outlines(pictures), cameras, bounds)
    found = surface.extract(grid, bounds.half_width, faces=500)
    assert found.is_watertight
    assert found.body_count == 1
    assert len(found.faces) <= 500
    np.testing.assert_allclose(found.extents, 2 * HALF, rtol=0.05)
    np.testing.assert_allclose(found.bounds.mean(axis=0), 0, atol=0.03)
    assert found.volume == pytest.approx(8 * HALF.prod(), rel=0.1)  # edges are rounded
    # Seen from everywhere but below.
    colors = 255 * surface.vertex_colors(found, pictures, cameras)
    top = found.vertex_normals[:, 2] > 0.95
    assert top.sum() > 3
    assert np.abs(np.median(colors[top], axis=0) - pictures[-1, 12, 16]).max() < 8


def test_what_is_white_is_empty(monkeypatch):
    def fog(params, positions, settings):
        x = positions[:, :1]
        return jnp.full(len(positions), 100.0), jnp.where(x > 0.5, jnp.float32([1, 0.99, 0.98]), 0.5), None

    monkeypatch.setattr(field_lib, "density_and_color", fog)
    log = surface.log_density(Field({}, None), FieldSettings(), 8)
    np.testing.assert_allclose(log[:4], np.log(100), rtol=1e-4)
    assert (log[4:] < np.log(100) - 10).all()


def test_floaters_are_left_out_and_nothing_is_an_error():
    bounds = scene_bounds(2.6, 2.6)
    grid = box_grid(bounds, 48)
    grid[2:5, 2:5, 2:5] = 7.0
    assert surface.extract(grid, bounds.half_width, faces=10_000).body_count == 1
    with pytest.raises(ValueError, match="the field has no surface"):
        surface.extract(np.full((8, 8, 8), -1.0), 1.0, faces=10)
    pictures, cameras = box_views(16, 4)
    with pytest.raises(ValueError, match="the field is nowhere opaque"):
        surface.fuse(np.full((16, 16, 16), -9.0), surface.outlines(pictures), cameras, bounds)


def test_a_file_has_the_coordinates_and_colors(tmp_path):
    rng, solid = np.random.default_rng(0), trimesh.creation.icosphere(subdivisions=1)
    colors = rng.uniform(size=(len(solid.vertices), 3))
    solid.apply_scale([1, 2, 3]).apply_translation([0.3, 0, 0])
    glb.write_glb(tmp_path / "a.glb", solid.vertices, solid.faces, colors)
    (read,), warnings = gltf.read(tmp_path / "a.glb")
    assert not warnings
    np.testing.assert_allclose(read.triangles @ Y_UP_TO_Z_UP.T, solid.vertices[solid.faces], atol=1e-6)
    np.testing.assert_allclose(linear_to_srgb(read.emission), colors[solid.faces], atol=1e-5)
    other = trimesh.load(tmp_path / "a.glb").to_geometry()
    assert other.is_watertight
    assert other.volume == pytest.approx(solid.volume)
    np.testing.assert_allclose(other.extents, solid.extents[[0, 2, 1]], rtol=1e-6)


def test_mistakes_are_told_before_the_fit(tmp_path, monkeypatch):
    def said(*flags):
        with pytest.raises(SystemExit) as stopped:
            mesh.main([f"--views={tmp_path}", *flags])
        return str(stopped.value)

    (tmp_path / "a.glb").touch()
    assert said(f"--out={tmp_path / 'a.glb'}") == f"error: {tmp_path / 'a.glb'} exists: choose another file, or " + (
        "replace it with --overwrite"
    )
    assert "must end in .glb" in said("--out=a.obj")
    assert "resolution in [16, 512]" in said("--out=b.glb", "--resolution=9")
    assert "no setting 'steps'" in said("--out=b.glb", "--set=steps=3")
    assert "is no object" in said("--out=b.glb")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "manifold3d" else find(name))
    assert said("--out=b.glb") == "error: a mesh needs manifold3d: pip install scikit-image manifold3d"


@pytest.mark.slow
def test_views_of_a_box_become_a_mesh_that_looks_like_them(tmp_path, capsys):
    pictures, cameras = box_views(64, 24, samples=16)
    srn.write_object(tmp_path / "box", pictures, cameras)
    out = tmp_path / "box.glb"
    mesh.main([f"--views={tmp_path / 'box'}", f"--out={out}", "--set=num_steps=400", "--rays_per_step=1024"])
    assert " triangles, closed, " in capsys.readouterr().out
    geometry = meshes.load_mesh(out)
    (read,), _ = gltf.read(out)
    triangles = read.triangles @ Y_UP_TO_Z_UP.T
    normals = trimesh.triangles.normals(triangles)[0]
    for axis, half in enumerate(HALF):  # between opposite sides; the edges have bumps after so short a fit
        sides = [np.median(triangles[sign * normals[:, axis] > 0.9, :, axis]) for sign in (1, -1)]
        assert abs((sides[0] - sides[1]) / (2 * half) - 1) < 0.06
    np.testing.assert_allclose(np.ptp(triangles, axis=(0, 1)), 2 * HALF, rtol=0.25)
    geometry = dataclasses.replace(geometry, triangles=np.float32(triangles))
    rendered = on_white(raycast.render_views(geometry, cameras, 64, samples=4))
    Image.fromarray(np.concatenate([pictures[::6], rendered[::6]], axis=2).reshape(-1, 128, 3)).save(tmp_path / "a.png")
    error = np.mean((rendered.astype(float) - pictures) ** 2)
    assert 10 * np.log10(255**2 / error) > 20, tmp_path / "a.png"
