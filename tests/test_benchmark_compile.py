"""Reading compiled programs, and what compilers make of training and sampling."""

import importlib.util

import pytest
from commands import run_python

from benchmarks import compile as compile_lib
from benchmarks import hlo, record
from threedim.errors import UserError
from threedim.training import hardware

PROGRAM = """HloModule jit_f, is_scheduled=true, num_partitions=2

%product.1 (x: bf16[8,8], k: f32[8,8]) -> f32[8,8] {
  %x = bf16[8,8]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %k = f32[8,8]{0,1:T(8,128)} parameter(1)
  %rounded = bf16[8,8]{0,1} convert(%k)
  ROOT %conv = f32[8,8]{1,0} convolution(%x, %rounded), dim_labels=bf_io->bf, metadata={op_name="jit(f)/query"}
}

%body (state: (f32[8,8], f32[8,8])) -> (f32[8,8], f32[8,8]) {
  %state = (f32[8,8]{1,0}, f32[8,8]{1,0}) parameter(0)
  %weights = f32[8,8]{1,0} get-tuple-element(%state), index=0
  %value = f32[8,8]{1,0} get-tuple-element(%state), index=1
  %dot = f32[8,8]{1,0} dot(%value, %weights), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %swap = f32[8,8]{1,0} fusion(%dot), kind=kCustom, calls=%swapped
  ROOT %next = (f32[8,8]{1,0}, f32[8,8]{1,0}) tuple(%weights, %swap)
}

%swapped (t: f32[8,8]) -> f32[8,8] {
  %t = f32[8,8]{1,0} parameter(0)
  ROOT %cp = f32[8,8]{1,0} collective-permute(%t), channel_id=3, source_target_pairs={{0,1},{1,0}}
}

ENTRY %main_spmd (params: f32[8,8], share: bf16[4,8]) -> (f32[8,8], /*index=1*/f32[8,8]) {
  %params = f32[8,8]{0,1:T(8,128)} parameter(0)
  %share = bf16[4,8]{1,0} parameter(1)
  %start = (f32[8,8]{0,1:T(8,128)S(1)}, f32[8,8]{0,1:T(8,128)}, u32[]{:S(2)}) copy-start(%params)
  %ring = bf16[8,8]{1,0} all-gather(%share), channel_id=1, replica_groups=[1,2]<=[2], dimensions={0}
  %again = bf16[8,8]{1,0} all-gather(%share), channel_id=1, replica_groups=[1,2]<=[2], dimensions={0}
  %fusion.1 = f32[8,8]{1,0} fusion(%ring, %params), kind=kOutput, calls=%product.1
  %init = (f32[8,8]{1,0}, f32[8,8]{1,0}) tuple(%params, %fusion.1)
  %loop = (f32[8,8]{1,0}, f32[8,8]{1,0}) while(%init), body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %sum = (bf16[8,8]{1,0}, f32[4]{0}) all-reduce(%again, %params), channel_id=2, replica_groups=[1,2]<=[2], to_apply=%add
  %call = (f32[8,8]{1,0}, u8[4]{0}) custom-call(%again, %params), custom_call_target="__cudnn$convForward"
  ROOT %result = (f32[8,8]{1,0}, f32[8,8]{1,0}) tuple(%loop, %call)
}
"""


@pytest.fixture(scope="module")
def program():
    return hlo.instructions(PROGRAM)


def test_products_by_the_dtypes_of_their_operands(program):
    assert hlo.products(program) == {"bf16 x bf16": 1, "f32 x f32": 1, "bf16 x f32": 1}


def test_exchanges_count_once_per_channel_and_each_time_in_loops(program):
    assert hlo.loop_counts(program)["swapped"] == 5
    assert hlo.collectives(program) == {
        "all-gather": {"count": 1, "bytes": 128, "wire_bytes": 64.0, "dtypes": {"bf16": 1}},
        "collective-permute": {"count": 5, "bytes": 1280, "wire_bytes": 1280.0, "dtypes": {"f32": 5}},
        "all-reduce": {"count": 1, "bytes": 144, "wire_bytes": 144.0, "dtypes": {"bf16": 1, "f32": 1}},
    }


