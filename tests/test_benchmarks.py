"""The benchmarks run, and what they conclude follows from what they measure; no test looks at a time."""

import dataclasses

import jax
import numpy as np
import pytest

from benchmarks import compiling, drawing, fitting, memory, scaling, startup, step
from benchmarks.inputs import batch_shapes, example_batch
from threedim import config as config_lib
from threedim.training import hardware
from threedim.training.step import Metrics, init_state, make_train_step


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
        network, process, recipe = (
            config_lib.network(tiny_config),
            config_lib.process(tiny_config),
            config_lib.recipe(tiny_config),
        )
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
    assert f"{figures['parameters']:,} parameters, batch 2, 1 a chip device(s), matmul 1 GFLOP/s" in lines[0]
    assert [line.split()[0] for line in lines[2:]] == ["training", "denoising"]
