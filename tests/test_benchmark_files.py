"""The files that benchmarks write, and the comparison of two of them."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import jax
import pytest

from benchmarks import compare, fitting, memory, record, scaling

HEAD = {
    "machine": {"cpu": "Xeon", "cores": 2, "device": None},
    "versions": {"jax": "1.0"},
    "commit": {"hash": "abc", "modified": False},
    "command": "python -m benchmarks.step",
}


def test_head(monkeypatch):
    for name in record._ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XLA_FLAGS", "--a --b")
    monkeypatch.setattr(sys, "argv", ["step.py", "--json", "x.json", "--config.a=b c", "--json=y.json", "--repeats=2"])
    head = record.head("step")
    assert tuple(head) == record.HEAD
    assert head["command"] == "XLA_FLAGS='--a --b' python -m benchmarks.step '--config.a=b c' --repeats=2"
    assert head["machine"]["cores"] >= 1
    assert head["machine"]["cpu"]
    device = head["machine"]["device"]
    assert (device["platform"], device["count"], device["memory_bytes"]) == ("cpu", jax.local_device_count(), None)
    assert head["versions"]["jax"] == jax.__version__
    assert record.head("data", devices=False)["machine"] == head["machine"] | {"device": None}


class FakeDevice:
    device_kind, platform = "NVIDIA H200", "gpu"

    def __init__(self, stats):
        self.memory_stats = lambda: stats


def test_memory_of_a_device(monkeypatch):
    assert record.device_memory(FakeDevice({"bytes_limit": 7})) == 7
    assert record.device_memory(FakeDevice(None)) == 141e9
    assert fitting.memory_limit(0.5) == 2**29
    assert fitting.memory_limit() > 2**28  # of this machine
    unknown = FakeDevice(None)
    unknown.device_kind = "unknown"
    monkeypatch.setattr(jax, "local_devices", lambda: [unknown])
    with pytest.raises(ValueError, match="memory of a unknown is not known; say it with --memory_gib"):
        fitting.memory_limit()


def test_files_of_figures(tmp_path):
    path = tmp_path / "new" / "a.json"
    record.write(path, "step", HEAD, {"seconds": 1.5})
    assert record.read(path) == {"benchmark": "step", **HEAD, "figures": {"seconds": 1.5}}
    with pytest.raises(FileNotFoundError, match="no file"):
        record.read(tmp_path / "b.json")
    for text, message in (
        ("[", "no JSON file"),
        ("[1]", "does not say which benchmark"),
        ('{"figures": {}}', "does not say which benchmark"),
        ('{"benchmark": "step", "machine": {}, "versions": {}, "command": ""}', "has no figures, commit"),
        ('{"benchmark": "step", "heads": [], "figures": {}}', "heads is not an object"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            record.read(path)


def test_rows_from_before_there_were_heads_are_kept(tmp_path, monkeypatch, capsys):
    path = tmp_path / "memory.json"
    assert record.read_rows(path, "memory") == ({}, {})
    row = dataclasses.asdict(memory.Row("471M", "v5e-16", 4, "blocks", 4))
    old = {memory.Row(**row).name: {"row": row, "error": "18G of 16G"}}
    path.write_text(json.dumps(old))
    assert record.read_rows(path, "memory") == (old, {})
    record.write_rows(path, "memory", {}, old)
    assert record.read_rows(path, "memory") == (old, {})
    with pytest.raises(ValueError, match=r"of benchmarks\.memory, not rows of benchmarks\.scaling"):
        record.read_rows(path, "scaling")

    # Another machine's rows join; what both have must be the same.
    other = row | {"remat": "none"}
    added = {memory.Row(**other).name: {"row": other, "error": "20G of 16G"}}
    theirs = tmp_path / "theirs.json"
    record.write_rows(theirs, "memory", dict.fromkeys(added, HEAD), old | added)
    monkeypatch.setattr(sys, "argv", ["memory", f"--json={path}", f"--add={theirs}"])
    memory.main()
    assert "20G of 16G" in capsys.readouterr().out
    assert record.read_rows(path, "memory") == (old | added, dict.fromkeys(added, HEAD))
    theirs.write_text(json.dumps({name: figures | {"error": "17G"} for name, figures in old.items()}))
    with pytest.raises(SystemExit):
        memory.main()
    assert "with other figures" in capsys.readouterr().err


def test_figures_in_the_documents_are_readable():
    docs = pathlib.Path(__file__).parents[1] / "docs"
    figures, _ = record.read_rows(docs / "memory.json", "memory")
    assert len(memory.table(figures).splitlines()) == 2 + len(figures) > 2
    counted, _ = record.read_rows(docs / "scaling.json", "scaling")
    assert {"8", "64"} <= counted.keys()
    assert scaling.table(counted)


def test_compare(tmp_path, capsys):
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    record.write(a, "step", HEAD, {"step": {"seconds": 2.0, "flops": 8, "fits": True}, "rows": [0, 1], "old": 1})
    figures = {"step": {"seconds": 1.0, "flops": 8, "fits": False}, "rows": [5, 4], "name": "x"}
    record.write(b, "step", HEAD | {"versions": {"jax": "2.0", "new": "1"}}, figures)
    compare.main([str(a), str(b)])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1:4] == [
        ["made", "differently", "(a", "→", "b):"],
        ["versions", "jax:", "1.0", "→", "2.0"],
        ["versions", "new:", "(nothing)", "→", "1"],
    ]
    assert lines[4:] == [
        ["a", "b", "b/a"],
        ["step/seconds", "2", "1", "0.500"],
        ["step/flops", "8", "8", "1.000"],
        ["rows/0", "0", "5", "-"],
        ["rows/1", "1", "4", "4.000"],
        ["in", "a", "alone:", "1", "number(s)"],
    ]
    compare.main([str(a), str(a), "--only", "seconds$"])
    out = capsys.readouterr().out
    assert "made with the same machine, versions, commit and command" in out
    assert len(out.splitlines()) == 4


def test_compare_rows(tmp_path, capsys):
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    later = HEAD | {"commit": {"hash": "def", "modified": True}}
    record.write_rows(a, "scaling", {"8": HEAD, "64": HEAD}, {name: {"sent": 2.0} for name in ("8", "64", "512")})
    record.write_rows(b, "scaling", {"8": later, "64": later}, {name: {"sent": 3.0} for name in ("8", "64", "512")})
    compare.main([str(a), str(b)])
    out = capsys.readouterr().out
    assert "commit hash: abc → def   (64 and 1 more row(s))" in out
    assert "from before there were heads   (512)" in out
    assert out.splitlines()[-1].split() == ["512/sent", "2", "3", "1.500"]


@pytest.mark.parametrize("case", ["absent", "other", "foreign", "nothing", "expression"])
def test_compare_refuses_what_cannot_be_compared(tmp_path, case):
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    record.write(a, "step", HEAD, {"seconds": 1.0})
    record.write(b, "data" if case == "other" else "step", HEAD, {"pairs": 1.0})
    if case == "absent":
        b.unlink()
    if case == "foreign":
        b.write_text("{}")
    with pytest.raises(SystemExit) as error:
        compare.main([str(a), str(b), "--only=("] if case == "expression" else [str(a), str(b)])
    expected = {
        "absent": f"there is no file {b}",
        "other": f"{a} is of benchmarks.step, {b} of benchmarks.data",
        "foreign": f"{b} is no file of a benchmark's figures: it does not say which benchmark it is of",
        "nothing": f"{a} and {b} have no number in common",
        "expression": "--only='(' is no regular expression",
    }
    # A text is what Python prints before it ends with code 1.
    assert error.value.code.startswith(expected[case])
    assert "\n" not in error.value.code


@pytest.mark.parametrize(
    ("name", "arguments", "number"),
    [
        ("render", ["--objects=1", "--views=1", "--size=8", "--samples=1", "--repeats=1"], "render/procedural cars/"),
        (
            "data",
            ["--objects=2", "--views=2", "--image_size=8", "--size=8", "--workers=0", "--seconds=0.1", "--repeats=1"],
            "stream/one core, 0 worker(s)/pairs_per_second",
        ),
    ],
)
def test_what_reads_and_renders_writes_a_file(tmp_path, capsys, name, arguments, number):
    path = tmp_path / "figures.json"
    command = [sys.executable, "-m", f"benchmarks.{name}", *arguments, f"--json={path}"]
    root = pathlib.Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1])  # still the last line that is printed
    content = record.read(path)
    assert content["machine"]["device"] is None
    assert content["command"].endswith(" ".join(arguments))
    compare.main([str(path), str(path)])
    assert number in capsys.readouterr().out
