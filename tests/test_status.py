"""How a run stands, from its files alone."""

import json
import re

import pytest
from commands import run_python
from PIL import Image

from threedim import locks
from threedim.errors import MissingError, UserError
from threedim.training import status

WITHOUT_DEVICES = """
import sys
from jax._src import xla_bridge
from threedim import main
sys.argv = ["threedim", "--mode=status", "--workdir=" + sys.argv[1]]
try:
    main.run()
finally:
    assert not xla_bridge.backends_are_initialized()
"""


def line(step, **values):
    return json.dumps({"step": step, "time": 1e9} | values) + "\n"


def write_metrics(run, *lines):
    (run / "metrics.jsonl").write_text("".join(lines))


def test_a_run_that_does_not_train(run):
    write_metrics(
        run,
        line(1, loss=0.5, examples_per_second=2.0, skipped_steps=2.0),
        line(1, **{"eval/loss": 0.25}),
        line(2, loss=None, examples_per_second=4.0, skipped_steps=1.0),
        '{"step": 3, "lo',
    )
    (run / "checkpoints/2/eval.json").write_text('{"loss": 0.25}')
    settings = json.loads((run / "config.json").read_text())
    settings["config"]["train"]["num_steps"] = 62
    (run / "config.json").write_text(json.dumps(settings))
    said = dict(re.split(r": +", line, maxsplit=1) for line in status.report(run).splitlines())
    assert said["run"] == f"{run}: does not train"
    assert said["step"] == "2 of 62 (3 %)"
    assert said["loss"].startswith("not finite at step 2, 2001-09-")
    assert said["held-out loss"].startswith("0.25 at step 1, ")
    assert said["speed"] == "4 pairs a second; 60 steps left take about 0:01:00"
    when = r"step 2, \d{4}-\d\d-\d\d \d\d:\d\d \(0:\d\d:\d\d ago\), held-out loss 0.25"
    assert re.fullmatch(when, said["last checkpoint"])
    assert re.fullmatch(when, said["best checkpoint"])
    assert said["skipped"] == "3 steps, whose loss or gradient was not finite"
    with Image.open(said["curves"]) as picture:
        assert picture.size == (1140, 480)


def test_a_run_that_trains_is_not_disturbed(run, tmp_path):
    with locks.hold(run, "trains in"):
        before = (run / locks.NAME).read_text()
        assert re.match(r"run: +\S+: trains \(process \d+ on \S+, since ", status.report(run))
        assert (run / locks.NAME).read_text() == before
    with locks.hold(tmp_path / "new", "trains in"):
        assert "none is finished yet" in status.report(tmp_path / "new")


def test_nothing_is_written_without_metrics(run):
    write_metrics(run)
    assert f"none: {run / 'metrics.jsonl'} has no lines" in status.report(run)
    assert not (run / "curves.png").exists()


def test_mistakes(run, tmp_path):
    with pytest.raises(MissingError, match="the workdir of a training run"):
        status.report(tmp_path / "nowhere")
    write_metrics(run, "nonsense\n", line(1, loss=1.0))
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 1 is not a line of metrics"):
        status.report(run)
    (run / "config.json").write_text('{"config": {}, "data_fingerprint": ""}')
    with pytest.raises(UserError, match=r"config\.json is damaged"):
        status.report(run)


def test_the_command_needs_no_config_and_no_device(run):
    done = run_python("-c", WITHOUT_DEVICES, run)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\nstep:            2 of 2 (100 %)\n" in done.stdout
    assert (run / "curves.png").exists()
