"""--mode=sample: the files that it writes, resuming, and refusals."""

import json
import re
import types
from unittest import mock

import jax
import numpy as np
import pytest
from PIL import Image

from threedim import cameras, pixels
from threedim import sample as sample_lib
from threedim.data import nerf, sources, srn
from threedim.data.objects import read_object
from threedim.data.views import UNCHECKED
from threedim.errors import ExistsError, UserError
from threedim.rendering import viewpoints
from threedim.tasks import make_tasks
from threedim.training import checkpoints, hardware
from threedim.weights_file import save_weights


def views_of(out):
    return {path.name: read_object(path).decode()[0] for path in (out / "views").iterdir()}


def assert_same_views(one, other):
    assert one.keys() == other.keys()
    for name, pictures in one.items():
        np.testing.assert_array_equal(pictures, other[name])


def test_writes_srn_folders_and_pages(tiny_config, run, capsys):
    out = sample_lib.sample(tiny_config, run)
    assert out == run / "views/step_0000002"
    dataset = sources.open_from_config(tiny_config.data, "test")
    assert sorted(path.name for path in (out / "views").iterdir()) == dataset.names
    for index, name in enumerate(dataset.names):
        pictures, found = read_object(out / "views" / name).decode()
        truth, true_cameras = dataset.views(index, range(5))
        assert len(pictures) == 5
        np.testing.assert_array_equal(pictures[0], truth[0])
        assert not np.array_equal(pictures[1], truth[1])
        np.testing.assert_allclose(found.to_matrix(), true_cameras.to_matrix(), atol=1e-6)
        np.testing.assert_allclose(found.K, true_cameras.K, rtol=1e-6)
        html = (out / "views" / name / "index.html").read_text()
        assert f"<title>{name}</title>" in html
        assert [f"<small>step {step}</small>" in html for step in (1, 2, 3, 4)] == [True, True, True, False]
        assert all(f'href="views/{name}/index.html"' in (out / "index.html").read_text() for name in dataset.names)
    assert capsys.readouterr().out.endswith(f"page:  {out / 'index.html'}\n")
    assert not any((out / "unfinished").iterdir())
    content = json.loads((out / "samples.json").read_text())
    assert content["objects"][dataset.names[0]] == {"input_views": [0], "target_views": [1, 2, 3, 4]}
    tiny_config.sample.object = str(out / "views" / dataset.names[0])
    tiny_config.sample.out = str(run / "again")
    again = sample_lib.sample(tiny_config, run)
    assert views_of(again).keys() == {dataset.names[0]}
    said = capsys.readouterr().out
    assert "not read" not in said
    assert said.endswith(f"page:  {again / 'views' / dataset.names[0] / 'index.html'}\n")


def test_as_many_objects_at_once_as_fit(tiny_config, run, monkeypatch, capsys):
    tiny_config.sample.out = str(run / "two")
    tiny_config.sample.num_views = tiny_config.sample.num_objects = 100
    expected = views_of(sample_lib.sample(tiny_config, run))
    said = capsys.readouterr().out
    assert "sample.num_objects is 100, but the split 'test' has 2 objects" in said
    assert "sample.num_views is 100, but 2 of 2 objects have fewer" in said
    tiny_config.sample.batch_size, needs = 0, []
    program_bytes = hardware.program_bytes
    monkeypatch.setattr(hardware, "program_bytes", lambda program: needs.append(program_bytes(program)) or needs[-1])
    tiny_config.sample.out = str(run / "all")
    assert_same_views(views_of(sample_lib.sample(tiny_config, run)), expected)
    assert "\n2 object(s) at once, in 0.00 GiB a device\n" in capsys.readouterr().out
    for limit, said in ((needs[0] - 1, "\n1 object(s) at once"), (0, None)):
        monkeypatch.setattr(hardware, "memory_limit", lambda limit=limit: limit / 0.9)
        tiny_config.sample.out = str(run / f"limit_{limit}")
        if said is None:
            with pytest.raises(UserError, match=r"not even one object at a time fits into 0\.00 GiB"):
                sample_lib.sample(tiny_config, run)
        else:
            assert_same_views(views_of(sample_lib.sample(tiny_config, run)), expected)
            assert said in capsys.readouterr().out
    assert len(needs) == 5
    assert needs[0] == needs[1] == needs[3] > needs[2] == needs[4]


