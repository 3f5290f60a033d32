"""What the TPU compiler makes of training and sampling, without a TPU (pip install libtpu).

    python -m benchmarks.tpu                         # every row that is not in the file yet; half an hour for all
    python -m benchmarks.tpu --only='denoise v5e'    # the rows whose name matches
    python -m benchmarks.tpu --table                 # the table from what there is
    python -m benchmarks.tpu --ch=256 --only=denoise # another network

Three programs: the training step with parameters split over half of the slice, one evaluation of the network as the
sampler asks for it, and the whole scan that draws a view, both with objects split over the slice. Each is compiled in a
process of its own, its text is read (``benchmarks.hlo``), and what was found is added to ``--json``. Read are products
by the dtypes of their operands, what is moved without being computed with, paddings, exchanges between devices and what
they carry, and the compiler's own estimate of cycles.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import math
import re
import subprocess
import sys
import time
from typing import Any

import jax
from etils import epath

from benchmarks import hlo, record
from benchmarks.compiling import collectives, compile_training_step
from benchmarks.drawing import Drawing
from benchmarks.memory import TARGETS, device_mesh, environment
from configs import base
from threedim import config as config_lib
from threedim.progress import progress
from threedim.training import hardware

PROGRAMS = ("training", "denoise", "view")
SLICES = ("v5e-4", "v4-8")


@dataclasses.dataclass(frozen=True)
class Row:
    """One program for one slice. The network is the paper's but for what stands here.

    Attributes:
      program: one of ``PROGRAMS``.
      target: one of ``memory.TARGETS``.
      fsdp: devices that parameters are split over in training; the others have them whole.
      batch: pairs or objects on each device.
      image_size, ch, ch_mult, emb_ch, attn_resolutions, num_res_blocks: of the network.
    """

    program: str
    target: str
    fsdp: int = 2
    batch: int = 8
    image_size: int = 32
    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 2)
    emb_ch: int = 512
    attn_resolutions: tuple[int, ...] = (16,)
    num_res_blocks: int = 1

    @property
    def name(self) -> str:
        devices = TARGETS[self.target][2]
        split = f" {devices // self.fsdp}x{self.fsdp}" if self.program == "training" else ""
        widths = ",".join(str(self.ch * multiple) for multiple in self.ch_mult)
        attention = ",".join(map(str, self.attn_resolutions))
        return (
            f"{self.program} {self.target}{split}, {self.image_size} px, channels {widths} emb {self.emb_ch}, "
            f"{self.num_res_blocks} block(s) a level, attention at {attention}, {self.batch} a device"
        )


def configuration(row: Row):
    """The paper's settings with what the row changes."""
    config = base.get_config()
    for name in ("image_size", "ch", "ch_mult", "emb_ch", "attn_resolutions", "num_res_blocks"):
        config.model[name] = getattr(row, name)
    config.train.batch_size = config.sample.batch_size = row.batch * TARGETS[row.target][2]
    return config


def compile_row(row: Row) -> dict[str, Any]:
    """Figures of one row. Bytes, FLOPs and counts are one device's, and what stands in a loop is counted once."""
    config = configuration(row)
    training = row.program == "training"
    mesh = device_mesh(row.target, row.fsdp if training else 1)
    began = time.perf_counter()
    if training:
        parts = config_lib.network(config), config_lib.process(config), config_lib.recipe(config)
        _, compiled, state = compile_training_step(*parts, mesh)
        params = state.params
    else:
        drawing = Drawing(config)
        lower = drawing.lower if row.program == "view" else drawing.lower_evaluation
        compiled, params = lower(config.sample.batch_size, mesh).compile(), drawing.params
    seconds = time.perf_counter() - began
    memory = compiled.memory_analysis()
    found = {
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "device_bytes": hardware.device_bytes(compiled),
        "flops": compiled.cost_analysis()["flops"],
        "compile_seconds": seconds,
    }
    if not training:
        # A rollout leaves it to the compiler where views end up: they have to stay with their objects.
        (out,) = jax.tree.leaves(compiled.output_shardings)
        whole = (config.sample.batch_size, row.image_size, row.image_size, 3)
        found["views"] = {"whole": whole, "device": out.shard_shape(whole)}
    return found | read(compiled.as_text(), [leaf.shape for leaf in jax.tree.leaves(params)], row.fsdp)