def test_bytes_on_the_wire():
    text = """ENTRY %main (p: f32[1]) -> f32[1] {
  %all-reduce.1 = f32[10,4]{1,0} all-reduce(f32[10,4]{1,0} %p), channel_id=1, replica_groups=[2,4]<=[8], to_apply=%add
  %ag = (bf16[8,4]{1,0}, bf16[32,4]{1,0}) all-gather-start(bf16[8,4]{1,0} %q), replica_groups={{0,1,2,3},{4,5,6,7}}
  %done = bf16[32,4]{1,0} all-gather-done((bf16[8,4]{1,0}, bf16[32,4]{1,0}) %ag)
  %rs = (f32[2]{0}, f32[6]{0}) reduce-scatter(f32[8]{0} %a, f32[24]{0} %b), replica_groups=[2,4]<=[8]
  %ar.2 = f32[100]{0} all-reduce(f32[100]{0} %c), replica_groups=mesh['a'=2,'b'=16], ids=[8,4]T(1,0) {'a','b':(4)4}
  ROOT %name_with_all-reduce = f32[100]{0} add(f32[100]{0} %x, f32[100]{0} %y)
}
"""
    found = {kind: each["wire_bytes"] for kind, each in hlo.collectives(hlo.instructions(text)).items()}
    assert found == {
        "all-reduce": 40 * 4 * 2 * 3 / 4 + 400 * 2 * 7 / 8,
        "all-gather": 32 * 4 * 2 * 3 / 4,
        "reduce-scatter": 8 * 4 * 3,
    }
    with pytest.raises(ValueError, match="how many devices"):
        hlo.collectives(hlo.instructions(text.replace("replica_groups=", "groups=")))
    with pytest.raises(ValueError, match="no line starts with ENTRY"):
        hlo.instructions(text.replace("ENTRY ", ""))


def test_scaling_is_compute_over_compute_and_send():
    chip = hardware.Chip("chip", 100e12, 1.0, 50e9)
    found = compile_lib.scaling(400e12, 10e9, 8, chip)
    assert found == {"compute_seconds": 1.0, "send_seconds": 0.2, "scaling": pytest.approx(1 / 1.2)}


def test_mistakes_are_named(tiny_config):
    for topology in ("v7:2x2", "v5e", "cpu:two"):
        with pytest.raises(UserError, match=r"--topology must be one of cpu, v4, v5e"):
            compile_lib.measure(tiny_config, topology, 1, ["training"])
    with pytest.raises(UserError, match=r"--programs must be of training, evaluation, view; got sampling"):
        compile_lib.measure(tiny_config, "cpu:1", 1, ["training", "sampling"])
    with pytest.raises(UserError, match=r"--fsdp=2 does not divide the 1 devices of cpu:1"):
        compile_lib.measure(tiny_config, "cpu:1", 2, ["training"])


def compiled(folder, topology, fsdp, programs, **model):
    """Figures of the command for a small network, in a process of its own."""
    path = folder / "figures.json"
    settings = {"image_size": 16, "ch": 64, "ch_mult": "(1,2)", "emb_ch": 64, "num_res_blocks": 1, "attn_heads": 4}
    settings |= {"attn_resolutions": "(8,)"} | model
    command = ["-m", "benchmarks.compile", f"--topology={topology}", f"--fsdp={fsdp}"]
    command += [f"--programs={programs}", f"--json={path}", "--config=configs/base.py"]
    command += [f"--config.model.{name}={value}" for name, value in settings.items()]
    command += ["--config.train.batch_size=32", "--config.sample.batch_size=32", "--config.sample.num_views=3"]
    # What is read is what the compiler makes for a real device.
    done = run_python(*command, JAX_DISABLE_MOST_OPTIMIZATIONS="0" if topology.startswith("v") else "1")
    assert done.returncode == 0, done.stderr[-2000:]
    return record.read(path)["figures"], done.stdout


