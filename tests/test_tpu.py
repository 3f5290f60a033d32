"""What the TPU compiler makes of training and sampling, and that the text which it writes is read rightly."""

import dataclasses
import importlib.util
import json
import sys

import pytest

from benchmarks import compiling, hlo, record, tpu
from threedim.models.unet import POSE_CHANNELS

# The smallest network in which frames run both alone and together, with kernels large enough to be split.
ROWS = {
    program: tpu.Row(program, "v5e-4", image_size=16, ch=64, ch_mult=(1, 2), emb_ch=64, attn_resolutions=(8,))
    for program in tpu.PROGRAMS
}

PROGRAM = """HloModule jit_f, is_scheduled=true, num_partitions=2

%joined (a: bf16[8,4], b: bf16[8,4]) -> bf16[8,8] {
  %a = bf16[8,4]{1,0:T(8,128)(2,1)} parameter(0)
  %b = bf16[8,4]{1,0:T(8,128)(2,1)} parameter(1)
  %low = bf16[]{:T(256)} constant(-inf)
  %left = bf16[8,8]{1,0} pad(%a, %low), padding=0_0x0_4
  %right = bf16[8,8]{1,0} pad(%b, %low), padding=0_0x4_0
  %wide = f32[8,8]{1,0} convert(%right)
  %wider = f32[8,8]{1,0} convert(%left)
  %both = f32[8,8]{1,0} maximum(%wider, %wide)
  ROOT %narrow = bf16[8,8]{1,0} convert(%both)
}

%product.1 (x: bf16[8,8], k: f32[8,8]) -> f32[8,8] {
  %x = bf16[8,8]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %k = f32[8,8]{0,1:T(8,128)} parameter(1)
  %rounded = bf16[8,8]{0,1} convert(%k)
  ROOT %conv = f32[8,8]{1,0} convolution(%x, %rounded), dim_labels=bf_io->bf, metadata={op_name="jit(f)/net/up_blocks_0_1/attn_self/query/dot_general" stack_frame_id=3}
}

%turned (t: bf16[8,8]) -> bf16[8,8] {
  %t = bf16[8,8]{1,0} parameter(0)
  ROOT %turn = bf16[8,8]{0,1} copy(%t)
}

%gathered (s: bf16[4,8]) -> bf16[8,8] {
  %s = bf16[4,8]{1,0} parameter(0)
  ROOT %all-gather.1 = bf16[8,8]{1,0} all-gather(%s), channel_id=1, replica_groups=[1,2]<=[2], dimensions={0}
}

%body (state: (f32[8,8], f32[8,8])) -> (f32[8,8], f32[8,8]) {
  %state = (f32[8,8]{1,0}, f32[8,8]{1,0}) parameter(0)
  %weights = f32[8,8]{1,0} get-tuple-element(%state), index=0
  %value = f32[8,8]{1,0} get-tuple-element(%state), index=1
  %kept = f32[8,8]{0,1} transpose(%weights), dimensions={1,0}
  %moved = f32[8,8]{0,1} copy(%value)
  %dot = f32[8,8]{1,0} dot(%moved, %kept), lhs_contracting_dims={1}, rhs_contracting_dims={0}, metadata={op_name="jit(f)/rays"}
  ROOT %next = (f32[8,8]{1,0}, f32[8,8]{1,0}) tuple(%weights, %dot)
}

%more (state.1: (f32[8,8], f32[8,8])) -> pred[] {
  %state.1 = (f32[8,8]{1,0}, f32[8,8]{1,0}) parameter(0)
  ROOT %yes = pred[]{:T(512)} constant(true)
}

ENTRY %main_spmd (params: f32[8,8], share: bf16[4,8], x.1: bf16[8,4]) -> (f32[8,8], /*index=1*/f32[8,8]) {
  %params = f32[8,8]{0,1:T(8,128)} parameter(0), metadata={op_name="params[\\'out\\'][\\'kernel\\']"}
  %share = bf16[4,8]{1,0} parameter(1), metadata={op_name="params[\\'in\\'][\\'kernel\\']"}
  %x.1 = bf16[8,4]{1,0} parameter(2), metadata={op_name="batch[\\'image\\']"}
  %start = (f32[8,8]{0,1:T(8,128)S(1)}, f32[8,8]{0,1:T(8,128)}, u32[]{:S(2)}) copy-start(%params)
  %near = f32[8,8]{0,1:T(8,128)S(1)} copy-done(%start)
  %straight = f32[8,8]{1,0:T(8,128)S(1)} copy(%near), backend_config={"estimated_cycles":"20"}
  %same = bf16[8,4]{1,0:T(8,128)S(1)} copy(%x.1), backend_config={"estimated_cycles":"1"}
  %join = bf16[8,8]{1,0} fusion(%same, %x.1), kind=kLoop, calls=%joined, backend_config={"estimated_cycles":"300"}
  %ring = bf16[8,8]{1,0} fusion(%share), kind=kCustom, calls=%gathered
  %again = bf16[8,8]{1,0} all-gather(%share), channel_id=1, replica_groups=[1,2]<=[2], dimensions={0}
  %turning = bf16[8,8]{0,1} fusion(%join), kind=kLoop, calls=%turned, backend_config={"estimated_cycles":"5000"}
  %zero = bf16[]{:T(256)} constant(0)
  %alone = bf16[8,16]{1,0} pad(%turning, %zero), padding=0_0x4_4
  %fusion.1 = f32[8,8]{1,0} fusion(%turning, %near), kind=kOutput, calls=%product.1, backend_config={"estimated_cycles":"60000"}
  %init = (f32[8,8]{1,0}, f32[8,8]{1,0}) tuple(%straight, %fusion.1)
  %loop = (f32[8,8]{1,0}, f32[8,8]{1,0}) while(%init), condition=%more, body=%body
  %sum = (bf16[8,8]{1,0}, f32[]{:T(128)}, f32[4]{0}, f32[3,8]{1,0}) all-reduce(%again, %zero, %zero, %zero), channel_id=2, replica_groups=[1,2]<=[2], to_apply=%more
  %call = f32[8,8]{1,0} custom-call(%straight), custom_call_target="ConcatBitcast"
  ROOT %result = (f32[8,8]{1,0}, f32[8,8]{1,0}) tuple(%loop, %call)
}
"""  # noqa: E501