def test_an_interrupted_rollout_resumes(tiny_config, run, monkeypatch, capsys):
    tiny_config.sample.out = str(run / "whole")
    whole = views_of(sample_lib.sample(tiny_config, run))
    assert "nothing to do" not in capsys.readouterr().out
    save_png, saved = pixels.save_png, []

    def stop_after_five(path, image):
        if len(saved) == 5:
            raise KeyboardInterrupt
        saved.append(path)
        save_png(path, image)

    def never_again(path, image):
        assert path not in saved
        save_png(path, image)

    tiny_config.sample.out = str(run / "stopped")
    monkeypatch.setattr(pixels, "save_png", stop_after_five)
    with pytest.raises(KeyboardInterrupt):
        sample_lib.sample(tiny_config, run)
    assert not (run / "stopped/views").exists()
    monkeypatch.setattr(pixels, "save_png", never_again)
    assert_same_views(views_of(sample_lib.sample(tiny_config, run)), whole)
    for name in whole:  # the steps of a view that was finished before, too
        pages = [(run / folder / "views" / name / "index.html").read_text() for folder in ("whole", "stopped")]
        assert pages[0] == pages[1]
    capsys.readouterr()
    # As left by a process that was killed between the last view and the end.
    left = run / "stopped/unfinished" / next(iter(whole))
    left.mkdir(parents=True)
    sample_lib.sample(tiny_config, run)
    assert "nothing to do" in capsys.readouterr().out
    assert not left.exists()


def test_the_seed_decides_the_result(tiny_config, run):
    tiny_config.sample.num_objects = 1
    results = []
    for seed, out in ((0, "a"), (0, "b"), (1, "c")):
        tiny_config.sample.seed, tiny_config.sample.out = seed, str(run / out)
        results.append(*views_of(sample_lib.sample(tiny_config, run)).values())
    np.testing.assert_array_equal(results[0], results[1])
    assert not np.array_equal(results[0][1:], results[2][1:])


def test_each_object_has_its_own_noise():
    camera = cameras.Camera(np.eye(3)[None], np.zeros((1, 3)), np.eye(3)[None])
    views = types.SimpleNamespace(inputs=np.zeros((1, 8, 8, 3), np.uint8), cameras=camera, targets=camera)
    names = ("car", "chair", "car")
    batch = [(types.SimpleNamespace(name=name), views) for name in names]
    finished = {name: np.zeros((0, 8, 8, 3), np.uint8) for name in names}
    keys = [jax.random.key_data(key).tolist() for key in sample_lib._arguments(batch, finished, seed=0)[3]]
    assert keys[0] == keys[2] != keys[1]


def test_orbit_and_several_inputs(tiny_config, run):
    s = tiny_config.sample
    s.cameras, s.num_views, s.input_views, s.num_objects = "orbit", 3, (1, 3), 1
    out = sample_lib.sample(tiny_config, run)
    (folder,) = (out / "views").iterdir()
    _, found = read_object(folder).decode()
    assert len(found) == 5
    # The ring of the first input view.
    np.testing.assert_allclose(found.t[2:], cameras.orbit(3)(found[0]).t, atol=1e-5)
    s.cameras, s.orbit_elevation, s.out = "spiral", 30.0, str(run / "spiral")
    _, found = read_object(sample_lib.sample(tiny_config, run) / "views" / folder.name).decode()
    expected = cameras.orbit(*viewpoints.spiral(3), np.linalg.norm(found.t[0]), found.K[0])
    np.testing.assert_allclose(found.t[2:], expected.t, atol=1e-5)


