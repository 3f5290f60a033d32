"""--mode=evaluate on the files: protocol, figures against NumPy, ready-made views, refusals."""

import hashlib
import json
import math
import pathlib
import re
import shutil

import numpy as np
import pytest
from commands import finish, start_together
from synthetic import make_objects
from test_inception import make_entry

from configs import base
from threedim import provenance
from threedim import sample as sample_lib
from threedim.data import png as images_lib
from threedim.data import sources, srn
from threedim.evaluation import protocol, sampled, scores
from threedim.evaluation.metrics import fid, lpips
from threedim.evaluation.metrics.inception import entry_shapes
from threedim.evaluation.metrics.patches import sliced_wasserstein
from threedim.training import loop


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def tiny(tiny_config):
    """With a network that compiles faster still."""
    m = tiny_config.model
    m.ch_mult, m.attn_resolutions, m.num_res_blocks, m.emb_ch = (1,), (8,), 0, 8
    tiny_config.evaluate.input_view = 1
    return tiny_config


@pytest.fixture
def run(tiny, kept, tmp_path):
    """A run that has done one step, in a folder of its own."""
    if not (kept / "run").exists():
        tiny.train.num_steps = 1
        loop.train(tiny, kept / "run")
    return pathlib.Path(shutil.copytree(kept / "run", tmp_path / "run"))


@pytest.fixture
def ready(tmp_path):
    """Data of 16 px, and views of the test objects that are near the truth, without a network."""
    make_objects(tmp_path / "objects", count=6, views=5, size=16)
    c = base.get_config()
    c.data.dir, c.data.source, c.data.num_test_objects = str(tmp_path / "data"), str(tmp_path / "objects"), 4
    c.model.image_size, c.evaluate.input_view = 16, 1
    c.evaluate.views, c.evaluate.out = str(tmp_path / "drawn"), str(tmp_path / "out")
    sources.prepare_from_config(c.data)
    dataset = sources.open_from_config(c.data, "test")
    rng = np.random.default_rng(5)
    for index, name in enumerate(dataset.names):
        truth, _ = dataset.views(index, range(5))
        noisy = np.clip(truth + rng.normal(0, 8 * (index + 1), truth.shape), 0, 255).astype(np.uint8)
        (tmp_path / "drawn" / name).mkdir(parents=True)
        for view in (0, 2, 3, 4):
            (tmp_path / "drawn" / name / f"{view:06d}.png").write_bytes(images_lib.encode_png(noisy[view]))
    return c


def results_of(out):
    def refuse(token):
        raise AssertionError(f"{token} is not JSON")

    return json.loads((out / "results.json").read_text(), parse_constant=refuse)


def pictures_of(config, name):
    folder = pathlib.Path(config.evaluate.views) / name
    return np.stack([images_lib.decode_png((folder / f"{view:06d}.png").read_bytes()) for view in (0, 2, 3, 4)])


def reference_psnr(a, b):
    return 10 * np.log10(255.0**2 / np.mean((a.astype(float) - b) ** 2, axis=(-3, -2, -1)))


def reference_ssim(a, b):
    """By its definition, window by window."""
    offset = np.arange(11) - 5
    weights = np.exp(-0.5 * (offset / 1.5) ** 2)
    window = np.outer(weights, weights) / weights.sum() ** 2
    a, b, found = a / 255.0, b / 255.0, []
    for row in range(a.shape[0] - 10):
        for column in range(a.shape[1] - 10):
            for channel in range(3):
                x, y = (each[row : row + 11, column : column + 11, channel] for each in (a, b))
                mx, my = (window * x).sum(), (window * y).sum()
                vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
                cov = (window * (x - mx) * (y - my)).sum()
                found.append((2 * mx * my + 1e-4) * (2 * cov + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4)))
    return np.mean(found)


class Colors:
    """A stand-in for the Inception network: mean color and contrast."""

    num_features = 6

    def __call__(self, images):
        return np.concatenate([images.mean((1, 2)), images.std((1, 2))], axis=-1)


class Difference:
    """A stand-in for LPIPS: mean difference of gray levels."""

    name, smallest = "Differences", 16

    def __call__(self, truth, *others):
        return [np.abs(other.astype(float) - truth).mean((1, 2, 3)) for other in others]


