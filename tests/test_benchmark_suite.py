"""The benchmark suite: its commands, what is done again and what is not, its figures, verdicts, table and pictures."""

import json
import math
import os
import pathlib
import re
import runpy
import shlex
import signal
import threading
import time

import jax
import numpy as np
import pytest

from scripts import ablations, ablations_page, benchmark, benchmark_plan
from scripts.benchmark_plan import Plan
from threedim import config as config_lib
from threedim.data import sources, srn
from threedim.evaluation import published
from threedim.training import run_info, step

CONFIG = str(pathlib.Path(__file__).parents[1] / "configs/shapes16.py")
ROWS = ("3dim", "image_to_image", "regression", "concat_unet")
STEPS = 7


class FakePython:
    """Writes what the commands write, without computing anything; its figures follow from row and seed."""

    def __init__(self, config):
        self.config, self.calls, self.steps = config, [], STEPS
        self.fail_at = None

    def __call__(self, arguments):
        text = shlex.join(arguments)
        self.calls.append(text)
        if self.fail_at and self.fail_at in text:
            return 3
        given = dict(a.lstrip("-").split("=", 1) for a in arguments if "=" in a and not a.startswith("--views="))
        if arguments[1] == "threedim.evaluation.consistency":
            self.consistency(arguments, given)
        elif given["mode"] == "train":
            self.train(pathlib.Path(given["workdir"]))
        else:
            self.evaluate(given)
        return 0

    def train(self, workdir):
        fake_run(workdir, self.config, self.steps)

    def evaluate(self, given):
        out, size = pathlib.Path(given["config.evaluate.out"]), self.config.model.image_size
        seed, row = int(given["config.sample.seed"]), out.parent.name
        sources.prepare_from_config(self.config.data)
        dataset = sources.open_from_config(self.config.data, "test")
        names = dataset.names[: int(given.get("config.evaluate.max_objects", 99))]
        steps = [int(path.name) for path in (pathlib.Path(given["workdir"]) / "checkpoints").iterdir()]
        targets = [0, 2, 3, 4]
        for index, name in enumerate(names):
            if not (out / "views" / name).exists():
                pictures, cameras = dataset.views(index, [1, *targets], size)
                pictures[1:] = picture_of(row, seed)
                srn.write_object(out / "views" / name, pictures, cameras)
        samples = {name: {"input_views": [1], "target_views": targets} for name in names}
        (out / "samples.json").write_text(json.dumps({"settings": {}, "objects": samples}))
        results = {
            "dataset": {"psnr": 20.0 + ROWS.index(row) + seed, "ssim": 0.5, "fid": None, "patch_distance": 9.0 + seed},
            "objects": {name: {} for name in names},
            "num_objects": len(names),
            "num_views": 4 * len(names),
            "protocol": {
                "split": "test",
                "image_size": size,
                "input_view": 1,
                "data_fingerprint": dataset.fingerprint,
                "max_objects": int(given.get("config.evaluate.max_objects", 0)),
            },
            "published": "none",
            "checkpoint_step": max(steps),
            "commit": None,
            "device": {"platform": "cpu", "kind": "fake", "count": 1, "processes": 1},
            "config": json.loads(self.config.to_json()),
        }
        (out / "results.json").write_text(json.dumps(results))

    def consistency(self, arguments, given):
        rows = {}
        for argument in arguments:
            if argument.startswith("--views="):
                name, folder = argument.removeprefix("--views=").split("=")
                objects = srn.find_objects(folder)
                seed = float(name[-1]) if name[-1].isdecimal() else 0.0
                rows[name] = {"psnr": 25.0 + 2 * seed, "ssim": 0.9, "fid": None, "num_objects": len(objects)}
        out = pathlib.Path(given["out"])
        out.mkdir(exist_ok=True)
        content = {"rows": rows, "settings": {}, "not_the_frozen_settings": {"num_steps": 200}}
        (out / "results.json").write_text(json.dumps(content))


