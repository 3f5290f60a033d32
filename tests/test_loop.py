"""Training through interruptions, refusals and failures."""

import concurrent.futures
import json
import re
import signal
import time
import types
from unittest import mock

import jax
import numpy as np
import pytest
from commands import start

from threedim.data import sources
from threedim.errors import MissingError, UserError
from threedim.evaluation import protocol
from threedim.training import loop
from threedim.training.checkpoints import BEST, CheckpointError
from threedim.training.step import RECENT, init_state


def assert_same(one, other):
    for (path, a), (_, b) in zip(*map(jax.tree_util.tree_leaves_with_path, (one, other)), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b), err_msg=jax.tree_util.keystr(path))


def lines_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_four_steps_equal_two_steps_a_restart_and_two(tiny_config, run, tmp_path, capsys):
    t = tiny_config.train
    t.sample_every, t.eval_every, t.eval_examples = 4, 3, 2
    whole, first = loop.train(tiny_config, tmp_path / "whole"), capsys.readouterr().out
    assert re.match(r".*[\d,]+ parameters; 2 objects; 4 pairs a step, 4 a device; 1 cpu device", first, re.DOTALL)
    assert "s and " in first
    assert "TFLOP a step; 3 steps left take about 0:" in first
    with concurrent.futures.ThreadPoolExecutor() as threads:  # as notebooks and servers may
        resumed, said = threads.submit(loop.train, tiny_config, run).result(), capsys.readouterr().out
    assert "resuming from step 2" in said
    assert int(whole.step) == 4
    assert_same(whole, resumed)
    lines, expected = map(lines_of, (run, tmp_path / "whole"))

    def curve(key, lines):
        return {line["step"]: line[key] for line in lines if key in line}

    losses, psnrs = curve("eval/loss", lines), curve("eval/psnr", lines)
    assert [line["step"] for line in lines] == [1, 2, 3, 3, 4, 4, 4]
    assert [*losses, *psnrs] == [3, 4, 4]
    assert 0 < psnrs[4] < 40
    assert (losses, psnrs) == (curve("eval/loss", expected), curve("eval/psnr", expected))
    best = min(losses, key=losses.get)
    assert f"lowest eval/loss {losses[best]:.4g} at step {best}, which" in said
    assert loop.open_trained(run, BEST).step == best
    lines, expected = ([line for line in one if "loss" in line] for one in (lines, expected))
    for key in ("loss", "grad_norm", "learning_rate", "ema_decay"):
        assert [line[key] for line in lines] == [line[key] for line in expected]
    assert {"examples_per_second", "data_wait_fraction"} <= lines[0].keys()
    assert any(key.startswith("loss_by_noise/") for key in lines[0])
    assert [path.name for path in (run / "samples").iterdir()] == ["held_out_0000004.png"]
    record = (run / "config.json").read_text()
    (change,) = json.loads(record)["history"]
    assert change["step"] == 2
    assert "train.num_steps: 2 → 4" in change["changes"]
    t.log_every = 7
    assert_same(loop.train(tiny_config, run), resumed)
    assert "nothing to do" in capsys.readouterr().out
    assert (run / "config.json").read_text() == record, "no step was taken with the new settings"


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("model.ch", 64, "model.ch: 32 → 64"),
        ("train.batch_size", 2, "train.batch_size: 4 → 2"),
        ("train.init_from", "shapes64", 'train.init_from: "" → "shapes64"'),
        ("data.holdout_views", 1, "data fingerprint"),
        ("mesh.fsdp", 3, "does not cover 1 cpu device"),
        ("train.log_every", 0, "train.log_every must be at least 1"),
        ("train.checkpoint_minutes", 0.0, "train.checkpoint_minutes must be positive"),
    ],
)
def test_a_changed_run_is_refused(tiny_config, run, field, value, said):
    before = sorted(path.name for path in (run / "checkpoints").iterdir()), (run / "config.json").read_text()
    tiny_config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=re.escape(said)):
        loop.train(tiny_config, run)
    assert before == (sorted(path.name for path in (run / "checkpoints").iterdir()), (run / "config.json").read_text())


def test_a_wrong_workdir_is_refused_before_data_is_prepared(tiny_config, run, monkeypatch):
    monkeypatch.setattr(sources, "prepare_from_config", mock.Mock(side_effect=AssertionError))
    tiny_config.model.ch = 64
    with pytest.raises(UserError, match=r"model\.ch: 32 → 64"):
        loop.train(tiny_config, run)
    with pytest.raises(UserError, match=r"model\.ch: 32 → 64"):
        protocol.evaluate(tiny_config, run)


@pytest.mark.slow
def test_a_change_can_be_accepted(tiny_config, run, capsys):
    tiny_config.data.holdout_views = 1
    assert int(loop.train(tiny_config, run, allow_change=True).step) == 4
    assert "changed since the run began: data fingerprint: " in capsys.readouterr().out
    assert json.loads((run / "config.json").read_text())["config"]["data"]["holdout_views"] == 1