@pytest.fixture(scope="module")
def program():
    return hlo.Program(PROGRAM)


def test_a_program_is_read(program):
    assert program.entry == "main_spmd"
    assert list(program.computations) == ["joined", "product.1", "turned", "gathered", "body", "more", "main_spmd"]
    start = program.computations["main_spmd"]["start"]
    assert [str(array) for array in start.arrays] == ["f32[8,8]", "f32[8,8]", "u32[]"]
    assert (start.opcode, start.operands, start.root) == ("copy-start", ("params",), False)
    assert start.arrays[0].layout == (0, 1)
    assert [each.name for each in program if each.root][-1] == "result"
    with pytest.raises(ValueError, match="no line begins with ENTRY"):
        hlo.Program("%a (b: f32[]) -> f32[] {\n  ROOT %b = f32[] parameter(0)\n}\n")


def test_products_and_the_dtypes_that_they_take(program):
    found = hlo.products(program)
    assert [(str(a), str(b), str(each.result)) for each in found for a, b in [each.operands]] == [
        ("bf16[8,8]", "bf16[8,8]", "f32[8,8]"),
        ("f32[8,8]", "f32[8,8]", "f32[8,8]"),
    ]
    assert found[1].place == "jit(f)/rays"


def test_moves_are_told_from_fetching(program):
    assert [each.name for each in hlo.moves(program)] == ["turn", "kept", "moved", "straight"]


def test_moves_of_parameters_are_found_through_fetching_and_loops(program):
    found = {each.name: program.argument(program.operand(each, 0)) for each in hlo.moves(program)}
    assert found["turn"] is found["moved"] is None
    assert found["kept"] is found["straight"] is program.computations["main_spmd"]["params"]
    (rounded,) = (each for each in program if each.name == "rounded")
    assert program.argument(rounded) is found["straight"]


def test_paddings_of_concatenations_are_told_apart(program):
    alone, joined = hlo.paddings(program)
    assert [each.name for each in alone] == ["alone"]
    assert [each.name for each in joined] == ["left", "right"]


def test_estimated_cycles(program):
    # A product counts with the fusion that it is in; a fusion that only moves counts as a move.
    assert hlo.estimated_cycles(program) == {"all": 65321, "products": 60000, "moves": 5020}


