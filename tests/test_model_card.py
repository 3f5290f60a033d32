"""The model card of a tiny run: every number in it is found in the files again."""

import dataclasses
import datetime
import json
import re
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from configs import base
from scripts import baselines, model_card, model_card_page
from threedim import provenance, weights
from threedim.consistency.fit import FieldSettings
from threedim.consistency.held_out import ScoredObject, fingerprint
from threedim.data import records, srn
from threedim.evaluation import protocol
from threedim.evaluation.metrics import patches
from threedim.output import images
from threedim.training import loop

SIZE = 16


def tiny(folder):
    """Procedural objects and the smallest network, for relative poses."""
    c = base.get_config()
    c.data.dir, c.data.pose = str(folder / "data"), "relative"
    c.data.augment.scale, c.data.augment.hue = (0.8, 1.25), 0.5
    p = c.data.procedural
    p.num_train_objects, p.num_test_objects, p.views, p.test_views, p.size, p.samples = 2, 4, 3, 5, SIZE, 1
    m = c.model
    m.image_size, m.ch, m.ch_mult, m.emb_ch, m.num_res_blocks = SIZE, 32, (1,), 8, 0
    m.attn_resolutions, m.attn_heads, m.dropout, m.dtype = (16,), 2, 0.0, "float32"
    t = c.train
    t.batch_size, t.num_steps, t.num_workers, t.warmup_examples, t.sample_every, t.log_every = 2, 3, 0, 0, 0, 1
    c.sample.num_steps, c.sample.guidance_weight, c.sample.batch_size = 2, 0.0, 4
    c.evaluate.input_view = 1
    return c


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """A finished run, its weights, their evaluation, and the file of its config."""
    folder = tmp_path_factory.mktemp("card")
    config = tiny(folder)
    loop.train(config, folder / "run")
    weights.main([f"--workdir={folder / 'run'}", f"--out={folder / 'small.safetensors'}"])
    config.sample.weights = str(folder / "small.safetensors")
    protocol.evaluate(config, folder / "run")
    # Of the run, three fields differ from the file.
    config.train.num_steps, config.train.learning_rate, config.sample.weights = 100_000, 1.0, ""
    config.data.augment.hue, config.sample.num_steps, config.data.dir = 0.0, 32, "data/small"
    text = f"import json\nimport ml_collections\n\n\ndef get_config():\n    text = {config.to_json()!r}\n"
    (folder / "small.py").write_text(text + "    return ml_collections.ConfigDict(json.loads(text))\n")
    return folder


@pytest.fixture
def given(files, tmp_path):
    """Arguments of `model_card.write`, in a copy that a test may damage; the data is shared."""
    for name in ("run", "small.safetensors"):
        copy = shutil.copytree if (files / name).is_dir() else shutil.copyfile
        copy(files / name, tmp_path / name)
    return {
        "workdir": tmp_path / "run",
        "evaluation": tmp_path / "run/evaluation/small",
        "weights_file": tmp_path / "small.safetensors",
        "out": tmp_path / "package",
        "config_file": str(files / "small.py"),
    }


def results_of(given):
    return json.loads((given["evaluation"] / "results.json").read_text())


def score(given, folder, **others):
    """A consistency score as `consistency.score` leaves it, without a fit."""

    def row(views, psnr, names=("car_test_000001", "chair_test_000000")):
        objects = {name: {"views_sha256": fingerprint(ScoredObject(views / name, (), (), 0))} for name in names}
        figures = {"psnr": psnr, "ssim": psnr / 100, "num_objects": len(names)}
        return {"views": str(views), "objects": objects, **figures}

    rows = {"small": row(given["evaluation"] / "views", 21.3)}
    rows |= {name: row(views, psnr) for name, (views, psnr) in others.items()}
    field = dataclasses.asdict(FieldSettings(rays_per_step=77, num_steps=9))
    settings = {"field": field, "input_views": [1], "size": 0, "seed": 0}
    folder.mkdir()
    content = {"settings": settings, "not_the_frozen_settings": {"num_steps": 9}, "rows": rows}
    (folder / "results.json").write_text(json.dumps(content))
    return folder


