"""The command line: what is said where something is wrong, before time is spent."""

import os
import pathlib
import subprocess
import sys

import pytest

REPOSITORY = pathlib.Path(__file__).parents[1]
DEMO = "--config=configs/demo.py"


def run(*arguments):
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "threedim.main", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((DEMO, "--mode=foo"), "<prepare|train|sample|evaluate>"),
        ((DEMO, "--mode=train"), "--mode=train needs --workdir=FOLDER"),
        (("--mode=train",), "--config"),
        (("--config=configs/nope.py", "--mode=train"), "no such file; there are configs/base.py, configs/bench_cpu.py"),
        ((DEMO, "--mode=train", "--config.train.batchsize=3"), "no field 'batchsize'; its fields are: adam_b1, "),
        ((DEMO, "--mode=train", "--config.seeds=3"), "no field 'seeds'; its fields are: data, diffusion"),
        ((DEMO, "--mode", "train", "--config.seeds", "3"), "no field 'seeds'; its fields are: data, diffusion"),
        (("--config=configs/ablations/regression.py:x", "--mode=train"), "cars, chairs_star, demo, shapes16, not for"),
        ((DEMO, "--mode=train", "--config.train.batch_size=x"), "--config.train.batch_size=x"),
        ((DEMO, "--mode=train", "--workdir=x", "--config.mesh.cpu_devices=-1"), "error: mesh.cpu_devices must be 0 or"),
        # Two devices, as the file says.
        ((DEMO, "--mode=train", "--workdir=x", "--config.train.batch_size=3"), "does not divide over 2 devices"),
        ((DEMO, "--mode=sample", "--workdir=no/such/run"), "error: no checkpoint in no/such/run"),
        (("--config=configs/srn_cars.py", "--mode=prepare", "--config.data.source=nowhere"), "cars_train.zip"),
    ],
)
def test_mistakes_are_named_without_a_traceback(arguments, said):
    done = run(*arguments)
    assert done.returncode != 0
    assert said in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_training_imports_nothing_that_only_scores_or_renders():
    """Each second of imports is one that a restarted run waits."""
    code = """
import sys
import threedim.main
assert "jax" in sys.modules
assert "tensorflow_datasets" not in sys.modules
import threedim.training.loop
heavy = ("scipy", "trimesh", "dm_pix", "embreex", "matplotlib", "threedim.evaluation", "threedim.sample")
print([name for name in heavy if name in sys.modules])
"""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "[]\n", done.stderr


def test_help_is_readable():
    done = run("--help")
    for word in ("Modes:", "prepare", "sample", "--workdir", "allow_change", "--config.train.batch_size=64"):
        assert word in done.stdout


def test_prepare_says_what_it_found_and_is_quiet_otherwise(objects, tmp_path):
    data = (f"--config.data.source={objects}", f"--config.data.dir={tmp_path}", "--config.data.holdout_views=0")
    done = run(DEMO, "--mode=prepare", *data)
    assert done.returncode == 0, done.stderr
    assert "train: 4 objects, 20 views of 8 px" in done.stdout
    assert "dataset_builder" not in done.stderr
    assert "reusing" in run(DEMO, "--mode=prepare", *data).stdout
