"""The benchmarks run, and what they conclude follows from what they measure; no test looks at a time."""

import dataclasses
import functools
import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from benchmarks import compare, compiling, drawing, fitting, memory, record, samplers, scaling, startup, step
from benchmarks.inputs import batch_shapes, example_batch
from threedim.output import images
from threedim.sampling import Settings
from threedim.training import build, hardware, loop
from threedim.training.state import Metrics, init_state, make_train_step


@pytest.fixture(scope="module")
def pictures():
    """Two objects, three seeds, four views of which two are drawn again; and the truth."""
    rng = np.random.default_rng(0)
    truth = rng.integers(60, 200, (2, 4, 16, 16, 3), np.uint8)
    noise = rng.normal(0, 8, (2, 3, 6, 16, 16, 3))
    drawn = np.clip(np.concatenate([truth, truth[:, :2]], axis=1)[:, None] + noise, 0, 255).astype(np.uint8)
    return drawn, truth


def test_measures(pictures):
    drawn, truth = pictures
    rows = samplers.measure(drawn, truth, 2)
    assert {name: len(values) for name, values in rows.items()} == dict.fromkeys([*samplers.MEASURES, "independent"], 3)
    error = np.mean((drawn[:, 1, :4].astype(float) - truth) ** 2, axis=(2, 3, 4))
    np.testing.assert_allclose(rows["psnr"][1], np.mean(10 * np.log10(255**2 / error)), rtol=1e-4)
    again = np.mean((drawn[:, 2, :2].astype(float) - drawn[:, 2, 4:]) ** 2)
    np.testing.assert_allclose(rows["agreement"][2], 10 * np.log10(255**2 / again), rtol=1e-6)
    # The second drawing equals the first: as good as can be, and of no effect on what is measured against the truth.
    copied = drawn.copy()
    copied[:, :, 4:] = copied[:, :, :2]
    better = samplers.measure(copied, truth, 2)
    assert min(better["agreement"]) > 70 > max(rows["agreement"])
    assert better["psnr"] == rows["psnr"]
    assert max(better["independent"]) < 40


def test_worse_is_more_than_noise():
    reference = {name: [1.0, 1.1, 0.9, 1.0] for name in samplers.MEASURES}
    assert samplers.worse_in(reference, reference) == []
    assert samplers.worse_in({name: [0.8, 0.9, 0.7, 0.8] for name in reference}, reference) == [
        "psnr",
        "ssim",
        "agreement",
    ]
    assert samplers.worse_in({name: [1.2, 1.3, 1.1, 1.2] for name in reference}, reference) == ["patch_distance"]
    assert samplers.worse_in({name: [0.5, 1.5, 0.7, 1.1] for name in reference}, reference) == []


def test_candidates():
    for weight in (0.0, 2.0):
        rows = samplers.candidates(weight, False, [8, 250])
        assert next(iter(rows)) == samplers.REFERENCE == "ancestral 250"
        assert rows[samplers.REFERENCE] == Settings(guidance_weight=weight)
        assert rows["preset fast"].guidance_weight == weight
        assert len(set(rows.values())) == len(rows)
        assert any("guided in" in name for name in rows) == (weight > 0)


