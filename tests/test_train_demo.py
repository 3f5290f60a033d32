"""scripts.train_demo: its choices, and the whole of it in miniature."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from scripts import train_demo
from threedim.trained import open_run, open_trained

REPOSITORY = pathlib.Path(__file__).parents[1]
MINIATURE = """
from threedim.configs import gpu64

def get_config():
    c = gpu64.get_config()
    c.data.dir = {data!r}
    p = c.data.procedural
    p.num_train_objects, p.num_test_objects, p.views, p.test_views, p.size, p.samples = 6, 2, 4, 3, 8, 1
    m = c.model
    m.image_size, m.ch, m.ch_mult, m.emb_ch, m.num_res_blocks = 8, 8, (1,), 8, 0
    m.attn_resolutions, m.attn_heads, m.dtype = (8,), 2, "float32"
    t = c.train
    t.batch_size, t.num_workers, t.warmup_examples, t.log_every = 4, 0, 40, 5
    c.mesh.cpu_devices = 0
    c.evaluate.input_view, c.sample.num_steps = 1, 3
    return c
"""


def line(step, seconds, at, **more):
    return {"step": step, "time": at, "seconds_per_step": seconds, "loss": 1.0, "learning_rate": 0.1} | more


def test_the_number_of_steps_fills_the_time():
    assert train_demo.choose_steps(0, 110.0, 10.0, 0.1) == 970
    assert train_demo.choose_steps(500, 60.0, 10.0, 0.5) == 597
    assert train_demo.choose_steps(7, 1.0, 10.0, 0.5) == 8  # never none
    assert [train_demo.reserve(minutes) for minutes in (1, 10, 60)] == [15, 150, 150]


def test_speed_and_start_up_are_those_without_compiling():
    lines = [line(10, 0.5, 1045.0), line(20, 0.11, 1046.0), line(30, 0.1, 1047.0)]
    assert train_demo.speed(lines, "3 parameters; compiled in 25 s\n", began=1000.0) == (0.1, 15.0)
    assert train_demo.speed(lines[:1], "", began=1000.0) == (0.5, 40.0)


def test_only_lines_about_steps_count(tmp_path):
    written = [json.dumps(each) for each in (line(5, 0.1, 0.0), line(10, 0.1, 0.0), {"step": 10, "eval/loss": 0.5})]
    (tmp_path / "metrics.jsonl").write_text("\n".join([*written, '{"step": 15, "lo']))
    assert [each["step"] for each in train_demo.read_metrics(tmp_path)] == [5, 10]
    assert train_demo.read_metrics(tmp_path / "nothing") == []


def test_the_plan_and_mistakes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(REPOSITORY)
    out = f"--out={tmp_path / 'out'}"
    train_demo.main([out, "--dry_run", "--", "--config.seed=3"])
    commands = capsys.readouterr().out.splitlines()
    assert [each.split()[2] for each in commands] == [
        *["threedim.main"] * 3, "threedim.weights", "threedim.main", "scripts.model_card",
    ]  # fmt: skip
    assert all("--config.seed=3" in each for each in commands if "threedim.main" in each)
    assert "num_train_objects=32" in commands[1]
    assert not (tmp_path / "out").exists()
    for wrong, said in (("--minutes=0", "must be positive"), ("--config=nothing.py", "nothing.py: no such file")):
        with pytest.raises(SystemExit, match=said):
            train_demo.main([out, wrong])


@pytest.mark.slow
def test_a_run_that_is_interrupted_once(tmp_path):
    config, out = tmp_path / "mini.py", tmp_path / "out"
    config.write_text(MINIATURE.format(data=str(tmp_path / "data")))

    def start(minutes):
        command = [sys.executable, "-m", "scripts.train_demo", f"--config={config}", f"--out={out}"]
        command += [f"--minutes={minutes}", "--", "--compilation_cache="]
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
        options = {"cwd": REPOSITORY, "env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return subprocess.Popen(command, text=True, **options)

    first = start(60)
    while len(train_demo.read_metrics(out / "run")) < 3:
        assert first.poll() is None, first.communicate()
        time.sleep(0.2)
    first.send_signal(signal.SIGTERM)
    said, _ = first.communicate(timeout=120)
    assert (first.returncode, said.splitlines()[-1].partition("] ")[2]) == (
        130,
        "interrupted; the same command goes on",
    )
    before = open_run(out / "run").step
    assert before >= 15
    assert not (out / "warm").exists()

    # Planned with a wrong speed, which a short start-up leaves time to correct.
    known = json.loads((out / "demo.json").read_text())
    minutes = (known["seconds"] + 3 * known["start_up"] + 15) / 45  # of which a quarter is kept for the results
    known["seconds_per_step"], known["start_up"] = known["seconds_per_step"] / 5, 1.0
    (out / "demo.json").write_text(json.dumps(known))
    second = start(minutes)
    said, _ = second.communicate(timeout=600)
    assert second.returncode == 0, said
    assert "rendering" not in said
    assert said.count("training to step") == 2
    step, known = open_run(out / "run").step, json.loads((out / "demo.json").read_text())
    assert before < step <= known["num_steps"] < 50_000
    rates = [each["learning_rate"] for each in train_demo.read_metrics(out / "run")]
    assert rates[-1] < max(rates)
    assert open_trained(out / "mini.safetensors").step == step
    assert f"{step:,}" in (out / "mini.md").read_text()
    for name in ("mini.png", "curves.png", f"evaluation/step_{step:07d}/report.html"):
        assert (out / name).stat().st_size > 0

    logs = {path: path.stat().st_mtime for path in (out / "logs").iterdir()}
    third = start(minutes)
    again, _ = third.communicate(timeout=120)
    assert third.returncode == 0, again
    assert again.splitlines()[-5:] == said.splitlines()[-5:]
    assert logs == {path: path.stat().st_mtime for path in (out / "logs").iterdir()}
