"""Ray-cast images against analytic ones: silhouettes, coverage, colors, light, orientation."""

import numpy as np
import PIL.Image
import pytest
import trimesh
from synthetic import box

from threedim import cameras as cameras_lib
from threedim.rendering import raycast
from threedim.rendering.meshes import load_mesh
from threedim.rendering.raycast import render_views, sample_pattern
from threedim.rendering.surfaces import linear_to_srgb, srgb_to_linear
from threedim.rendering.viewpoints import default_intrinsics, sphere_cameras

SIZE = 64
K = default_intrinsics(SIZE)
FRONT = cameras_lib.orbit([-90.0], 0.0, 2.6, K)  # from -y: x is right, z is up


def quad(half_x=0.6, half_z=0.8, y=0.0, **kwargs):
    """In the plane y = const, facing -y; corners: lower left, lower right, upper right, upper left for FRONT."""
    x, z = half_x, half_z
    vertices = [[-x, y, -z], [x, y, -z], [x, y, z], [-x, y, z]]
    return trimesh.Trimesh(vertices, [[0, 1, 2], [0, 2, 3]], process=False, **kwargs)


UV = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])


def textured(image, mode="OPAQUE", **kwargs):
    material = trimesh.visual.material.PBRMaterial(baseColorTexture=image, alphaMode=mode, **kwargs)
    mesh = quad()
    mesh.visual = trimesh.visual.TextureVisuals(uv=UV, material=material)
    return mesh