def test_samplers_are_compared_and_what_is_measured_is_kept(tiny_config, tmp_path, monkeypatch):
    tiny_config.train.num_steps = 1
    tiny_config.sample.num_views, tiny_config.sample.guidance_weight = 2, 1.0
    tiny_config.model.image_size, tiny_config.data.procedural.size = 16, 16
    tiny_config.model.attn_resolutions = (8,)
    p = tiny_config.data.procedural
    p.num_train_objects, p.num_test_objects, p.views, p.test_views, p.samples = 1, 2, 3, 3, 1
    tiny_config.data.source = ""
    loop.train(tiny_config, tmp_path / "run")
    rows = {
        samplers.REFERENCE: Settings(2, 1.0),
        "2M 2": Settings(2, 1.0, solver="dpm_solver_2m"),
        "preset fast": Settings(2, 1.0, guidance_interval=(-1.0, 1.0)),
    }
    monkeypatch.setattr(samplers, "candidates", lambda weight, fresh, steps: dict(rows))
    compare = functools.partial(samplers.compare, tiny_config, tmp_path / "run", 2, [2], 1)
    out = compare()
    content = json.loads((out / "samplers.json").read_text())
    assert list(content["figures"]) == list(content["heads"]) == list(rows)
    assert all(head.keys() == set(record.HEAD) for head in content["heads"].values())
    assert [row["evaluations"] for row in content["figures"].values()] == [4, 4, 3]
    assert content["protocol"]["views"] == 2
    lines = (out / "samplers.md").read_text().splitlines()
    assert len(lines) == 5
    assert "(reference)" in lines[2]
    assert images.load_png(out / "samplers.png").shape[:2] == (700, 1600)
    assert len(list((out / "sheets").iterdir())) == 3

    # Only what is new is drawn; a changed protocol is refused.
    drawn = []
    monkeypatch.setattr(samplers, "draw", lambda *args: drawn.append(args[4]) or real(*args))
    real = samplers_draw
    rows["2M 3"] = Settings(3, 1.0, solver="dpm_solver_2m")
    # As it was written before rows had heads.
    (out / "samplers.json").write_text(json.dumps({"protocol": content["protocol"], "samplers": content["figures"]}))
    compare()
    content = json.loads((out / "samplers.json").read_text())
    assert (len(content["figures"]), list(content["heads"])) == (4, ["2M 3"])
    assert drawn == [rows["2M 3"]]
    with pytest.raises(ValueError, match="was measured otherwise"):
        samplers.compare(tiny_config, tmp_path / "run", 3, [2], 1)
    tiny_config.sample.cameras = "orbit"
    with pytest.raises(ValueError, match="no true views"):
        compare()


samplers_draw = samplers.draw


def test_bytes_on_the_wire_are_read_from_a_compiled_program():
    text = """
  %all-reduce.1 = f32[10,4]{1,0} all-reduce(f32[10,4]{1,0} %p), channel_id=1, replica_groups=[2,4]<=[8], to_apply=%add
  %ag = (bf16[8,4]{1,0}, bf16[32,4]{1,0}) all-gather-start(bf16[8,4]{1,0} %q), replica_groups={{0,1,2,3},{4,5,6,7}}
  %done = bf16[32,4]{1,0} all-gather-done((bf16[8,4]{1,0}, bf16[32,4]{1,0}) %ag)
  ROOT %rs = (f32[2]{0}, f32[6]{0}) reduce-scatter(f32[8]{0} %a, f32[24]{0} %b), replica_groups=[2,4]<=[8]
  %ar.2 = f32[100]{0} all-reduce(f32[100]{0} %c), replica_groups=mesh['a'=2,'b'=16], ids=[8,4]T(1,0) {'a','b':(4)4}
  %name_with_all-reduce = f32[100]{0} add(f32[100]{0} %x, f32[100]{0} %y)
"""
    assert compiling.wire_bytes(text) == {
        "all-gather": 32 * 4 * 2 * 3 / 4,
        "all-reduce": 40 * 4 * 2 * 3 / 4 + 400 * 2 * 7 / 8,
        "reduce-scatter": 8 * 4 * 3,
        "all-to-all": 0,
        "collective-permute": 0,
    }


def test_memory_table():
    row = memory.Row("471M", "v5e-16", 4, "blocks", 4)
    assert row in memory.rows()
    assert len({row.name for row in memory.rows()}) == len(memory.rows())
    figures = {"row": dataclasses.asdict(row), "state_bytes": 2 * 2**30, "temporary_bytes": 3 * 2**30}
    found = {row.name: figures | {"device_bytes": 6 * 2**30}}
    other = memory.Row("1.3B", "H100x8", 1, "none", num_res_blocks=1)
    found[other.name] = {"row": dataclasses.asdict(other), "error": "99G of 80G"}
    lines = memory.table(found).splitlines()
    assert lines[2] == "| 471M | v5e-16 | 4 x 4 | blocks | 128 (4) | 2.0 | 3.0 | 6.0 | 16 | yes |"
    assert lines[3].startswith("| 1.3B, 1 block(s) a level | H100x8 | 8 x 1 | none | 128 (1) |")
    assert lines[3].endswith("| no |")


def test_scaling_estimate():
    chip = hardware.Chip("chip", 100e12, 1.0, 50e9)
    compute, send, fraction = scaling.estimate(2.0, chip, 8, 64)
    assert compute == pytest.approx(6.68e12 * 8 / 50e12)
    assert send == pytest.approx(2 * 4 * 461_661_731 / 50e9)
    assert fraction == pytest.approx(compute / (compute + send))
    sent = {"all-gather": 1.0, "all-reduce": 2.0}
    lines = scaling.table({"8": {"8x1": sent, "1x8": sent}}).splitlines()
    assert "| 8x1 | 1.00 | 2.00 | 3.00 |" in lines


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


