"""The 3D consistency score: which views are held out, what they are compared with, and what is kept."""

import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from parsed_page import Page
from scipy.spatial.transform import Rotation

from threedim import cameras, pixels
from threedim.cameras import Camera
from threedim.consistency import flags, rows, score
from threedim.consistency.field import FieldSettings
from threedim.data import srn
from threedim.data.objects import read_object
from threedim.data.views import ReadSettings
from threedim.errors import MissingError, UserError
from threedim.evaluation.metrics import image as image_metrics
from threedim.evaluation.metrics.patches import sharpness
from threedim.procedural import shapes
from threedim.rendering import raycast, render, viewpoints

ROOT = pathlib.Path(__file__).parents[1]
MESHES = ROOT.parent / "shared" / "meshes"

QUICK = FieldSettings(
    levels=1, base_resolution=4, features=2, samples=4, rays_per_step=32, num_steps=4,
    proposal_bins=8, proposal_resolution=4, proposal_updates=16, orientation_weight=0.0,
)  # fmt: skip
# Enough to tell views that agree from others at 12 px, and no more.
SMALL = dataclasses.replace(
    QUICK, orientation_weight=1e-3, orientation_every=8, levels=2, base_resolution=8, growth=2.0, table_size_log2=12,
    samples=10, proposal_bins=16, proposal_resolution=8, proposal_updates=256, rays_per_step=192, num_steps=100,
)  # fmt: skip


def turned(camera: Camera, degrees: float, seed: int = 0) -> Camera:
    """Cameras turned about the origin by that angle, each about its own axis; the axes are the same for every angle."""
    axes = np.random.default_rng(seed).normal(size=(len(camera), 3))
    turns = np.deg2rad(degrees) * axes / np.linalg.norm(axes, axis=-1, keepdims=True)
    turn = Rotation.from_rotvec(turns).as_matrix()
    return Camera(turn @ camera.R, (turn @ camera.t[..., None])[..., 0], camera.K)


def tinted(images: np.ndarray, strength: float, seed: int = 0) -> np.ndarray:
    """RGB views, each with its own factor for every color, at most that far from 1."""
    factors = 1 + strength * np.random.default_rng(seed).uniform(-1, 1, (len(images), 1, 1, 3))
    return np.clip(images * factors, 0, 255).astype(np.uint8)