# --- baselines ---


def test_the_mean_image_and_its_scores_are_those_of_numpy(files, given):
    results = results_of(given)
    config, tasks = baselines.protocol_tasks(results)
    folders = srn.find_objects(files / "data/procedural/train")
    views = [srn.read_object(folder).decode() for folder in folders]
    pictures = np.concatenate([each for each, _ in views]).astype(float)
    seen = baselines.training_views(config)
    assert (seen.objects, seen.views) == (2, 6) == (len(folders), len(pictures))
    np.testing.assert_allclose(seen.mean, pictures.mean(axis=0), atol=0.5001)
    assert seen.mean.dtype == np.uint8
    np.testing.assert_allclose(seen.distance, 2.6, rtol=1e-5)
    heights = np.concatenate([cameras.t[:, 2] for _, cameras in views]) / 2.6
    np.testing.assert_allclose(seen.elevation, np.degrees(np.arcsin([heights.min(), heights.max()])), rtol=1e-4)

    found = baselines.score_picture(config, tasks, seen.mean)
    psnr = {}
    truths = []
    for folder in srn.find_objects(files / "data/procedural/test"):
        true = srn.read_object(folder).decode([0, 2, 3, 4])[0]
        truths.append(true)
        error = np.mean((true.astype(float) - seen.mean) ** 2, axis=(1, 2, 3))
        psnr[folder.name] = 10 * np.log10(255**2 / error)
    assert found["psnr"] == pytest.approx(np.concatenate(list(psnr.values())).mean(), rel=1e-5)
    assert found["psnr_std_over_objects"] == pytest.approx(np.std([p.mean() for p in psnr.values()], ddof=1), rel=1e-4)
    truth = np.concatenate(truths)
    repeated = np.ascontiguousarray(np.broadcast_to(seen.mean, truth.shape))
    assert found["patch_distance"] == pytest.approx(patches.sliced_wasserstein(repeated, truth), rel=1e-4)
    assert (found["lpips"], found["fid"]) == (None, None)


def test_baselines_as_folders(given, tmp_path, capsys):
    out = tmp_path / "baselines"
    command = [f"--evaluation={given['evaluation']}", f"--out={out}"]
    baselines.main(command)
    assert str(out / "mean_image") in capsys.readouterr().out
    config, tasks = baselines.protocol_tasks(results_of(given))
    mean = baselines.training_views(config).mean
    for task in tasks:
        truth = srn.read_object(f"{config.data.dir}/procedural/test/{task.name}")
        pictures, _ = truth.decode()
        for name, picture in (("mean_image", mean), ("input_repeated", pictures[1])):
            found, cameras = srn.read_object(out / name / task.name).decode()
            np.testing.assert_array_equal(found[1], pictures[1], err_msg="the input view stays")
            for view in (0, 2, 3, 4):
                np.testing.assert_array_equal(found[view], picture)
            np.testing.assert_allclose(cameras.t, truth.cameras.t, atol=1e-5)
    # What --mode=evaluate says of them is what the card says.
    config.evaluate.views, config.evaluate.out = str(out / "mean_image"), str(tmp_path / "scored")
    protocol.evaluate(config, given["workdir"])
    scored = json.loads((tmp_path / "scored/results.json").read_text())["dataset"]
    mine = baselines.score_picture(config, tasks, mean)
    assert {name: scored[name] for name in ("psnr", "ssim", "patch_distance")} == {
        name: mine[name] for name in ("psnr", "ssim", "patch_distance")
    }
    with pytest.raises(SystemExit, match="is there already"):
        baselines.main(command)


# --- the card ---


