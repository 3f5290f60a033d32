"""The programs in scripts/: the ablation table, model cards, and the line counter."""

import argparse
import json
import pathlib
import runpy
import subprocess
import sys

import numpy as np
import pytest

from configs import demo, shapes16, srn_cars, srn_chairs_star
from scripts import ablations, count_lines, model_card
from threedim import config as config_lib
from threedim.data import srn
from threedim.errors import UserError
from threedim.evaluation import protocol
from threedim.trained import open_run
from threedim.weights_file import save_weights

REPOSITORY = pathlib.Path(__file__).parents[1]
WHOLE = {"cars": srn_cars, "chairs_star": srn_chairs_star, "demo": demo, "shapes16": shapes16}
CHANGES = {
    "image_to_image": {"sample.conditioning": "input"},
    "concat_unet": {"model.network": "concat_unet", "sample.batch_size": 4},
    "regression": {
        "diffusion.prediction": "x",
        "diffusion.regression": True,
        "train.uncond_prob": 0.0,
        "train.sample_steps": 1,
        "sample.preset": "paper",
        "sample.num_steps": 1,
        "sample.guidance_weight": 0.0,
        "sample.conditioning": "input",
    },
}


@pytest.mark.parametrize("data", WHOLE)
@pytest.mark.parametrize("variant", CHANGES)
def test_an_ablation_changes_only_what_it_is_about(variant, data):
    # As a file, not as a module, like --config.
    config = runpy.run_path(str(REPOSITORY / f"configs/ablations/{variant}.py"))["get_config"](data)
    before = config_lib.flatten(config_lib.plain(WHOLE[data].get_config()))
    after = config_lib.flatten(config_lib.plain(config))
    assert after.keys() == before.keys()
    changed = {name: value for name, value in after.items() if before[name] != value}
    assert changed == {name: value for name, value in CHANGES[variant].items() if before[name] != value}
    config_lib.recipe(config)
    assert config_lib.sampler(config, num_steps=config.train.sample_steps)


def test_unknown_data_is_refused():
    get_config = runpy.run_path(str(REPOSITORY / "configs/ablations/regression.py"))["get_config"]
    with pytest.raises(UserError, match=r"cars, chairs_star, demo, shapes16, not .*'planes'"):
        get_config("planes")


# --- ablations ---


def given(out, **changes):
    defaults = {"seeds": 2, "workdir": [], "max_objects": 0, "consistency_objects": 1, "consistency_set": []}
    defaults |= {"config": "configs/shapes16.py", "inception": "", "lpips_backbone": "", "lpips_lin": ""}
    return argparse.Namespace(**defaults | {"out": str(out)} | changes)