def test_cameras_of_a_file(tiny_config, run, tmp_path):
    s = tiny_config.sample
    s.num_objects, s.num_views = 1, 0
    K = cameras.intrinsics(9.0, 8)
    path = cameras.orbit([0, 50, 100], 10, 1.4, K)
    srn.write_object(tmp_path / "poses", np.zeros((3, 8, 8, 3), np.uint8), path)
    (tmp_path / "transforms.json").write_text(nerf.to_json(["a.png", "b.png", "c.png"], path, 8))
    for source in (tmp_path / "poses", tmp_path / "transforms.json"):
        s.cameras, s.out = str(source), str(run / source.name)
        (folder,) = (sample_lib.sample(tiny_config, run) / "views").iterdir()
        _, found = read_object(folder, UNCHECKED).decode()
        for leaf in ("R", "t", "K"):
            np.testing.assert_allclose(getattr(found[1:], leaf), getattr(path, leaf), rtol=1e-4, atol=1e-5)
    (tmp_path / "poses/intrinsics.txt").unlink()
    s.cameras, s.out = str(tmp_path / "poses/pose"), str(run / "pose")
    (folder,) = (sample_lib.sample(tiny_config, run) / "views").iterdir()
    _, found = read_object(folder, UNCHECKED).decode()
    np.testing.assert_allclose(found.K, found.K[:1].repeat(4, 0), rtol=1e-5)


def test_held_out_views_may_be_an_orbit(tiny_config, run):
    tiny_config.data.holdout_views, tiny_config.sample.split, tiny_config.sample.num_objects = 2, "holdout", 1
    tiny_config.sample.cameras, tiny_config.sample.num_views = "orbit", 3
    (task,) = make_tasks(tiny_config)
    assert len(task.target_views) == 3
    assert task.load().truth is None


def test_several_samples_of_an_object(tiny_config, run):
    s = tiny_config.sample
    s.num_objects, s.num_samples, s.num_views = 1, 2, 2
    out = sample_lib.sample(tiny_config, run)
    first, second = sorted((out / "views").iterdir())
    assert second.name == f"{first.name}_sample2"
    one, other = (read_object(folder).decode()[0] for folder in (first, second))
    np.testing.assert_array_equal(one[0], other[0])
    assert not np.array_equal(one[1:], other[1:])
    page = (first / "index.html").read_text()
    assert "sample 2" in page
    assert "Denoising steps" in page
    assert not (out / "index.html").exists(), "one object"
    s.num_samples = 3
    assert len(views_of(sample_lib.sample(tiny_config, run))) == 3
    assert "sample 3" in (first / "index.html").read_text()


def test_a_photo_and_its_elevations(tiny_config, run, tmp_path, capsys):
    picture = Image.new("RGB", (50, 40), "white")
    picture.paste("red", (20, 10, 40, 30))
    picture.save(tmp_path / "cup.png")
    s = tiny_config.sample
    s.image, s.num_views, s.radius, s.fov = str(tmp_path / "cup.png"), 3, 2.0, 50.0
    out = sample_lib.sample(tiny_config, run)
    assert out == run / "views/cup"
    said = capsys.readouterr().out
    assert "cup: assumed camera: azimuth 0, elevation 20, field of view " in said
    assert f"page:  {out}/views/cup/index.html" in said
    images, found = read_object(out / "views/cup").decode()
    assert images[0, 4, 4].tolist() == [255, 0, 0]
    np.testing.assert_allclose(found.t[0], cameras.orbit([0], 20, 2.0, found.K[0]).t[0], atol=1e-5)
    s.elevations, s.out = (0.0, 40.0), str(run / "tried")
    assert views_of(sample_lib.sample(tiny_config, run)).keys() == {"cup_elevation0", "cup_elevation40"}
    assert pixels.load_png(run / "tried/elevations.png").shape[0] > 2 * 128
    assert "elevations side by side: " in capsys.readouterr().out
    s.fov = None
    with pytest.raises(UserError, match=r"sample\.fov must be given: the training data is not here"):
        make_tasks(tiny_config)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("sample.split", "validation", "sample.split must be one of"),
        ("sample.input_views", (0, 9), "sample.input_views (0, 9) must be distinct views"),
        ("sample.cameras", "circle", "sample.cameras must be"),
        ("sample.num_views", -1, "sample.num_views must be 0 or more"),
        ("sample.batch_size", -1, "sample.batch_size must be 0, for as many as fit, or a multiple"),
        ("sample.checkpoint_step", 7, "no checkpoint of step 7"),
        ("model.ch", 64, "model.ch: 32 → 64"),
    ],
)
def test_refusals(tiny_config, run, field, value, said):
    tiny_config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=re.escape(said)):
        sample_lib.sample(tiny_config, run)
    assert not (run / "views").exists()