def cells(text, first):
    """The cells of the table's row that begins with a text."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {first}")]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_the_card_says_what_the_files_say(given):
    facts = model_card.write(**given, notes=["Trained at home."])
    text = (given["out"] / "small.md").read_text()
    results, path = results_of(given), given["weights_file"]
    info, params = weights.load_weights(path)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert text.startswith("# small: chairs and cars at 16 px from one view\n")
    assert "![samples](small.png)" in text
    assert cells(text, "parameters") == [f"{count:,}, bfloat16, averaged over training"]
    assert provenance.file_identity(path)["sha256"] in cells(text, "file")[0]
    assert f"{path.stat().st_size / 1e6:.2f} MB" in cells(text, "file")[0]
    assert info.training_steps == 3
    assert cells(text, "steps") == ["3 of 2 pairs: 6 pairs"]
    assert cells(text, "pairs for each") == ["1.0"]
    assert "learning_rate 0.0001" in cells(text, "settings")[0]
    assert "color_weight 1.0" in cells(text, "settings")[0]
    assert "hue 0.5" in cells(text, "augmentation")[0]
    assert cells(text, "seeds") == ["training 0, shapes and cameras 0, drawing 0, evaluation 0"]
    lines = [json.loads(line) for line in (given["workdir"] / "metrics.jsonl").read_text().splitlines()]
    assert facts["training"]["seconds"] == pytest.approx(sum(line["seconds_per_step"] for line in lines))
    day = datetime.datetime.fromtimestamp(lines[-1]["time"], datetime.UTC).date().isoformat()
    assert cells(text, "time")[0].endswith(day)
    assert cells(text, "loss") == [f"{lines[-1]['loss']:.4f}"]
    assert "a CPU" in cells(text, "use of")[0]

    rows = {
        r"\*\*small": results["dataset"],
        "input view repeated": results["baselines"]["input view repeated"],
        "mean of all": facts["mean_image"],
    }
    for title, figures in rows.items():
        psnr, ssim, patches = cells(text, title.replace("\\", ""))
        assert psnr == f"{figures['psnr']:.2f} ± {figures['psnr_std_over_objects']:.2f}"
        assert ssim.startswith(f"{figures['ssim']:.3f} ± ")
        assert patches == f"{figures['patch_distance']:.2f}"
    chairs = [one["psnr"] for name, one in results["objects"].items() if name.startswith("chair")]
    assert cells(text, "chairs")[:2] == ["2", f"{np.mean(chairs):.2f}"]
    assert "4 held-out objects, 16 views of 16 px, each object from its view 1 alone" in text
    assert "2 training objects with 6 views in all" in text
    gap = results["dataset"]["psnr"] - facts["mean_image"]["psnr"]
    verdict = f"{abs(gap):.2f} dB {'above' if gap > 0 else '**below**'} the mean of all training views"
    assert verdict in text
    assert "- Trained at home.\n" in text
    for said in ("Apache-2.0", "no photograph", "without an accelerator", "not what the method can do"):
        assert said in text
    assert "consistency" not in text
    assert "None" not in text.replace("None of", "")


def test_commands_turn_the_config_file_into_the_run(files, given):
    found = dict(model_card.write(**given)["commands"])
    assert list(found) == ["train", "export", "evaluate", "card"]
    file = f"--config={files / 'small.py'}"
    assert found["train"] == (
        f"python -m threedim.main {file} --mode=train --workdir=runs/small --config.data.augment.hue=0.5 "
        "--config.train.learning_rate=0.0001 --config.train.num_steps=3"
    )
    assert found["export"] == (
        "python -m threedim.weights --workdir=runs/small --step=3 --out=threedim/pretrained/small.safetensors"
    )
    assert found["evaluate"] == (
        f"python -m threedim.main {file} --mode=evaluate --workdir=runs/small "
        "--config.sample.weights=threedim/pretrained/small.safetensors --config.data.augment.hue=0.5 "
        "--config.sample.num_steps=2"
    )
    assert found["card"].startswith("python -m scripts.model_card --workdir=runs/small ")


def test_the_sheet_is_of_the_drawn_and_the_true_views(files, given, monkeypatch):
    shown, make_grid = {}, images.make_grid

    def record(pictures, **labels):
        shown.update(labels, pictures=pictures)
        return make_grid(pictures, **labels)

    monkeypatch.setattr(images, "make_grid", record)
    model_card.write(**given)
    assert (images.load_png(given["out"] / "small.png") == make_grid(shown.pop("pictures"), **shown)).all()
    _, tasks = baselines.protocol_tasks(results_of(given))
    model_card_page.sheet(given["evaluation"], tasks, SIZE)
    dataset = records.open_split(files / "data/records", "test")
    assert shown["pictures"].shape == (8, 5, SIZE, SIZE, 3)
    assert shown["row_labels"] == [label for name in dataset.names for label in (name, "truth")]
    assert shown["col_labels"] == ["input", "view 0", "view 2", "view 3", "view 4"]
    for index, name in enumerate(dataset.names):
        above, beneath = shown["pictures"][2 * index : 2 * index + 2]
        truth, _ = dataset.views(index, range(5))
        drawn, _ = srn.read_object(given["evaluation"] / "views" / name).decode()
        np.testing.assert_array_equal(above, np.concatenate([truth[1:2], drawn[1:]]))
        np.testing.assert_array_equal(beneath[1:], truth[[0, 2, 3, 4]])
        np.testing.assert_array_equal(beneath[0], 255)


def test_the_sheet_shows_some_of_many(files, given, monkeypatch):
    monkeypatch.setattr(model_card_page, "_OBJECTS", 2)
    monkeypatch.setattr(model_card_page, "_VIEWS", 2)
    shown = {}
    monkeypatch.setattr(images, "make_grid", lambda pictures, **labels: shown.update(labels, shape=pictures.shape))
    _, tasks = baselines.protocol_tasks(results_of(given))
    model_card_page.sheet(given["evaluation"], tasks, SIZE)
    # Of four objects the first and the third, one of each kind.
    assert shown["row_labels"] == ["car_test_000001", "truth", "chair_test_000000", "truth"]
    assert shown["col_labels"] == ["input", "view 2", "view 4"]
    assert shown["shape"][:2] == (4, 3)


def test_consistency_beside_its_references(files, given, tmp_path):
    baselines.main([f"--evaluation={given['evaluation']}", f"--out={tmp_path / 'baselines'}"])
    true = files / "data/procedural/test"
    folder = score(given, tmp_path / "fields", true=(true, 30.9), mean_image=(tmp_path / "baselines/mean_image", 12.0))
    facts = model_card.write(**given, consistency=folder)
    text = (given["out"] / "small.md").read_text()
    assert cells(text, "**small")[-2:] == ["21.30", "0.213"]
    assert cells(text, "the true views") == ["–", "–", "–", "30.90", "0.309"]
    assert cells(text, "mean of all")[-2:] == ["12.00", "0.120"]
    assert cells(text, "input view repeated (")[-2:] == ["–", "–"]
    assert "of 2 object(s), one neural field each, 77 rays a step" in text
    assert "usual one: num_steps 9." in text
    found = dict(facts["commands"])
    assert list(found) == ["train", "export", "evaluate", "baselines", "3D consistency", "card"]
    assert found["3D consistency"] == (
        "python -m threedim.evaluation.consistency --views=small=runs/small/evaluation/small/views "
        "--views=true=data/small/procedural/test --views=mean_image=runs/small/baselines/mean_image "
        "--input_view=1 --max_objects=2 --rays_per_step=77 --set=num_steps=9 --out=runs/small/consistency"
    )
    assert "--consistency=runs/small/consistency" in found["card"]

    # Of views that are others now.
    picture = next((given["evaluation"] / "views/car_test_000001/rgb").iterdir())
    Image.fromarray(np.full((SIZE, SIZE, 3), 7, np.uint8)).save(picture)
    with pytest.raises(ValueError, match="as they are; its rows are small, true, mean_image"):
        model_card.write(**given, consistency=folder, overwrite=True)


def test_a_run_that_began_with_another(given, tmp_path):
    info, params = weights.load_weights(given["weights_file"])
    info.config.train.init_from = "elsewhere/first"
    weights.save_weights(given["weights_file"], params, info.config, training_steps=info.training_steps, overwrite=True)
    identity = provenance.file_identity(given["weights_file"])["sha256"]
    change_json(given["evaluation"] / "results.json", lambda c: c["sampling"].update(weights=identity))
    for name, before in (("first", "runs/zeroth"), ("zeroth", "")):
        shutil.copytree(given["workdir"], tmp_path / name)
        change_json(tmp_path / name / "config.json", lambda c, name=before: c["config"]["train"].update(init_from=name))
    first, zeroth, other = ((tmp_path / name, given["config_file"]) for name in ("first", "zeroth", "other"))
    with pytest.raises(ValueError, match=r"the run began with the weights in elsewhere/first, but .* names nothing"):
        model_card.write(**given)
    with pytest.raises(ValueError, match=r"but --begun_with names .*other"):
        model_card.write(**given, begun_with=[other])
    with pytest.raises(ValueError, match="first began with the weights in runs/zeroth, but --begun_with names nothing"):
        model_card.write(**given, begun_with=[first])
    with pytest.raises(ValueError, match=r"zeroth began with fresh weights, but --begun_with names .*other"):
        model_card.write(**given, begun_with=[first, zeroth, other])
    facts = model_card.write(**given, begun_with=[first, zeroth])
    text = (given["out"] / "small.md").read_text()
    for row in ("begun with", "before that"):
        assert "the averaged weights of 3 steps of 2 pairs at 16 px: 6 pairs" in cells(text, row)[0]
    assert cells(text, "pairs for each training view") == ["3.0"]
    assert "It has seen 18 pairs" in text
    found = facts["commands"]
    assert [what for what, _ in found] == ["train at 16 px", "train at 16 px", "train", "export", "evaluate", "card"]
    file = given["config_file"]
    for (_, command), name, init in zip(found, ("zeroth", "first", "small"), ("", "zeroth", "first"), strict=False):
        assert command.startswith(f"python -m threedim.main --config={file} --mode=train --workdir=runs/{name}")
        init = f" --config.train.init_from=runs/{init}" if init else ""
        assert command.endswith(f"{init} --config.train.num_steps=3")
        assert command.count("init_from") == bool(init)
    assert f"--begun_with runs/first {file} --begun_with runs/zeroth {file}" in found[-1][1]


def test_a_run_that_began_with_a_file(given, tmp_path, capsys):
    info, params = weights.load_weights(given["weights_file"])
    begun = tmp_path / "old/begun.safetensors"
    weights.save_weights(begun, params, info.config, training_steps=5)
    identity = provenance.file_identity(begun)["sha256"]
    info.config.train.init_from = "begun"  # of the package
    weights.save_weights(given["weights_file"], params, info.config, training_steps=info.training_steps, overwrite=True)
    used = provenance.file_identity(given["weights_file"])["sha256"]
    change_json(given["evaluation"] / "results.json", lambda c: c["sampling"].update(weights=used))
    with pytest.raises(ValueError, match=r"but --begun_with names .*run: .* or a file of weights, and nothing before"):
        model_card.write(**given, begun_with=[(given["workdir"], given["config_file"])])
    with pytest.raises(ValueError, match=r"begun\.safetensors began with fresh weights, but .* names .*run"):
        model_card.write(**given, begun_with=[(begun, ""), (given["workdir"], given["config_file"])])
    arguments = ["workdir", "evaluation", "weights_file", "out", "config_file"]
    flags = ("--workdir", "--evaluation", "--weights", "--out", "--config")
    line = [f"{flag}={given[name]}" for flag, name in zip(flags, arguments, strict=True)]
    for wrong in ([str(begun), given["config_file"]], [str(given["workdir"])]):
        with pytest.raises(SystemExit):
            model_card.main([*line, "--begun_with", *wrong])
        assert "a run's folder and its config file, or a file of weights alone" in capsys.readouterr().err
    model_card.main([*line, "--begun_with", str(begun)])
    text = (given["out"] / "small.md").read_text()
    (row,) = cells(text, "begun with")
    assert row == f"the file begun of sha256 `{identity}`, the averaged weights of 5 steps of 2 pairs at 16 px"
    since = "beside what went into the file begun that it began with"
    assert cells(text, "pairs for each training view") == [f"1.0 {since}"]
    assert re.search(rf"It has seen 6 pairs in \S+ min {since}, without an accelerator", text)
    kept = f"runs/begun_{identity[:12]}/begun.safetensors"
    assert f"# train, begun with the file of sha256 {identity[:12]}\n" in text
    assert f" --config.train.init_from={kept} --config.train.num_steps=3\n" in text
    assert f"--begun_with {kept} " in text


# --- refusals ---


def change_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def _other_weights(given):
    change_json(given["evaluation"] / "results.json", lambda c: c["sampling"].update(weights="0" * 64))


def _checkpoint(given):
    change_json(given["evaluation"] / "results.json", lambda c: c["sampling"].update(weights=""))


def _other_run(given):
    change_json(given["workdir"] / "config.json", lambda c: c["config"]["data"]["augment"].update(hue=0.25))


def _other_train_data(given):
    change_json(given["workdir"] / "config.json", lambda c: c.update(data_fingerprint="0"))


def _other_test_data(given):
    change_json(given["evaluation"] / "results.json", lambda c: c["protocol"].update(data_fingerprint="abc"))


def _fewer_objects(given):
    change_json(given["evaluation"] / "results.json", lambda c: c["objects"].pop("car_test_000001"))


def _no_metrics(given):
    (given["workdir"] / "metrics.jsonl").unlink()


def _short_metrics(given):
    path = given["workdir"] / "metrics.jsonl"
    path.write_text(path.read_text().splitlines(keepends=True)[0])


def _no_config(given):
    given["config_file"] = None


@pytest.mark.parametrize(
    ("damage", "error", "said"),
    [
        (_other_weights, ValueError, "but of sha256 000000000000; evaluate with --config.sample.weights="),
        (_checkpoint, ValueError, "but of something else; evaluate with"),
        (_other_run, ValueError, "is not of the run in .*\n  data.augment.hue: 0.25 → 0.5"),
        (_other_train_data, ValueError, "other training data than the run in"),
        (_other_test_data, ValueError, r"other test data \(fingerprint .*than was evaluated \(abc\)"),
        (_fewer_objects, ValueError, "other test objects than were evaluated"),
        (_no_metrics, FileNotFoundError, "metrics.jsonl is missing"),
        (_short_metrics, ValueError, "ends before step 3"),
        (_no_config, FileNotFoundError, "configs/small.py: no such file"),
    ],
)
def test_files_that_do_not_belong_together(given, damage, error, said):
    damage(given)
    with pytest.raises(error, match=said):
        model_card.write(**given)
    assert not given["out"].exists()


def test_command_line(given, capsys):
    arguments = [f"--{name.split('_')[0]}={value}" for name, value in given.items()]
    model_card.main(arguments)
    assert re.search(r"card:  .*small\.md\nsheet: .*small\.png\n", capsys.readouterr().out)
    before = (given["out"] / "small.md").read_text()
    with pytest.raises(SystemExit, match=r"error: .*small\.md is there already"):
        model_card.main(arguments)
    model_card.main([*arguments, "--overwrite", "--note=A word."])
    after = (given["out"] / "small.md").read_text()
    assert after.replace("\n- A word.", "").replace(" '--note=A word.'", "") == before
