"""The programs in scripts/: the ablation table, model cards, and the line counter."""

import argparse
import json
import pathlib
import runpy
import subprocess
import sys

import jax
import numpy as np
import pytest
from etils import epath

from scripts import ablations, ablations_table, count_lines, faults, model_card
from threedim import config as config_lib
from threedim import settings as settings_lib
from threedim.configs import demo, gpu64, shapes16, shapes32, srn_cars, srn_chairs_star
from threedim.data.objects import read_object
from threedim.errors import UserError
from threedim.evaluation import protocol
from threedim.trained import open_run, open_trained
from threedim.weights_file import save_weights

REPOSITORY = pathlib.Path(__file__).parents[1]
WHOLE = {"cars": srn_cars, "chairs_star": srn_chairs_star, "demo": demo, "gpu64": gpu64}
WHOLE |= {"shapes16": shapes16, "shapes32": shapes32}
CHANGES = {
    "image_to_image": {"sample.conditioning": "input"},
    "concat_unet": {"model.network": "concat_unet", "sample.batch_size": 4},
    "regression": {
        "diffusion.prediction": "x", "diffusion.regression": True, "train.uncond_prob": 0.0, "train.sample_steps": 1,
        "sample.preset": "paper", "sample.num_steps": 1, "sample.guidance_weight": 0.0, "sample.conditioning": "input",
    },
}  # fmt: skip


@pytest.mark.parametrize("data", WHOLE)
@pytest.mark.parametrize("variant", CHANGES)
def test_an_ablation_changes_only_what_it_is_about(variant, data):
    # As a file, not as a module, like --config.
    get_config = runpy.run_path(str(REPOSITORY / f"configs/ablations/{variant}.py"))["get_config"]
    config = get_config(data)
    before = settings_lib.flatten(settings_lib.plain(WHOLE[data].get_config()))
    after = settings_lib.flatten(settings_lib.plain(config))
    assert after.keys() == before.keys()
    changed = {name: value for name, value in after.items() if before[name] != value}
    assert changed == {name: value for name, value in CHANGES[variant].items() if before[name] != value}
    config_lib.recipe(config)
    assert config_lib.sampler(config, num_steps=config.train.sample_steps)
    with pytest.raises(UserError, match=r"cars, chairs_star, demo, gpu64, shapes16, shapes32, not .*'planes'"):
        get_config("planes")


def test_commands_of_the_ablations(tmp_path, monkeypatch, capsys, trained_run):
    monkeypatch.chdir(REPOSITORY)
    flags = ["--config.train.num_steps=7", "--config.sample.preset=fast", "--compilation_cache="]
    arguments = [f"--out={tmp_path}", "--config=configs/shapes16.py", f"--workdir=3dim={trained_run}", "--dry_run"]
    ablations.main([*arguments, "--seeds=2", "--consistency_seeds=1", "--max_objects=3", "--", *flags])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 4 * 2 + 1
    head = "python -m threedim.main --config=configs/ablations/regression.py:shapes16"
    run = f"--workdir={tmp_path}/runs/regression --config.train.num_steps=7 --compilation_cache="
    evaluate = f"--mode=evaluate --config.sample.seed=1 --config.evaluate.out={tmp_path}/regression/seed_1"
    assert lines[4] == f"{head} {run} --mode=train"
    assert lines[6] == f"{head} {run} {evaluate} --config.evaluate.max_objects=3"
    for words in (
        f"python -m threedim.main --config=configs/shapes16.py --workdir={trained_run} --config.",
        "--config.sample.preset=fast",
        "--mode=evaluate --config.sample.conditioning=input --config.sample.seed=0",
    ):
        assert words in lines[2]
    views = [f"--views={row.key}_seed0={tmp_path}/{row.key}/seed_0/views" for row in ablations_table.ROWS]
    views.append(f"--views=real_data={tmp_path}/real_data/views")
    assert lines[-1] == f"python -m threedim.evaluation.consistency {' '.join(views)} --out={tmp_path}/consistency"
    for wrong, said in (
        (["--workdir=image_to_image=x"], "expected ROW=DIR"),
        (["--workdir=regression=nothing"], "no checkpoint in .*nothing"),
        (["--config=configs/base.py"], "expected an existing file"),
        (["--config=configs/demo.py"], "has no test objects"),
        (["--seeds=0"], "at least 1"),
        (["--minutes=nan"], "must not be negative"),
        (["--inception=nothing"], "no such file"),
        (["--lpips_lin=README.md"], "must both be set"),
        (["--consistency_set=stepps=3"], "NAME one of .*num_steps"),
        (["--", "7"], "expected --NAME=VALUE"),
        (["--", "--config.sample.seed=3"], "is set for each row"),
        (["--", "--workdir=x"], "is set for each row"),
    ):
        with pytest.raises(SystemExit, match=said):
            ablations.main([*arguments, *wrong])