def test_figures_against_numpy(ready):
    out = protocol.evaluate(ready, "nowhere", extract=Colors())
    results = results_of(out)
    dataset = sources.open_from_config(ready.data, "test")
    assert list(results["objects"]) == dataset.names
    psnr, ssim, repeated, ours, true = [], [], [], [], []
    for index, name in enumerate(dataset.names):
        truth, cameras = dataset.views(index, [0, 2, 3, 4])
        given, given_camera = dataset.views(index, [1])
        pictures = pictures_of(ready, name)
        ours.append(pictures)
        true.append(truth)
        psnr.append(reference_psnr(pictures, truth))
        ssim.append([reference_ssim(*pair) for pair in zip(pictures, truth, strict=True)])
        repeated.append(reference_psnr(given, truth))
        found = results["objects"][name]
        assert (found["input_views"], found["views"]["number"]) == ([1], [0, 2, 3, 4])
        np.testing.assert_allclose(found["views"]["psnr"], psnr[-1], rtol=1e-5)
        np.testing.assert_allclose(found["views"]["ssim"], ssim[-1], atol=2e-5)
        cosine = cameras.R[:, :, 2] @ given_camera.R[0, :, 2]
        np.testing.assert_allclose(found["views"]["angle_degrees"], np.degrees(np.arccos(cosine)), atol=1e-2)
        np.testing.assert_allclose(found["psnr"], np.mean(psnr[-1]), rtol=1e-5)
    figures = results["dataset"]
    np.testing.assert_allclose(figures["psnr"], np.mean(psnr), rtol=1e-5)
    np.testing.assert_allclose(figures["psnr_std_over_objects"], np.std(np.mean(psnr, 1), ddof=1), rtol=1e-4)
    np.testing.assert_allclose(figures["ssim"], np.mean(ssim), atol=2e-5)
    np.testing.assert_allclose(results["baselines"]["input view repeated"]["psnr"], np.mean(repeated), rtol=1e-5)
    ours, true = np.concatenate(ours), np.concatenate(true)
    np.testing.assert_allclose(figures["patch_distance"], sliced_wasserstein(ours, true, seed=0))
    first, second = (fid.FeatureMoments(6) for _ in "ab")
    first.add(Colors()(ours))
    second.add(Colors()(true))
    np.testing.assert_allclose(figures["fid"], fid.frechet_distance(first, second).value, rtol=1e-6)
    assert figures["lpips"] is None
    assert list(results["not_computed"]) == ["lpips"]
    assert "vgg16-397923af.pth" in results["not_computed"]["lpips"]
    assert (results["lpips_network"], results["lpips_weights"]) == (None, None)
    bins = results["psnr_by_angle"]
    assert sum(each["views"] for each in bins) == results["num_views"] == 16
    np.testing.assert_allclose(sum(b["views"] * b["psnr"] for b in bins) / 16, figures["psnr"], rtol=1e-9)
    assert results["checkpoint_step"] is None
    assert results["protocol"]["data_fingerprint"] == dataset.fingerprint
    assert results["config"]["evaluate"]["input_view"] == 1


def test_lpips_of_views_objects_and_all(ready):
    results = results_of(protocol.evaluate(ready, "nowhere", compare=Difference()))
    dataset = sources.open_from_config(ready.data, "test")
    found, repeated = [], []
    for index, name in enumerate(dataset.names):
        truth, _ = dataset.views(index, [0, 2, 3, 4])
        given, _ = dataset.views(index, [1])
        found += Difference()(truth, pictures_of(ready, name))
        repeated += Difference()(truth, given)
        scored = results["objects"][name]
        np.testing.assert_allclose(scored["views"]["lpips"], found[-1], atol=1e-5)
        np.testing.assert_allclose(scored["lpips"], found[-1].mean(), atol=1e-5)
        np.testing.assert_allclose(scored["repeated_lpips"], repeated[-1].mean(), atol=1e-5)
    np.testing.assert_allclose(results["dataset"]["lpips"], np.mean(found))
    np.testing.assert_allclose(results["dataset"]["lpips_std_over_objects"], np.std(np.mean(found, 1), ddof=1))
    np.testing.assert_allclose(results["baselines"]["input view repeated"]["lpips"], np.mean(repeated))
    assert results["lpips_network"] == "Differences"
    assert "lpips" not in results["not_computed"]
    page = (pathlib.Path(ready.evaluate.out) / "report.html").read_text()
    assert f"{np.mean(found):.3f}" in page


