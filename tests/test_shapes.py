"""Procedural shapes: finite, in place, facing one way, and no two alike."""

import numpy as np
import pytest
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene

from threedim import cameras
from threedim.procedural import car_parts, cars, chairs, shapes
from threedim.procedural.solids import Builder, circle, rounded_rectangle, turn
from threedim.rendering.raycast import render_views
from threedim.rendering.viewpoints import default_intrinsics, sphere_cameras

SEEDS = 60


@pytest.fixture(scope="module")
def meshes():
    return {kind: [shapes.make_shape(kind, seed) for seed in range(SEEDS)] for kind in shapes.KINDS}


def face_colors(mesh):
    return np.asarray(mesh.visual.face_colors)[:, :3] / 255


@pytest.mark.parametrize("kind", shapes.KINDS)
def test_normalized_and_no_two_alike(meshes, kind):
    for seed, mesh in enumerate(meshes[kind]):
        vertices = np.asarray(mesh.vertices)
        np.testing.assert_allclose(np.linalg.norm(vertices, axis=-1).max(), 1, atol=1e-6)
        np.testing.assert_allclose(vertices.min(axis=0) + vertices.max(axis=0), 0, atol=1e-6)
        assert 0 <= mesh.faces.min() < mesh.faces.max() < len(vertices)
        assert 100 < len(mesh.faces) < 10_000, seed
    assert len({face_colors(mesh).tobytes() for mesh in meshes[kind]}) == SEEDS
    camera = cameras.orbit([35.0], 20.0, 2.6, default_intrinsics(32))
    images = np.stack([render_views(mesh, camera, 32, samples=4)[0].ravel() for mesh in meshes[kind]]).astype(float)
    difference = np.abs(images[:, None, ::7] - images[None, :, ::7]).mean(axis=-1)
    assert difference[~np.eye(SEEDS, dtype=bool)].min() > 0.5
    again = shapes.make_shape(kind, 12)
    np.testing.assert_array_equal(again.vertices, meshes[kind][12].vertices)
    np.testing.assert_array_equal(again.visual.face_colors, meshes[kind][12].visual.face_colors)


def test_wrong_arguments():
    for kind, seed, message in (("boat", 0, r"'boat'.* chair, car"), ("car", -1, "got -1")):
        with pytest.raises(ValueError, match=message):
            shapes.make_shape(kind, seed)


@pytest.mark.parametrize("kind", shapes.KINDS)
def test_every_style_is_sampled(monkeypatch, kind):
    styles, sampled = shapes.STYLES[kind], []

    def record(style):
        return lambda rng, builder: sampled.append(style) or builder.box([0, 0, 0], [1, 1, 1], (1, 0, 0))

    monkeypatch.setitem(shapes.STYLES, kind, tuple(map(record, styles)))
    for seed in range(200):
        shapes.make_shape(kind, seed)
    assert len(set(styles)) >= 8
    assert min(sampled.count(style) for style in styles) > 200 / len(styles) / 3


@pytest.mark.parametrize("style", sorted(set(chairs.STYLES) - {chairs.stool}, key=lambda style: style.__name__))
def test_chairs_face_x_and_have_their_back_at_the_rear(style):
    for seed in range(5):
        builder = Builder()
        style(np.random.default_rng(seed), builder)
        vertices = np.asarray(builder.mesh().vertices)
        low, high = vertices.min(axis=0), vertices.max(axis=0)
        top = vertices[vertices[:, 2] > high[2] - 0.1 * (high[2] - low[2])]
        assert top[:, 0].max() < 0.25 * high[0], seed
        assert abs(top[:, 1].mean()) < 0.05, seed  # symmetric


def test_chairs_stand_on_something_wide(meshes):
    for seed, mesh in enumerate(meshes["chair"]):
        vertices = np.asarray(mesh.vertices)
        feet = vertices[vertices[:, 2] < vertices[:, 2].min() + 0.1]
        assert np.ptp(feet[:, 0]) > 0.35, seed
        assert np.ptp(feet[:, 1]) > 0.3, seed