def middle(mesh):
    """The pixel in the middle of the view from the front."""
    return render_views(mesh, FRONT, SIZE)[0, SIZE // 2, SIZE // 2]


def light_on_quad():
    """Linear light that FRONT's quad reflects when white."""
    pixel = middle(quad(face_colors=np.full((2, 4), 255, np.uint8)))
    assert pixel[3] == 255
    assert pixel[0] < 255  # not clipped
    return srgb_to_linear(pixel[:3] / 255)


def test_sphere_silhouette_is_where_the_camera_says():
    sphere, rng = trimesh.creation.icosphere(subdivisions=5), np.random.default_rng(0)
    K = np.array([[70.0, 0, 27.3], [0, 58.0, 36.8], [0, 0, 1]], np.float32)
    camera = cameras_lib.look_at(2.7 * rng.normal(size=(6, 3)) / 1.2 + [3.0, 0, 0], [0.1, -0.2, 0.1], K)
    images = render_views(sphere, camera, SIZE, samples=1)
    origin, direction = (rays.astype(np.float64) for rays in camera.rays(SIZE, SIZE))
    along = (origin * direction).sum(axis=-1)
    distance = np.sqrt((origin**2).sum(axis=-1) - along**2)
    # Half a pixel is about 0.02 here: a shift by that would not fit into the margin.
    clear = np.abs(distance - 1) > 0.008
    assert clear.mean() > 0.95
    hit = (distance < 1) & (along < 0)
    np.testing.assert_array_equal((images[..., 3] == 255)[clear], hit[clear])
    np.testing.assert_array_equal((images[..., 3] == 0)[clear], ~hit[clear])
    np.testing.assert_array_equal(images[images[..., 3] == 0], [[255, 255, 255, 0]] * (images[..., 3] == 0).sum())
    assert hit.any()


def test_up_is_up_and_right_is_right():
    scene = trimesh.Scene()
    colors = {(0, 0, 0): (200, 200, 200), (0, 0, 1): (255, 0, 0), (1, 0, 0): (0, 255, 0), (0, -1, 0): (0, 0, 255)}
    for center, color in colors.items():
        scene.add_geometry(box(center, [0.3, 0.3, 0.3], color))

    def centers(azimuth):
        """(row, column) of the red, the green and the blue box, from the center."""
        image = render_views(scene, cameras_lib.orbit([azimuth], 10.0, 2.6, K), SIZE)[0, ..., :3].astype(int)
        pure = [(image[..., k] > 60) & (np.delete(image, k, axis=-1).max(axis=-1) < 30) for k in range(3)]
        return [np.argwhere(mask).mean(axis=0) - SIZE / 2 for mask in pure]

    for azimuth in (-90.0, -70.0, -110.0):
        red, green, _ = centers(azimuth)
        assert red[0] < green[0] - 12
        assert green[1] > red[1] + 12
    assert centers(20.0)[2][1] < -4


def test_scene_instances_are_transformed():
    scene = trimesh.Scene()
    part, translation = box([0, 0, 0], [0.4, 0.4, 0.4], (255, 0, 0)), trimesh.transformations.translation_matrix
    scene.add_geometry(part, geom_name="part", transform=translation([-1, 0, 0]))
    scene.graph.update("again", matrix=translation([1, 0, 0]), geometry="part")
    row = render_views(scene, FRONT, SIZE)[0, SIZE // 2, :, 3]
    assert row[: SIZE // 2].max() == row[SIZE // 2 :].max() == 255
    assert row[SIZE // 2] == 0


def test_camera_inside_and_object_behind():
    mesh, K = box([0, 0, 0], [1, 1, 1]), cameras_lib.intrinsics(40.0, SIZE)
    for position, target, alpha in ((0.1, (1, 0, 0), 255), (3, (4, 0, 0), 0), (3, (3, 3, 0.1), 0)):
        images = render_views(mesh, cameras_lib.look_at([(position, 0, 0)], target, K), SIZE, samples=4)
        assert np.all(images[..., 3] == alpha)


def quad_coverage(camera, corners, size, fine=16):
    """Share of each pixel inside a projected convex quad, by a fine regular grid."""
    local = (corners - camera.t[0]) @ camera.R[0].astype(np.float64)
    image = local @ camera.K[0].T.astype(np.float64)
    image = image[:, :2] / image[:, 2:]
    x, y = np.meshgrid(*2 * [(np.arange(size * fine) + 0.5) / fine])
    pairs = zip(image, np.roll(image, -1, axis=0), strict=True)
    side = np.stack([(b[0] - a[0]) * (y - a[1]) - (b[1] - a[1]) * (x - a[0]) for a, b in pairs])
    inside = np.all(side > 0, axis=0) | np.all(side < 0, axis=0)
    return inside.reshape(size, fine, size, fine).mean(axis=(1, 3))


def test_alpha_is_coverage_and_edges_keep_their_color():
    mesh = quad(face_colors=np.tile(np.array([220, 60, 90, 255], np.uint8), (2, 1)))
    for azimuth, elevation in ((-90.0, 0.0), (-63.0, 0.0), (-50.0, 40.0)):
        camera = cameras_lib.orbit([azimuth], elevation, 2.6, K)
        image = render_views(mesh, camera, SIZE, samples=16)[0]
        expected = quad_coverage(camera, np.asarray(mesh.vertices), SIZE)
        error, partial = image[..., 3] / 255 - expected, (expected > 0) & (expected < 1)
        assert partial.sum() > 50
        assert np.abs(error).max() < 2.0 / 16 + 0.02
        assert abs(error[partial].mean()) < 0.01
        visible = image[image[..., 3] > 0][:, :3].astype(int)
        assert np.abs(visible - image[SIZE // 2, SIZE // 2, :3]).max() <= 1


def test_sample_pattern_is_centered_and_stratified():
    for samples in (1, 2, 7, 16, 64):
        points = sample_pattern(samples)
        assert points.shape == (samples, 2)
        np.testing.assert_allclose(points.mean(axis=0), 0.5, atol=1e-6)
        assert 0 <= points.min() <= points.max() < 1
    # One point in each column, row and square of sixteen.
    x, y = sample_pattern(16).T
    for a, b in ((16, 1), (1, 16), (4, 4), (8, 2)):
        assert len({(int(p * a), int(q * b)) for p, q in zip(x, y, strict=True)}) == 16


def test_deterministic_and_independent_of_chunks(monkeypatch):
    mesh = trimesh.creation.icosphere(subdivisions=2)
    mesh.visual.vertex_colors = np.random.default_rng(0).integers(0, 255, (len(mesh.vertices), 4)) | [0, 0, 0, 255]
    camera = sphere_cameras(3, 2.6, K, 5)
    first = render_views(mesh, camera, SIZE)
    np.testing.assert_array_equal(first, render_views(mesh, camera, SIZE))
    monkeypatch.setattr(raycast, "_MAX_RAYS", 1000)
    np.testing.assert_array_equal(first, render_views(mesh, camera, SIZE))
    for view in range(3):
        np.testing.assert_array_equal(first[view], render_views(mesh, camera[view : view + 1], SIZE)[0])


def test_wrong_arguments():
    for camera, size, samples, message in (
        (FRONT[0], SIZE, 1, "must be batched"),
        (FRONT, 0, 1, "must be positive"),
        (FRONT, SIZE, 0, "must be positive"),
    ):
        with pytest.raises(ValueError, match=message):
            render_views(quad(), camera, size, samples)


def test_srgb():
    values = np.linspace(0, 1, 256)
    np.testing.assert_allclose(linear_to_srgb(srgb_to_linear(values)), values, atol=1e-6)
    np.testing.assert_allclose(srgb_to_linear(0.5), 0.21404, atol=1e-4)


def test_texture_colors_are_where_they_belong(tmp_path):
    pixels = np.zeros((16, 16, 3), np.uint8)
    colors = {(0, 0): (250, 10, 20), (0, 1): (30, 240, 60), (1, 0): (50, 40, 230), (1, 1): (240, 220, 30)}
    for (row, column), color in colors.items():
        pixels[8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = color
    image, light = PIL.Image.fromarray(pixels), light_on_quad()
    factor = np.array([128, 255, 64, 255], np.uint8)

    glb, turned = tmp_path / "quad.glb", textured(image, baseColorFactor=factor)
    turned.apply_transform(trimesh.transformations.rotation_matrix(-np.pi / 2, [1, 0, 0]))  # to glTF's y up
    turned.export(glb)
    image.save(tmp_path / "picture.png")
    (tmp_path / "quad.mtl").write_text("newmtl m\nKd 0.1 0.2 0.3\nmap_Kd picture.png\n")
    lines = ["mtllib quad.mtl", "usemtl m"]
    lines += [f"v {x} {z} {-y}" for x, y, z in quad().vertices] + [f"vt {u} {v}" for u, v in UV]
    (tmp_path / "quad.obj").write_text("\n".join([*lines, "f 1/1 2/2 3/3 4/4", ""]))

    for path, scale in ((glb, factor[:3] / 255), (tmp_path / "quad.obj", np.ones(3))):
        picture = render_views(load_mesh(path), FRONT, SIZE)[0]
        # The quad is 0.6 by 0.8 half wide: its quarters are centered half-way.
        reach = np.array([0.8, 0.6]) / 2 * K[0, 0] / 2.6
        for (row, column), color in colors.items():
            i, j = (SIZE / 2 + reach * [2 * row - 1, 2 * column - 1]).astype(int)
            expected = linear_to_srgb(srgb_to_linear(np.array(color) / 255) * scale * light) * 255
            assert np.abs(picture[i, j, :3] - expected).max() <= 1.5, (path.name, row, column)


def test_texture_is_bilinear_and_repeats():
    ramp = np.tile(np.array([0, 0, 255, 255], np.uint8)[:, None], (2, 1, 3))  # columns of texels
    mesh, light = textured(PIL.Image.fromarray(ramp)), light_on_quad()[0]
    row = srgb_to_linear(render_views(mesh, FRONT, SIZE)[0, SIZE // 2, :, 0] / 255) / light
    x = (np.arange(SIZE) + 0.5 - SIZE / 2) * 2.6 / K[0, 0]
    u = (x + 0.6) / 1.2
    inside = (u > 0.03) & (u < 0.97)
    # Texel centers at 1/8, 3/8, 5/8, 7/8; the last blends into the first over the edge.
    expected = np.interp(u, [-0.125, 0.125, 0.375, 0.625, 0.875, 1.125], [1, 0, 0, 1, 1, 0])
    np.testing.assert_allclose(row[inside], expected[inside], atol=0.06)
    shifted = textured(PIL.Image.fromarray(ramp))
    shifted.visual.uv = UV + np.array([3.0, -2.0])
    np.testing.assert_array_equal(render_views(shifted, FRONT, SIZE), render_views(mesh, FRONT, SIZE))


def test_many_textures_do_not_mix():
    scene = trimesh.Scene()
    for k, color in enumerate(((250, 10, 10), (10, 250, 10), (10, 10, 250))):
        part = textured(PIL.Image.new("RGB", (3 + k, 5 + 2 * k), color))
        part.apply_translation([1.5 * (k - 1), 0, 0])
        scene.add_geometry(part)
    row = render_views(scene, FRONT, SIZE)[0, SIZE // 2]
    order = [int(pixel[:3].argmax()) for pixel in row if pixel[3] == 255]
    assert (order, set(order)) == (sorted(order), {0, 1, 2})


def test_vertex_and_face_colors():
    light = light_on_quad()
    colors = np.array([[255, 0, 0, 255], [0, 255, 0, 255], [0, 255, 0, 255], [255, 0, 0, 255]], np.uint8)
    row = render_views(quad(vertex_colors=colors), FRONT, SIZE)[0, SIZE // 2]
    across = srgb_to_linear(row[:, :3] / 255) / light
    x = (np.arange(SIZE) + 0.5 - SIZE / 2) * 2.6 / K[0, 0]
    inside = np.abs(x) < 0.55
    np.testing.assert_allclose(across[inside, 1], ((x + 0.6) / 1.2)[inside], atol=0.02)
    np.testing.assert_allclose(across[inside, 0], ((0.6 - x) / 1.2)[inside], atol=0.02)
    flat = quad(face_colors=np.array([[10, 120, 200, 255]] * 2, np.uint8))
    expected = linear_to_srgb(srgb_to_linear(np.array([10, 120, 200]) / 255) * light) * 255
    assert np.abs(middle(flat)[:3] - expected).max() <= 1


def test_gltf_factors_and_vertex_colors_are_linear(tmp_path):
    light = light_on_quad()
    material = trimesh.visual.material.PBRMaterial(baseColorFactor=[64, 128, 255, 255])
    mesh = quad()
    mesh.visual = trimesh.visual.TextureVisuals(material=material)
    painted = quad(vertex_colors=np.array([[64, 128, 255, 255]] * 4, np.uint8))
    expected = linear_to_srgb(np.array([64, 128, 255]) / 255 * light) * 255
    for name, part in (("factor", mesh), ("vertex", painted)):
        part.apply_transform(trimesh.transformations.rotation_matrix(-np.pi / 2, [1, 0, 0]))
        part.export(tmp_path / f"{name}.glb")
        assert np.abs(middle(load_mesh(tmp_path / f"{name}.glb"))[:3] - expected).max() <= 1.5, name


def test_alpha_modes():
    """A quarter-transparent pane: blended, cut out, or taken as opaque, as the material says."""
    pane = PIL.Image.new("RGBA", (4, 4), (255, 255, 255, 64))
    assert [middle(textured(pane, mode))[3] for mode in ("BLEND", "OPAQUE", "MASK")] == [64, 255, 0]
    assert middle(textured(pane, "MASK", alphaCutoff=0.2))[3] == 255


def test_blending_over_what_is_behind():
    scene = trimesh.Scene()
    scene.add_geometry(textured(PIL.Image.new("RGBA", (4, 4), (255, 255, 255, 102)), "BLEND"))
    scene.add_geometry(quad(y=0.2, face_colors=np.array([[0, 0, 0, 255]] * 2, np.uint8)))
    pixel, white = middle(scene), linear_to_srgb(light_on_quad()) * 255
    assert pixel[3] == 255
    assert np.abs(pixel[:3] - 0.4 * white).max() <= 1.5


def test_both_sides_are_lit_alike_and_light_stays_in_the_world():
    mesh = quad()
    flipped = trimesh.Trimesh(mesh.vertices, mesh.faces[:, ::-1], process=False)
    np.testing.assert_array_equal(render_views(mesh, FRONT, SIZE), render_views(flipped, FRONT, SIZE))
    azimuths, elevations = [0.0, 0.0, 0.0, 90.0, 180.0, 270.0], [89.9, -89.9, 0.0, 0.0, 0.0, 0.0]
    camera = cameras_lib.orbit(azimuths, elevations, 2.6, K)
    levels = render_views(box([0, 0, 0], [1, 1, 1]), camera, SIZE)[:, SIZE // 2, SIZE // 2, 0]
    top, bottom, sides = levels[0], levels[1], levels[2:]
    assert top > sides.max() > sides.min() > bottom > 60
    assert len(set(sides.tolist())) == 4