@pytest.fixture(scope="module")
def evaluated(objects, trained_run, shared_tmp, tmp_path_factory):
    """An evaluation of `trained_run`, of a weights file, with its config."""
    from conftest import make_config

    folder = tmp_path_factory.mktemp("evaluated")
    config = make_config(objects, shared_tmp / "trained_data")
    trained = open_run(trained_run)
    trained.config.train.init_from = "runs/first"
    save_weights(folder / "tiny.safetensors", trained.params(), trained.config, training_steps=trained.step)
    config.sample.weights = str(folder / "tiny.safetensors")
    config.evaluate.input_view = 0
    config.evaluate.out = str(folder / "evaluation")
    protocol.evaluate(config, folder)
    return folder


def test_table_of_the_ablations(evaluated, tmp_path, monkeypatch, capsys):
    """Every command is replaced by the scores of one tiny run, moved by a constant per row."""
    out, ran = tmp_path / "out", []
    results = json.loads((evaluated / "evaluation/results.json").read_text())
    shift = {"3dim": 0.0, "image_to_image": 1.0, "regression": -1.0, "concat_unet": -2.0}

    def fake(command, minutes):
        assert (minutes, command[0]) == (3.0 if "--mode=train" in command else 0, sys.executable)
        ran.append(command)
        if "--mode=evaluate" in command:
            folder = pathlib.Path(next(a.partition("=")[2] for a in command if a.startswith("--config.evaluate.out")))
            seed = int(folder.name[-1])
            # Objects differ by 4 dB, but by the same from row to row.
            objects = {
                name: one | {"psnr": 10 + shift[folder.parent.name] + 0.1 * seed + 4 * place, "ssim": 0.5}
                for place, (name, one) in enumerate(sorted(results["objects"].items()))
            }
            dataset = results["dataset"] | {"fid": 50.0 - shift[folder.parent.name] + seed}
            if folder.exists():
                raise subprocess.CalledProcessError(7, command)
            folder.mkdir(parents=True)
            (folder / "results.json").write_text(json.dumps(results | {"dataset": dataset, "objects": objects}))
            (folder / "samples.json").write_text((evaluated / "evaluation/samples.json").read_text())
            (folder / "views").symlink_to(evaluated / "evaluation/views")
        if "threedim.evaluation.consistency" in command:
            rows = {f"{row}_seed{seed}": 20 + 5 * (row == "3dim") + 0.1 * seed for row in shift for seed in (0, 1)}
            rows = {
                row: {"psnr": psnr, "ssim": 0.9, "fid": None, "objects": {"a": {"psnr": psnr}, "b": {"psnr": psnr + 9}}}
                for row, psnr in (rows | {"real_data": 30}).items()
            }
            (out / "consistency").mkdir(exist_ok=True)
            (out / "consistency/results.json").write_text(json.dumps({"rows": rows}))

    config = argparse.Namespace(train=argparse.Namespace(num_steps=2))
    trained = argparse.Namespace(name="the run", step=1, config=config)
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(ablations, "run_at_most", fake)
    monkeypatch.setattr(ablations, "open_run", lambda workdir: trained)
    arguments = [f"--out={out}", "--config=configs/shapes16.py", "--seeds=2", "--minutes=3"]
    with pytest.raises(SystemExit, match="stopped at step 1 of 2"):
        ablations.main(arguments)
    assert len(ran) == 1, "later commands need the whole run"
    trained.step = 2
    ablations.main(arguments)
    assert len(ran) == 1 + 3 + 4 * 2 + 1
    printed = capsys.readouterr().out
    ran.clear()
    ablations.main(arguments)
    assert len(ran) == 1, "only the consistency score is repeated"
    said = {line.partition("] ")[2] for line in printed.splitlines()}
    assert json.loads((out / "commands.json").read_text()).keys() <= said
    trained.step = 3
    with pytest.raises(SystemExit, match=r"exit code 7 from: .*3dim/seed_0"):
        ablations.main(arguments)
    with pytest.raises(SystemExit, match="ablations with other settings"):
        ablations.main([*arguments, "--", "--config.seed=1"])

    names = sorted(results["objects"])
    assert sorted(path.name for path in (out / "real_data/views").iterdir()) == names
    true_views, _ = read_object(out / "real_data/views" / names[0]).decode()
    sampled, _ = read_object(evaluated / "evaluation/views" / names[0]).decode()
    np.testing.assert_array_equal(true_views[0], sampled[0])

    ablations.main([f"--out={out}", "--config=", "--table"])
    found = json.loads((out / "ablations.json").read_text())
    psnr = found["rows"]["3dim"]["figures"]["psnr"]
    assert len(names) == 2
    np.testing.assert_allclose([psnr["mean"], psnr["n"]], [12.05, 2])
    np.testing.assert_allclose(psnr["standard_error"], 2, rtol=0.03)  # of two objects
    assert [claim["verdict"] for claim in found["orderings"]] == ["holds", "holds", "undecided", "undecided"]
    parts = {part["measure"]: part for part in found["orderings"][2]["parts"]}
    np.testing.assert_allclose([parts[name]["difference"] for name in ("psnr", "fid")], 2.0)
    assert (parts["psnr"]["verdict"], parts["psnr"]["certainty"], parts["psnr"]["objects"]) == ("holds", 1.0, 2)
    assert parts["fid"]["low"] == pytest.approx(2 - 4.303 * 0.5 * 2**0.5, rel=1e-3)  # of two seeds each
    parameters = sum(leaf.size for leaf in jax.tree.leaves(open_trained(evaluated / "tiny.safetensors").params()))
    page = (out / "ablations.md").read_text()
    # The paper's difference is 23.82 - 21.01.
    rows = ("| 3DiM | 12.05 ± 1.9", "| real data | – |", "+1.00 dB [+1.00, +1.00] | 100.0 % | +2.81 dB |")
    for words in (*rows, f"| {parameters:,} | 2 steps of 4 pairs |"):
        assert words in page
    assert page.count("--mode=train") == 3
    assert (out / "ablations.png").exists()

    for place, change, message in (
        ("image_to_image", {"checkpoint_step": 3}, "is of step 3, others of step 2"),
        ("3dim", {"protocol": results["protocol"] | {"input_view": 3}}, "another protocol"),
    ):
        (out / place / "seed_1/results.json").write_text(json.dumps(results | change))
        with pytest.raises(UserError, match=message):
            ablations_table.collect(epath.Path(out))