def picture_of(row, seed):
    """The gray of all that a row draws with a seed."""
    return 40 * (1 + ROWS.index(row)) + seed


def fake_run(workdir, config, steps):
    (workdir / "checkpoints" / str(steps)).mkdir(parents=True, exist_ok=True)
    config = config.copy_and_resolve_references()
    config.train.num_steps = STEPS
    if not (workdir / "config.json").exists():
        run_info._write_config(workdir, run_info._plain(config), "data")
    lines = [{"step": step, "seconds_per_step": 0.5} for step in (2, 4, 6, 7)]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def files_of(folder):
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(folder.rglob("*"))}


@pytest.fixture(autouse=True)
def parameters(monkeypatch):
    """Counting traces a network."""
    count = ablations.num_parameters
    monkeypatch.setattr(ablations, "num_parameters", lambda config: 12345)
    return count


@pytest.fixture
def python(tiny_config):
    return FakePython(tiny_config)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def start(out, python, *flags):
    benchmark.main([f"--config={CONFIG}", f"--out={out}", "--seeds=2", *flags], runner=python)


# ------------------------------------------------------------------------------------------------------------ commands


def test_commands(out):
    plan = Plan(
        config="configs/srn_cars.py",
        out=out,
        seeds=2,
        consistency_seeds=1,
        given={"regression": "runs/given"},
        max_objects=5,
        consistency_objects=3,
        weights={"inception": "w.npz"},
        consistency_set=("num_steps=200",),
        objects_at_once=4,
        flags=("--config.train.num_steps=9", "--config.sample.preset=fast", "--config.diffusion.prediction=v"),
    )

    def main(config, mode, workdir, flags):
        return f"python -m threedim.main --config={config} --mode={mode} --workdir={workdir} {flags}"

    all_flags = "--config.train.num_steps=9 --config.sample.preset=fast --config.diffusion.prediction=v"

    def evaluate(config, row, workdir, flags, seed):
        own = f"--config.sample.seed={seed} --config.evaluate.out={out}/{row}/seed_{seed}"
        own += " --config.evaluate.max_objects=5 --config.evaluate.inception=w.npz"
        return main(config, "evaluate", workdir, f"{flags} {own}")

    cars, concat = "configs/srn_cars.py", "configs/ablations/concat_unet.py:cars"
    regression = ("configs/ablations/regression.py:cars", "regression", "runs/given", "--config.train.num_steps=9")
    input_view = f"{all_flags} --config.sample.conditioning=input"
    expected = [
        main(cars, "train", f"{out}/runs/3dim", all_flags),
        *(evaluate(cars, "3dim", f"{out}/runs/3dim", all_flags, seed) for seed in (0, 1)),
        *(evaluate(cars, "image_to_image", f"{out}/runs/3dim", input_view, seed) for seed in (0, 1)),
        *(evaluate(*regression, seed) for seed in (0, 1)),
        main(concat, "train", f"{out}/runs/concat_unet", all_flags),
        *(evaluate(concat, "concat_unet", f"{out}/runs/concat_unet", all_flags, seed) for seed in (0, 1)),
        "python -m threedim.evaluation.consistency "
        + " ".join(f"--views={row}_seed0={out}/{row}/seed_0/views" for row in ROWS)
        + f" --views=real_data={out}/real_data/views --out={out}/consistency --max_objects=3 --objects_at_once=4"
        " --inception=w.npz --set=num_steps=200",
    ]
    assert [job.text for job in benchmark_plan.jobs(plan)] == expected