@pytest.mark.parametrize("start", [1, 8, 11, 12, 100, 2**20])
def test_the_largest_batch_is_found_by_doubling_and_bisecting(start):
    asked = []

    def bytes_of(batch):
        asked.append(batch)
        return 100 + 10 * batch

    assert fitting.largest(bytes_of, 219, start) == (11, 210)
    assert len(asked) == len(set(asked)) <= 24
    assert fitting.largest(bytes_of, 105, start) == (0, 0)
    assert fitting.largest(bytes_of, 1e9, start, most=300) == (300, 3100)


def test_a_compiler_that_says_it_does_not_fit_is_believed():
    def raises(message):
        raise jax.errors.JaxRuntimeError(message)

    assert fitting.program_bytes(lambda: raises("RESOURCE_EXHAUSTED: Used 20G of 16G hbm")) == float("inf")
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        fitting.program_bytes(lambda: raises("INTERNAL: broken"))
    compiled = jax.jit(lambda x: x + 1).lower(jax.ShapeDtypeStruct((1000,), np.float32)).compile()
    assert fitting.program_bytes(lambda: compiled) >= 8000


def test_largest_training_batch_is_a_whole_number_of_microbatches(tiny_config, monkeypatch):
    tiny_config.train.microbatches, tiny_config.train.remat = 2, "blocks"
    asked = []

    def compiled(network, process, recipe, mesh):
        assert (network.remat, recipe.microbatches, mesh.size) == ("blocks", 2, 1)
        asked.append(recipe.batch_size)
        return None, recipe.batch_size

    monkeypatch.setattr(fitting, "compile_training_step", compiled)
    monkeypatch.setattr(hardware, "device_bytes", lambda batch: 10 * batch)
    found = step.measure(tiny_config, largest_batch=True, gib=75 / 2**30)
    assert found["largest_training_batch"] == {
        "batch_size": 6,
        "microbatches": 2,
        "remat": "blocks",
        "device_bytes": 60,
        "limit_bytes": 75,
    }
    assert asked == [4, 8, 6]
    text = step.report(found, "cpu")
    assert text.endswith("remat blocks, in 2 part(s): 6 pairs, which need 0.00 GiB")


def test_views_per_second_and_the_largest_batch_of_objects(tiny_config, monkeypatch):
    tiny_config.sample.num_views = 3
    draw = drawing.Drawing(tiny_config)
    assert draw.known_views == 4
    # What is compiled for, without data, is what there is in the end.
    real = jax.eval_shape(draw.example, draw.params, example_batch(8, 2))
    shapes, expected = ([(x.shape, x.dtype) for x in jax.tree.leaves(tree)] for tree in (draw.shapes(2)[1:], real))
    assert shapes == expected

    monkeypatch.setattr(step, "matmul_rate", lambda dtype: 1e9)
    limit = fitting.program_bytes(draw.lower(2).compile)
    figures = step.measure(tiny_config, 1, sampling=True, gib=limit / 2**30)
    found = figures["sampling"]
    assert found["largest"] == {"objects": 2, "device_bytes": limit, "limit_bytes": limit}
    assert fitting.program_bytes(draw.lower(3).compile) > limit == found["device_bytes"]
    assert (found["objects"], found["known_views"], found["evaluations_per_view"]) == (2, 4, 6)
    assert found["views_per_second"] == pytest.approx(2 / found["seconds"])
    assert found["flops"] == 2 * 6 * draw.flops_per_evaluation()
    assert found["fraction_of_matmul"] == pytest.approx(found["flops"] / found["seconds"] / 1e9)
    assert "2 objects at once, preset paper, 3 steps, 6 evaluations a view, 4 known views" in step.report(figures, "x")

    monkeypatch.setattr(drawing, "largest", lambda bytes_of, limit, start: (1, 5.0))
    with pytest.raises(ValueError, match=r"2 objects at once do not fit in 0\.50 GiB, 1 do"):
        step.measure(tiny_config, 1, sampling=True, gib=0.5)

    # With the input views alone there is no room for others; with relative poses each step embeds the target anew.
    absolute = draw.flops_per_evaluation()
    tiny_config.sample.conditioning, tiny_config.data.pose = "input", "relative"
    draw = drawing.Drawing(tiny_config)
    assert draw.known_views == 1
    assert draw.flops_per_evaluation() > absolute