@pytest.mark.slow
def test_one_evaluation_of_the_sampler(tiny_config):
    tiny_config.model.ch_mult, tiny_config.model.attn_resolutions = (1,), (8,)
    figures = compile_lib.measure(tiny_config, "cpu:1", 1, ["evaluation"])
    found = figures["evaluation"]
    assert found["state_bytes"] == found["parameter_bytes"]
    assert found["flops"] == pytest.approx(found["compiled_flops"], rel=0.2)
    assert found["products"].keys() == {"f32 x f32"}
    assert (found["collectives"], found["wire_bytes"]) == ({}, 0)
    lines = compile_lib.report(figures).splitlines()
    assert lines[0].startswith("evaluation on cpu:1, mesh 1 x 1: compiled in")
    assert f"{found['flops'] / 1e12:.4g} needed" in lines[2]


@pytest.mark.slow
def test_a_training_step_for_two_virtual_devices(tmp_path):
    one_level = {"image_size": 8, "ch": 96, "ch_mult": "(1,)", "attn_resolutions": "(8,)", "norm_groups": 8}
    figures, out = compiled(tmp_path, "cpu:2", 2, "training", **one_level)
    assert out.startswith("training on cpu:2, mesh 1 x 2: compiled in")
    found = figures["training"]
    assert figures["devices"] == 2
    # Parameters, their average and two moments, of which the large ones are split.
    assert 2 * found["parameter_bytes"] < found["state_bytes"] < 4 * found["parameter_bytes"]
    assert found["argument_bytes"] > found["state_bytes"]
    assert found["device_bytes"] > found["argument_bytes"]
    assert found["flops"] == pytest.approx(found["compiled_flops"], rel=0.2)
    kinds = found["collectives"]
    assert kinds.keys() == {"all-gather", "all-reduce"}
    # On two devices each sends half of what it gathers, and as much as it sums.
    assert kinds["all-gather"]["wire_bytes"] == kinds["all-gather"]["bytes"] / 2 <= found["parameter_bytes"] / 2
    assert kinds["all-reduce"]["wire_bytes"] == kinds["all-reduce"]["bytes"] >= found["parameter_bytes"]
    assert found["wire_bytes"] == sum(each["wire_bytes"] for each in kinds.values())


for_tpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu, the TPU compiler, is not installed (pip install libtpu); it needs no TPU",
)


@for_tpu
@pytest.mark.slow
def test_training_on_a_tpu_sends_parameters_and_gradients_in_bfloat16(tmp_path):
    found = compiled(tmp_path, "v5e:2x2", 2, "training")[0]["training"]
    # The last convolution and the encodings of ray origins take float32.
    assert found["products"]["bf16 x bf16"] > 50
    assert sum(found["products"].values()) - found["products"]["bf16 x bf16"] < 30
    kinds = found["collectives"]
    assert kinds.keys() == {"all-gather", "all-reduce"}
    # Split parameters are gathered once, and no activation is.
    assert kinds["all-gather"]["dtypes"].keys() == {"bf16"}
    assert kinds["all-gather"]["bytes"] <= found["parameter_bytes"] / 2
    assert found["compiled_flops"] < 1.3 * found["flops"]
    assert found["memory_bytes"] == 16 * 2**30
    assert 0 < found["scaling"] < 1


@for_tpu
@pytest.mark.slow
@pytest.mark.parametrize("program", ["evaluation", "view"])
def test_sampling_on_a_tpu_sends_nothing(tmp_path, program):
    found = compiled(tmp_path, "v5e:2x2", 1, program)[0][program]
    assert found["collectives"] == {}
    assert found["products"]["bf16 x bf16"] > 50
    assert found["scaling"] == 1