def read(text: str, parameters: list[tuple[int, ...]], fsdp: int = 1) -> dict[str, Any]:
    """What a compiled program computes, moves and sends.

    Args:
      text: of the compiled program.
      parameters: shapes of the network's parameters, whole.
      fsdp: devices that they are split over.
    """
    program = hlo.Program(text)
    products = hlo.products(program)
    dtypes = collections.Counter(" x ".join(sorted(operand.dtype for operand in each.operands)) for each in products)
    moves, (alone, joined) = hlo.moves(program), hlo.paddings(program)
    return {
        "products": dict(dtypes),
        "float32_products": _by_place(
            each.place for each in products if any(operand.dtype == "f32" for operand in each.operands)
        ),
        "shapes": {
            name: sorted({str(each.result) for each in products if re.search(pattern, each.place)})
            for name, pattern in (
                ("output", r"^(?!.*transpose\().*conv_out/conv_general_dilated$"),
                ("attention weights", r"^(?!.*transpose\().*bhqd,bhkd->bhqk/dot_general$"),
            )
        },
        "moves": {
            origin: {
                "count": len(those),
                "bytes": sum(each.arrays[0].bytes for each in those),
                "places": _by_place(each.op_name for each in those if each.arrays[0].size > 2**16),
            }
            for origin, those in _by_origin(program, moves).items()
        },
        "paddings": {
            **{origin: len(those) for origin, those in _by_origin(program, alone).items()},
            "in concatenations": len(joined),
            "places": _by_place(each.op_name for each in alone if each.arrays[0].size > 2**16),
        },
        "collectives": _cargo(text, parameters, fsdp),
        "foreign_calls": hlo.foreign_calls(program),
        "estimated_cycles": hlo.estimated_cycles(program),
    }


def _by_origin(program: hlo.Program, instructions: list[hlo.Instruction]) -> dict[str, list[hlo.Instruction]]:
    """Which of them have parameters as their operand, in whatever layout and precision, and the others."""
    found: dict[str, list[hlo.Instruction]] = {"parameters": [], "others": []}
    for each in instructions:
        argument = program.argument(program.operand(each, 0))
        is_parameter = argument is not None and re.match(r"(state\.)?params\b", argument.op_name)
        found["parameters" if is_parameter else "others"].append(each)
    return found


def _by_place(names) -> dict[str, int]:
    """How often each place in the network occurs, without the numbers of blocks and levels."""
    short = ["/".join(re.sub(r"_\d+", "", name).split("/")[-2:]) or "unknown" for name in names]
    return dict(collections.Counter(short).most_common())


