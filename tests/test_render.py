"""Data sets from meshes and from procedural shapes: resuming, determinism, errors, the command line."""

import errno
import json
import shutil
import socket

import numpy as np
import pytest
import trimesh
from commands import run_python

from threedim.data.objects import find_objects, read_object
from threedim.data.png import decode_png
from threedim.procedural import shapes
from threedim.rendering import render
from threedim.rendering.meshes import load_mesh
from threedim.rendering.raycast import render_views
from threedim.rendering.render import ViewSettings, find_meshes, render_meshes, render_procedural
from threedim.rendering.viewpoints import default_intrinsics, spiral_cameras

SMALL = ViewSettings(views=3, size=16, samples=4, seed=7)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("meshes")
    (root / "sub").mkdir(parents=True)
    (root / ".hidden").mkdir()
    for name, extents, color in (
        ("cube.glb", [1, 1, 1], (200, 0, 0, 255)),
        ("sub/slab.PLY", [1, 2, 0.5], (0, 200, 0, 255)),
        ("sub/bar.obj", [3, 1, 1], (0, 0, 200, 255)),
    ):
        mesh = trimesh.creation.box(extents=extents)
        mesh.visual = trimesh.visual.ColorVisuals(mesh, vertex_colors=np.tile(color, (len(mesh.vertices), 1)))
        mesh.export(root / name, file_type=name[-3:].lower())
    (root / ".hidden" / "cube.glb").write_bytes(b"not for us")
    (root / "notes.txt").write_text("not a mesh")
    return root