@pytest.mark.parametrize("stem", benchmark_plan.DATA)
def test_named_configs_exist_with_the_variants(stem):
    config = str(pathlib.Path(CONFIG).parent / f"{stem}.py")
    flags = ("--config.data.procedural.num_test_objects=2",) if stem == "demo" else ()
    plan = Plan(config=config, out=pathlib.Path("nowhere"), flags=flags)
    benchmark_plan.check(plan)
    for variant in ablations.VARIANTS:
        file, _, data = plan.config_of(variant).partition(":")
        variant_config = runpy.run_path(file)["get_config"](*([data] if data else []))
        assert variant_config.data.to_dict() == runpy.run_path(config)["get_config"]().data.to_dict()
        assert variant_config.diffusion.regression == (variant.key == "regression")
        assert (variant_config.model.network == "concat_unet") == (variant.key == "concat_unet")


def test_dry_run_prints_and_does_nothing(out, python, capsys):
    start(out, python, "--dry_run", "--", "--config.train.num_steps=5")
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 3 + 8 + 1 + 1
    assert said[0].startswith("python -m threedim.main ")
    assert said[0].endswith("--config.train.num_steps=5")
    assert said[-2].startswith("# the true views")
    assert not python.calls
    assert not out.exists()


# ------------------------------------------------------------------------------------------------------------- running


def test_runs_everything_once(out, python, capsys):
    start(out, python)
    kinds = [re.search("--mode=train|--mode=evaluate|evaluation.consistency", call).group() for call in python.calls]
    train, evaluate = "--mode=train", "--mode=evaluate"
    expected = [train, *[evaluate] * 4, train, *[evaluate] * 2, train, *[evaluate] * 2, "evaluation.consistency"]
    assert kinds == expected
    asked, *done = json.loads((out / "commands.json").read_text())
    assert asked["command"] == f"python -m scripts.benchmark --config={CONFIG} --out={out} --seeds=2"
    assert [shlex.split(one["command"])[1:] for one in done] == [shlex.split(call) for call in python.calls]
    assert all(one["finished"] for one in done)
    said = capsys.readouterr().out
    assert f"[1/12] train 3dim\npython {python.calls[0]}\n" in said
    # The true views: of every object that was drawn, all of them, in the data set's order, at the network's size.
    dataset = sources.open_from_config(python.config.data, "test")
    for index, name in enumerate(dataset.names):
        pictures, cameras = srn.read_object(out / "real_data/views" / name).decode()
        truth, there = dataset.views(index, range(5), 8)
        np.testing.assert_array_equal(pictures, truth)
        np.testing.assert_allclose(cameras.t, there.t)
    # Again: nothing is run.
    count = len(python.calls)
    start(out, python)
    assert len(python.calls) == count
    assert capsys.readouterr().out.count("done before") == 12
    # More seeds: only those, and then the fields.
    start(out, python, "--seeds=3")
    new = python.calls[count:]
    assert [re.search(r"seed_2|consistency ", call).group() for call in new] == ["seed_2"] * 4 + ["consistency "]


def test_what_is_not_there_is_made_again(out, python):
    start(out, python)
    (out / "regression/seed_1/results.json").unlink()
    del python.calls[:]
    start(out, python)
    # Fields may be of other views then.
    assert [call.split()[1] for call in python.calls] == ["threedim.main", "threedim.evaluation.consistency"]
    assert "regression/seed_1" in python.calls[0]


def test_scores_of_an_older_checkpoint_are_not_taken_for_new(out, python):
    start(out, python)
    (out / "runs/3dim/checkpoints/9").mkdir()
    del python.calls[:]
    start(out, python)
    rows = [re.search("3dim/seed|image_to_image/seed|consistency ", call).group() for call in python.calls]
    assert rows == ["3dim/seed"] * 2 + ["image_to_image/seed"] * 2 + ["consistency "]