def test_pictures_too_small_for_lpips(ready):
    compare = Difference()
    compare.smallest = 17
    results = results_of(protocol.evaluate(ready, "nowhere", compare=compare))
    assert results["not_computed"]["lpips"] == "pictures of 16 px are smaller than the 17 px that Differences needs"
    assert results["dataset"]["lpips"] is None
    assert results["lpips_network"] is None


def test_draws_scores_and_does_not_draw_again(tiny, run, monkeypatch, capsys):
    out = protocol.evaluate(tiny, run)
    assert out == run / "evaluation/step_0000001"
    results = results_of(out)
    assert results["checkpoint_step"] == 1
    assert results["sampling"]["input_views"] == [1]
    assert (results["dataset"]["ssim"], results["dataset"]["patch_distance"], results["dataset"]["fid"]) == (None,) * 3
    assert "8 px are smaller than its window" in results["not_computed"]["ssim"]
    assert "pt_inception-2015-12-05" in results["not_computed"]["fid"]
    said = capsys.readouterr().out
    assert f"PSNR {results['dataset']['psnr']:.4g}" in said
    assert "no FID: no weights named with --config.evaluate.inception=FILE; download" in said
    assert "no LPIPS: the paper has none, and no weights are named with --config.evaluate.lpips_backbone=FILE" in said
    dataset = sources.open_from_config(tiny.data, "test")
    assert set(results["objects"]) == set(dataset.names)
    for index, name in enumerate(dataset.names):
        # The sampler's folder begins with the input view: its file 1 is view 0, its file 2 view 2.
        pictures, _ = srn.read_object(out / "views" / name).decode()
        truth, _ = dataset.views(index, [0, 2, 3, 4])
        np.testing.assert_allclose(
            results["objects"][name]["views"]["psnr"], reference_psnr(pictures[1:], truth), rtol=1e-5
        )

    def never(*arguments, **settings):
        raise AssertionError("drawn a second time")

    monkeypatch.setattr(sample_lib, "sample_views", never)
    before = (out / "results.json").read_text()
    protocol.evaluate(tiny, run)
    assert (out / "results.json").read_text() == before
    # The same folder as ready-made views gives the same figures, without a checkpoint.
    tiny.evaluate.views = str(out)
    again = results_of(protocol.evaluate(tiny, run / "other"))
    assert again["objects"] == results["objects"]
    assert again["dataset"] == results["dataset"]
    # And so do the same views in the layout of other methods.
    for name in dataset.names:
        (run / "theirs" / name).mkdir(parents=True)
        for place, view in enumerate((0, 2, 3, 4), start=1):
            shutil.copy(out / "views" / name / "rgb" / f"{place:06d}.png", run / "theirs" / name / f"{view:06d}.png")
        (run / "theirs" / name / "000000_compare.png").write_bytes(b"")
    tiny.evaluate.views = str(run / "theirs")
    assert results_of(protocol.evaluate(tiny, run / "other"))["objects"] == results["objects"]
    # Without samples.json its own folder is misnumbered, which its poses betray.
    shutil.copytree(out / "views", run / "alone/views")
    tiny.evaluate.views, tiny.evaluate.input_view = str(run / "alone/views"), 1
    tiny.evaluate.out = str(run / "misnumbered")
    with pytest.raises(ValueError, match=r"000000\.txt is the pose of another camera"):
        protocol.evaluate(tiny, run)
    tiny.evaluate.views, tiny.evaluate.input_view = str(out), 2
    with pytest.raises(ValueError, match="was drawn from view 1, not 2"):
        protocol.evaluate(tiny, run)


def test_objects_of_a_quick_look_are_chosen_by_the_seed(ready, tmp_path):
    def names(count, seed):
        ready.evaluate.max_objects, ready.evaluate.seed = count, seed
        ready.evaluate.out = str(tmp_path / f"{count}_{seed}")
        return set(results_of(protocol.evaluate(ready, "nowhere"))["objects"])

    assert names(2, 0) == names(2, 0)
    assert names(2, 0) < names(3, 0) < names(0, 0)
    assert len(names(0, 1)) == 4
    assert len({frozenset(names(2, seed)) for seed in range(5)}) > 1
    # Results of more objects are not lost to those of fewer.
    ready.evaluate.max_objects, ready.evaluate.seed, ready.evaluate.out = 2, 0, str(tmp_path / "0_0")
    with pytest.raises(ValueError, match="holds scores of 2 objects that are not among the 2 asked for now"):
        protocol.evaluate(ready, "nowhere")
    ready.evaluate.max_objects, ready.evaluate.input_view = 0, 0
    with pytest.raises(ValueError, match="input_view: 1 → 0"):
        protocol.evaluate(ready, "nowhere")