def test_an_output_folder_keeps_its_settings(tiny_config, run):
    s = tiny_config.sample
    s.num_objects, s.preset, s.guidance_interval = 1, "fast", (-1.0, 1.0)
    before = views_of(sample_lib.sample(tiny_config, run))
    s.num_objects, s.batch_size = 2, 1
    after = views_of(sample_lib.sample(tiny_config, run))
    assert len(after) == 2
    assert_same_views(before, {name: after[name] for name in before})
    s.guidance_weight = 1.0
    with pytest.raises(UserError, match=re.escape("guidance_weight: 3.0 → 1.0")):
        sample_lib.sample(tiny_config, run)
    s.out = str(run / "checkpoints")
    with pytest.raises(UserError, match="is not empty"):
        sample_lib.sample(tiny_config, run)


def test_views_of_other_weights_or_data_are_not_reused(tiny_config, run, monkeypatch):
    s = tiny_config.sample
    s.num_objects, s.num_views, s.out = 1, 1, str(run / "out")
    sample_lib.sample(tiny_config, run)
    with monkeypatch.context() as patch:  # trained anew to the same step
        patch.setattr(checkpoints, "identity", lambda workdir, step: "other")
        with pytest.raises(UserError, match=r"weights: .* → \"other\""):
            sample_lib.sample(tiny_config, run)
    s.split, tiny_config.data.holdout_views = "train", 1
    with pytest.raises(UserError, match=r"\n  data: .*\n  split: \"test\" → \"train\""):
        sample_lib.sample(tiny_config, run)


def test_samples_from_a_weights_file_without_a_run(tiny_config, run, tmp_path):
    trained, path = sample_lib.find_weights(tiny_config, run), tmp_path / "box.safetensors"
    save_weights(path, trained.params(), trained.config, training_steps=trained.step, dtype="float32")
    tiny_config.sample.num_objects = 1
    from_run = views_of(sample_lib.sample(tiny_config, run))
    tiny_config.sample.weights = str(path)
    out = sample_lib.sample(tiny_config, tmp_path / "elsewhere")
    assert out == tmp_path / "elsewhere/views/box"
    assert_same_views(views_of(out), from_run)
    path = path.rename(tmp_path / "moved.safetensors")
    tiny_config.sample.weights, tiny_config.sample.out = str(path), str(out)
    sample_lib.sample(tiny_config, tmp_path / "elsewhere")
    with pytest.raises(ExistsError):
        save_weights(path, trained.params(), trained.config, training_steps=3)
    save_weights(path, trained.params(), trained.config, training_steps=3, overwrite=True)
    with pytest.raises(UserError, match=r'checkpoint_step: 2 → 3\n  weights: "[0-9a-f]{64}" → "[0-9a-f]{64}"'):
        sample_lib.sample(tiny_config, tmp_path / "elsewhere")
    tiny_config.sample.checkpoint_step = 2
    with pytest.raises(UserError, match="holds the weights of a single step"):
        sample_lib.sample(tiny_config, tmp_path / "elsewhere")


def test_unfinished_views_of_another_size_are_named(tiny_config, run):
    tiny_config.sample.out = str(run / "other")
    name = make_tasks(tiny_config)[0].name
    with mock.patch.object(pixels, "save_png", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        sample_lib.sample(tiny_config, run)
    pixels.save_png(run / "other/unfinished" / name / "000000.png", np.zeros((9, 9, 3), np.uint8))
    with pytest.raises(UserError, match=rf"unfinished/{name}/000000.png is no unfinished view of"):
        sample_lib.sample(tiny_config, run)
