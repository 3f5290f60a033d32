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

SEEDS = 200


@pytest.fixture(scope="module")
def meshes():
    return {kind: [shapes.make_shape(kind, seed) for seed in range(SEEDS)] for kind in shapes.KINDS}


def face_colors(mesh):
    return np.asarray(mesh.visual.face_colors)[:, :3] / 255


@pytest.mark.parametrize("kind", shapes.KINDS)
def test_normalized_finite_and_modest(meshes, kind):
    for seed, mesh in enumerate(meshes[kind]):
        vertices = np.asarray(mesh.vertices)
        assert np.all(np.isfinite(vertices)), seed
        np.testing.assert_allclose(np.linalg.norm(vertices, axis=-1).max(), 1, atol=1e-6)
        np.testing.assert_allclose(vertices.min(axis=0) + vertices.max(axis=0), 0, atol=1e-6)
        assert mesh.faces.min() >= 0
        assert mesh.faces.max() < len(vertices)
        assert 100 < len(mesh.faces) < 10_000, seed
        assert len(np.unique(face_colors(mesh), axis=0)) >= (1 if kind == "chair" else 4), seed


@pytest.mark.parametrize("kind", shapes.KINDS)
def test_no_two_alike_in_shape_color_or_picture(meshes, kind):
    outlines = {np.round(mesh.extents, 5).tobytes() + np.round(mesh.area, 5).tobytes() for mesh in meshes[kind]}
    assert len(outlines) == SEEDS
    assert len({face_colors(mesh).tobytes() for mesh in meshes[kind]}) == SEEDS
    camera = cameras.orbit([35.0], 20.0, 2.6, default_intrinsics(32))
    pictures = np.stack([render_views(mesh, camera, 32, samples=4)[0].ravel() for mesh in meshes[kind]]).astype(float)
    difference = np.abs(pictures[:, None, ::7] - pictures[None, :, ::7]).mean(axis=-1)
    assert difference[~np.eye(SEEDS, dtype=bool)].min() > 0.5


def test_same_seed_same_shape_and_kinds_do_not_share_numbers():
    for kind in shapes.KINDS:
        first, second = shapes.make_shape(kind, 12), shapes.make_shape(kind, 12)
        np.testing.assert_array_equal(first.vertices, second.vertices)
        np.testing.assert_array_equal(first.visual.face_colors, second.visual.face_colors)
    assert shapes.make_shape("chair", 12).vertices.shape != shapes.make_shape("car", 12).vertices.shape


def test_wrong_arguments():
    with pytest.raises(ValueError, match="unknown kind of shape 'boat'; known are chair, car"):
        shapes.make_shape("boat", 0)
    with pytest.raises(ValueError, match="seed must not be negative, got -1"):
        shapes.make_shape("car", -1)


def test_enough_styles_and_each_is_drawn(monkeypatch):
    assert len(set(chairs.STYLES)) >= 6
    assert len(set(cars.STYLES)) >= 4
    for module, make in ((chairs, chairs.make_chair), (cars, cars.make_car)):
        drawn = []

        def record(style, drawn=drawn):
            def build(rng, builder):
                drawn.append(style)
                builder.box([0, 0, 0], [1, 1, 1], (1, 0, 0))

            return build

        styles = module.STYLES
        monkeypatch.setattr(module, "STYLES", tuple(map(record, styles)))
        for seed in range(SEEDS):
            make(np.random.default_rng(seed))
        counts = [drawn.count(style) for style in dict.fromkeys(styles)]
        assert min(counts) > SEEDS / len(styles) / 3


@pytest.mark.parametrize("style", sorted(set(chairs.STYLES) - {chairs.stool}, key=lambda style: style.__name__))
def test_chairs_face_x_and_have_their_back_at_the_rear(style):
    for seed in range(10):
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
    for seed in range(10):
        builder = Builder()
        style(np.random.default_rng(seed), builder)
        mesh = builder.mesh()
        assert mesh.extents[0] > 1.5 * mesh.extents[1], seed
        centers, colors = mesh.triangles_center, face_colors(mesh)
        # Tail lamps behind, on both sides alike.
        red = np.all(np.abs(colors - [0.8, 0.08, 0.08]) < 0.12, axis=-1)
        tails = red & (centers[:, 0] < -0.6)
        assert tails.sum() >= 24, seed
        assert (tails & (centers[:, 1] > 0.01)).sum() == (tails & (centers[:, 1] < -0.01)).sum(), seed
        # Tires touch the ground.
        tires = centers[np.all(np.abs(colors - car_parts.TIRE) < 0.003, axis=-1)]
        assert tires[:, 2].min() < mesh.bounds[0, 2] + 0.02, seed


@pytest.mark.parametrize("kind", shapes.KINDS)
def test_no_surfaces_of_different_color_in_one_plane(meshes, kind):
    """Such surfaces flicker. Where two solids cross, a ray may hit both at once, but only along a line."""
    fighting = total = 0
    for seed, mesh in enumerate(meshes[kind][:60]):
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


def signed_volume(mesh):
    a, b, c = np.asarray(mesh.triangles).transpose(1, 0, 2)
    return np.einsum("ij,ij->", a, np.cross(b, c)) / 6


def test_solids_are_closed_and_wound_outwards():
    square = rounded_rectangle(1.0, 0.6, 0.2)
    x, y = np.meshgrid(np.linspace(0, 1, 4), np.linspace(0, 1, 5), indexing="ij")
    builders = {
        "box": lambda b: b.box([1, 2, 3], [1, 2, 3], (1, 0, 0), turn("z", 30) @ turn("x", 20)),
        "rounded_box": lambda b: b.rounded_box([0, 0, 0], [1, 0.8, 0.3], 0.1, (1, 0, 0)),
        "prism x": lambda b: b.prism(square, -1, 1, (1, 0, 0), "x"),
        "prism y": lambda b: b.prism(square, -1, 1, (1, 0, 0), "y"),
        "prism z": lambda b: b.prism(square, -1, 1, (1, 0, 0), "z"),
        "disk y": lambda b: b.disk([1, 2, 3], 1, 0.2, (1, 0, 0), "y"),
        "tube": lambda b: b.tube([[0, 0, 0], [0, 0, 1], [1, 0, 2]], 0.1, (1, 0, 0)),
        "ring": lambda b: b.tube(np.column_stack([circle(1, 12), np.zeros(12)]), 0.1, (1, 0, 0), closed=True),
        "slab": lambda b: b.slab(np.stack([x, y, x * y], axis=-1), 0.1, (1, 0, 0)),
    }
    for name, make in builders.items():
        builder = Builder()
        make(builder)
        mesh = builder.mesh()
        mesh.merge_vertices(merge_norm=True, merge_tex=True)
        edges = np.sort(mesh.edges, axis=-1)
        counts = np.unique(edges, axis=0, return_counts=True)[1]
        assert np.all(counts == 2), name
        assert signed_volume(mesh) > 0, name


def test_disk_is_centered_where_asked():
    for axis in "xyz":
        builder = Builder()
        builder.disk([1.0, 2.0, 3.0], 0.5, 0.2, (1, 0, 0), axis)
        vertices = np.concatenate(builder._vertices)
        np.testing.assert_allclose((vertices.min(axis=0) + vertices.max(axis=0)) / 2, [1, 2, 3], atol=1e-9)
        np.testing.assert_allclose(np.ptp(vertices, axis=0)["xyz".index(axis)], 0.2, atol=1e-9)