def test_missing_views_are_listed(ready, tmp_path):
    first, second, *_ = sources.open_from_config(ready.data, "test").names
    (tmp_path / "drawn" / first / "000002.png").unlink()
    (tmp_path / "drawn" / first / "000003.png").unlink()
    shutil.rmtree(tmp_path / "drawn" / second)
    with pytest.raises(FileNotFoundError) as error:
        protocol.evaluate(ready, "nowhere")
    said = str(error.value)
    assert "lacks views of 2 of 4 objects" in said
    assert f"{first}: view 2-3\n" in said
    assert f"{second}: no views at all" in said
    assert not (tmp_path / "out").exists()


def test_equal_views_count_with_the_highest_finite_psnr(ready, tmp_path):
    dataset = sources.open_from_config(ready.data, "test")
    name = dataset.names[0]
    truth, _ = dataset.views(0, [2])
    (tmp_path / "drawn" / name / "000002.png").write_bytes(images_lib.encode_png(truth[0]))
    results = results_of(protocol.evaluate(ready, "nowhere"))
    assert results["equal_views"] == 1
    limit = 10 * math.log10(255**2 * 16 * 16 * 3)
    assert results["objects"][name]["views"]["psnr"][1] == pytest.approx(limit, abs=1e-5)
    nearly = truth[0].copy()
    nearly[3, 3, 1] ^= 1
    assert reference_psnr(nearly, truth[0]) == pytest.approx(limit)
    assert "1 drawn views equal the truth" in (tmp_path / "out/report.html").read_text()


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        (
            "evaluate.published",
            "boats",
            "evaluate.published must be one of none, cars, chairs, chairs_star, got 'boats'",
        ),
        ("evaluate.max_objects", -1, "evaluate.max_objects must be 0 (all) or more, got -1"),
        ("evaluate.inception", "weights.pth", "weights.pth: no such file, so no FID; download"),
        ("evaluate.lpips_lin", "lin.pth", "must both be named, or neither; only lpips_lin is; download https://"),
        ("evaluate.input_view", 9, "has 5 (0 to 4); with --mode=evaluate it is protocol.input_view"),
        ("evaluate.views", "no/folder", "no/folder: no such folder of views"),
        ("model.image_size", 8, "is 16 px wide, but views are compared at 8 px"),
    ],
)
def test_refusals(ready, tmp_path, field, value, said):
    ready.update_from_flattened_dict({field: value})
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(said)):
        protocol.evaluate(ready, "nowhere")
    assert not (tmp_path / "out").exists()


def test_damaged_and_doubled_pictures_are_named(ready, tmp_path):
    name = sources.open_from_config(ready.data, "test").names[0]
    folder = tmp_path / "drawn" / name
    shutil.copy(folder / "000002.png", folder / "2.png")
    with pytest.raises(ValueError, match="are both of view 2"):
        protocol.evaluate(ready, "nowhere")
    (folder / "2.png").unlink()
    (folder / "000002.png").write_bytes((folder / "000002.png").read_bytes()[:100])
    with pytest.raises(ValueError, match=r"000002\.png is not a readable square PNG"):
        protocol.evaluate(ready, "nowhere")


def test_no_orbit(tmp_path):
    (tmp_path / "views").mkdir()
    (tmp_path / "samples.json").write_text('{"settings": {"cameras": "orbit"}, "objects": {}}')
    with pytest.raises(ValueError, match="holds an orbit"):
        sampled.DrawnViews(tmp_path)


def test_patch_distance_is_taken_of_a_subset(ready, monkeypatch):
    monkeypatch.setattr(scores, "PATCH_VIEWS", 7)
    found = []
    monkeypatch.setattr(
        scores.patch_distance, "sliced_wasserstein", lambda images, truth, seed: found.append(len(images)) or 1.0
    )
    assert results_of(protocol.evaluate(ready, "nowhere"))["patch_distance_views"] == 7
    assert found == [7, 7]