def mixed(images: np.ndarray, others: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """Some views, chosen by seed, replaced; a larger count adds to those of a smaller one."""
    replaced = np.argsort(np.random.default_rng(seed).permutation(len(images))) < count
    return np.where(replaced[:, None, None, None], others, images)


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """A folder with two objects of ten views."""
    folder = tmp_path_factory.mktemp("rendered") / "views"
    camera = cameras.orbit(np.arange(0, 360, 36), 20, 2.6, viewpoints.default_intrinsics(16))
    for seed in range(2):
        images = raycast.render_views(shapes.make_shape("car", seed), camera, 16, 1)
        srn.write_object(folder / f"car_{seed}", images, camera)
    return folder


@pytest.fixture
def views(rendered, tmp_path):
    return pathlib.Path(shutil.copytree(rendered, tmp_path / "views"))


def test_held_out_views_never_change():
    indices = rows.held_out_indices(251, [64])
    digests = {view: hashlib.sha256(f"251 {view}".encode()).hexdigest() for view in range(251) if view != 64}
    assert indices == sorted(sorted(digests, key=digests.get)[:25])
    assert rows.held_out_indices(100, [0]) == [25, 38, 40, 61, 62, 77, 79, 84, 86, 89]
    assert [len(rows.held_out_indices(views, [0])) for views in (3, 10, 19, 20, 100)] == [1, 1, 1, 2, 10]


def test_an_input_view_is_never_held_out():
    for view in rows.held_out_indices(50, [0]):
        again = rows.held_out_indices(50, [view])
        assert view not in again
        assert len(again) == 5
    for count, inputs, match in ((2, [0], "too few"), (5, [5], "among the 5"), (5, [0, 1, 2, 3, 4], "too few")):
        with pytest.raises(ValueError, match=match):
            rows.held_out_indices(count, inputs)


@pytest.mark.slow
def test_scores_fall_when_views_disagree(tmp_path):
    camera = viewpoints.sphere_cameras(20, 2.6, viewpoints.default_intrinsics(12), 0)
    rgba = raycast.render_views(shapes.make_shape("car", 0), camera, 12, 8).astype(float)
    car = np.rint(255 + rgba[..., 3:] / 255 * (rgba[..., :3] - 255)).astype(np.uint8)
    folders = {
        "true": (car, camera),
        "turned": (car, turned(camera, 20)),
        "wrong_input": (np.concatenate([255 - car[:1], car[1:]]), camera),
    }
    for name, content in folders.items():
        srn.write_object(tmp_path / name / "car", *content)
    results = score.score([str(tmp_path / name) for name in folders], tmp_path / "out", SMALL)["rows"]
    true, disturbed, wrong_input = results.values()
    assert min(true["psnr"], true["input_psnr"]) > 20
    assert true["psnr"] > disturbed["psnr"] + 2
    assert true["ssim"] > disturbed["ssim"]
    assert wrong_input["input_psnr"] < true["input_psnr"] - 5

    one = true["objects"]["car"]
    assert one["held_out"] == rows.held_out_indices(20, [0])
    renders, seen_by = read_object(tmp_path / "out" / "true" / "renders" / "car").decode()
    held, _ = read_object(tmp_path / "true" / "car").decode(one["held_out"])
    np.testing.assert_allclose(image_metrics.psnr(renders, held), one["psnr_of_view"], rtol=1e-5)
    np.testing.assert_allclose(image_metrics.ssim(renders, held), one["ssim_of_view"], rtol=1e-5)
    np.testing.assert_array_equal(seen_by.t, camera.t[one["held_out"]])
    np.testing.assert_allclose(np.mean(one["psnr_of_view"]), true["psnr"], rtol=1e-6)


class MeanColors:
    num_features = 3

    def __call__(self, images):
        return images.mean(axis=(1, 2), dtype=np.float64)


@pytest.mark.slow
def test_fid_compares_held_out_views_with_renders_of_all_objects(views, tmp_path):
    out = tmp_path / "out"
    assert score.score([str(views)], out, QUICK)["rows"]["views"]["fid"] is None
    row = score.score([str(views)], out, QUICK, extract=MeanColors())["rows"]["views"]
    means = []
    for folder, wanted in ((views, rows.held_out_indices(10, [0])), (out / "views" / "renders", None)):
        pictures = [read_object(folder / name).decode(wanted)[0] for name in ("car_0", "car_1")]
        means.append(np.concatenate(pictures).mean(axis=(1, 2)))
    a, b = means
    # Of two pictures, the covariance is that of one difference.
    one, two = (each[0] - each[1] for each in means)
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + (one @ one + two @ two - 2 * abs(one @ two)) / 2
    assert row["fid"] == pytest.approx(expected, rel=1e-3)
    assert row["warnings"][0].startswith("FID: a set has 2 pictures")
    # It stays where the objects are the same, and goes where they are not.
    assert score.score([str(views)], out, QUICK)["rows"]["views"]["fid"] == row["fid"]
    path = out / "views" / "scores" / "car_1.json"
    path.write_text(path.read_text().replace('"num_views": 10', '"num_views": 11'))
    assert score.score([str(views)], out, QUICK)["rows"]["views"]["fid"] is None
    with pytest.raises(MissingError, match=r"absent.pth: no such file.*download"):
        score.score([str(views)], out, QUICK, weights=tmp_path / "absent.pth")


def test_scores_are_kept_and_nothing_else_is_mixed_in(views, tmp_path, monkeypatch):
    out = tmp_path / "out"
    first = score.score([str(views)], out, QUICK)
    assert first == json.loads((out / "results.json").read_text())
    html = (out / "report.html").read_text()
    assert html.count("<img") == 2
    for said in ("<td>views</td>", "<h3>car_1, ", "levels 1", f"<td>{first['rows']['views']['psnr']:.2f}</td>"):
        assert said in html
    Page(html)
    assert first["settings"]["field"]["levels"] == 1
    assert first["not_the_frozen_settings"]["levels"] == 1
    assert first["not_the_frozen_settings"]["rays_per_step"] == 32
    for said in (
        "rewards blur and emptiness",
        "white background",
        "10 views of an object, 1 held out; input view 0; box ± 1.3",
    ):
        assert said in html
    row = first["rows"]["views"]
    assert row["psnr"] == pytest.approx(np.mean([one["psnr"] for one in row["objects"].values()]))
    sharp = [sharpness(read_object(views / name).decode()[0]) for name in ("car_0", "car_1")]
    assert row["sharpness"] == pytest.approx(np.mean(sharp))
    assert row["bounds"] == pytest.approx({"near": 0.975, "far": 3.9, "half_width": 1.3}, rel=1e-5)
    assert pixels.load_png(out / "views" / "strips" / "car_0.png").shape[1] > 4 * 128

    with monkeypatch.context() as patch:
        patch.setattr(score.fit, "fit", None)  # not again
        assert score.score([str(views)], out, QUICK) == first
    figures = (out / "views/scores/car_1.json").read_text()
    (out / "views/scores/car_1.json").write_text(figures.replace('"fit_seconds": ', '"fit_seconds": 1e400'))
    with pytest.raises(UserError, match=r"car_1\.json is damaged"):
        score.score([str(views)], out, QUICK)
    (out / "views/scores/car_1.json").write_text(figures.replace("num_views", "views"))
    with pytest.raises(UserError, match="not as this version writes them"):
        score.score([str(views)], out, QUICK)
    (out / "views" / "scores" / "car_1.json").unlink()
    again = score.score([f"views={views}"], out, QUICK)["rows"]["views"]["objects"]
    assert again["car_1"]["psnr"] == row["objects"]["car_1"]["psnr"]  # the seed decides

    with pytest.raises(UserError, match=r"(?s)other settings.*seed: 0 → 1"):
        score.score([str(views)], out, QUICK, seed=1)
    only = tmp_path / "else" / "views"
    images, camera = read_object(views / "car_0").decode()
    srn.write_object(only / "a", images, Camera(camera.R, camera.t * 0.9, camera.K))
    with pytest.raises(UserError, match=r"(?s)other views.*bounds.far"):
        score.score([str(only)], out, QUICK)
    picture = views / "car_0" / "rgb" / "000003.png"
    picture.write_bytes((views / "car_1" / "rgb" / "000003.png").read_bytes())
    with pytest.raises(UserError, match=r"car_0.json is the score of other views"):
        score.score([str(views)], out, QUICK)


def test_wrong_rows_are_refused(views, tmp_path):
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "letter.txt").write_text("keep me")
    for folders, out, settings, message in (
        ([views, tmp_path / "b" / "views"], "out", {}, "two folders would both be row"),
        ([tmp_path / "absent"], "out", {}, "no such folder"),
        ([views], "out", {"size": 32}, "cannot be averaged"),
        ([views], "out", {"input_views": [10]}, "among the 10 views"),
        ([views], "foreign", {}, "not empty"),
    ):
        with pytest.raises((UserError, MissingError), match=message):
            score.score([str(folder) for folder in folders], tmp_path / out, QUICK, **settings)