def test_given_runs_are_only_read(out, python, tmp_path):
    for row in ("3dim", "concat_unet"):
        fake_run(tmp_path / "given" / row, python.config, steps=5)
    before = files_of(tmp_path / "given")
    given = [f"--workdir={row}={tmp_path}/given/{row}" for row in ("3dim", "concat_unet")]
    start(out, python, *given)
    assert files_of(tmp_path / "given") == before
    trained = [call for call in python.calls if "--mode=train" in call]
    assert len(trained) == 1
    assert "regression" in trained[0]
    for call in python.calls:
        if "--mode=evaluate" in call and "regression" not in call:
            assert f"--workdir={tmp_path}/given/" in call
            assert f"--config.evaluate.out={out}/" in call
    results = json.loads((out / "ablations.json").read_text())
    assert [row["training_steps"] for row in results["rows"].values()] == [5, 5, STEPS, 5]
    assert results["rows"]["image_to_image"]["workdir"] == f"{tmp_path}/given/3dim"
    assert "**The rows' training steps differ**" in (out / "ablations.md").read_text()


def test_a_failing_command_is_named_and_the_rest_goes_on_later(out, python, capsys):
    python.fail_at = "regression/seed_0"
    with pytest.raises(SystemExit) as error:
        start(out, python)
    failed = python.calls[-1]
    assert error.value.code == f"error: exit code 3 from: python {failed}"
    assert not (out / "ablations.md").exists()
    # What there is makes a table, without running anything.
    count = len(python.calls)
    start(out, python, "--table")
    assert len(python.calls) == count
    results = json.loads((out / "ablations.json").read_text())
    assert list(results["rows"]) == ["3dim", "image_to_image"]
    assert "pictures: none, as the true views are not written yet" in capsys.readouterr().out
    python.fail_at = None
    start(out, python)
    assert python.calls[count] == failed
    assert list(json.loads((out / "ablations.json").read_text())["rows"]) == list(ROWS)


def test_a_training_that_was_stopped_is_no_finished_one(out, python):
    python.steps = 3
    with pytest.raises(SystemExit, match=re.escape(f"{out}/runs/3dim is trained to step 3 of 7; the same command")):
        start(out, python)
    python.steps = STEPS
    start(out, python)
    # It was asked again.
    assert python.calls[0] == python.calls[1]


def test_other_settings_need_another_folder(out, python):
    start(out, python)
    with pytest.raises(SystemExit, match=r"was made otherwise .*flags: .*num_steps=9.*choose another --out"):
        start(out, python, "--", "--config.train.num_steps=9")
    start(out, python, "--", "--compilation_cache=")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--config=configs/srn_chairs.py"], "variants of configs/srn_cars.py, configs/srn_chairs_star.py"),
        (["--config=nowhere/demo.py"], "nowhere/demo.py: no such file"),
        ([f"--config={pathlib.Path(CONFIG).parent}/demo.py"], "has no test objects to draw"),
        (["--seeds=0"], "--seeds and --consistency_at_once must be at least 1"),
        (["--seeds=2", "--consistency_seeds=3"], "--consistency_seeds from 1 to --seeds; got 2, 1 and 3"),
        (["--max_objects=-1"], "must be 0 (all) or more, got -1 and 0"),
        (["--inception=w.pth"], "--inception=w.pth: no such file"),
        ([f"--lpips_lin={CONFIG}"], "--lpips_backbone and --lpips_lin must both be named"),
        (["--", "--config.evaluate.lpips_lin=w.pth"], "give --lpips_lin before --"),
        (["--workdir=3dim=nowhere"], "--workdir=3dim=nowhere: no checkpoint there"),
        (["--workdir=image_to_image=x"], "rows with a run of their own are 3dim, regression, concat_unet"),
        (["--workdir=3dim"], "--workdir=3dim: expected ROW=DIR"),
        (["--consistency_set=steps=3"], "--consistency_set=steps=3: expected NAME=VALUE, NAME one of"),
        (["--", "num_steps=3"], "after --, 'num_steps=3' is no flag"),
        (["--", "--config.sample.seed=3"], "--config.sample.seed=3: give --seeds before --"),
        (["--", "--config.model.network=concat_unet"], "the suite sets this for each row"),
        (["--table"], "settings.json is missing"),
    ],
)
def test_refusals_before_anything_runs(out, python, flags, said):
    with pytest.raises(SystemExit, match=re.escape(said)) as error:
        start(out, python, *flags)
    assert error.value.code.startswith("error: ")
    assert not python.calls
    assert not out.exists()


