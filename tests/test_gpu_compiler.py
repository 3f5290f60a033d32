"""What XLA's GPU compiler makes of the training step. No GPU is needed: run with `make test-gpu-compiler`."""

import importlib.util

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from benchmarks import compile as compile_lib
from benchmarks import hlo, kernels
from benchmarks.programs import lower_training_step
from threedim import config as config_lib
from threedim.configs import base

pytestmark = [
    pytest.mark.gpu_compiler,
    pytest.mark.skipif(
        not any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13)),
        reason="JAX's CUDA plugin is not installed (make test-gpu-compiler installs it); it needs no GPU",
    ),
]
# 529 with JAX 0.10.2. With more than this, something has stopped being fused.
MOST_KERNELS = 600
# What lies between a convolution and the kernels that make its input or take its result.
PASSED = ("bitcast", "get-tuple-element", "tuple")


@pytest.fixture(scope="module")
def text():
    """The step of a small network, compiled for an H200."""
    config = base.get_config()
    m = config.model
    m.image_size, m.ch, m.ch_mult, m.emb_ch, m.num_res_blocks, m.attn_resolutions = 16, 32, (1, 2), 64, 0, (8,)
    config.train.batch_size = 8
    devices = np.asarray(compile_lib.devices_of("H200:1"))
    mesh = Mesh(devices.reshape(1, 1), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    parts = config_lib.network(config), config_lib.process(config), config_lib.recipe(config)
    unoptimized = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    try:
        with kernels.cudnn_for(devices[0]):
            return lower_training_step(*parts, mesh)[0].compile().as_text()
    finally:
        jax.config.update("jax_disable_most_optimizations", unoptimized)


@pytest.fixture(scope="module")
def launched(text):
    return kernels.kernels(hlo.instructions(text))


def convolutions(launched):
    return [k for k in launched if k.instruction.opcode.startswith("__cudnn$conv")]


def test_convolutions_are_bfloat16_and_channels_last(launched):
    found = convolutions(launched)
    assert len(found) > 50
    for each in found:
        # The last convolution is float32 by intent.
        assert each.instruction.arrays[0][0] == ("f32" if "/conv_out/" in each.instruction.text else "bf16")
        assert "dim_labels=b01f_o01i->b01f" in each.instruction.text


def test_no_activation_is_transposed_around_a_convolution(text, launched):
    program = {(i.computation, i.name): i for i in hlo.instructions(text)}
    inner = {k.instruction.name: (k.inside, k.instruction) for k in launched}

    def sources(computation, name):
        """The kernels that make an array."""
        if name in inner:
            return [name]
        instruction = program[computation, name]
        return [s for o in instruction.operands if instruction.opcode in PASSED for s in sources(computation, o)]

    def transposes(name):
        """Whether a kernel transposes something else than the kernels of convolutions, which are 3 x 3."""
        inside, each = inner[name]
        transposed = [i for i in (*inside, each) if i.opcode in ("transpose", "copy")]
        return any(dims.count(3) < 2 for i in transposed for _, dims in i.arrays)

    names = {k.instruction.name for k in convolutions(launched)}
    for each in launched:
        computation = each.instruction.computation
        made_by = {s for operand in each.instruction.operands for s in sources(computation, operand)}
        if each.instruction.name in names:
            assert not [name for name in made_by if transposes(name)]
        elif made_by & names:
            assert not transposes(each.instruction.name)


def test_nothing_is_float64(text):
    assert "f64[" not in text


def test_few_kernels(launched):
    assert kernels.summary(launched, kernels.RATES["H200"])["kernels"] < MOST_KERNELS
