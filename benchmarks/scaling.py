"""How training scales: what a step computes and sends on each device, counted from compiled programs.

    python -m benchmarks.scaling --devices=8      # compiles for 8 fake CPU devices; also 64, 512
    python -m benchmarks.scaling --table          # the estimate for 471M from what was counted

Counted: bytes that the collectives of a training step send, as a multiple of the parameters' own bytes, for a network
that compiles in a minute; they are the gradients' and parameters', so that they scale with the number of parameters.
The estimate puts them, and the FLOPs of the large network, over data-sheet rates; computing and sending are taken to
overlap perfectly (best) and not at all (worst).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys

import jax
import numpy as np
from etils import epath
from jax.sharding import AxisType, Mesh

from benchmarks import record
from benchmarks.compiling import compile_training_step, wire_bytes
from configs import base
from threedim import config as config_lib
from threedim.training import hardware

# 471M at 128 px: parameters, and FLOPs that a pair needs in training (asserted in tests/test_xunet.py).
PARAMETERS, FLOPS_PER_PAIR = 461_661_731, 6.68e12
# Of the data-sheet rate, what a well-tuned program reaches.
UTILIZATION = 0.5
CHIPS = ("TPU v4", "TPU v5 lite", "TPU v5", "TPU v6 lite", "NVIDIA H100 80GB HBM3")


def count(devices: int) -> dict[str, dict[str, float]]:
    """Bytes sent per device and step, over the bytes of all parameters in float32, by mesh and collective."""
    config = base.get_config()
    m = config.model
    m.image_size, m.ch, m.emb_ch, m.num_res_blocks, m.ch_mult, m.attn_resolutions = 16, 128, 256, 1, (1, 2), (8,)
    m.dtype = "float32"
    config.train.batch_size = devices
    network, process, recipe = config_lib.network(config), config_lib.process(config), config_lib.recipe(config)
    found = {}
    for fsdp in sorted({1, 8, devices}):
        mesh = Mesh(
            np.asarray(jax.devices()[:devices]).reshape(devices // fsdp, fsdp),
            ("data", "fsdp"),
            axis_types=(AxisType.Auto,) * 2,
        )
        _, compiled, state = compile_training_step(network, process, recipe, mesh)
        parameter_bytes = 4 * sum(leaf.size for leaf in jax.tree.leaves(state.params))
        sent = wire_bytes(compiled.as_text())
        found[f"{devices // fsdp}x{fsdp}"] = {kind: value / parameter_bytes for kind, value in sent.items()}
    return found


def estimate(multiple: float, chip: hardware.Chip, devices: int, batch: int) -> tuple[float, float, float]:
    """Seconds to compute, seconds to send, and the fraction of perfect scaling if nothing overlaps."""
    compute = FLOPS_PER_PAIR * batch / devices / (chip.flops * UTILIZATION)
    send = multiple * 4 * PARAMETERS / chip.link
    return compute, send, compute / (compute + send)


def table(counted: dict[str, dict[str, dict[str, float]]]) -> str:
    """Markdown: what was counted, then the estimate."""
    kinds = list(next(iter(next(iter(counted.values())).values())))
    lines = ["| mesh (data x fsdp) | " + " | ".join(kinds) + " | in all |", "| --- |" + " --- |" * (len(kinds) + 1)]
    for meshes in counted.values():
        for mesh, sent in meshes.items():
            cells = [f"{sent[kind]:.2f}" for kind in kinds] + [f"{sum(sent.values()):.2f}"]
            lines.append(f"| {mesh} | " + " | ".join(cells) + " |")
    # The most that any number of devices gave: over very many, few arrays of so small a network divide.
    multiples = {
        name: max(sum(meshes[mesh.format(devices)].values()) for devices, meshes in counted.items())
        for name, mesh in (("data", "{}x1"), ("fsdp", "1x{}"))
    }
    lines += [
        "",
        "| chip | devices | batch | compute, ms | send, ms (data / fsdp) | scaling without overlap (data / fsdp) |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for kind in CHIPS:
        chip = hardware.CHIPS[kind]
        for devices, batch in ((8, 128), (32, 128), (128, 128), (256, 256), (256, 1024), (256, 2048)):
            each = {name: estimate(multiple, chip, devices, batch) for name, multiple in multiples.items()}
            compute = each["data"][0]
            sends = " / ".join(f"{1e3 * each[name][1]:.1f}" for name in multiples)
            fractions = " / ".join(f"{each[name][2]:.2f}" for name in multiples)
            lines.append(f"| {chip.name} | {devices} | {batch} | {1e3 * compute:.1f} | {sends} | {fractions} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=8, help="number of fake CPU devices to compile for, at least 2")
    parser.add_argument("--table", action="store_true", help="compile nothing, print the estimate")
    parser.add_argument("--json", default="docs/scaling.json", help="file of the figures")
    parser.add_argument("--here", action="store_true", help="compile in this process and print: what the others call")
    arguments = parser.parse_args()
    if arguments.here:
        print(json.dumps(count(arguments.devices)))
        return
    path = epath.Path(arguments.json)
    counted, heads = record.read_rows(path, "scaling")
    if not arguments.table:
        head = record.head("scaling", devices=False)
        xla_flags = f"--xla_force_host_platform_device_count={arguments.devices}"
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla_flags}
        command = [sys.executable, "-m", "benchmarks.scaling", "--here", f"--devices={arguments.devices}"]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        counted[str(arguments.devices)] = json.loads(done.stdout.splitlines()[-1])
        heads[str(arguments.devices)] = head
        record.write_rows(path, "scaling", heads, counted)
    print(table(counted))


if __name__ == "__main__":
    main()