def test_what_has_no_meaningful_score_is_refused_before_the_fit(views, tmp_path, monkeypatch):
    monkeypatch.setattr(score.fit, "fit", None)
    images, camera = read_object(views / "car_0").decode()
    srn.write_object(tmp_path / "plain" / "a", np.full_like(images, 128), camera)
    small = camera.resized((16, 16), (10, 10))
    srn.write_object(tmp_path / "small" / "a", images[:, :10, :10], small)
    shutil.rmtree(views / "car_1")
    for folder, settings, said in (
        (tmp_path / "plain", {}, "plain/a: all views are the same picture"),
        (tmp_path / "small", {}, "small/a: views of 10 px are smaller than SSIM's window of 11 px"),
        (views, {"size": 10}, "views of 10 px are smaller"),
        (views, {"extract": MeanColors()}, "views: one held-out view has no FID, which needs two"),
    ):
        with pytest.raises(UserError, match=said):
            score.score([str(folder)], tmp_path / "out", QUICK, **settings)
    assert not (tmp_path / "out").exists()


def test_samples_json_numbers_the_views(views, tmp_path, monkeypatch):
    targets = [view for view in range(10) if view != 7]

    def write(targets, **settings):
        objects = {name: {"input_views": [7], "target_views": targets} for name in ("car_0", "car_1")}
        (tmp_path / "samples.json").write_text(json.dumps({"settings": settings, "objects": objects}))

    write(targets)
    read, inputs = score._read_rows([str(views)], None, 0, ReadSettings())
    assert inputs == [7]
    one, aside = read[0].objects[0], rows.held_out_indices(10, [7])
    assert one.held_out == tuple(aside)
    # The input is the first file, followed by the others.
    pictures, _, training, held = one.views()
    assert (held, sorted([*training, *held])) == ([1 + targets.index(aside[0])], list(range(10)))
    assert len(pictures) == 10
    with pytest.raises(UserError, match=r"sampled from views \[7\], but --input_view is \[0\]"):
        rows.read_row("views", views, [0], 0, ReadSettings())
    write(targets[:-1])
    with pytest.raises(UserError, match="a score needs all views"):
        rows.read_row("views", views, [7], 0, ReadSettings())
    # An orbit's numbers are places on it, and the first file is the input.
    for settings in ({"cameras": "orbit"}, {"image": "a.png", "cameras": "object"}):
        write(list(range(9)), **settings)
        read, inputs = score._read_rows([str(views)], None, 0, ReadSettings())
        assert (tuple(inputs), read[0].objects[0].numbers) == ((0,), tuple(range(10)))
    monkeypatch.setattr(rows, "PAPER_INPUT_VIEW", 5)  # of a longer orbit, too
    assert tuple(score._read_rows([str(views)], None, 0, ReadSettings())[1]) == (0,)


