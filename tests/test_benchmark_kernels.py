"""Kernels of a program compiled for a GPU."""

import types

import jax.numpy as jnp
import pytest

from benchmarks import hlo, kernels
from threedim.models import ops

PROGRAM = r"""HloModule jit_step, is_scheduled=true

%sliced (whole: f32[100,8], scale: f32[]) -> f32[4,8] {
  %whole = f32[100,8]{1,0} parameter(0)
  %rows = f32[4,8]{1,0} slice(%whole), slice={[0:4], [0:8]}
  %scale = f32[] parameter(1)
  %factor = f32[4,8]{1,0} broadcast(%scale), dimensions={}
  ROOT %scaled = f32[4,8]{1,0} multiply(%rows, %factor)
}

%product (a: bf16[16,32], b: bf16[32,8]) -> bf16[16,8] {
  %a = bf16[16,32]{1,0} parameter(0)
  %b = bf16[32,8]{1,0} parameter(1)
  ROOT %dot = bf16[16,8]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%body (state: (s32[], f32[100,8])) -> (s32[], f32[100,8]) {
  %state = (s32[], f32[100,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %x = f32[100,8]{1,0} get-tuple-element(%state), index=1
  %copy = f32[100,8]{1,0} copy(%x)
  ROOT %next = (s32[], f32[100,8]{1,0}) tuple(%i, %copy)
}

%more (state.1: (s32[], f32[100,8])) -> pred[] {
  %state.1 = (s32[], f32[100,8]{1,0}) parameter(0)
  ROOT %true = pred[] constant(true)
}

ENTRY %main (x: f32[100,8], s: f32[], a.1: bf16[16,32], b.1: bf16[32,8]) -> f32[4,8] {
  %x.1 = f32[100,8]{1,0} parameter(0)
  %s = f32[] parameter(1)
  %a.1 = bf16[16,32]{1,0} parameter(2)
  %b.1 = bf16[32,8]{1,0} parameter(3)
  %zero = s32[] constant(0)
  %init = (s32[], f32[100,8]{1,0}) tuple(%zero, %x.1)
  %loop = (s32[], f32[100,8]{1,0}) while(%init), body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %fusion.1 = f32[4,8]{1,0} fusion(%x.1, %s), kind=kLoop, calls=%sliced
  %fusion.2 = f32[4,8]{1,0} fusion(%x.1, %s), kind=kLoop, calls=%sliced
  %gemm = bf16[16,8]{1,0} fusion(%a.1, %b.1), kind=kCustom, calls=%product
  %sum = bf16[16,8]{1,0} all-reduce-start(%gemm), channel_id=1, replica_groups=[1,2]<=[2], to_apply=%product
  %done = bf16[16,8]{1,0} all-reduce-done(%sum)
  ROOT %root = f32[4,8]{1,0} bitcast(%fusion.1)
}
"""


def test_kernels_of_a_program():
    found = kernels.kernels(hlo.instructions(PROGRAM))
    rows = [(k.instruction.name, k.bytes, k.flops, k.runs) for k in found]
    assert rows == [
        ("copy", 2 * 3200, 0, 3),
        ("fusion.1", 128 + 4 + 128, 0, 1),  # of what is sliced, the slice
        ("fusion.2", 128 + 4 + 128, 0, 1),
        ("gemm", 1024 + 512 + 256, 2 * 16 * 32 * 8, 1),
        ("sum", 2 * 256, 0, 1),
    ]
    figures = kernels.summary(found, (1e6, 1e6))
    assert figures == {
        "kernels": 7,
        "distinct_kernels": 4,
        "moved_bytes": 3 * 6400 + 2 * 260 + 1792 + 512,
        "kernel_flops": 8192,
        "roofline_seconds": pytest.approx(1e-6 * (3 * 6400 + 2 * 260 + 8192 + 512)),
    }


CONVOLUTION = 2 * (2 * 8 * 8 * 32) * 9 * 16
# Result, target, operands and attributes of a call, and its FLOPs.
CALLS = [
    ("bf16[2,8,8,32]", "__cudnn$convForward", "%x, %k", "dim_labels=b01f_o01i->b01f", CONVOLUTION),
    ("bf16[2,8,8,16]", "__cudnn$convBackwardInput", "%y, %k", "dim_labels=b01f_o01i->b01f", CONVOLUTION),
    ("bf16[32,3,3,16]", "__cudnn$convBackwardFilter", "%x, %y", "dim_labels=b01f_o01i->b01f", CONVOLUTION),
    ("bf16[64,10]", "__cublas$lt$matmul", "%a, %b", 'config={"lhs_contracting_dimensions":["1"]}', 2 * 64 * 20 * 10),
    (
        "bf16[2,4,128,8]",
        "__cudnn$fmhaSoftmax",
        "%q, %q, %q",
        'config={"intermediate_tensor_shape": {"element_type": "BF16", "dimensions": ["2", "4", "128", "256"]}}',
        4 * (2 * 4 * 128 * 256) * 8,
    ),
]


@pytest.mark.parametrize(("result", "target", "operands", "attributes", "flops"), CALLS)
def test_flops_of_library_calls(result, target, operands, attributes, flops):
    text = f"""ENTRY %main () -> {result} {{
  %x = bf16[2,8,8,16]{{3,2,1,0}} parameter(0)
  %y = bf16[2,8,8,32]{{3,2,1,0}} parameter(1)
  %k = bf16[32,3,3,16]{{3,2,1,0}} parameter(2)
  %a = bf16[64,20]{{1,0}} parameter(3)
  %b = bf16[20,10]{{1,0}} parameter(4)
  %q = bf16[2,128,4,8]{{3,2,1,0}} parameter(5)
  ROOT %call = ({result}{{1,0}}, u8[0]{{0}}) custom-call({operands}), custom_call_target="{target}", {attributes}
}}
"""
    (found,) = kernels.kernels(hlo.instructions(text))
    assert found.flops == flops


def test_attention_is_traced_as_on_the_gpu():
    here = ops.has_flash_attention
    for capability, supported in (("9.0", True), ("7.5", False)):
        gpu = types.SimpleNamespace(platform="gpu", compute_capability=capability)
        with kernels.cudnn_for(gpu):
            assert ops.has_flash_attention(jnp.bfloat16, 64, None) == supported
    with kernels.cudnn_for(types.SimpleNamespace(platform="tpu")):
        assert ops.has_flash_attention is here
    assert ops.has_flash_attention is here