def test_an_exchange_that_goes_on_beside_others_counts_once():
    kinds = [(each.kind, each.bytes, each.wire_bytes) for each in compiling.collectives(PROGRAM)]
    assert kinds == [("all-gather", 128, 64.0), ("all-reduce", 128 + 4 + 16 + 96, 244.0)]
    assert compiling.wire_bytes(PROGRAM)["all-gather"] == 64


def test_what_is_found_of_a_program():
    found = tpu.read(PROGRAM, [(8, 8)], fsdp=2)
    assert found["products"] == {"bf16 x bf16": 1, "f32 x f32": 1}
    assert found["float32_products"] == {"jit(f)/rays": 1}
    moves = {origin: (each["count"], each["bytes"]) for origin, each in found["moves"].items()}
    assert moves == {"parameters": (2, 512), "others": (2, 128 + 256)}
    assert found["paddings"] == {"parameters": 0, "others": 1, "in concatenations": 2, "places": {}}
    gather, reduce = found["collectives"]["all-gather"], found["collectives"]["all-reduce"]
    assert (gather["count"], gather["parameters"], gather["others"]) == (1, {"bf16": 1}, {})
    assert (reduce["parameters"], reduce["numbers"], reduce["others"]) == ({"bf16": 1}, 2, {"f32[3,8]": 1})
    assert found["foreign_calls"] == {"ConcatBitcast": 1}


def test_shares_of_parameters_are_told_from_activations():
    text = "ENTRY %m (a: f32[4,8]) -> f32[8,8] {\n  %a = f32[4,8]{1,0} parameter(0)\n  %r = f32[KIND\n}\n"
    share = "4,8]{1,0} reduce-scatter(%a), channel_id=1, replica_groups=[1,2]<=[2]"
    found = tpu.read(text.replace("KIND", share), [(8, 8)], fsdp=2)["collectives"]["reduce-scatter"]
    assert (found["parameters"], found["others"]) == ({"f32": 1}, {})
    # Gathered, the share of a parameter is none.
    share = share.replace("reduce-scatter", "all-gather")
    found = tpu.read(text.replace("KIND", share), [(8, 8)], fsdp=2)["collectives"]["all-gather"]
    assert (found["parameters"], found["others"]) == ({}, {"f32[4,8]": 1})


def test_the_gradient_of_a_vector_may_come_by_groups():
    text = (
        "ENTRY %m (a: f32[4,2]) -> f32[4,2] {\n  %a = f32[4,2]{1,0} parameter(0)\n  ROOT %r = f32[4,2]{1,0} KIND\n}\n"
    )
    text = text.replace("KIND", "all-reduce(%a), channel_id=1, replica_groups=[1,2]<=[2]")
    for parameters, expected in (([(8,)], ({"f32": 1}, {})), ([(2, 4)], ({}, {"f32[4,2]": 1}))):
        found = tpu.read(text, parameters)["collectives"]["all-reduce"]
        assert (found["parameters"], found["others"]) == expected


def test_rows_and_table(tmp_path, monkeypatch, capsys):
    row = ROWS["training"]
    assert tpu.parse_row(json.dumps(dataclasses.asdict(row))) == row
    assert row.name == (
        "training v5e-4 2x2, 16 px, channels 64,128 emb 64, 1 block(s) a level, attention at 8, 8 a device"
    )
    config = tpu.configuration(row)
    assert (config.train.batch_size, config.sample.batch_size, config.model.ch, config.model.dtype) == (
        *(32, 32, 64),
        "bfloat16",
    )
    figures = {"argument_bytes": 2**20, "temporary_bytes": 2**21, "flops": 3e9, **tpu.read(PROGRAM, [(8, 8)])}
    monkeypatch.setattr(tpu, "in_another_process", lambda row: figures)
    path = tmp_path / "tpu.json"
    monkeypatch.setattr(sys, "argv", ["tpu", f"--json={path}", "--only=denoise v5e"])
    tpu.main()
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("| denoise v5e-4, 32 px")
    assert "| 1 + 2 | 3 | 1 / 1 | 2 / 2 | 0.92 / 0.08 | all-gather 1 (0.0), all-reduce 1 (0.0) |" in line
    assert len(record.read_rows(path, "tpu")[0]) == 1


compiled_for_tpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu, the TPU compiler, is not installed (pip install libtpu); it needs no TPU",
)