def test_a_command_may_take_so_many_minutes():
    """It gets the signal to end; it would fail by itself."""
    program = "trap 'kill $!; exit 0' TERM; sleep 60 & wait; exit 5"
    ablations.run_at_most(["bash", "-c", program], 0.01)
    for minutes in (0, 1):
        ablations.run_at_most(["true"], minutes)
        with pytest.raises(subprocess.CalledProcessError):
            ablations.run_at_most(["false"], minutes)


def test_verdicts():
    assert ablations_table.verdict(0.01, 0.4) == "holds"
    assert ablations_table.verdict(-0.4, -0.01) == "does not hold"
    assert ablations_table.verdict(-0.1, 9.0) == ablations_table.verdict(None, None) == "undecided"
    assert ablations_table.figure([]) is None
    assert ablations_table.figure([1.0]) == {"mean": 1.0, "standard_error": None, "n": 1}


def test_differences_are_taken_object_by_object():
    """Objects that differ much hide nothing that is the same in each of them."""
    rng = np.random.default_rng(0)
    base, noise = rng.normal(20, 5, 16), rng.normal(0.3, 0.2, 16)
    one, other = ({str(i): float(x) for i, x in enumerate(values)} for values in (base + noise, base))
    found = ablations_table.compared(*(ablations_table.figure([0.0], each) for each in (one, other)), 1)
    assert found["difference"] == pytest.approx(noise.mean())
    assert (found["verdict"], found["certainty"], found["objects"]) == ("holds", 1.0, 16)
    assert found["high"] - found["low"] < 0.25
    reverse = ablations_table.compared(*(ablations_table.figure([0.0], each) for each in (one, other)), -1)
    assert (reverse["verdict"], reverse["certainty"]) == ("does not hold", 0.0)