@pytest.fixture(scope="module")
def rendered(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("rendered") / "out"
    report = render_meshes(folder, out, SMALL, num_workers=1)
    assert report.rendered == ["cube", "sub_bar", "sub_slab"]
    assert report.bad == report.kept == []
    return out


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_find_meshes(folder, tmp_path):
    assert list(find_meshes(folder)) == ["cube", "sub_bar", "sub_slab"]
    shutil.copytree(folder, tmp_path / "meshes")
    (tmp_path / "meshes/sub_bar.glb").write_bytes(b"")
    with pytest.raises(ValueError, match=r"sub/bar\.obj.*sub_bar\.glb.*'sub_bar'"):
        find_meshes(tmp_path / "meshes")
    with pytest.raises(FileNotFoundError, match="absent: no such folder"):
        find_meshes(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/a.fbx").write_text("")
    with pytest.raises(FileNotFoundError, match=r"empty contains no mesh.*it contains 1 \.fbx"):
        find_meshes(tmp_path / "empty")
    (tmp_path / "meshes/sub_bar.glb").unlink()
    for suffix in ("stl", "glb", "ply"):
        (tmp_path / f"meshes/sub/bar.{suffix}").write_text("")
    assert find_meshes(tmp_path / "meshes")["sub_bar"].name == "bar.glb"


def test_objects_are_in_srn_format_with_the_cameras_they_say(folder, rendered):
    for path in find_objects(rendered):
        views = read_object(path)
        assert views.size == 16
        expected = SMALL.cameras(path.name)
        for name in "RtK":
            np.testing.assert_array_equal(getattr(views.cameras, name), getattr(expected, name))
        images = render_views(load_mesh(find_meshes(folder)[path.name]), views.cameras, 16, 4)
        for png, image in zip(views.pngs, images, strict=True):
            alpha = image[..., 3:] / 255
            assert np.abs(decode_png(png) - (image[..., :3] * alpha + 255 * (1 - alpha))).max() <= 1
    assert np.abs(SMALL.cameras("cube").t - SMALL.cameras("sub_bar").t).max() > 0.1
    other = ViewSettings(views=3, size=16, samples=4, seed=8)
    assert np.abs(SMALL.cameras("cube").t - other.cameras("cube").t).max() > 0.1


def test_resumes_to_the_same_bytes_and_keeps_what_is_done(folder, rendered, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(rendered, out)
    shutil.rmtree(out / "sub_bar")
    (out / f".sub_bar.{socket.gethostname()}.9999999.0.incomplete" / "rgb").mkdir(parents=True)
    (out / f".sub_bar.{socket.gethostname()}.9999999.0.incomplete" / "rgb" / "000009.png").write_bytes(b"half")
    times = {path: path.stat().st_mtime_ns for path in (out / "cube").rglob("*")}
    report = render_meshes(folder, out, SMALL, num_workers=1)
    assert (report.rendered, report.kept) == (["sub_bar"], ["cube", "sub_slab"])
    assert contents(out) == contents(rendered)
    assert times == {path: path.stat().st_mtime_ns for path in (out / "cube").rglob("*")}


def test_warnings_are_listed_and_strict_makes_them_errors(folder, tmp_path, capsys):
    """A missing material, an object too small to be seen, and one of which some views show nothing."""
    meshes = tmp_path / "meshes"
    meshes.mkdir()
    shutil.copy(folder / "cube.glb", meshes)
    (meshes / "gray.obj").write_text(
        "mtllib gone.mtl\nv 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nusemtl m\nf 1 2 3\nf 1 2 4\n"
    )
    corners = "v 9 9 9\nv 9 9 9.001\nv 9 9.001 9\nv 1e-3 0 0\nv 0 1e-3 0\nv 0 0 1e-3\n"
    (meshes / "tiny.obj").write_text(corners + "f 1 2 3\nf 4 5 6\n")
    (meshes / "flat.obj").write_text("v 0 0 0\nv 1 0 0\nv 1 1 0\nf 1 2 3\n")
    for name in ("a.fbx", "b.FBX", "c.blend", "cube.stl"):
        (meshes / name).write_text("")
    flags = ["--meshes", str(meshes), "--views", "3", "--size", "16", "--samples", "4", "--seed", "7", "--workers", "1"]
    camera = ["--cameras", "spiral", "--test_views", "2"]
    render.main([*flags, *camera, "--out", str(tmp_path / "out")])
    out, err = capsys.readouterr()
    assert f"{tmp_path / 'out'}: 4 objects rendered, 0 already there, 3 warnings\n" in out
    warnings = err[err.index("left out") :].replace(f"{meshes}/", "").splitlines()
    assert warnings == [
        "left out, in formats that are not read or there in another one: 1 .blend, 2 .fbx, 1 .stl",
        "",
        "warnings:",
        "  flat.obj: 1 of 3 views show nothing (0)",
        "  gray.obj: material 'm' shown gray: material library gone.mtl is missing",
        "  tiny.obj: no view shows more than a pixel; is there a stray vertex far away from the object?",
        "  flat.obj: 1 of 2 views show nothing (0)",
    ]
    with pytest.raises(SystemExit):
        render.main([*flags, *camera, "--out", str(tmp_path / "strict"), "--strict"])
    out, err = capsys.readouterr()
    assert f"{tmp_path / 'strict'}: 1 objects rendered, 0 already there, 0 warnings\n" in out
    assert "could not be rendered:" in err
    assert [path.name for path in find_objects(tmp_path / "strict")] == ["cube"]


def test_a_target_that_cannot_be_written_is_one_line(folder, tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("")
    flags = ["--meshes", str(folder), "--views", "1", "--size", "16", "--samples", "1", "--workers", "1", "--out"]

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    def interrupt(*args):
        raise KeyboardInterrupt

    for out, function, message in (
        ("file", None, f"error: {tmp_path / 'file'} is a file; the objects need a folder (--out)"),
        ("file/below", None, f"error: {tmp_path / 'file/below'}: Not a directory"),
        ("full", full, f"error: {tmp_path / 'full'}: No space left on device"),
        ("stopped", interrupt, "interrupted; the same command goes on with the objects that are missing"),
    ):
        with monkeypatch.context() as patch:
            if function:
                patch.setattr(render.srn, "write_object", function)
            with pytest.raises(SystemExit) as caught:
                render.main([*flags, str(tmp_path / out)])
        assert caught.value.code == message


def test_what_goes_wrong_with_one_mesh_does_not_stop_the_others(folder, tmp_path, monkeypatch):
    def load(path, up, inside):
        if path.stem in problems:
            raise problems[path.stem]
        return load_mesh(path, up, inside)

    problems = {"bar": MemoryError(), "slab": PermissionError(errno.EACCES, "Permission denied", "slab.PLY")}
    monkeypatch.setattr(render, "load_mesh", load)
    report = render_meshes(folder, tmp_path / "out", SMALL, num_workers=1)
    assert report.rendered == ["cube"]
    assert report.bad == [
        f"{folder / 'sub/bar.obj'}: needs more memory than there is",
        f"{folder / 'sub/slab.PLY'}: cannot be read ([Errno 13] Permission denied: 'slab.PLY')",
    ]
    monkeypatch.setattr(render.pool, "run", lambda work, items, workers: ((each, None) for each in items))
    report = render_meshes(folder, tmp_path / "out", SMALL, num_workers=2)
    assert (report.rendered, report.kept) == ([], ["cube"])
    assert report.bad[0].startswith(f"{folder / 'sub/bar.obj'}: its process was killed")


@pytest.mark.slow
def test_processes_do_not_change_the_bytes(folder, rendered, tmp_path):
    render_meshes(folder, tmp_path / "two", SMALL, num_workers=2)
    assert contents(tmp_path / "two") == contents(rendered)


def test_other_settings_and_foreign_folders_are_refused(folder, rendered, tmp_path):
    with pytest.raises(ValueError, match=r"(?s)other settings.*views: 3 → 4"):
        render_meshes(folder, rendered, ViewSettings(views=4, size=16, samples=4, seed=7), num_workers=1)
    with pytest.raises(ValueError, match=r'(?s)other settings.*up: "auto" → "z"'):
        render_meshes(folder, rendered, SMALL, up="z", num_workers=1)
    (tmp_path / "foreign/cube").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"not empty and has no render\.json"):
        render_meshes(folder, tmp_path / "foreign", SMALL, num_workers=1)
    with pytest.raises(ValueError, match="up must be one of"):
        render_meshes(folder, tmp_path / "new", SMALL, up="x", num_workers=1)
    for change, match in (
        ({"views": 0}, "views must be positive"),
        ({"samples": -1}, "samples must be positive"),
        ({"seed": -1}, "seed must not be negative"),
        ({"path": "circle"}, "one of sphere, spiral; got 'circle'"),
        ({"radius": 1.5}, r"does not fit .*radius 1\.5"),
        ({"min_elevation": 95.0}, "min_elevation must be in"),
    ):
        with pytest.raises(ValueError, match=match):
            ViewSettings(**({"views": 3, "size": 16} | change))
    for change, match in (
        ({"split": "val"}, "split must be one of train, test; got 'val'"),
        ({"kinds": ("boat",)}, "kinds must be some of chair, car"),
        ({"kinds": ()}, "kinds must be some of chair, car"),
        ({"num_objects": 0}, "num_objects must be in"),
    ):
        with pytest.raises(ValueError, match=match):
            render_procedural(tmp_path / "new", **({"split": "train", "num_objects": 1} | change))
    assert not (tmp_path / "new").exists()


def test_procedural_splits_share_no_shape_and_can_be_enlarged(tmp_path, monkeypatch):
    seeds, make = [], shapes.make_shape
    monkeypatch.setattr(shapes, "make_shape", lambda kind, seed: seeds.append(seed) or make(kind, seed))
    common = {"views": 2, "size": 16, "samples": 2, "num_workers": 1}
    first = render_procedural(tmp_path / "train", "train", num_objects=3, **common)
    assert first.rendered == ["chair_train_000000", "car_train_000001", "chair_train_000002"]
    before = contents(tmp_path / "train" / "car_train_000001")
    more = render_procedural(tmp_path / "train", "train", num_objects=5, **common)
    assert more.rendered == ["car_train_000003", "chair_train_000004"]
    assert contents(tmp_path / "train" / "car_train_000001") == before
    render_procedural(tmp_path / "test", "test", num_objects=3, **common)
    render_procedural(tmp_path / "other", "train", num_objects=3, seed=1, **common)
    assert len(seeds) == len(set(seeds)) == 11
    for path in find_objects(tmp_path / "test"):
        np.testing.assert_array_equal(read_object(path).cameras.t, spiral_cameras(2, 2.6, default_intrinsics(16)).t)
    lowest = min(read_object(path).cameras.t[:, 2].min() for path in find_objects(tmp_path / "train"))
    assert lowest > 2.6 * np.sin(np.deg2rad(-15)) - 1e-4


def test_command_line(folder, rendered, tmp_path):
    shutil.copytree(folder, tmp_path / "meshes")
    (tmp_path / "meshes/bad.glb").write_bytes(b"this is not a mesh")
    flags = ["--views", 3, "--size", 16, "--samples", 4, "--seed", 7, "--test_views", 2, "--workers", 1]
    command = ["-m", "threedim.data.render", "--meshes", tmp_path / "meshes", "--out", tmp_path / "views"]
    done = run_python(*command, *flags)
    assert done.returncode == 1
    assert "3 objects rendered, 0 already there" in done.stdout
    bad = f"{tmp_path / 'meshes/bad.glb'}: cannot be read as GLB"
    for words in ("rendering objects, views", "1 meshes could not be rendered", bad):
        assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads((tmp_path / "views/render.json").read_text())["views"] == 3
    assert contents(tmp_path / "views") == contents(rendered)
    test = read_object(tmp_path / "views_test" / "cube")
    np.testing.assert_array_equal(test.cameras.t, spiral_cameras(2, 2.6, default_intrinsics(16)).t)


def test_command_line_errors_are_one_line(folder, tmp_path, capsys):
    out = str(tmp_path / "out")
    for flags, message in (
        (["--meshes", str(tmp_path / "absent")], f"error: {tmp_path / 'absent'}: no such folder"),
        (["--meshes", str(folder), "--radius", "1.2"], "error: the unit sphere does not fit into the image from"),
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
