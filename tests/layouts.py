"""Objects of a few colored points, written in every layout that is read."""

import json
import struct

import numpy as np
from PIL import Image
from scipy.spatial.transform import Rotation

from threedim import cameras
from threedim.cameras import Camera
from threedim.data import png

POINTS = np.asarray([[0.0, 0.0, 0.3], [0.35, -0.2, -0.1], [-0.3, 0.3, 0.1], [-0.1, -0.35, -0.3]])
COLORS = np.asarray([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 0, 255]])


def project(camera, points=POINTS):
    """Pixels (point, 2) of points in one camera."""
    local = (points - camera.t) @ camera.R @ np.asarray(camera.K).T
    return local[:, :2] / local[:, 2:]


def make_scene(width=64, height=64, views=5, radius=2.0, focal=None, dot=1, lens=None):
    """RGBA pictures with a square of 2 dot + 1 pixels at each point, else transparent; cameras around the origin.

    ``lens`` maps (point, 2) coordinates in a plane at distance 1 to where the lens shows them.
    """
    rng = np.random.default_rng(0)
    K = cameras.intrinsics(focal or 1.2 * min(width, height), (height, width))
    poses = cameras.orbit(np.arange(views) * 360 / views + 10, rng.uniform(5, 50, views), radius, K)
    pictures = np.zeros((views, height, width, 4), np.uint8)
    for picture, camera in zip(pictures, poses, strict=True):
        places = project(camera)
        if lens:
            focal, center = K[[0, 1], [0, 1]], K[:2, 2]
            places = lens((places - center) / focal) * focal + center
        for (x, y), color in zip(places, COLORS, strict=True):
            picture[int(y) - dot : int(y) + dot + 1, int(x) - dot : int(x) + dot + 1] = [*color, 255]
    return pictures, poses


def assert_dots_are_where_cameras_see_them(views, points=POINTS):
    """In decoded pictures, each color is within a pixel of the projection of its point."""
    pictures, poses = views.decode()
    for picture, camera in zip(pictures, poses, strict=True):
        for place, color in zip(project(camera, points), COLORS, strict=True):
            rows, columns = np.nonzero(np.abs(picture.astype(int) - color).max(axis=-1) < 60)
            assert rows.size, (color, place)
            np.testing.assert_allclose([columns.mean() + 0.5, rows.mean() + 0.5], place, atol=1)


def over_white(pictures):
    alpha = pictures[..., 3:] / 255
    return (pictures[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)


def write_nerf(folder, pictures, poses, splits=("train", "val", "test")):
    """NeRF's synthetic scenes: RGBA, ``camera_angle_x``, names without suffix; views in turn to the splits."""
    width = pictures.shape[2]
    matrices = poses.to_opengl_matrix()
    for number, split in enumerate(splits):
        chosen = range(number, len(pictures), len(splits))
        (folder / split).mkdir(parents=True)
        frames = [{"file_path": f"./{split}/r_{i}", "transform_matrix": matrices[i].tolist()} for i in chosen]
        content = {"camera_angle_x": 2 * np.arctan(width / 2 / float(poses.K[0, 0, 0])), "frames": frames}
        (folder / f"transforms_{split}.json").write_text(json.dumps(content))
        for i in chosen:
            (folder / split / f"r_{i}.png").write_bytes(png.encode_png(pictures[i]))


def write_nerfstudio(folder, pictures, poses, suffix=".png", **fields):
    """nerfstudio: pictures on white and masks beside them; one camera for all frames."""
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    height, width = pictures.shape[1:3]
    (fx, _, cx), (_, fy, cy), _ = poses.K[0].tolist()
    frames = []
    for i, (picture, matrix) in enumerate(zip(pictures, poses.to_opengl_matrix(), strict=True)):
        names = {"file_path": f"images/frame_{i:05d}{suffix}", "mask_path": f"masks/frame_{i:05d}.png"}
        Image.fromarray(over_white(picture)).save(folder / names["file_path"], quality=95)
        Image.fromarray(picture[..., 3]).save(folder / names["mask_path"])
        frames.append(names | {"transform_matrix": matrix.tolist()})
    content = {"camera_model": "OPENCV", "fl_x": fx, "fl_y": fy, "cx": cx, "cy": cy, "w": width, "h": height}
    content |= {"k1": 0.0, "p2": 0.0} | fields | {"frames": frames}
    (folder / "transforms.json").write_text(json.dumps(content))


def write_colmap(folder, pictures, poses, model="PINHOLE", extra="", place="sparse/0"):
    """COLMAP's text model; an empty list of points for every other image."""
    (folder / "images").mkdir(parents=True)
    (folder / place).mkdir(parents=True, exist_ok=True)
    height, width = pictures.shape[1:3]
    (fx, _, cx), (_, fy, cy), _ = poses.K[0].tolist()
    focal = f"{fx} {fy}" if model in ("PINHOLE", "OPENCV", "FULL_OPENCV") else f"{fx}"
    camera = f"# cameras\n7 {model} {width} {height} {focal} {cx} {cy} {extra}\n"
    (folder / place / "cameras.txt").write_text(camera)
    lines = ["# images"]
    for i, (picture, matrix) in enumerate(zip(pictures, np.linalg.inv(poses.to_matrix()), strict=True)):
        name = f"picture {i:03d}.png"
        Image.fromarray(picture).save(folder / "images" / name)
        x, y, z, w = Rotation.from_matrix(matrix[:3, :3]).as_quat()
        t = " ".join(map(str, matrix[:3, 3]))
        lines += [f"{i + 1} {w} {x} {y} {z} {t} 7 {name}", "" if i % 2 else "1.5 2.5 -1 3 4 17"]
    (folder / place / "images.txt").write_text("\n".join(lines) + "\n")


def write_colmap_binary(folder, pictures, poses):
    """The same model in COLMAP's binary format."""
    write_colmap(folder, pictures, poses)
    model, names = folder / "sparse/0", ("cameras", "images")
    _, camera = (model / "cameras.txt").read_text().splitlines()
    number, _, *values = camera.split()
    data = struct.pack("<QIiQQ4d", 1, int(number), 1, *map(int, values[:2]), *map(float, values[2:]))
    (model / "cameras.bin").write_bytes(data)
    lines = (model / "images.txt").read_text().splitlines()[1::2]
    data = struct.pack("<Q", len(lines))
    for points, line in enumerate(lines):
        number, *pose, camera, name = line.split(maxsplit=9)
        data += struct.pack("<I7dI", int(number), *map(float, pose), int(camera)) + name.encode() + b"\0"
        data += struct.pack("<Q", points) + struct.pack("<ddq", 1.5, 2.5, -1) * points
    (model / "images.bin").write_bytes(data)
    for name in names:
        (model / f"{name}.txt").unlink()


def write_zero123(folder, pictures, poses):
    """zero123: 3x4 world-to-camera matrices, Blender's axes; the focal length must be that of its renders."""
    folder.mkdir(parents=True)
    for i, (picture, matrix) in enumerate(zip(pictures, poses.to_opengl_matrix(), strict=True)):
        (folder / f"{i:03d}.png").write_bytes(png.encode_png(picture))
        np.save(folder / f"{i:03d}.npy", np.linalg.inv(matrix.astype(np.float64))[:3])


def rearranged(poses, order):
    return Camera(poses.R[order], poses.t[order], poses.K[order])


def edit_json(change, name="transforms.json"):
    """A function that changes a JSON file of a folder."""

    def edit(folder):
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(content))

    return edit
