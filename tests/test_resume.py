"""Training through interruptions, refusals and failures."""

import json
import re
import shutil
import signal
import time

import jax
import numpy as np
import pytest
from commands import start

from threedim.training import loop
from threedim.training.checkpoints import CheckpointError
from threedim.training.step import init_state


def assert_same(one, other):
    for (path, a), (_, b) in zip(*map(jax.tree_util.tree_leaves_with_path, (one, other)), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b), err_msg=jax.tree_util.keystr(path))


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Workdirs that several tests start from."""
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def two_steps(tiny_config, kept, tmp_path):
    """A copy of a run that has done two of four steps."""
    if not (kept / "run").exists():
        tiny_config.train.num_steps = 2
        loop.train(tiny_config, kept / "run")
        tiny_config.train.num_steps = 4
    shutil.copytree(kept / "run", tmp_path / "run")
    return tmp_path / "run"


def test_four_steps_equal_two_restart_two(tiny_config, two_steps, tmp_path, capsys):
    whole = loop.train(tiny_config, tmp_path / "whole")
    resumed = loop.train(tiny_config, two_steps)
    assert "resuming from step 2" in capsys.readouterr().out
    assert int(whole.step) == 4
    assert_same(whole, resumed)
    lines = [json.loads(line) for line in (two_steps / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    expected = [json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()]
    for key in ("loss", "grad_norm", "learning_rate", "ema_decay"):
        assert [line[key] for line in lines] == [line[key] for line in expected]
    assert {"examples_per_second", "data_wait_fraction"} <= lines[0].keys()
    assert any(key.startswith("loss_by_noise/") for key in lines[0])
    # A run that is done says so and trains no further.
    assert_same(loop.train(tiny_config, two_steps), resumed)
    assert "nothing to do" in capsys.readouterr().out


def test_seed_changes_the_run(tiny_config, tmp_path):
    tiny_config.train.num_steps = 1
    one = loop.train(tiny_config, tmp_path / "one")
    tiny_config.seed = 1
    other = loop.train(tiny_config, tmp_path / "other")
    assert not np.array_equal(one.params["conv_in"]["kernel"], other.params["conv_in"]["kernel"])


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("model.ch", 64, "model.ch: 32 → 64"),
        ("seed", 3, "seed: 0 → 3"),
        ("train.batch_size", 2, "train.batch_size: 4 → 2"),
        ("diffusion.prediction", "v", "diffusion.prediction: "),
        ("data.holdout_views", 1, "data fingerprint"),
    ],
)
def test_changed_run_is_refused(tiny_config, two_steps, field, value, said):
    before = sorted(path.name for path in (two_steps / "checkpoints").iterdir())
    tiny_config.update_from_flattened_dict({field: value})
    with pytest.raises(ValueError, match=re.escape(said)):
        loop.train(tiny_config, two_steps)
    assert sorted(path.name for path in (two_steps / "checkpoints").iterdir()) == before


def test_changed_batch_size_is_accepted_when_asked_for(tiny_config, two_steps):
    tiny_config.train.batch_size = 2
    state = loop.train(tiny_config, two_steps, allow_change=True)
    assert int(state.step) == 4


def test_damaged_checkpoint_raises(tiny_config, two_steps):
    loop.train(tiny_config, two_steps)
    data = max((two_steps / "checkpoints/4").rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    tiny_config.train.num_steps = 6
    with pytest.raises(CheckpointError, match=r"(?s)checkpoints/4.*\b2\b"):
        loop.train(tiny_config, two_steps)


def test_loss_that_is_not_finite_stops(tiny_config, two_steps):
    tiny_config.train.learning_rate = 1e30
    with pytest.raises(loop.NonFiniteError, match=r"at step 4 .*last good checkpoint is step 2"):
        loop.train(tiny_config, two_steps)
    assert not (two_steps / "checkpoints/4").exists()


def test_too_many_devices_for_the_batch_or_the_mesh(tiny_config, tmp_path):
    tiny_config.mesh.fsdp = 3
    with pytest.raises(ValueError, match="does not cover 1 cpu device"):
        loop.train(tiny_config, tmp_path / "run")


def test_previews_are_written(tiny_config, two_steps):
    tiny_config.train.sample_every = 4
    loop.train(tiny_config, two_steps)
    assert [path.name for path in (two_steps / "samples").iterdir()] == ["held_out_0000004.png"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_saves_and_resumes(tiny_config, tmp_path, number):
    """The command itself: a signal ends it with a checkpoint and exit code 0, and the same command goes on."""
    workdir = tmp_path / "run"
    tiny_config.train.num_steps = 100_000
    reached = 0
    for _ in range(2):
        process = start("train", tiny_config, workdir)
        deadline = time.monotonic() + 120
        metrics = workdir / "metrics.jsonl"
        while process.poll() is None and time.monotonic() < deadline:
            if metrics.exists() and len(metrics.read_text().splitlines()) > reached + 2:
                break
            time.sleep(0.1)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        saved = re.search(rf"stopped by {number.name}: saved step (\d+)", out)
        assert saved, out + err
        if reached:
            assert f"resuming from step {reached}" in out
        assert int(saved[1]) > reached
        reached = int(saved[1])
        assert (workdir / "checkpoints" / str(reached)).exists()


def test_the_initialization_is_traced_once(tiny_config, tmp_path, monkeypatch):
    """Once for shapes and for the program: at full size tracing takes longer than anything else before the step's."""
    traced = []

    def stop(*args, **kwargs):
        raise InterruptedError("far enough")

    monkeypatch.setattr(loop, "init_state", lambda *args: traced.append(args) or init_state(*args))
    monkeypatch.setattr(loop.pipeline, "train_batches", stop)
    with pytest.raises(InterruptedError, match="far enough"):
        loop.train(tiny_config, tmp_path / "run")
    assert len(traced) == 1