def test_commands_of_the_ablations(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(REPOSITORY)
    flags = ["--config.train.num_steps=7", "--config.sample.preset=fast"]
    arguments = [f"--out={tmp_path}", "--config=configs/shapes16.py", "--seeds=1", "--workdir=3dim=runs/x"]
    ablations.main([*arguments, "--max_objects=3", "--dry_run", "--", *flags])
    lines = capsys.readouterr().out.splitlines()
    head = "python -m threedim.main --config=configs/ablations/regression.py:shapes16"
    run = f"--workdir={tmp_path}/regression/run --config.train.num_steps=7"
    evaluate = f"--mode=evaluate --config.sample.seed=0 --config.evaluate.out={tmp_path}/regression/seed_0"
    assert lines[2:4] == [
        f"{head} {run} --mode=train",
        f"{head} {run} {evaluate} --config.evaluate.max_objects=3",
    ]
    assert ["--mode=train" in line for line in lines].count(True) == 2
    assert "-m threedim.evaluation.consistency" in lines[-1]
    assert lines[1].count("--config.sample.conditioning=input") == 1
    assert "--workdir=runs/x" in lines[0]
    assert f"--views=real_data={tmp_path}/real_data/views" in lines[-1]
    for wrong, said in (
        (["--workdir=image_to_image=x"], "expected ROW=DIR"),
        (["--config=configs/base.py"], "expected an existing config"),
        (["--seeds=0"], "at least 1"),
    ):
        with pytest.raises(SystemExit, match=said):
            ablations.main([*arguments, "--dry_run", *wrong])


@pytest.fixture(scope="module")
def evaluated(objects, trained_run, shared_tmp, tmp_path_factory):
    """An evaluation of `trained_run`, of a weights file, with its config."""
    from conftest import make_config

    folder = tmp_path_factory.mktemp("evaluated")
    config = make_config(objects, shared_tmp / "trained_data")
    trained = open_run(trained_run)
    save_weights(folder / "tiny.safetensors", trained.params(), trained.config, training_steps=trained.step)
    config.sample.weights = str(folder / "tiny.safetensors")
    config.evaluate.input_view = 0
    config.evaluate.out = str(folder / "evaluation")
    protocol.evaluate(config, folder)
    return folder


def test_table_of_the_ablations(evaluated, tmp_path, monkeypatch):
    """Every command is replaced by the scores of one tiny run, moved by a constant per row."""
    out, ran = tmp_path / "out", []
    results = json.loads((evaluated / "evaluation/results.json").read_text())
    shift = {"3dim": 0.0, "image_to_image": 1.0, "regression": -1.0, "concat_unet": -2.0}

    real = subprocess.run

    def fake(command, check=False, **rest):
        if command[0] == "git":
            return real(command, check=check, **rest)
        assert check
        assert command[0] == sys.executable
        ran.append(command)
        if "--mode=evaluate" in command:
            folder = pathlib.Path(next(a.partition("=")[2] for a in command if a.startswith("--config.evaluate.out")))
            seed = int(folder.name[-1])
            dataset = results["dataset"] | {"psnr": 10 + shift[folder.parent.name] + 0.1 * seed, "ssim": 0.5}
            dataset["patch_distance"] = 50.0 - shift[folder.parent.name] + seed
            folder.mkdir(parents=True)
            (folder / "results.json").write_text(json.dumps(results | {"dataset": dataset}))
            (folder / "samples.json").write_text((evaluated / "evaluation/samples.json").read_text())
            (folder / "views").symlink_to(evaluated / "evaluation/views")
        if "threedim.evaluation.consistency" in command:
            rows = {f"{row}_seed{seed}": 20 + 5 * (row == "3dim") + 0.1 * seed for row in shift for seed in (0, 1)}
            rows = {row: {"psnr": psnr, "ssim": 0.9, "fid": None} for row, psnr in (rows | {"real_data": 30}).items()}
            (out / "consistency").mkdir(exist_ok=True)
            (out / "consistency/results.json").write_text(json.dumps({"rows": rows}))

    class Trained:
        name, step = "run", 2
        config = argparse.Namespace(train=argparse.Namespace(num_steps=2))

    monkeypatch.setattr(subprocess, "run", fake)
    monkeypatch.setattr(ablations, "open_run", lambda workdir: Trained)
    ablations.run(given(out), [])
    assert len(ran) == 3 + 4 * 2 + 1
    ran.clear()
    ablations.run(given(out), [])
    assert len(ran) == 3 + 1, "finished evaluations are not repeated"
    with pytest.raises(UserError, match="ablations made with other settings"):
        ablations.run(given(out, seeds=3), [])

    names = sorted(results["objects"])
    assert sorted(path.name for path in (out / "real_data/views").iterdir()) == names
    true_views, _ = srn.read_object(out / "real_data/views" / names[0]).decode()
    sampled, _ = srn.read_object(evaluated / "evaluation/views" / names[0]).decode()
    np.testing.assert_array_equal(true_views[0], sampled[0])

    ablations.write(out)
    found = json.loads((out / "ablations.json").read_text())
    psnr = found["rows"]["3dim"]["figures"]["psnr"]
    np.testing.assert_allclose([psnr["mean"], psnr["standard_error"], psnr["n"]], [10.05, 0.05, 2])
    assert [claim["verdict"] for claim in found["orderings"]] == ["holds", "holds", "undecided", "undecided"]
    parts = {part["measure"]: part for part in found["orderings"][2]["parts"]}
    np.testing.assert_allclose(parts["psnr"]["difference"], 2.0)
    np.testing.assert_allclose(parts["patch_distance"]["difference"], 2.0)
    assert parts["psnr"]["verdict"] == "holds"
    page = (out / "ablations.md").read_text()
    assert "| 3DiM | 10.05 ± 0.05 |" in page
    assert "| real data | – |" in page
    assert "+1.00 ± 0.07 dB | +2.81 dB |" in page  # the paper's 23.82 - 21.01
    assert (out / "ablations.png").exists()

    moved = results | {"protocol": results["protocol"] | {"input_view": 3}}
    (out / "3dim/seed_1/results.json").write_text(json.dumps(moved))
    with pytest.raises(UserError, match="another protocol"):
        ablations.collect(ablations.epath.Path(out))


def test_verdicts():
    assert ablations.verdict(0.21, 0.1) == "holds"
    assert ablations.verdict(-0.21, 0.1) == "does not hold"
    assert ablations.verdict(0.19, 0.1) == ablations.verdict(9.0, None) == "undecided"
    assert ablations.figure([]) is None
    assert ablations.figure([1.0]) == {"mean": 1.0, "standard_error": None, "n": 1}


# --- model cards ---


def test_model_card(evaluated, trained_run, tmp_path, capsys):
    config = tmp_path / "tiny.py"
    saved = json.dumps(config_lib.plain(open_run(trained_run).config))
    config.write_text(
        "import json, ml_collections\ndef get_config():\n"
        f"    c = ml_collections.ConfigDict(json.loads('''{saved}'''))\n"
        "    c.train.warmup_examples = 7\n    return c\n"
    )
    weights = evaluated / "tiny.safetensors"
    arguments = [f"--workdir={trained_run}", f"--weights={weights}", f"--config={config}", f"--out={tmp_path}"]
    model_card.main([*arguments, f"--evaluation={evaluated / 'evaluation'}", "--note=A remark."])
    assert str(tmp_path / "tiny.md") in capsys.readouterr().out
    card = (tmp_path / "tiny.md").read_text()
    results = json.loads((evaluated / "evaluation/results.json").read_text())
    for said in (
        "# tiny",
        "bfloat16, averaged over training",
        "2 training objects with 10 views",
        "| steps | 2 of 4 pairs: 8 pairs |",
        "| started from | random weights |",
        f"| **tiny** | {results['dataset']['psnr']:.2f} ± ",
        "- A remark.",
        "--mode=train --config.train.warmup_examples=40",
        "python -m threedim.weights --workdir=runs/tiny --out=threedim/pretrained/tiny.safetensors",
    ):
        assert said in card
    assert (tmp_path / "tiny.png").exists()
    for changes, said in (
        ([f"--evaluation={evaluated / 'evaluation'}"], "exists: choose another --out"),
        ([f"--evaluation={evaluated / 'none'}", "--overwrite"], "none"),
    ):
        with pytest.raises((SystemExit, FileNotFoundError), match=said):
            model_card.main([*arguments, *changes])
    other = results | {"sampling": results["sampling"] | {"weights": "0" * 64}}
    (tmp_path / "results.json").write_text(json.dumps(other))
    with pytest.raises(SystemExit, match="is not an evaluation of"):
        model_card.main([*arguments, f"--evaluation={tmp_path}", "--overwrite"])


# --- lines ---


def test_no_file_or_function_is_too_long(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["count_lines", f"--root={REPOSITORY}"])
    if not (REPOSITORY / ".git").exists():
        pytest.skip("not a git checkout")
    count_lines.main()
    assert "threedim/models" in capsys.readouterr().out
    path = tmp_path / "a.py"
    path.write_text('"""Doc\nstring."""\n\n# comment\nx = """a\nb"""\n\n\ndef f():\n    """One."""\n    return 1\n')
    assert count_lines.count(path) == (11, 4, 3, [])