def test_settings_of_folders(views, tmp_path):
    as_opengl = tmp_path / "as_opengl"
    shutil.copytree(views, as_opengl)
    for path in as_opengl.glob("*/pose/*.txt"):
        matrix = np.reshape(path.read_text().split(), (4, 4)).astype(float) * [1, -1, -1, 1]
        path.write_text(" ".join(map(str, matrix.ravel())))
    with pytest.raises(UserError, match="axes=opengl"):
        score._read_rows([str(as_opengl)], None, 0, ReadSettings())
    settings = ReadSettings(**flags.changes("--data", ["axes=opengl", "scale=2"], dataclasses.asdict(ReadSettings())))
    (row,), _ = score._read_rows([str(as_opengl)], None, 0, settings)
    (expected,), _ = score._read_rows([str(views)], None, 0, ReadSettings())
    for one, other in zip(row.objects, expected.objects, strict=True):
        np.testing.assert_allclose(one.views()[1].t, 2 * other.views()[1].t, rtol=1e-6)
        assert one.fingerprint() != other.fingerprint()


def test_warnings_of_the_fid_are_shown(views, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(score.inception, "load_params", lambda _: {"weights": 0})
    monkeypatch.setattr(score.inception, "FeatureExtractor", lambda _: MeanColors())
    (tmp_path / "w.pth").write_bytes(b"1")
    quick = [f"--set={name}={getattr(QUICK, name)}" for name in QUICK.__dataclass_fields__]
    out = tmp_path / "out"
    score.main(
        [f"--views={views}", "--compilation_cache=", f"--out={out}", f"--inception={tmp_path / 'w.pth'}", *quick]
    )
    shown = [capsys.readouterr().out, (out / "report.html").read_text(), (out / "results.json").read_text()]
    for text in shown:
        for said in (
            "FID: w.pth is not the published file of weights (6726825d...)",
            "FID: a set has 2 pictures for 3",
        ):
            assert said in text


def test_command_line(views, tmp_path, capsys):
    quick = [f"--set={name}={getattr(QUICK, name)}" for name in QUICK.__dataclass_fields__]
    common = ["--compilation_cache=", f"--out={tmp_path / 'out'}", "--max_objects=1", *quick]
    score.main([f"--views=a={views}", f"--views=b={views}", *common])
    printed = capsys.readouterr().out
    assert "1 objects" in printed
    assert '"rays_per_step": 32' in printed
    assert sorted(json.loads((tmp_path / "out" / "results.json").read_text())["rows"]) == ["a", "b"]
    for setting, said in (
        ("level=3", "no setting 'level'"),
        ("levels=two", "--set levels=two"),
        ("levels=0", "error: --set: levels must be positive, got 0"),
    ):
        with pytest.raises(SystemExit, match=said):
            score.main([f"--views={views}", *common, f"--set={setting}"])
    for setting, said in (("axis=x", "no setting 'axis'"), ("center=1", "True or False"), ("up=w", "data.up must be")):
        with pytest.raises(SystemExit, match=said):
            score.main([f"--views={views}", *common, f"--data={setting}"])
    assert flags.field_settings(None, []).rays_per_step == flags.CPU_RAYS_PER_STEP
    assert flags.field_settings(0, []).rays_per_step == 0


@pytest.mark.slow
@pytest.mark.skipif(not MESHES.is_dir(), reason="no folder of meshes beside the repository")
def test_scores_fall_as_the_disturbance_grows(tmp_path):
    """The frozen settings on a mesh that the project did not make, 100 views of 64 px: 40 minutes on two cores."""
    objects, camera = {}, render.ViewSettings(100, 64, 8).cameras("car")
    for name in ("taxi", "van"):
        mesh = render.load_mesh(str(MESHES / f"kenney_cars/{name}.glb"))
        srn.write_object(tmp_path / "rgba" / name, render.render_views(mesh, camera, 64, 8), camera)
        objects[name], _ = read_object(tmp_path / "rgba" / name).decode()
    true, other = objects.values()
    rows = {"true": (true, camera)}
    rows |= {f"turned_{angle}": (true, turned(camera, angle)) for angle in (1, 2.5, 5)}
    rows |= {f"tinted_{strength}": (tinted(true, strength), camera) for strength in (0.1, 0.3)}
    rows |= {f"mixed_{count}": (mixed(true, other, count), camera) for count in (10, 50)}
    asked = np.concatenate([other[:64], true[64:65], other[65:]])
    rows |= {"other": (other, camera), "other_than_asked": (asked, camera)}
    for name, row in rows.items():
        srn.write_object(tmp_path / name / "car", *row)
    command = [sys.executable, "-m", "threedim.evaluation.consistency", f"--out={tmp_path / 'out'}"]
    command += [f"--views={tmp_path / name}" for name in rows]
    # The tests' compiler setting would make the fits ten times slower.
    environment = {k: v for k, v in os.environ.items() if k != "JAX_DISABLE_MOST_OPTIMIZATIONS"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    results = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    psnr = {name: row["psnr"] for name, row in results.items()}
    inputs = {name: row["input_psnr"] for name, row in results.items()}
    print(json.dumps([psnr, inputs]))
    assert psnr["true"] >= 30
    assert psnr["true"] > psnr["turned_1"] > psnr["turned_2.5"] > psnr["turned_5"]
    assert psnr["true"] > psnr["tinted_0.1"] > psnr["tinted_0.3"]
    assert psnr["true"] > psnr["mixed_10"] > psnr["mixed_50"]
    assert psnr["other"] >= 30
    assert inputs["other_than_asked"] < inputs["other"] - 3