def test_real_command_gives_its_exit_code():
    assert benchmark.run_python(["-c", "raise SystemExit(5)"]) == 5


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_wait_for_the_command_to_save(tmp_path, number):
    """SIGTERM is passed on; Ctrl-C a terminal gives to all, so that here the command gets it from the test."""
    code = (
        "import os, pathlib, signal, sys, time\n"
        "def save(*_):\n"
        "    time.sleep(0.3); pathlib.Path(sys.argv[1], 'saved').touch(); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, save); signal.signal(signal.SIGINT, save)\n"
        "pathlib.Path(sys.argv[1], 'new').write_text(str(os.getpid()))\n"
        "os.rename(sys.argv[1] + '/new', sys.argv[1] + '/pid')\n"
        "time.sleep(20)\n"
    )

    def send():
        deadline = time.monotonic() + 15
        while not (tmp_path / "pid").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        signal.pthread_kill(threading.main_thread().ident, number)
        if number == signal.SIGINT:
            os.kill(int((tmp_path / "pid").read_text()), number)

    thread = threading.Thread(target=send)
    thread.start()
    before = signal.getsignal(number)
    with pytest.raises(benchmark.Stopped, match=f"stopped by {number.name}; the same command goes on") as stopped:
        benchmark.run_python(["-c", code, str(tmp_path)])
    thread.join()
    assert (tmp_path / "saved").exists()
    assert stopped.value.exit_code == 128 + number
    assert signal.getsignal(number) == before


# ------------------------------------------------------------------------------------------------------------- figures


def test_figure_is_mean_and_standard_error():
    values = [3.0, 4.0, 8.0]
    found = ablations.figure(values)
    assert found["mean"] == 5.0
    assert found["standard_error"] == pytest.approx(math.sqrt((4 + 1 + 9) / 2 / 3))
    assert found["n"] == 3
    assert ablations.figure([2.0]) == {"mean": 2.0, "standard_error": None, "n": 1}
    assert ablations.figure([]) is None


@pytest.mark.parametrize(
    ("difference", "error", "expected"),
    [
        (1.0, 0.4, "holds"),
        (1.0, 0.5, "undecided"),
        (-1.0, 0.4, "does not hold"),
        (-1.0, 0.6, "undecided"),
        (5.0, None, "undecided"),
        (0.1, 0.0, "holds"),
        (0.0, 0.0, "undecided"),
    ],
)
def test_verdict(difference, error, expected):
    assert ablations.verdict(difference, error) == expected


def rows_of(**figures):
    """{"3dim": {"psnr": (mean, error)}} as `ablations.read` gives it."""
    return {
        row.replace("whole", "3dim"): {
            "figures": {
                name: {"mean": mean, "standard_error": error, "n": 3} for name, (mean, error) in measures.items()
            }
        }
        for row, measures in figures.items()
    }


