"""Bytes of a device that training needs, by compiling and not running: which mesh a model fits on.

    python -m benchmarks.memory                        # every row that is not in the file yet; hours for all
    python -m benchmarks.memory --only='471M v5e'      # the rows whose name matches
    python -m benchmarks.memory --table                # the table from what there is
    python -m benchmarks.memory --add=FILE             # takes over the rows of another such file

TPU rows are compiled by the TPU compiler, which needs no TPU (pip install libtpu). GPU rows are compiled for as many
CPU devices: the state is the same there, the temporaries are the CPU compiler's and only tell the order of magnitude.
Each row is compiled in a process of its own and added to ``--json`` when it is done.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import subprocess
import sys
import time

import jax
import numpy as np
from etils import epath
from jax.sharding import AxisType, Mesh

from benchmarks import record
from benchmarks.compiling import compile_training_step, state_bytes, wire_bytes
from configs import base
from threedim import config as config_lib
from threedim.progress import progress
from threedim.training import hardware

MODELS = {"471M": {}, "1.3B": {"ch": 448}, "ch=640": {"ch": 640}, "64px": {"ch": 128, "image_size": 64}}
# Slices by name: topology for the TPU compiler (None: as many CPU devices), device kind, number of devices.
TARGETS = {
    "v4-8": ("v4:2x2x1", "TPU v4", 4),
    "v4-32": ("v4:2x2x4", "TPU v4", 16),
    "v5e-4": ("v5e:2x2", "TPU v5 lite", 4),
    "v5e-16": ("v5e:4x4", "TPU v5 lite", 16),
    "v5p-32": ("v5p:2x2x4", "TPU v5", 16),
    "v6e-8": ("v6e:2x4", "TPU v6 lite", 8),
    "H100x8": (None, "NVIDIA H100 80GB HBM3", 8),
    "H200x8": (None, "NVIDIA H200", 8),
}


@dataclasses.dataclass(frozen=True)
class Row:
    """One compilation. ``batch`` counts pairs over all devices."""

    model: str
    target: str
    fsdp: int
    remat: str
    microbatches: int = 1
    batch: int = 128
    num_res_blocks: int = 3

    @property
    def name(self) -> str:
        depth = "" if self.num_res_blocks == 3 else f", {self.num_res_blocks} block(s) a level"
        devices = TARGETS[self.target][2]
        return (
            f"{self.model} {self.target} {devices // self.fsdp}x{self.fsdp} remat {self.remat}, batch {self.batch} in "
            f"{self.microbatches}{depth}"
        )


def rows() -> list[Row]:
    """All that the table may hold, the most telling first."""
    found = []
    for model, target, fsdp in (
        ("64px", "v5e-16", 1),
        ("64px", "v5e-16", 16),
        ("471M", "v5e-16", 4),
        ("471M", "v6e-8", 4),
        ("471M", "v4-32", 4),
        ("471M", "H100x8", 1),
        ("471M", "H200x8", 1),
        ("1.3B", "v5e-16", 16),
        ("1.3B", "v4-32", 4),
        ("1.3B", "v6e-8", 8),
        ("1.3B", "H100x8", 1),
        ("1.3B", "H200x8", 1),
        ("ch=640", "v4-32", 16),
        ("ch=640", "v5e-16", 16),
        ("ch=640", "v5p-32", 16),
        ("ch=640", "v6e-8", 8),
        ("ch=640", "H100x8", 8),
        ("ch=640", "H200x8", 8),
    ):
        for remat, microbatches in (("blocks", 4), ("none", 4), ("blocks", 1), ("none", 1)):
            found.append(Row(model, target, fsdp, remat, microbatches))
    return found


def configuration(row: Row):
    """The paper's settings with what the row changes."""
    config = base.get_config()
    for name, value in MODELS[row.model].items():
        config.model[name] = value
    config.model.num_res_blocks = row.num_res_blocks
    t = config.train
    t.batch_size, t.remat, t.microbatches = row.batch, row.remat, row.microbatches
    return config


def devices_of(target: str) -> list:
    """Devices to compile for; they need not be there."""
    topology, _, count = TARGETS[target]
    if topology is None:
        return jax.devices()[:count]
    from jax.experimental import topologies

    return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices


def device_mesh(target: str, fsdp: int) -> Mesh:
    """Those devices as training arranges them."""
    devices = np.asarray(devices_of(target)).reshape(-1, fsdp)
    return Mesh(devices, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def environment(target: str) -> dict[str, str]:
    """Variables with which a process of its own compiles for devices that are not there."""
    topology, _, count = TARGETS[target]
    # Without the last one a second process that compiles at the same time, or after one was killed, is turned away.
    ours = {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    if topology is None:
        ours["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={count}"
    return os.environ | ours


def compile_row(row: Row) -> dict:
    """Figures of one row."""
    config = configuration(row)
    network, process, recipe = config_lib.network(config), config_lib.process(config), config_lib.recipe(config)
    mesh = device_mesh(row.target, row.fsdp)
    began = time.perf_counter()
    lowered, compiled, state = compile_training_step(network, process, recipe, mesh)
    memory = compiled.memory_analysis()
    return {
        "state_bytes": state_bytes(state),
        "temporary_bytes": memory.temp_size_in_bytes,
        "device_bytes": hardware.device_bytes(compiled),
        "flops": hardware.counted_flops(lowered, compiled, mesh.size, row.microbatches),
        "wire_bytes": wire_bytes(compiled.as_text()),
        "compile_seconds": time.perf_counter() - began,
        "jax": jax.__version__,
    }


def table(figures: dict[str, dict]) -> str:
    """Markdown: bytes beside what the device has."""
    lines = [
        "| model | slice | mesh (data x fsdp) | remat | batch (in parts) | state, GiB | temporary | in all | there is "
        "| fits |",
        "| --- |" + " --- |" * 9,
    ]
    gib = 2**30
    for row in all_rows(figures):
        if row.name not in figures:
            continue
        f, (_, kind, devices) = figures[row.name], TARGETS[row.target]
        has = hardware.CHIPS[kind].memory
        if "error" in f:
            cells = ["", "", f["error"], f"{has / gib:.0f}", "no"]
        else:
            cells = [f"{f[key] / gib:.1f}" for key in ("state_bytes", "temporary_bytes", "device_bytes")]
            cells += [f"{has / gib:.0f}", "yes" if f["device_bytes"] < has else "no"]
        model = row.model if row.num_res_blocks == 3 else f"{row.model}, {row.num_res_blocks} block(s) a level"
        mesh = f"{devices // row.fsdp} x {row.fsdp}"
        lines.append(
            f"| {model} | {row.target} | {mesh} | {row.remat} | {row.batch} ({row.microbatches}) | "
            + " | ".join(cells)
            + " |"
        )
    return "\n".join(lines)


def all_rows(figures: dict[str, dict]) -> list[Row]:
    """Those of the plan, and others that the file has."""
    planned = rows()
    names = {row.name for row in planned}
    return planned + [Row(**f["row"]) for name, f in figures.items() if name not in names]


def merged(ours: tuple[dict, dict], theirs: tuple[dict, dict]) -> tuple[dict, dict]:
    """Figures and heads of two files. A row that both have stays as it is.

    Raises:
      ValueError: if it has other figures in the second.
    """
    for name in ours[0].keys() & theirs[0].keys():
        if ours[0][name] != theirs[0][name]:
            raise ValueError(f"both files have the row {name}, with other figures; delete it from one of them")
    return ours[0] | theirs[0], theirs[1] | ours[1]


def _in_another_process(row: Row) -> dict:
    command = [sys.executable, "-m", "benchmarks.memory", f"--row={json.dumps(dataclasses.asdict(row))}"]
    done = subprocess.run(command, env=environment(row.target), capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    # The TPU compiler itself says where a program does not fit, and by how much.
    found = re.search(r"Used (\S+) of (\S+) hbm", done.stderr)
    if found is None:
        raise RuntimeError(f"{row.name} could not be compiled (exit {done.returncode}):\n{done.stderr[-3000:]}")
    return {"error": f"{found[1]} of {found[2]}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="regular expression: the rows to compile")
    parser.add_argument("--table", action="store_true", help="compile nothing, print what there is")
    parser.add_argument("--list", action="store_true", help="print the names of all rows")
    parser.add_argument("--json", default="docs/memory.json", help="file of the figures")
    parser.add_argument("--add", metavar="FILE", help="compile nothing, take over the rows of another such file")
    parser.add_argument("--row", help="a row as JSON, to be compiled here: what the others call")
    arguments = parser.parse_args()
    if arguments.row:
        print(json.dumps(compile_row(Row(**json.loads(arguments.row)))))
        return
    path = epath.Path(arguments.json)
    if arguments.list:
        print("\n".join(row.name for row in rows()))
        return
    figures, heads = record.read_rows(path, "memory")
    if arguments.add:
        if not epath.Path(arguments.add).exists():
            parser.error(f"there is no file {arguments.add}")
        try:
            figures, heads = merged((figures, heads), record.read_rows(arguments.add, "memory"))
        except ValueError as error:
            parser.error(f"--add={arguments.add}: {error}")
        record.write_rows(path, "memory", heads, figures)
    todo = [row for row in rows() if row.name not in figures and re.search(arguments.only, row.name)]
    if not arguments.table and not arguments.add:
        head = record.head("memory", devices=False)
        with progress(len(todo), desc="compiled", enabled=bool(todo)) as bar:
            for done, row in enumerate(todo):
                figures[row.name] = {"row": dataclasses.asdict(row)} | _in_another_process(row)
                heads[row.name] = head
                record.write_rows(path, "memory", heads, figures)
                bar.set(done + 1)
    print(table(figures))


if __name__ == "__main__":
    main()