def test_model_card(evaluated, trained_run, tmp_path, capsys):
    config = tmp_path / "tiny.py"
    saved = json.dumps(settings_lib.plain(open_run(trained_run).config))
    config.write_text(
        "import json, ml_collections\ndef get_config():\n"
        f"    c = ml_collections.ConfigDict(json.loads('''{saved}'''))\n"
        "    c.train.warmup_examples = 7\n    return c\n"
    )
    (tmp_path / "first").symlink_to(trained_run)
    settings = {"input_views": [0], "size": 0, "seed": 0, "field": {"rays_per_step": 512}}
    row = {"views": "runs/x/views", "psnr": 12.0, "ssim": 0.5, "num_objects": 2}
    rows = {"tiny": row, "true": row | {"views": "data/true", "psnr": 28.25}}
    consistency = {"settings": settings, "rows": rows, "not_the_frozen_settings": {"num_steps": 3}}
    (tmp_path / "results.json").write_text(json.dumps(consistency))
    weights = evaluated / "tiny.safetensors"
    arguments = [f"--workdir={trained_run}", f"--weights={weights}", f"--config={config}", f"--out={tmp_path}"]
    evaluation = f"--evaluation={evaluated / 'evaluation'}"
    chain = [f"--started_from={tmp_path / 'first'}={config}", f"--consistency={tmp_path}"]
    model_card.main([*arguments, evaluation, *chain, "--note=A remark."])
    assert str(tmp_path / "tiny.md") in capsys.readouterr().out
    card = (tmp_path / "tiny.md").read_text()
    results = json.loads((evaluated / "evaluation/results.json").read_text())
    main = f"python -m threedim.main --config={config}"
    train = "--config.train.warmup_examples=40"
    for said in (
        "# tiny",
        "bfloat16, averaged over training",
        "2 training objects with 10 views",
        "| steps | 2 of 4 pairs at 8 px | 2 of 4 pairs at 8 px |",
        "| started from | runs/first | random weights |",
        "The network has seen 16 pairs",
        f"| **tiny** | {results['dataset']['psnr']:.2f} ± ",
        "| true | 28.25 | 0.500 | 2 |",
        "- A remark.",
        f"{main} --mode=train --workdir=runs/first {train} --config.train.num_steps=2\n",
        f"{main} --mode=train --workdir=runs/tiny {train} --config.train.init_from=runs/first "
        "--config.train.num_steps=2\n",
        "python -m threedim.weights --workdir=runs/tiny --step=2 --out=threedim/pretrained/tiny.safetensors\n",
        f"{main} --mode=evaluate --workdir=runs/tiny --config.sample.weights=threedim/pretrained/tiny.safetensors "
        "--config.evaluate.input_view=0\n",
        "python -m threedim.evaluation.consistency --views=tiny=runs/tiny/evaluation/tiny/views --views=true=data/true "
        "--input_view=0 --max_objects=2 --rays_per_step=512 --set=num_steps=3 --out=runs/tiny/consistency\n",
        "--consistency=runs/tiny/consistency --started_from=runs/first=",
    ):
        assert said in card
    assert (tmp_path / "tiny.png").exists()
    other = results | {"sampling": results["sampling"] | {"weights": "0" * 64}}
    (tmp_path / "results.json").write_text(json.dumps(other))
    for changes, said in (
        ([evaluation], "exists: choose another --out"),
        ([f"--evaluation={tmp_path}", "--overwrite"], "is not an evaluation of"),
        ([evaluation, "--overwrite", f"--started_from={tmp_path / 'second'}={config}"], "started from runs/first"),
    ):
        with pytest.raises(SystemExit, match=said):
            model_card.main([*arguments, *changes])


def test_the_texts_of_the_faults_are_in_the_code():
    assert len(faults.read()) > 50


def test_no_file_or_function_is_too_long(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["count_lines", f"--root={REPOSITORY}"])
    if not (REPOSITORY / ".git").exists():
        pytest.skip("not a git checkout")
    count_lines.main()
    assert "threedim/models" in capsys.readouterr().out
    path = tmp_path / "a.py"
    path.write_text('"""Doc\nstring."""\n\n# comment\nx = """a\nb"""\n\n\ndef f():\n    """One."""\n    return 1\n')
    assert count_lines.count(path) == (11, 4, 3, [])