def test_orderings_have_the_papers_directions():
    """With the paper's own figures for cars, all hold, by the paper's differences."""
    whole = {"psnr": 21.01, "ssim": 0.57, "fid": 8.99, "consistency_psnr": 28.53}
    image = {"psnr": 23.82, "ssim": 0.59, "fid": 1.87, "consistency_psnr": 25.78}
    regression = {"psnr": 22.55, "ssim": 0.85, "fid": 17.45}
    concat = {"psnr": 17.21, "ssim": 0.52, "fid": 21.54}
    rows = {"whole": whole, "image_to_image": image, "regression": regression, "concat_unet": concat}
    rows = rows_of(**{row: {name: (mean, 0.01) for name, mean in each.items()} for row, each in rows.items()})
    found = ablations.orderings(rows)
    assert [claim["verdict"] for claim in found] == ["holds"] * 4
    differences = [[round(part["difference"], 2) for part in claim["parts"]] for claim in found]
    assert differences == [[2.75], [2.81], [3.80, 0.05, 12.55], [8.46]]
    theirs = [
        [round(ablations.published_difference("cars", claim, part["measure"]), 2) for part in claim["parts"]]
        for claim in found
    ]
    assert theirs == differences
    assert found[0]["parts"][0]["standard_error"] == pytest.approx(0.01 * math.sqrt(2))
    assert ablations.published_difference("chairs_star", found[0], "consistency_psnr") == pytest.approx(1.23)
    assert ablations.published_difference("cars", found[3], "patch_distance") is None
    assert ablations.published_difference("none", found[3], "fid") is None


def test_orderings_that_do_not_hold_or_are_open():
    rows = rows_of(
        whole={"psnr": (21.0, 0.1), "ssim": (0.5, 0.01), "patch_distance": (9.0, 1.0), "consistency_psnr": (20, 0.5)},
        image_to_image={"psnr": (20.0, 0.1), "patch_distance": (9.0, 1.0), "consistency_psnr": (19, 0.5)},
        regression={"psnr": (22.0, 0.1), "fid": (10.0, 0.1)},
        concat_unet={"psnr": (19.0, 0.1), "ssim": (0.51, 0.01), "patch_distance": (20.0, 1.0)},
    )
    consistency, image, concat, blur = ablations.orderings(rows)
    assert consistency["verdict"] == "undecided"
    assert image["verdict"] == "does not hold"
    assert image["parts"][0]["difference"] == pytest.approx(-1.0)
    assert [part["verdict"] for part in concat["parts"]] == ["holds", "undecided", "holds"]
    # All of "everything" must hold.
    assert concat["verdict"] == "undecided"
    # An FID on one side and a patch distance on the other do not compare.
    assert blur["verdict"] == "not measured"
    rows["concat_unet"]["figures"]["ssim"]["mean"] = 0.9
    assert ablations.orderings(rows)[2]["verdict"] == "does not hold"
    assert ablations.orderings({})[0]["verdict"] == "not measured"


def test_read(out, python):
    start(out, python)
    results = ablations.read(out)
    for index, row in enumerate(ROWS):
        found = results["rows"][row]
        # Seeds 0 and 1: 20 + index and 21 + index.
        assert found["figures"]["psnr"] == {"mean": 20.5 + index, "standard_error": 0.5, "n": 2}
        assert found["figures"]["consistency_psnr"] == {"mean": 26.0, "standard_error": 1.0, "n": 2}
        assert found["figures"]["fid"] is None
        assert (found["parameters"], found["training_steps"]) == (12345, STEPS)
        assert found["training_seconds"] == pytest.approx(0.5 * STEPS)
        assert [one["psnr"] for one in found["seeds"].values()] == [20.0 + index, 21.0 + index]
    assert results["real_data"]["consistency_psnr"] == 25.0
    assert results["machine"]["devices"] == [{"platform": "cpu", "kind": "fake", "count": 1, "processes": 1}]
    assert set(results["versions"]) >= {"jax", "python"}
    # image-to-image is 1 dB above 3DiM, of an error of 0.7.
    assert [claim["verdict"] for claim in results["orderings"]][:2] == ["undecided", "undecided"]
    assert json.loads((out / "ablations.json").read_text()) == json.loads(json.dumps(results))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"objects": {"another": {}}}, "are of different objects"),
        ({"protocol": {"input_view": 3}}, "are of different protocols"),
        ({"checkpoint_step": 6}, r"seed_1 was drawn at step 6 of the run 3dim, others at step 7"),
    ],
)
def test_what_does_not_compare_is_no_table(out, python, change, said):
    start(out, python)
    path = out / "image_to_image/seed_1/results.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(SystemExit, match=said):
        start(out, python, "--table")