def test_a_damaged_checkpoint_is_an_error(tiny_config, run):
    (run / "checkpoints/1").mkdir()
    data = max((run / "checkpoints/2").rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    with pytest.raises(CheckpointError, match=r"step 2 is damaged: .*checkpoints/2"):
        loop.train(tiny_config, run)


def stub_steps(monkeypatch, skips):
    """Replaces the training step by one that skips the steps with these numbers, and changes nothing."""

    def step(state, metrics, batch):
        bad = int(state.step) in skips
        skipped = metrics.skipped.at[state.step % RECENT].set(bad)
        metrics = metrics.replace(
            steps=metrics.steps + (not bad), skipped_steps=metrics.skipped_steps + bad, skipped=skipped
        )
        return state.replace(step=state.step + 1), metrics

    monkeypatch.setattr(loop, "_compile", lambda *args: (step, types.SimpleNamespace(flops=1.0, peak=None)))


def test_skipped_steps_end_a_run_when_they_are_too_many(tiny_config, run, monkeypatch):
    t = tiny_config.train
    t.num_steps, t.log_every, t.checkpoint_every, t.keep_last = 40, 5, 4, 99
    stub_steps(monkeypatch, {3, 7, 8, *range(20, 40)})
    said = (
        r"10 of the last 1,000 steps were skipped, the last at step 27 \(seed 0\).*last checkpoint is that of step 20"
    )
    with pytest.raises(loop.NonFiniteError, match=said):
        loop.train(tiny_config, run)
    # Steps 4 and 8 were skipped: what was due is saved after the next step that is not.
    assert sorted(int(path.name) for path in (run / "checkpoints").iterdir()) == [2, 5, 10, 12, 16, 20]
    assert [(line["step"], line["skipped_steps"]) for line in lines_of(run)[2:]] == [
        (5, 1),
        (10, 2),
        (15, 0),
        (20, 0),
        (25, 5),
    ]


def test_checkpoints_are_saved_by_time(tiny_config, run, monkeypatch):
    t = tiny_config.train
    t.num_steps, t.checkpoint_every, t.checkpoint_minutes, t.keep_last = 9, 100, 1.5, 99
    stub_steps(monkeypatch, {4})
    clock = iter(range(0, 100_000, 40))  # 40 s pass whenever somebody looks
    monkeypatch.setattr(
        loop, "time", types.SimpleNamespace(monotonic=lambda: next(clock), perf_counter=time.perf_counter)
    )
    loop.train(tiny_config, run)
    assert sorted(int(path.name) for path in (run / "checkpoints").iterdir()) == [2, 6, 9]


@pytest.mark.slow
def test_training_starts_from_a_smaller_network(tiny_config, run, tmp_path, capsys):
    before = loop.open_trained(run).params()
    m, t = tiny_config.model, tiny_config.train
    m.ch_mult, m.attn_resolutions, t.init_from = (1, 1), (4,), str(run)

    def begin(workdir):
        with loop.Checkpoints(workdir, keep_last=1) as checkpoints:
            state, start, _ = loop._restore_or_begin(loop._check(tiny_config, workdir, True), checkpoints, True)
            checkpoints.save(max(start, 1), state)
            loop.run_info.write_run_info(workdir, tiny_config, "", start, [])
            return state, start

    state, start = begin(tmp_path / "deep")
    assert start == int(state.step) == 0
    out = capsys.readouterr().out
    assert f"starting from {run}, trained for 2 steps at 8 px: " in out
    assert "with 1 fresh level(s) and the first and last convolution around them" in out
    for params in (state.params, state.ema_params):
        jax.tree.map(np.testing.assert_array_equal, params["mid_block"], before["mid_block"])
    assert np.any(state.params["conv_in"]["kernel"])
    m.norm_groups *= 2
    with pytest.raises(UserError, match=r"was trained with other layers .*\n  model.norm_groups: "):
        begin(tmp_path / "other")
    m.norm_groups //= 2
    # A run that has a checkpoint resumes, and does not start from other weights again.
    t.init_from = str(tmp_path / "gone")
    assert begin(tmp_path / "deep")[1] == 1
    with pytest.raises(MissingError, match="gone"):
        begin(tmp_path / "other")
    assert not (tmp_path / "other/config.json").exists()


@pytest.mark.slow
def test_the_initialization_is_traced_once(tiny_config, tmp_path, monkeypatch):
    """At full size, tracing it takes longer than anything else before the training step."""
    traced = []
    monkeypatch.setattr(loop, "init_state", lambda *args: traced.append(args) or init_state(*args))
    monkeypatch.setattr(loop.pipeline, "train_batches", mock.Mock(side_effect=InterruptedError("far enough")))
    with pytest.raises(InterruptedError, match="far enough"):
        loop.train(tiny_config, tmp_path / "run")
    assert len(traced) == 1


@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, *(pytest.param(other, marks=pytest.mark.slow) for other in (signal.SIGINT, signal.SIGHUP))],
)
def test_a_signal_saves_and_the_command_resumes(tiny_config, run, number):
    tiny_config.train.num_steps = 100_000
    process, deadline = start("train", tiny_config, run), time.monotonic() + 120
    metrics = run / "metrics.jsonl"
    while process.poll() is None and time.monotonic() < deadline:
        if len(metrics.read_text().splitlines()) > 4:
            break
        time.sleep(0.1)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "resuming from step 2" in out
    saved = re.search(rf"stopped by {number.name}: saved step (\d+)", out)
    assert saved, out + err
    assert int(saved[1]) > 4
    assert (run / "checkpoints" / saved[1]).exists()


def test_a_reader_that_goes_away_costs_nothing(tiny_config, run):
    process = start("train", tiny_config, run)
    process.stdout.close()
    process.stderr.close()
    assert process.wait(timeout=120) == 0
    assert (run / "checkpoints/4").exists()
