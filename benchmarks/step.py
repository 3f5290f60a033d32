"""What a training step and a denoising step cost, beside what this machine can do.

    python -m benchmarks.step --config=configs/bench_cpu.py [--config.model.ch=64] [--json=FILE]

FLOPs are counted on the lowered, unoptimized program. The machine's matmul rate is measured in the same run, right
before and after, so that the ratio holds where the clock does not.
"""

from __future__ import annotations

import json
import pathlib
import platform
import resource
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from ml_collections import config_flags

from threedim.cameras import intrinsics, orbit
from threedim.models.unet import NetworkDenoiser
from threedim.training import build
from threedim.training.state import Metrics, batch_images, init_state, make_train_step

_CONFIG = config_flags.DEFINE_config_file("config", "configs/bench_cpu.py", "The configuration to measure.")
_REPEATS = flags.DEFINE_integer("repeats", 8, "Timed runs of each; the median is reported.", lower_bound=1)
_JSON = flags.DEFINE_string("json", None, "Also write the figures to this file.")


def _seconds(run, repeats: int) -> list[float]:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return times


def matmul_rate(dtype, repeats: int = 10) -> float:
    """FLOP/s of a large square matrix product in ``dtype``: the best of some runs."""
    n = 2048 if jax.default_backend() == "cpu" else 8192
    a = jnp.ones((n, n), dtype)
    product = jax.jit(lambda a: a @ a)
    jax.block_until_ready(product(a))
    return 2 * n**3 / min(_seconds(lambda: product(a), repeats))


def example_batch(size: int, batch_size: int) -> dict[str, jax.Array]:
    """A batch of random pictures with cameras on an orbit."""
    rng = np.random.default_rng(0)
    camera = orbit(rng.uniform(0, 360, 2 * batch_size), 20.0, 2.0, intrinsics(size, size))
    poses = {"R": camera.R, "t": camera.t, "K": camera.K}
    batch = {name: value.reshape(batch_size, 2, *value.shape[1:]) for name, value in poses.items()}
    batch["image"] = rng.integers(0, 256, (batch_size, 2, size, size, 3), np.uint8)
    return jax.tree.map(jnp.asarray, batch)


def measure(config, repeats: int) -> dict:
    """All figures of one configuration."""
    network, process, recipe = build.network(config), build.process(config), build.recipe(config)
    batch = example_batch(network.image_size, recipe.batch_size)
    peak = [matmul_rate(network.dtype)]

    def entry(lowered, run, args) -> dict:
        flops = lowered.cost_analysis()["flops"]
        start = time.perf_counter()
        compiled = lowered.compile()
        compile_seconds = time.perf_counter() - start
        memory = compiled.memory_analysis()
        seconds = statistics.median(run(compiled, args))
        return {
            "flops": flops,
            "seconds": seconds,
            "flops_per_second": flops / seconds,
            "compile_seconds": compile_seconds,
            "temporary_bytes": memory.temp_size_in_bytes,
            "argument_bytes": memory.argument_size_in_bytes,
        }

    def run_training(compiled, args) -> list[float]:
        state, metrics, batch = args
        times = []
        for _ in range(repeats + 1):
            start = time.perf_counter()
            state, metrics = jax.block_until_ready(compiled(state, metrics, batch))
            times.append(time.perf_counter() - start)
        return times[1:]

    def run_pure(compiled, args) -> list[float]:
        jax.block_until_ready(compiled(*args))
        return _seconds(lambda: compiled(*args), repeats)

    state = jax.jit(init_state, static_argnums=(0, 1))(network, recipe)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    denoiser, params = NetworkDenoiser(network), jax.tree.map(jnp.copy, state.params)

    step = jax.jit(make_train_step(network, process, recipe), donate_argnums=(0, 1))
    args = (state, Metrics.zeros(), batch)
    training = entry(step.lower(*args), run_training, args)

    images, camera = batch_images(batch)
    mask, logsnr = jnp.ones((recipe.batch_size,), bool), jnp.zeros((recipe.batch_size,))
    view = jax.jit(denoiser.encode_view)(params, images[:, 0], logsnr + 20.0, camera[:, 0], mask)
    target = jax.jit(denoiser.embed_camera)(params, camera[:, 1], mask)
    args = (params, images[:, 1], logsnr, target, view)
    denoising = entry(jax.jit(denoiser.denoise).lower(*args), run_pure, args)

    peak.append(matmul_rate(network.dtype))
    for figures in (training, denoising):
        figures["fraction_of_matmul"] = figures["flops_per_second"] / max(peak)
    return {
        "batch_size": recipe.batch_size,
        "parameters": parameters,
        "matmul_flops_per_second": max(peak),
        "training_step": training,
        "denoising_step": denoising,
        "peak_resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "device": jax.devices()[0].device_kind,
        "machine": platform.processor() or platform.machine(),
        "jax": jax.__version__,
    }


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    logging.set_verbosity(logging.WARNING)
    figures = measure(_CONFIG.value, _REPEATS.value)
    print(
        f"{figures['parameters']:,} parameters, batch {figures['batch_size']}, {figures['device']}, "
        f"matmul {figures['matmul_flops_per_second'] / 1e9:,.0f} GFLOP/s, "
        f"peak resident memory {figures['peak_resident_bytes'] / 2**30:.2f} GiB"
    )
    print(f"{'':16}{'GFLOP':>12}{'seconds':>10}{'GFLOP/s':>10}{'of matmul':>11}{'compile s':>11}{'temp MiB':>10}")
    for name in ("training_step", "denoising_step"):
        row = figures[name]
        print(
            f"{name.replace('_', ' '):16}{row['flops'] / 1e9:12.2f}{row['seconds']:10.4f}"
            f"{row['flops_per_second'] / 1e9:10.1f}{row['fraction_of_matmul']:11.3f}"
            f"{row['compile_seconds']:11.1f}{row['temporary_bytes'] / 2**20:10.0f}"
        )
    if _JSON.value:
        pathlib.Path(_JSON.value).write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    app.run(main)