def test_training_seconds_count_steps_up_to_the_checkpoint(tmp_path):
    lines = [(100, 2.0), (200, 1.0), (250, 4.0), (350, 1.0)]
    text = "".join(json.dumps({"step": step, "seconds_per_step": each}) + "\n" for step, each in lines)
    (tmp_path / "metrics.jsonl").write_text(text + '{"step": 400, "sec')
    assert ablations.training_seconds(tmp_path, 250) == 100 * 2.0 + 100 * 1.0 + 50 * 4.0
    assert ablations.training_seconds(tmp_path, 10**6) == 600.0
    assert ablations.training_seconds(tmp_path / "nowhere", 250) is None
    (tmp_path / "metrics.jsonl").write_text("broken\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl: 'broken.*is not a line of metrics"):
        ablations.training_seconds(tmp_path, 250)


def test_parameters_are_those_of_the_network(parameters, tiny_config):
    network = config_lib.network(tiny_config)
    made = jax.eval_shape(lambda: step.init_params(network, jax.random.key(0)))
    assert parameters(tiny_config) == sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(made))


def test_published_rows_have_the_names_that_the_variants_use():
    for table in published.CONSISTENCY:
        names = {row.name for row in published.TABLES[table].rows}
        assert {variant.published for variant in ablations.VARIANTS} <= names
        assert {variant.published for variant in ablations.VARIANTS[:2]} <= {
            row.name for row in published.CONSISTENCY[table].rows
        }


# ---------------------------------------------------------------------------------------------------- page and pictures


def test_table_has_the_figures(out, python):
    start(out, python)
    page = (out / "ablations.md").read_text()
    lines = [line for line in page.splitlines() if line.startswith("| ")]
    head = (
        "PSNR, dB ↑ | SSIM ↑ | patch distance ↓ | 3D consistency PSNR, dB ↑ | 3D consistency SSIM ↑ | parameters | "
        "training steps | training, s"
    )
    assert head in lines[0]
    first = "3DiM | 20.50 ± 0.50 | 0.500 ± 0.000 | 9.50 ± 0.50 | 26.00 ± 1.00 | 0.900 ± 0.000 | 12,345 | 7 | 4 |"
    assert first in lines[2]
    assert "| image-to-image | 21.50 ± 0.50 |" in lines[3]
    assert "| as 3DiM |" in lines[3]
    assert lines[6].startswith("| real data | – | – | – | 25.00 | 0.900 |")
    assert "with each of 2 sampling seeds" in page
    assert "The field differs from the frozen one: num_steps 200." in page
    assert (
        "| but its PSNR is lower | **undecided** | PSNR | +1.00 ± 0.71 dB |  | +2.81 dB |" in page
    )  # the default paper rows are those of cars
    assert f"python {python.calls[0]}" in page
    assert "## In the paper" not in page


def test_table_beside_the_papers_rows(out, python):
    start(out, python)
    results = ablations.read(out) | {"published": "chairs_star"}
    # With an FID the patch distance is left out; a row with fewer seeds says so.
    for row in results["rows"].values():
        row["figures"]["fid"] = {"mean": 7.0, "standard_error": None, "n": 1}
    page = ablations_page.markdown(results)
    assert "patch distance ↓" not in page
    assert "| 7.00 (n 1) |" in page
    assert "| Concat-UNet | 12.36 | 0.44 | 5.15 | – | – | – |" in page
    assert "| 3DiM | 14.29 | 0.48 | 3.30 | 18.84 | 0.79 | 98.78 |" in page
    assert "| real data | – | – | – | 24.87 | 0.93 | 17.05 |" in page
    assert "in the paper, SRN chairs*" in page
    assert "| +1.23 dB |" in page