def _cargo(text: str, parameters: list[tuple[int, ...]], fsdp: int) -> dict[str, dict[str, Any]]:
    """Exchanges between devices by kind, and how many arrays they carry: parameters, single numbers, others by shape.

    What has the shape of a parameter counts as one: in an all-gather the parameter, in the others its gradient, which
    may be a device's share.
    """
    whole = set(parameters)
    shares = {
        (*shape[:axis], shape[axis] // fsdp, *shape[axis + 1 :])
        for shape in whole
        for axis in range(len(shape))
        if shape[axis] % fsdp == 0
    }
    # A normalization's are by groups and channels of each.
    vectors = {shape[0] for shape in whole if len(shape) == 1}
    found: dict[str, dict[str, Any]] = {}
    for each in collectives(text):
        kind = found.setdefault(
            each.kind, {"count": 0, "bytes": 0, "wire_bytes": 0.0, "parameters": {}, "numbers": 0, "others": {}}
        )
        kind["count"] += 1
        kind["bytes"] += each.bytes
        kind["wire_bytes"] += each.wire_bytes
        for dtype, dims in each.arrays:
            if dims in whole or (each.kind != "all-gather" and (dims in shares or math.prod(dims) in vectors)):
                kind["parameters"][dtype] = kind["parameters"].get(dtype, 0) + 1
            elif dims in ((), (4,)):
                kind["numbers"] += 1
            else:
                shape = f"{dtype}[{','.join(map(str, dims))}]"
                kind["others"][shape] = kind["others"].get(shape, 0) + 1
    return found


def table(figures: dict[str, dict[str, Any]]) -> str:
    """Markdown: a line for each row."""
    lines = [
        "| program | MiB a device (arguments + temporary) | GFLOP a device | products, bf16 only / with f32 | moves of "
        "parameters / others | estimated cycles: products / moves | collectives (MB sent) |",
        "| --- |" + " --- |" * 6,
    ]
    for name, f in figures.items():
        mib, cycles = 2**20, f["estimated_cycles"]
        sent = [f"{kind} {c['count']} ({c['wire_bytes'] / 1e6:.1f})" for kind, c in f["collectives"].items()]
        pure = f["products"].get("bf16 x bf16", 0)
        cells = [
            f"{f['argument_bytes'] / mib:.0f} + {f['temporary_bytes'] / mib:.0f}",
            f"{f['flops'] / 1e9:.0f}",
            f"{pure} / {sum(f['products'].values()) - pure}",
            " / ".join(str(f["moves"][origin]["count"]) for origin in ("parameters", "others")),
            " / ".join(f"{cycles[part] / max(cycles['all'], 1):.2f}" for part in ("products", "moves")),
            ", ".join(sent) or "none",
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def in_another_process(row: Row) -> dict[str, Any]:
    """``compile_row`` where only the TPU compiler is asked, and a crash of it ends nothing else.

    Raises:
      RuntimeError: if the program cannot be compiled; with what the compiler said.
    """
    command = [sys.executable, "-m", "benchmarks.tpu", f"--row={json.dumps(dataclasses.asdict(row))}"]
    done = subprocess.run(command, env=environment(row.target), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{row.name} could not be compiled (exit {done.returncode}):\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def parse_row(text: str) -> Row:
    """A row from JSON."""
    return Row(**{name: tuple(value) if isinstance(value, list) else value for name, value in json.loads(text).items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="regular expression: the rows to compile")
    parser.add_argument("--table", action="store_true", help="compile nothing, print what there is")
    parser.add_argument("--json", default="docs/tpu.json", help="file of the figures")
    parser.add_argument("--row", help="a row as JSON, to be compiled here: what the others call")
    for field in dataclasses.fields(Row)[2:]:
        many = isinstance(field.default, tuple)
        parser.add_argument(f"--{field.name}", type=int, nargs="+" if many else None, default=field.default)
    arguments = parser.parse_args()
    if arguments.row:
        print(json.dumps(compile_row(parse_row(arguments.row))))
        return
    settings = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(Row)[2:]}
    settings = {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}
    rows = [Row(program, target, **settings) for target in SLICES for program in PROGRAMS]
    path = epath.Path(arguments.json)
    figures, heads = record.read_rows(path, "tpu")
    todo = [row for row in rows if row.name not in figures and re.search(arguments.only, row.name)]
    if not arguments.table:
        head = record.head("tpu", devices=False)
        with progress(len(todo), desc="compiled", enabled=bool(todo)) as bar:
            for done, row in enumerate(todo):
                figures[row.name] = in_another_process(row)
                heads[row.name] = head
                record.write_rows(path, "tpu", heads, figures)
                bar.set(done + 1)
    print(table(figures))


if __name__ == "__main__":
    main()
