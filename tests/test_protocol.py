"""--mode=evaluate: the protocol, scores against NumPy, ready-made views, refusals."""

import hashlib
import json
import math
import pathlib
import re
import shutil

import numpy as np
import pytest
from commands import finish, start_together
from PIL import Image
from synthetic import make_objects
from test_image_metrics import slow_ssim
from test_inception import make_entry

from threedim import sample as sample_lib
from threedim.configs import base
from threedim.data import png, sources
from threedim.data.objects import read_object
from threedim.errors import MissingError, UserError
from threedim.evaluation import protocol, scores
from threedim.evaluation.metrics import fid, lpips
from threedim.evaluation.metrics.inception import entry_shapes
from threedim.evaluation.metrics.patches import sliced_wasserstein


def config_of(folder):
    c = base.get_config()
    c.data.dir, c.data.source, c.data.num_test_objects = str(folder / "data"), str(folder / "objects"), 4
    return c


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Test objects of 5 and 7 views of 16 px, and for each noisy views in place of sampled ones."""
    folder = tmp_path_factory.mktemp("evaluate")
    make_objects(folder / "objects", count=3, views=5, size=16)
    make_objects(folder / "objects", count=3, views=7, size=16, seed=1, prefix="other")
    c = config_of(folder)
    sources.prepare_from_config(c.data)
    dataset, rng = sources.open_from_config(c.data, "test"), np.random.default_rng(5)
    for index, name in enumerate(dataset.names):
        truth, _ = dataset.views(index, range(dataset.num_views(index)))
        noisy = np.clip(truth + rng.normal(0, 8 * (index + 1), truth.shape), 0, 255).astype(np.uint8)
        (folder / "theirs" / name).mkdir(parents=True)
        for view in targets_of(dataset, index):
            (folder / "theirs" / name / f"{view:06d}.png").write_bytes(png.encode_png(noisy[view]))
    return folder


@pytest.fixture
def ready(data, tmp_path):
    """A config that scores a copy of these views, given view 1."""
    shutil.copytree(data / "theirs", tmp_path / "theirs")
    c = config_of(data)
    c.model.image_size, c.evaluate.input_view = 16, 1
    c.evaluate.views, c.evaluate.out = str(tmp_path / "theirs"), str(tmp_path / "out")
    return c


def targets_of(dataset, index):
    return [view for view in range(dataset.num_views(index)) if view != 1]


def results_of(out):
    return json.loads((out / "results.json").read_text(), parse_constant=pytest.fail)


def views_of(config):
    """Sampled views, true views and the given view of each object, with the cameras of the latter two."""
    dataset = sources.open_from_config(config.data, "test")
    for index, name in enumerate(dataset.names):
        numbers = targets_of(dataset, index)
        paths = [pathlib.Path(config.evaluate.views) / name / f"{view:06d}.png" for view in numbers]
        views = np.stack([png.decode_png(path.read_bytes()) for path in paths])
        yield name, numbers, views, dataset.views(index, numbers), dataset.views(index, [1])


def reference_psnr(a, b):
    return 10 * np.log10(255.0**2 / np.mean((a.astype(float) - b) ** 2, axis=(-3, -2, -1)))


class Colors:
    """Stands for the Inception network: mean color and contrast."""

    num_features = 6

    def __call__(self, images):
        return np.concatenate([images.mean((1, 2)), images.std((1, 2))], axis=-1)


class Difference:
    """Stands for LPIPS: mean difference in gray levels."""

    name, smallest = "Differences", 16

    def __call__(self, truth, *others):
        return [np.abs(other.astype(float) - truth).mean((1, 2, 3)) for other in others]


def test_scores_against_numpy(ready):
    results = results_of(protocol.evaluate(ready, "nowhere", extract=Colors(), compare=Difference()))
    found = {name: [] for name in ("psnr", "ssim", "ssim_uniform", "lpips", "repeated_psnr", "repeated_lpips")}
    ours, true = [], []
    for name, numbers, views, (truth, cameras), (given, camera) in views_of(ready):
        ours.append(views)
        true.append(truth)
        expected = {
            "psnr": reference_psnr(views, truth),
            "ssim": np.array([slow_ssim(*pair) for pair in zip(views, truth, strict=True)]),
            "ssim_uniform": np.array([slow_ssim(*pair, uniform=True) for pair in zip(views, truth, strict=True)]),
            "lpips": Difference()(truth, views)[0],
            "repeated_psnr": reference_psnr(given, truth),
            "repeated_lpips": Difference()(truth, given)[0],
        }
        one = results["objects"][name]
        assert (one["input_views"], one["views"]["number"]) == ([1], numbers)
        for metric, values in expected.items():
            found[metric].append(values)
            np.testing.assert_allclose(one[metric], values.mean(), rtol=2e-5, atol=2e-5)
            if metric in one["views"]:
                np.testing.assert_allclose(one["views"][metric], values, rtol=2e-5, atol=2e-5)
        cosine = cameras.R[:, :, 2] @ camera.R[0, :, 2]
        np.testing.assert_allclose(one["views"]["angle_degrees"], np.degrees(np.arccos(cosine)), atol=1e-2)
    # So that means over objects differ from those over views.
    assert len({len(values) for values in found["psnr"]}) == 2
    dataset, repeated = results["dataset"], results["baselines"]["input view repeated"]
    for metric in ("psnr", "ssim", "ssim_uniform", "lpips"):
        np.testing.assert_allclose(dataset[metric], np.concatenate(found[metric]).mean(), rtol=1e-5)
        spread = np.std([values.mean() for values in found[metric]], ddof=1)
        np.testing.assert_allclose(dataset[f"{metric}_std_over_objects"], spread, rtol=1e-3)
    for metric in ("psnr", "lpips"):
        np.testing.assert_allclose(repeated[metric], np.concatenate(found[f"repeated_{metric}"]).mean(), rtol=1e-5)
    ours, true = np.concatenate(ours), np.concatenate(true)
    np.testing.assert_allclose(dataset["patch_distance"], sliced_wasserstein(ours, true, seed=0))
    first, second = (fid.FeatureMoments(6) for _ in "ab")
    first.add(Colors()(ours))
    second.add(Colors()(true))
    np.testing.assert_allclose(dataset["fid"], fid.frechet_distance(first, second).value, rtol=1e-6)
    assert results["not_computed"] == {}
    assert (results["lpips_network"], results["lpips_weights"]) == ("Differences", None)
    bins = results["psnr_by_angle"]
    assert sum(each["views"] for each in bins) == results["num_views"] == len(ours)
    np.testing.assert_allclose(sum(b["views"] * b["psnr"] for b in bins) / len(ours), dataset["psnr"], rtol=1e-9)
    angles = np.concatenate([one["views"]["angle_degrees"] for one in results["objects"].values()])
    for each in bins:
        assert each["views"] == np.sum((angles >= each["from_degrees"]) & (angles < each["to_degrees"]))
    assert (results["checkpoint_step"], results["config"]["evaluate"]["input_view"]) == (None, 1)
    assert results["protocol"]["data_fingerprint"] == sources.open_from_config(ready.data, "test").fingerprint
    page = (pathlib.Path(ready.evaluate.out) / "report.html").read_text()
    for number in (f"{dataset['lpips']:.3f}", f"{dataset['fid']:.2f}"):
        assert number in page


def test_samples_scores_and_does_not_sample_again(tiny_config, run, monkeypatch, capsys):
    tiny_config.evaluate.input_view = 1
    out = protocol.evaluate(tiny_config, run)
    assert out == run / "evaluation/step_0000002"
    results = results_of(out)
    assert (results["checkpoint_step"], results["sampling"]["input_views"]) == (2, [1])
    dataset = results["dataset"]
    assert [dataset[name] for name in ("ssim", "patch_distance", "fid", "lpips")] == [None] * 4
    assert set(results["not_computed"]) == {"ssim", "lpips", "patch_distance", "fid"}
    said = capsys.readouterr().out
    for words in (
        *(
            f"PSNR {dataset['psnr']:.4g}",
            "no SSIM: pictures of 8 px are smaller than the 11 px that it needs",
            "8 px are smaller than the 16 px",
        ),
        "no FID: no weights are given with --config.evaluate.inception=FILE; download",
        "no LPIPS: the paper has none, and no weights are given with --config.evaluate.lpips_backbone=FILE",
    ):
        assert words in said
    truth_of = sources.open_from_config(tiny_config.data, "test")
    assert set(results["objects"]) == set(truth_of.names)
    for index, name in enumerate(truth_of.names):
        # The sampler's folder begins with the input view: its file 1 is view 0, its file 2 is view 2.
        pictures, _ = read_object(out / "views" / name).decode()
        truth, _ = truth_of.views(index, [0, 2, 3, 4])
        psnr = results["objects"][name]["views"]["psnr"]
        np.testing.assert_allclose(psnr, reference_psnr(pictures[1:], truth), rtol=1e-5)

    monkeypatch.setattr(sample_lib.Sampler, "sample_views", None)  # not a second time
    before = (out / "results.json").read_text()
    protocol.evaluate(tiny_config, run)
    assert (out / "results.json").read_text() == before
    # The same folder as ready-made views gives the same scores, without a checkpoint.
    tiny_config.evaluate.views = str(out)
    again = results_of(protocol.evaluate(tiny_config, run / "other"))
    assert (again["objects"], again["dataset"]) == (results["objects"], dataset)
    for name in truth_of.names:
        (run / "theirs" / name).mkdir(parents=True)
        for place, view in enumerate((0, 2, 3, 4), start=1):
            shutil.copy(out / "views" / name / "rgb" / f"{place:06d}.png", run / "theirs" / name / f"{view:06d}.png")
        (run / "theirs" / name / "000000_compare.png").write_bytes(b"")
    tiny_config.evaluate.views = str(run / "theirs")
    assert results_of(protocol.evaluate(tiny_config, run / "other"))["objects"] == results["objects"]
    # Without samples.json the sampler's folder is misnumbered, which its poses show.
    shutil.copytree(out / "views", run / "alone/views")
    tiny_config.evaluate.views, tiny_config.evaluate.out = str(run / "alone/views"), str(run / "misnumbered")
    with pytest.raises(UserError, match=r"000000\.txt is not the pose of"):
        protocol.evaluate(tiny_config, run)
    tiny_config.evaluate.views, tiny_config.evaluate.input_view = str(out), 2
    with pytest.raises(UserError, match="was sampled from view 1, not 2"):
        protocol.evaluate(tiny_config, run)


def test_fewer_views_are_spread_evenly(tiny_config, run):
    tiny_config.evaluate.input_view, tiny_config.evaluate.max_views = 1, 2
    out = protocol.evaluate(tiny_config, run)
    results = results_of(out)
    assert (results["num_views"], results["protocol"]["max_views"]) == (4, 2)
    truth_of = sources.open_from_config(tiny_config.data, "test")
    for index, name in enumerate(truth_of.names):
        views = results["objects"][name]["views"]
        assert views["number"] == [2, 4]  # of 0, 2, 3 and 4
        pictures, _ = read_object(out / "views" / name).decode()
        np.testing.assert_allclose(
            views["psnr"], reference_psnr(pictures[1:], truth_of.views(index, [2, 4])[0]), rtol=1e-5
        )
    assert "Only 2 views of each object, spread evenly" in (out / "report.html").read_text()
    tiny_config.evaluate.max_views = 0
    with pytest.raises(UserError, match="max_views: 2 → null"):
        protocol.evaluate(tiny_config, run)
    (out / "results.json").unlink()
    with pytest.raises(UserError, match="num_views: 2 → 0"):
        protocol.evaluate(tiny_config, run)


def test_fewer_of_the_ready_made_views(ready):
    whole = results_of(protocol.evaluate(ready, "nowhere"))["objects"]
    ready.evaluate.max_views, ready.evaluate.out = 3, ready.evaluate.out + "3"
    for name, one in results_of(protocol.evaluate(ready, "nowhere"))["objects"].items():
        known = dict(zip(whole[name]["views"]["number"], whole[name]["views"]["psnr"], strict=True))
        assert len(one["views"]["number"]) == 3
        assert one["views"]["psnr"] == [known[number] for number in one["views"]["number"]]


def test_objects_are_chosen_by_the_seed_and_none_are_lost(ready, tmp_path):
    def names(count, seed):
        ready.evaluate.max_objects, ready.evaluate.seed = count, seed
        return {task.name for task in protocol.make_tasks(protocol.sampling_config(ready))}

    assert names(2, 0) == names(2, 0)
    assert names(2, 0) < names(3, 0) < names(0, 0)
    assert len(names(0, 1)) == 4
    assert len({frozenset(names(2, seed)) for seed in range(5)}) > 1
    ready.evaluate.max_objects, ready.evaluate.seed = 3, 0
    assert set(results_of(protocol.evaluate(ready, "nowhere"))["objects"]) == names(3, 0)
    ready.evaluate.max_objects = 2
    with pytest.raises(UserError, match="holds scores of 1 objects that are not among the 2 asked for now"):
        protocol.evaluate(ready, "nowhere")
    ready.evaluate.max_objects, ready.evaluate.input_view = 0, 0
    with pytest.raises(UserError, match="input_view: 1 → 0"):
        protocol.evaluate(ready, "nowhere")
    (tmp_path / "out/results.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        protocol.evaluate(ready, "nowhere")


def test_missing_views_are_listed(ready, tmp_path):
    first, second, *_ = sources.open_from_config(ready.data, "test").names
    (tmp_path / "theirs" / first / "000002.png").unlink()
    (tmp_path / "theirs" / first / "000003.png").unlink()
    shutil.rmtree(tmp_path / "theirs" / second)
    with pytest.raises(MissingError) as error:
        protocol.evaluate(ready, "nowhere")
    for words in ("has no views for 2 of 4 objects", f"{first}: view 2-3\n", f"{second}: no views"):
        assert words in str(error.value)
    assert not (tmp_path / "out").exists()


def test_equal_views_get_the_highest_finite_psnr(ready, tmp_path):
    dataset = sources.open_from_config(ready.data, "test")
    truth, _ = dataset.views(0, [2])
    (tmp_path / "theirs" / dataset.names[0] / "000002.png").write_bytes(png.encode_png(truth[0]))
    results = results_of(protocol.evaluate(ready, "nowhere"))
    assert results["equal_views"] == 1
    limit = 10 * math.log10(255**2 * 16 * 16 * 3)
    assert results["objects"][dataset.names[0]]["views"]["psnr"][1] == pytest.approx(limit, abs=1e-5)
    assert results["psnr_of_equal_views"] == pytest.approx(limit)
    nearly = truth[0].copy()
    nearly[3, 3, 1] ^= 1
    assert reference_psnr(nearly, truth[0]) == pytest.approx(limit)


def test_16_bit_views_are_scored_as_what_they_show(ready, tmp_path):
    names = sources.open_from_config(ready.data, "test").names
    gray = np.random.default_rng(0).integers(0, 256, (16, 16), np.uint8)
    Image.fromarray(gray).save(tmp_path / "theirs" / names[0] / "000002.png")
    expected = results_of(protocol.evaluate(ready, "nowhere"))
    Image.fromarray(gray.astype(np.uint16) * 257).save(tmp_path / "theirs" / names[0] / "000002.png")
    assert results_of(protocol.evaluate(ready, "nowhere"))["objects"] == expected["objects"]
    assert expected["objects"][names[0]]["views"]["psnr"][1] < 15


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("evaluate.published", "boats", "evaluate.published must be one of none, cars, chairs, chairs_star, got"),
        ("evaluate.max_objects", -1, "evaluate.max_objects must be 0 (all) or more, got -1"),
        ("evaluate.max_views", -2, "evaluate.max_views must be 0 (all) or more, got -2"),
        ("evaluate.inception", "weights.pth", "weights.pth: no such file"),
        ("evaluate.lpips_lin", "lin.pth", "must both be set, or neither; only lpips_lin is; download https://"),
        ("evaluate.input_view", 9, "evaluate.input_view"),
        ("evaluate.views", "no/folder", "no/folder: no such folder of views"),
        ("evaluate.views", "", "nowhere: train first, or name the folder of a trained run"),
        ("model.image_size", 8, "has 16x16 pixels, but views are compared at 8 px"),
    ],
)
def test_refusals(ready, tmp_path, field, value, said):
    ready.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=re.escape(said)):
        protocol.evaluate(ready, "nowhere")
    assert not (tmp_path / "out").exists()


def test_damaged_and_duplicate_views_are_named(ready, tmp_path):
    folder = tmp_path / "theirs" / sources.open_from_config(ready.data, "test").names[0]
    shutil.copy(folder / "000002.png", folder / "2.png")
    with pytest.raises(UserError, match="are both of view 2"):
        protocol.evaluate(ready, "nowhere")
    (folder / "2.png").unlink()
    (folder / "000002.png").write_bytes((folder / "000002.png").read_bytes()[:100])
    with pytest.raises(UserError, match=r"000002\.png: not a complete PNG"):
        protocol.evaluate(ready, "nowhere")


def test_patch_distance_uses_a_subset(ready, monkeypatch):
    monkeypatch.setattr(scores, "PATCH_VIEWS", 7)
    found, ready.evaluate.seed = [], 3
    monkeypatch.setattr(scores.patches, "sliced_wasserstein", lambda a, _, **named: found.append((len(a), named)) or 1)
    assert results_of(protocol.evaluate(ready, "nowhere"))["patch_distance_views"] == 7
    assert {count for count, _ in found[:-2]} == {4, 6}  # of each object, then of all
    assert found[-2:] == [(7, {"seed": 3, "progress": True})] * 2


def test_sampler_settings_are_the_users(tiny_config):
    tiny_config.sample.preset, tiny_config.sample.seed, tiny_config.evaluate.max_objects = "fast", 7, 3
    s = protocol.sampling_config(tiny_config.lock()).sample
    assert (s.preset, s.seed, s.num_steps) == ("fast", 7, 3)
    assert (s.split, s.input_views, s.num_views, s.num_objects, s.objects_seed) == ("test", (64,), 0, 3, 0)
    assert (tiny_config.sample.num_objects, tiny_config.sample.objects_seed) == (2, None)


def test_other_weights_of_the_fid_are_a_warning(ready, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(protocol.inception, "load_params", lambda _: {"weights": 0})
    monkeypatch.setattr(protocol.inception, "FeatureExtractor", lambda _: Colors())
    path = tmp_path / "weights.pth"
    path.write_bytes(b"1")
    ready.evaluate.inception = str(path)
    results = results_of(protocol.evaluate(ready, "nowhere"))
    said = "FID: weights.pth is not the published file of weights (6726825d...) by its sha256"
    for words in (*results["warnings"], capsys.readouterr().out, (tmp_path / "out/report.html").read_text()):
        assert said in words
    monkeypatch.setattr(protocol.provenance, "file_identity", lambda _: {"name": "w.pth", "sha256": "6726825d" * 8})
    assert results_of(protocol.evaluate(ready, "nowhere"))["warnings"] == []


@pytest.mark.slow
def test_fid_and_lpips_from_named_files_of_weights(ready, tmp_path):
    shapes = {"inception": entry_shapes(), "lpips_backbone": lpips.backbone_shapes(), "lpips_lin": lpips.lin_shapes()}
    digests = {}
    for field, entries in shapes.items():
        path = tmp_path / f"{field}.npz"
        # LPIPS refuses negative weights.
        sign = np.abs if field == "lpips_lin" else np.asarray
        np.savez(path, **{name: sign(make_entry(name, shape)) for name, shape in entries.items()})
        digests[field] = hashlib.sha256(path.read_bytes()).hexdigest()
        ready.evaluate[field] = str(path)
    results = results_of(protocol.evaluate(ready, "nowhere"))
    assert results["dataset"]["fid"] > 0
    assert results["inception"] == {"name": "inception.npz", "sha256": digests["inception"]}
    files = results["lpips_weights"]
    assert [files[name]["sha256"] for name in ("backbone", "lin")] == [digests["lpips_backbone"], digests["lpips_lin"]]
    distances = [one["lpips"] for one in results["objects"].values()]
    assert distances == sorted(distances)
    assert (results["lpips_network"], results["not_computed"], len(results["warnings"])) == ("VGG16", {}, 4)
    page = (tmp_path / "out/report.html").read_text()
    said = (f"{results['dataset']['fid']:.2f}", "covariance is singular", *digests.values(), "by VGG16")
    for words in (*said, "lpips_lin.npz is not the published file"):
        assert words in page


@pytest.mark.slow
def test_two_processes_sample_and_one_scores(tiny_config, run, tmp_path):
    tiny_config.evaluate.input_view = 1
    single, out = results_of(protocol.evaluate(tiny_config, run)), tmp_path / "two"
    more = ["--config.evaluate.input_view=1", f"--config.evaluate.out={out}"]
    results = finish(start_together(2, "evaluate", tiny_config, run, *more))
    assert [code for code, _, _ in results] == [0, 0], results
    together = results_of(out)
    assert together["device"]["processes"] == 2
    assert together["objects"].keys() == single["objects"].keys()
    assert together["dataset"]["psnr"] == pytest.approx(single["dataset"]["psnr"], abs=0.05)
    assert "report:" in results[0][1]
    assert "report:" not in results[1][1]