@compiled_for_tpu
def test_the_programs_that_are_compiled_fail_with_what_the_compiler_says():
    row = dataclasses.replace(ROWS["denoise"], attn_resolutions=(5,))
    with pytest.raises(RuntimeError, match="the frames never meet"):
        tpu.in_another_process(row)


@pytest.fixture(scope="module")
def found():
    """Figures by program, each compiled when a test first asks for it."""
    made = {}

    def figures(name):
        if name not in made:
            with pytest.MonkeyPatch.context() as patch:
                # What is read is what the compiler makes of it where it runs.
                patch.delenv("JAX_DISABLE_MOST_OPTIMIZATIONS", raising=False)
                made[name] = tpu.in_another_process(ROWS[name])
        return made[name]

    return figures


@compiled_for_tpu
@pytest.mark.slow
@pytest.mark.parametrize("name", tpu.PROGRAMS)
def test_products_are_bfloat16_but_for_the_last_convolution_and_ray_origins(found, name):
    f = found(name)
    # Encodings of ray origins have many digits, and few products.
    expected = {"conv_out/conv_general_dilated", "nc,ijcf->nijf/dot_general"}
    assert f["float32_products"].keys() <= expected, f["float32_products"]
    assert sum(f["products"].values()) - f["products"]["bf16 x bf16"] == sum(f["float32_products"].values())
    assert f["products"]["bf16 x bf16"] > 50


@compiled_for_tpu
@pytest.mark.slow
@pytest.mark.parametrize(("name", "frames"), [("training", 2), ("denoise", 2), ("view", 4)])
def test_the_batch_is_split_over_the_slice(found, name, frames):
    # ``frames`` of each pair or object run together; with guidance there are two branches.
    f, row = found(name), ROWS[name]
    pictures = row.batch * frames
    assert f["shapes"]["attention weights"] == [f"f32[{pictures},4,64,64]"]
    assert f["shapes"]["output"] == [f"f32[{pictures // 2},{row.image_size},{row.image_size},3]"]
    if name != "training":
        assert f["views"] == {"whole": [4 * row.batch, 16, 16, 3], "device": [row.batch, 16, 16, 3]}


@compiled_for_tpu
@pytest.mark.slow
def test_training_sends_parameters_and_gradients_alone(found):
    row, kinds = ROWS["training"], found("training")["collectives"]
    assert kinds.keys() == {"all-gather", "all-reduce"}
    gather, reduce = kinds["all-gather"], kinds["all-reduce"]
    # Parameters that are split are gathered once, as they are multiplied.
    assert gather["parameters"] == {"bf16": gather["count"]}
    assert gather["others"] == {}
    assert gather["count"] > 5
    assert reduce["parameters"].keys() == {"bf16", "f32"}
    # Beside gradients of whole parameters: parts of those of the pose convolutions' kernels, and of the part of the
    # pose embeddings that has no examples, one for both frames, each level.
    sums = {f"bf16[{size},{size},{row.emb_ch}]" for size in (16, 8)}
    kernels = {f"bf16[3,3,51,{row.emb_ch}]", f"bf16[3,3,{row.emb_ch},{POSE_CHANNELS}]"}
    assert sums <= reduce["others"].keys() <= sums | kernels
    assert all(reduce["others"][name] == 1 for name in sums)


@compiled_for_tpu
@pytest.mark.slow
@pytest.mark.parametrize("name", ["denoise", "view"])
def test_sampling_sends_nothing(found, name):
    assert found(name)["collectives"] == {}


@compiled_for_tpu
@pytest.mark.slow
@pytest.mark.parametrize("name", tpu.PROGRAMS)
def test_few_parameters_are_moved_or_padded_and_nothing_is_called_that_a_gpu_has(found, name):
    """Not at each evaluation, but once a step or view: pose convolutions, that of positions with a batch of one."""
    f = found(name)
    moved, padded = f["moves"]["parameters"], f["paddings"]["parameters"]
    assert all("pose_convs" in place or "sharding_constraint" in place for place in moved["places"])
    assert (moved["count"], padded) == (0, 0) if name == "denoise" else moved["bytes"] < 2e6 and padded <= 8
    assert not [target for target in f["foreign_calls"] if target.startswith(("__cu", "cu", "cudnn", "triton"))]


@compiled_for_tpu
@pytest.mark.slow
def test_nothing_is_padded_around_convolutions(found):
    assert found("denoise")["paddings"]["places"] == {}