def test_what_rematerialization_computes_again_is_not_counted(tiny_config):
    def counted(remat, microbatches):
        tiny_config.train.remat, tiny_config.train.microbatches = remat, microbatches
        network, process, recipe = build.network(tiny_config), build.process(tiny_config), build.recipe(tiny_config)
        args = (*jax.eval_shape(lambda: (init_state(network, recipe), Metrics.zeros())), batch_shapes(8, 4))
        lowered = jax.jit(make_train_step(network, process, recipe)).lower(*args)
        return step.training_flops(network, process, recipe, args), lowered.cost_analysis()["flops"]

    needed, lowered = counted("none", 1)
    assert needed == lowered
    needed_again, lowered = counted("blocks", 1)
    assert needed_again == needed < lowered
    needed_again, lowered_twice = counted("all", 1)
    assert needed_again == needed
    assert lowered_twice > lowered
    in_parts, _ = counted("none", 2)
    assert in_parts == pytest.approx(needed, rel=0.1)


def test_phases_of_a_start_add_up():
    """Nested traces count once, and a compilation inside of the data's time is a compilation."""
    seen = {
        "launched": 100.0,
        "imported": 103.0,
        "end": 120.0,
        "cpu_seconds": 9.0,
        "spans": {
            "compile": [[105.5, 106.0], [110.0, 114.0], [119.0, 125.0]],
            "trace": [[102.0, 102.5], [107.0, 109.0], [107.5, 108.0], [108.5, 110.5]],
            "data": [[105.0, 106.0], [104.0, 105.0]],
            "step": [[117.0, 120.0]],
        },
    }
    found = startup.split(seen)
    assert tuple(found) == ("seconds", "cpu_seconds", *startup.PHASES)
    assert found == {
        "seconds": 20.0,
        "cpu_seconds": 9.0,
        "imports": 3.0,
        "data": 1.5,
        "trace": 3.0,
        "compile": 5.5,
        "step": 2.0,
        "rest": 5.0,
    }
    rows = [found | {"seconds": seconds, "programs": 7, "cache_hits": 2} for seconds in (4.0, 2.0, 3.0)]
    lines = startup.report({"cold": found | rows[0], "warm": rows[2], "warm_runs": rows}).splitlines()
    assert [line[:27].split()[-1] for line in lines] == ["seconds", "4.00", "3.00", "2.00", "4.00"]


@pytest.mark.slow
def test_startup_is_measured_to_the_first_step():
    small = {"ch": 8, "ch_mult": "(1,2)", "emb_ch": 8, "num_res_blocks": 1, "attn_resolutions": "(4,)"}
    settings = [f"--config.model.{name}={value}" for name, value in (small | {"image_size": 8}).items()]
    figures = startup.measure("configs/bench_cpu.py", settings, 1)
    cold, warm = figures["cold"], figures["warm"]
    assert figures["device"]["platform"] == "cpu"
    for row in (cold, warm):
        assert sum(row[phase] for phase in startup.PHASES) == pytest.approx(row["seconds"])
        assert min(row[phase] for phase in startup.PHASES) > 0
        assert row["cpu_seconds"] > 0
    # The second process compiles nothing large anew.
    assert cold["cache_hits"] == 0 < warm["cache_hits"] == cold["cache_misses"]


@pytest.mark.slow
def test_startup_says_why_training_failed():
    with pytest.raises(RuntimeError, match=r"model\.dtype must be one of"):
        startup.measure("configs/bench_cpu.py", ["--config.model.dtype=float8"], 1)


@pytest.mark.slow
def test_steps(tiny_config, monkeypatch):
    monkeypatch.setattr(step, "matmul_rate", lambda dtype: 1e9)
    tiny_config.train.batch_size = 2
    figures = step.measure(tiny_config, 1)
    training = figures["training_step"]
    assert training["pairs_per_second"] == pytest.approx(2 / training["seconds"])
    assert training["fraction_of_matmul"] == pytest.approx(training["flops"] / training["seconds"] / 1e9)
    assert figures["denoising_step"]["flops"] < training["flops"] / 3
    lines = step.report(figures, "a chip").splitlines()
    assert f"{figures['parameters']:,} parameters, batch 2, a chip, matmul 1 GFLOP/s" in lines[0]
    assert [line.split()[0] for line in lines[2:]] == ["training", "denoising"]