@pytest.mark.parametrize("style", sorted(set(cars.STYLES), key=lambda style: style.__name__))
def test_cars_drive_along_x(style):
    for seed in range(5):
        builder = Builder()
        style(np.random.default_rng(seed), builder)
        mesh = builder.mesh()
        assert mesh.extents[0] > 1.5 * mesh.extents[1], seed
        centers, colors = mesh.triangles_center, face_colors(mesh)
        red = np.all(np.abs(colors - [0.8, 0.08, 0.08]) < 0.12, axis=-1)
        tails = red & (centers[:, 0] < -0.6)
        assert tails.sum() >= 24, seed
        assert (tails & (centers[:, 1] > 0.01)).sum() == (tails & (centers[:, 1] < -0.01)).sum(), seed
        tires = centers[np.all(np.abs(colors - car_parts.TIRE) < 0.003, axis=-1)]
        assert tires[:, 2].min() < mesh.bounds[0, 2] + 0.02, seed


@pytest.mark.parametrize("kind", shapes.KINDS)
def test_no_surfaces_of_different_color_in_one_plane(meshes, kind):
    """Such surfaces flicker. Where two solids intersect, a ray may hit both at once, but only along a line."""
    fighting = total = 0
    for seed, mesh in enumerate(meshes[kind][:40]):
        scene = EmbreeScene()
        keep = TriangleMesh(scene, np.asarray(mesh.triangles, np.float32))
        camera = sphere_cameras(2, 2.6, default_intrinsics(64), seed, min_elevation=-20)
        origin, direction = (np.ascontiguousarray(rays.reshape(-1, 3)) for rays in camera.rays(64, 64))
        first = scene.run(origin, direction, output=True)
        hit = first["primID"] >= 0
        face, direction = first["primID"][hit], np.ascontiguousarray(direction[hit])
        behind = origin[hit] + direction * (first["tfar"][hit][:, None] + 2e-6)
        second = scene.run(behind, direction, output=True)
        near = (second["primID"] >= 0) & (second["tfar"] < 1e-4) & (second["primID"] != face)
        colors = face_colors(mesh)
        fighting += (near & (np.abs(colors[face] - colors[second["primID"]]).max(axis=-1) > 0.04)).sum()
        total += hit.sum()
        del keep
    assert fighting < 1e-3 * total


SQUARE = rounded_rectangle(1.0, 0.6, 0.2)
X, Y = np.meshgrid(np.linspace(0, 1, 4), np.linspace(0, 1, 5), indexing="ij")
SOLIDS = {
    "box": lambda b: b.box([1, 2, 3], [1, 2, 3], (1, 0, 0), turn("z", 30) @ turn("x", 20)),
    "rounded_box": lambda b: b.rounded_box([0, 0, 0], [1, 0.8, 0.3], 0.1, (1, 0, 0)),
    "prism x": lambda b: b.prism(SQUARE, -1, 1, (1, 0, 0), "x"),
    "prism y": lambda b: b.prism(SQUARE, -1, 1, (1, 0, 0), "y"),
    "prism z": lambda b: b.prism(SQUARE, -1, 1, (1, 0, 0), "z"),
    "disk y": lambda b: b.disk([1, 2, 3], 1, 0.2, (1, 0, 0), "y"),
    "tube": lambda b: b.tube([[0, 0, 0], [0, 0, 1], [1, 0, 2]], 0.1, (1, 0, 0)),
    "ring": lambda b: b.tube(np.column_stack([circle(1, 12), np.zeros(12)]), 0.1, (1, 0, 0), closed=True),
    "slab": lambda b: b.slab(np.stack([X, Y, X * Y], axis=-1), 0.1, (1, 0, 0)),
}


@pytest.mark.parametrize("name", SOLIDS)
def test_solids_are_closed_and_wound_outwards(name):
    builder = Builder()
    SOLIDS[name](builder)
    mesh = builder.mesh()
    mesh.merge_vertices(merge_norm=True, merge_tex=True)
    assert mesh.is_watertight
    assert mesh.is_winding_consistent
    assert mesh.volume > 0


@pytest.mark.parametrize("axis", "xyz")
def test_disk_is_centered_where_asked(axis):
    builder = Builder()
    builder.disk([1.0, 2.0, 3.0], 0.5, 0.2, (1, 0, 0), axis)
    vertices = np.concatenate(builder._vertices)
    np.testing.assert_allclose((vertices.min(axis=0) + vertices.max(axis=0)) / 2, [1, 2, 3], atol=1e-9)
    np.testing.assert_allclose(np.ptp(vertices, axis=0)["xyz".index(axis)], 0.2, atol=1e-9)