def test_commit_is_of_this_code(monkeypatch, tmp_path):
    known = provenance.commit()
    if known is not None:
        assert re.fullmatch("[0-9a-f]{40}", known["hash"])
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "a/b/provenance.py"))
    (tmp_path / "a/b").mkdir(parents=True)
    assert provenance.commit() is None


def test_sampler_settings_are_the_users(tiny):
    tiny.sample.preset, tiny.sample.seed, tiny.evaluate.max_objects = "fast", 7, 3
    s = protocol.drawing_config(tiny.lock()).sample
    assert (s.preset, s.seed, s.num_steps) == ("fast", 7, 3)
    assert (s.split, s.input_views, s.num_views, s.num_objects, s.objects_seed) == ("test", (1,), 0, 3, 0)
    assert (tiny.sample.num_objects, tiny.sample.objects_seed) == (2, None)


@pytest.mark.slow
def test_fid_from_a_named_file_of_weights(ready, tmp_path):
    """Made-up weights: through the file, the network and the page."""
    np.savez(tmp_path / "weights.npz", **{name: make_entry(name, shape) for name, shape in entry_shapes().items()})
    ready.evaluate.inception, ready.evaluate.max_objects = str(tmp_path / "weights.npz"), 2
    results = results_of(protocol.evaluate(ready, "nowhere"))
    assert results["dataset"]["fid"] > 0
    assert results["inception"]["name"] == "weights.npz"
    assert results["inception"]["sha256"] == hashlib.sha256((tmp_path / "weights.npz").read_bytes()).hexdigest()
    assert "fid" not in results["not_computed"]
    assert any("covariance is singular" in warning for warning in results["warnings"])
    page = (tmp_path / "out/report.html").read_text()
    assert f"{results['dataset']['fid']:.2f}" in page
    assert "covariance is singular" in page


@pytest.mark.slow
def test_lpips_from_named_files_of_weights(ready, tmp_path):
    """Made-up weights: through the files, the network and the page. Both networks, of which one is too large."""
    for network in (lpips.VGG16, lpips.ALEXNET):
        names = {"backbone": tmp_path / f"{network.name}.npz", "lin": tmp_path / f"{network.name}_lin.npz"}
        np.savez(names["backbone"], **{name: make_entry(name, s) for name, s in network.backbone_shapes().items()})
        np.savez(names["lin"], **{name: np.abs(make_entry(name, s)) for name, s in network.lin_shapes().items()})
        ready.evaluate.lpips_backbone, ready.evaluate.lpips_lin = map(str, names.values())
        results = results_of(protocol.evaluate(ready, "nowhere"))
        page = (tmp_path / "out/report.html").read_text()
        if network is lpips.ALEXNET:
            assert "16 px are smaller than the 31 px that AlexNet needs" in results["not_computed"]["lpips"]
            assert results["lpips_weights"] is None
            assert results["warnings"] == []
            continue
        each = results["objects"].values()
        np.testing.assert_allclose(results["dataset"]["lpips"], np.mean([one["lpips"] for one in each]), atol=1e-5)
        # The seed's noise grows from object to object.
        assert [one["lpips"] for one in each] == sorted(one["lpips"] for one in each)
        assert results["lpips_network"] == "VGG16"
        digests = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in names.items()}
        assert {name: file["sha256"] for name, file in results["lpips_weights"].items()} == digests
        assert len(results["warnings"]) == 2
        for words in (*digests.values(), "VGG16_lin.npz is not, by its sha256, the published file", "by VGG16"):
            assert words in page


@pytest.mark.slow
def test_two_processes_draw_and_one_scores(tiny, run, tmp_path):
    single = results_of(protocol.evaluate(tiny, run))
    tiny.evaluate.out = str(tmp_path / "two")
    more = ["--config.evaluate.input_view=1", f"--config.evaluate.out={tmp_path / 'two'}", "--compilation_cache="]
    results = finish(start_together(2, "evaluate", tiny, run, *more))
    assert [code for code, _, _ in results] == [0, 0], results
    together = results_of(tmp_path / "two")
    assert together["device"]["processes"] == 2
    assert together["objects"].keys() == single["objects"].keys()
    assert together["dataset"]["psnr"] == pytest.approx(single["dataset"]["psnr"], abs=0.05)
    assert "report:" in results[0][1]
    assert "report:" not in results[1][1]
