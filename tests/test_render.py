"""Data sets from meshes and from procedural shapes: resuming, determinism, errors, the command line."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import trimesh

from threedim.data import srn
from threedim.data.png import decode_png
from threedim.procedural import shapes
from threedim.rendering import render
from threedim.rendering.render import ViewSettings, find_meshes, render_meshes, render_procedural
from threedim.rendering.viewpoints import default_intrinsics, spiral_cameras

ROOT = pathlib.Path(__file__).parents[1]
SMALL = ViewSettings(views=3, size=16, samples=4, seed=7)


def box(center, extents, color):
    mesh = trimesh.creation.box(extents=extents, transform=trimesh.transformations.translation_matrix(center))
    mesh.visual = trimesh.visual.ColorVisuals(mesh, vertex_colors=np.tile([*color, 255], (len(mesh.vertices), 1)))
    return mesh


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "meshes"
    (root / "sub").mkdir(parents=True)
    (root / ".hidden").mkdir()
    box([0, 0, 0], [1, 1, 1], (200, 0, 0)).export(root / "cube.glb")
    box([0, 0, 0], [1, 2, 0.5], (0, 200, 0)).export(root / "sub" / "slab.PLY", file_type="ply")
    box([0, 0, 0], [3, 1, 1], (0, 0, 200)).export(root / "sub" / "bar.obj")
    (root / ".hidden" / "cube.glb").write_bytes(b"not for us")
    (root / "notes.txt").write_text("not a mesh")
    return root


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_find_meshes(folder, tmp_path):
    assert list(find_meshes(folder)) == ["cube", "sub_bar", "sub_slab"]
    (folder / "sub_bar.glb").write_bytes(b"")
    with pytest.raises(ValueError, match="would both become object 'sub_bar'; rename one") as caught:
        find_meshes(folder)
    assert "sub/bar.obj" in str(caught.value)
    assert "sub_bar.glb" in str(caught.value)
    with pytest.raises(FileNotFoundError, match="absent: no such folder"):
        find_meshes(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty holds no mesh"):
        find_meshes(tmp_path / "empty")


def test_objects_are_in_srn_format_with_the_cameras_they_say(folder, tmp_path):
    report = render_meshes(folder, tmp_path / "out", SMALL, num_workers=1)
    assert report.rendered == ["cube", "sub_bar", "sub_slab"]
    assert report.bad == report.kept == []
    objects = srn.find_objects(tmp_path / "out")
    assert [path.name for path in objects] == report.rendered
    for path in objects:
        views = srn.read_object(path)
        assert views.size == 16
        expected = SMALL.cameras(path.name)
        for name in "RtK":
            np.testing.assert_array_equal(getattr(views.cameras, name), getattr(expected, name))
        geometry = render.load_mesh(find_meshes(folder)[path.name])
        pictures = render.render_views(geometry, views.cameras, 16, 4)
        for png, picture in zip(views.pngs, pictures, strict=True):
            alpha = picture[..., 3:] / 255
            over_white = picture[..., :3] * alpha + 255 * (1 - alpha)
            assert np.abs(decode_png(png) - over_white).max() <= 1
    # Every object has cameras of its own, and another seed has others.
    assert np.abs(SMALL.cameras("cube").t - SMALL.cameras("sub_bar").t).max() > 0.1
    other = ViewSettings(views=3, size=16, samples=4, seed=8)
    assert np.abs(SMALL.cameras("cube").t - other.cameras("cube").t).max() > 0.1


def test_resumes_to_the_same_bytes_and_keeps_what_is_done(folder, tmp_path):
    out = tmp_path / "out"
    render_meshes(folder, out, SMALL, num_workers=1)
    before = contents(out)
    render_meshes(folder, tmp_path / "two", SMALL, num_workers=2)
    assert contents(tmp_path / "two") == before
    # As an interruption leaves it: one object absent, a half-written one beside it.
    for path in (out / "sub_bar").rglob("*.*"):
        path.unlink()
    for path in sorted((out / "sub_bar").rglob("*"), reverse=True):
        path.rmdir()
    (out / "sub_bar").rmdir()
    (out / ".sub_bar.incomplete" / "rgb").mkdir(parents=True)
    (out / ".sub_bar.incomplete" / "rgb" / "000009.png").write_bytes(b"half")
    times = {path: path.stat().st_mtime_ns for path in (out / "cube").rglob("*")}
    report = render_meshes(folder, out, SMALL, num_workers=1)
    assert report.rendered == ["sub_bar"]
    assert report.kept == ["cube", "sub_slab"]
    assert contents(out) == before
    assert times == {path: path.stat().st_mtime_ns for path in (out / "cube").rglob("*")}


def test_other_settings_and_foreign_folders_are_refused(folder, tmp_path):
    out = tmp_path / "out"
    render_meshes(folder, out, SMALL, num_workers=1)
    with pytest.raises(ValueError, match=r"(?s)other settings.*views: 3 → 4"):
        render_meshes(folder, out, ViewSettings(views=4, size=16, samples=4, seed=7), num_workers=1)
    with pytest.raises(ValueError, match=r'(?s)other settings.*up: "auto" → "z"'):
        render_meshes(folder, out, SMALL, up="z", num_workers=1)
    foreign = tmp_path / "foreign"
    (foreign / "cube").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"not empty and has no render\.json"):
        render_meshes(folder, foreign, SMALL, num_workers=1)
    with pytest.raises(ValueError, match="up must be one of"):
        render_meshes(folder, tmp_path / "new", SMALL, up="x", num_workers=1)
    assert not (tmp_path / "new").exists()


def test_wrong_settings():
    for change, match in (
        ({"views": 0}, "views must be positive"),
        ({"samples": -1}, "samples must be positive"),
        ({"seed": -1}, "seed must not be negative"),
        ({"path": "circle"}, "cameras must be one of sphere, spiral; got 'circle'"),
        ({"radius": 1.5}, "does not fit into the picture from radius 1.5"),
        ({"min_elevation": 95.0}, "min_elevation must be in"),
    ):
        with pytest.raises(ValueError, match=match):
            ViewSettings(**({"views": 3, "size": 16} | change))


def test_procedural_splits_share_no_shape_and_can_be_enlarged(tmp_path, monkeypatch):
    seeds = []
    make = shapes.make_shape
    monkeypatch.setattr(shapes, "make_shape", lambda kind, seed: seeds.append((kind, seed)) or make(kind, seed))
    common = {"views": 2, "size": 16, "samples": 2, "num_workers": 1}
    first = render_procedural(tmp_path / "train", "train", num_objects=4, **common)
    assert first.rendered == [
        "chair_train_000000",
        "car_train_000001",
        "chair_train_000002",
        "car_train_000003",
    ]
    before = contents(tmp_path / "train" / "car_train_000003")
    more = render_procedural(tmp_path / "train", "train", num_objects=6, **common)
    assert more.rendered == ["chair_train_000004", "car_train_000005"]
    assert contents(tmp_path / "train" / "car_train_000003") == before
    render_procedural(tmp_path / "test", "test", num_objects=4, **common)
    render_procedural(tmp_path / "other", "train", num_objects=4, seed=1, **common)
    assert len(seeds) == len({seed for _, seed in seeds}) == 14
    for path in srn.find_objects(tmp_path / "test"):
        np.testing.assert_array_equal(srn.read_object(path).cameras.t, spiral_cameras(2, 2.6, default_intrinsics(16)).t)
    lowest = min(srn.read_object(path).cameras.t[:, 2].min() for path in srn.find_objects(tmp_path / "train"))
    assert lowest > 2.6 * np.sin(np.deg2rad(-15)) - 1e-4


def test_procedural_wrong_arguments(tmp_path):
    for change, match in (
        ({"split": "val"}, "split must be one of train, test; got 'val'"),
        ({"kinds": ("boat",)}, "kinds must be some of chair, car"),
        ({"kinds": ()}, "kinds must be some of chair, car"),
        ({"num_objects": 0}, "num_objects must be in"),
    ):
        with pytest.raises(ValueError, match=match):
            render_procedural(tmp_path / "out", **({"split": "train", "num_objects": 1} | change))
    assert not (tmp_path / "out").exists()


def run_cli(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "threedim.data.render", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_command_line(folder, tmp_path):
    (folder / "bad.glb").write_bytes(b"this is not a mesh")
    (folder / "flat.obj").write_text("v 0 0 0\nv 0 0 0\nv 0 0 0\nf 1 2 3\n")
    out = tmp_path / "views"
    flags = ["--meshes", folder, "--out", out, "--views", 3, "--size", 16, "--samples", 4, "--seed", 7]
    done = run_cli(*flags, "--test_views", 2, "--workers", 2)
    assert done.returncode == 1
    assert "3 objects rendered, 0 already there" in done.stdout
    assert "rendering objects, views" in done.stderr
    assert "2 meshes could not be rendered" in done.stderr
    assert f"{folder / 'bad.glb'}: cannot be read as GLB" in done.stderr
    assert f"{folder / 'flat.obj'}: all vertices coincide" in done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads((out / "render.json").read_text())["views"] == 3

    # The same as from Python, bad meshes or not.
    (folder / "bad.glb").unlink()
    (folder / "flat.obj").unlink()
    render_meshes(folder, tmp_path / "python", SMALL, num_workers=1)
    assert contents(out) == contents(tmp_path / "python")
    test = srn.read_object(tmp_path / "views_test" / "cube")
    np.testing.assert_array_equal(test.cameras.t, spiral_cameras(2, 2.6, default_intrinsics(16)).t)

    again = run_cli(*flags)
    assert again.returncode == 0, again.stderr
    assert "0 objects rendered, 3 already there" in again.stdout


def test_command_line_errors_are_one_line(folder, tmp_path, capsys):
    out = str(tmp_path / "out")
    for flags, message in (
        (["--meshes", str(tmp_path / "absent")], f"error: {tmp_path / 'absent'}: no such folder"),
        (["--meshes", str(folder), "--radius", "1.2"], "error: the unit sphere does not fit into the picture from"),
        (["--meshes", str(folder), "--views", "-1"], "error: views must be positive, got -1"),
    ):
        with pytest.raises(SystemExit) as error:
            render.main([*flags, "--out", out])
        assert error.value.code.startswith(message)  # Python prints a text and exits with code 1
    with pytest.raises(SystemExit):
        render.main(["--help"])
    usage = capsys.readouterr().out
    assert "--min_elevation" in usage
    assert "python -m threedim.data.render --meshes DIR --out DIR" in usage