def test_pictures_are_of_the_same_views(out, python, monkeypatch):
    grids = []
    make = ablations_page.images_lib.make_grid

    def keep(images, **labels):
        grids.append((images, labels))
        return make(images, **labels)

    monkeypatch.setattr(ablations_page.images_lib, "make_grid", keep)
    start(out, python)
    assert (out / "ablations.png").exists()
    (images, labels), *_ = grids
    dataset = sources.open_from_config(python.config.data, "test")
    assert labels["col_labels"] == ["input", "truth", "3DiM", "image-to-image", "regression", "Concat-UNet"]
    # Two objects, three of the views 0, 2, 3, 4 each; view 1 is the input.
    assert images.shape == (6, 6, 8, 8, 3)
    chosen = [0, 3, 4]

    def short(name):
        return name if len(name) <= 12 else name[:6] + "…" + name[-6:]

    assert labels["row_labels"] == [f"{short(name)}, view {view}" for name in dataset.names for view in chosen]
    for index in range(2):
        truth, _ = dataset.views(index, [1, *chosen], 8)
        for place in range(3):
            line = images[3 * index + place]
            np.testing.assert_array_equal(line[0], truth[0])
            np.testing.assert_array_equal(line[1], truth[1 + place])
            for row, cell in zip(ROWS, line[2:], strict=True):
                assert (cell == picture_of(row, 0)).all()


# ---------------------------------------------------------------------------------------------------------- everything


@pytest.mark.slow
def test_the_real_commands(tmp_path, monkeypatch, parameters):
    """Real trainings of two steps, drawing, scores and fields, at the smallest size that has all figures."""
    monkeypatch.setattr(ablations, "num_parameters", parameters)
    monkeypatch.chdir(pathlib.Path(CONFIG).parents[1])
    out = tmp_path / "out"
    suite = ["--config=configs/shapes16.py", f"--out={out}", "--seeds=2", "--consistency_objects=1"]
    suite += [f"--consistency_set={change}" for change in ("num_steps=3", "rays_per_step=64", "rays_per_chunk=512")]
    procedural = {"num_train_objects": 2, "num_test_objects": 2, "views": 4, "test_views": 10, "size": 16, "samples": 1}
    fields = {f"data.procedural.{name}": value for name, value in procedural.items()} | {
        "data.dir": tmp_path / "data",
        "model.emb_ch": 16,
        "train.num_steps": 2,
        "train.batch_size": 4,
        "train.log_every": 1,
        "sample.num_steps": 2,
    }
    flags = ["--", f"--compilation_cache={tmp_path / 'xla'}"]
    flags += [f"--config.{name}={value}" for name, value in fields.items()]
    benchmark.main([*suite, *flags])
    results = json.loads((out / "ablations.json").read_text())
    assert list(results["rows"]) == list(ROWS)
    for row in results["rows"].values():
        for name in ("psnr", "ssim", "patch_distance", "consistency_psnr", "consistency_ssim"):
            assert row["figures"][name]["n"] == 2
            assert math.isfinite(row["figures"][name]["mean"])
        assert row["training_steps"] == 2
        assert row["training_seconds"] > 0
    parameters_of = {key: row["parameters"] for key, row in results["rows"].items()}
    assert parameters_of["3dim"] == parameters_of["regression"] > parameters_of["concat_unet"]
    settings = {row: json.loads((out / row / "seed_1/samples.json").read_text())["settings"] for row in ROWS}
    assert [each["conditioning"] for each in settings.values()] == ["stochastic", "input", "input", "stochastic"]
    assert [each["num_steps"] for each in settings.values()] == [2, 2, 1, 2]
    assert {each["seed"] for each in settings.values()} == {1}
    assert results["real_data"]["consistency_psnr"] > 0
    assert (out / "ablations.png").exists()

    def never(arguments):
        raise AssertionError(f"run a second time: {arguments}")

    benchmark.main([*suite, *flags], runner=never)
