"""What a training step and a denoising step cost, beside what this machine can do.

    python -m benchmarks.step --config=configs/bench_cpu.py [--config.model.ch=64] [--json=FILE]
    python -m benchmarks.step --sampling [--config.sample.preset=fast]   # views per second, and how many fit at once
    python -m benchmarks.step --largest_batch [--config.train.remat=all]   # pairs that fit; compiles only

FLOPs are counted on the lowered, unoptimized program, without what rematerialization computes again. The machine's
matmul rate is measured in the same run, right before and after, so that the ratio holds where the clock does not.

What fits is what the compiler says that a program needs, against the memory of one device, or ``--memory_gib``.
"""

from __future__ import annotations

import resource
import statistics
import time

import jax
import jax.numpy as jnp
from absl import app, flags, logging
from ml_collections import config_flags

from benchmarks import drawing, fitting, record
from benchmarks.compiling import lower_training_step
from benchmarks.inputs import example_batch
from benchmarks.timing import matmul_rate, timed
from threedim import config as config_lib
from threedim import cpu
from threedim.models.unet import NetworkDenoiser
from threedim.training import sharding
from threedim.training.step import (
    Metrics,
    abstract_params,
    batch_images,
    init_params,
    init_state,
    make_train_step,
)


def training_flops(network, process, recipe, args: tuple) -> float:
    """Counted FLOPs that a training step needs.

    What is computed again to save memory is not needed: it counts as time, not as work.

    Args:
      network, process, recipe: what is trained, and how.
      args: state, metrics and batch, or their shapes.
    """
    step = jax.jit(make_train_step(network.clone(remat="none"), process, recipe))
    # Of a scan over microbatches the body is counted once.
    return step.lower(*args).cost_analysis()["flops"] * recipe.microbatches


def measure_steps(config, repeats: int) -> dict[str, dict]:
    """Figures of a training step and of a denoising step."""
    network, process, recipe = config_lib.network(config), config_lib.process(config), config_lib.recipe(config)
    batch = example_batch(network.image_size, recipe.batch_size)

    def entry(lowered, flops, run, args) -> dict:
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
        return timed(lambda: compiled(*args), repeats)

    mesh, options = config_lib.mesh(config), cpu.compiler_options(loops=recipe.microbatches > 1)
    lowered, shapes = lower_training_step(network, process, recipe, mesh, options)
    places = jax.tree.map(lambda leaf: leaf.sharding, shapes)
    state = jax.jit(init_state, static_argnums=(0, 1), out_shardings=places[0])(network, recipe)
    args = (state, *jax.device_put((Metrics.zeros(), batch), places[1:]))
    training = entry(lowered, training_flops(network, process, recipe, args), run_training, args)
    training["pairs_per_second"] = recipe.batch_size / training["seconds"]

    # Made anew: a copy of the state's beside the training step would take memory that it may need.
    denoiser, params = NetworkDenoiser(network), jax.jit(init_params, static_argnums=0)(network, jax.random.key(0))
    params = jax.device_put(params, sharding.replicated(mesh))
    split = sharding.batch_sharding(mesh)
    images, camera = batch_images(jax.device_put(batch, split))
    mask, logsnr = jax.device_put((jnp.ones((recipe.batch_size,), bool), jnp.zeros((recipe.batch_size,))), split)
    view = jax.jit(denoiser.encode_view)(params, images[:, 0], logsnr + 20.0, camera[:, 0], mask)
    target = jax.jit(denoiser.embed_camera)(params, camera[:, 1], mask)
    args = (params, *jax.device_put((images[:, 1], logsnr, target, view), split))
    # As within the sampler's loop.
    options = cpu.compiler_options(loops=True)
    lowered = jax.jit(denoiser.denoise, compiler_options=options).lower(*args)
    denoising = entry(lowered, lowered.cost_analysis()["flops"], run_pure, args)
    return {"training_step": training, "denoising_step": denoising}


def measure(
    config, repeats: int | None = None, *, sampling: bool = False, largest_batch: bool = False, gib: float | None = None
) -> dict:
    """All figures of one configuration: those of its steps, unless others are asked for.

    Args:
      config: the configuration.
      repeats: timed runs of each; None for 8, or 3 of a whole view.
      sampling, largest_batch: what to measure instead.
      gib: memory of one device to fit in, instead of its own.

    Raises:
      ValueError: if the batch to sample does not fit, or the memory of the device is not known.
    """
    limit = fitting.memory_limit(gib) if sampling or largest_batch else 0
    network = config_lib.network(config)
    figures = {
        "batch_size": config.train.batch_size,
        "devices": jax.device_count(),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(abstract_params(network))),
    }
    if largest_batch:
        figures["largest_training_batch"] = fitting.largest_training_batch(config, limit)
    if largest_batch and not sampling:
        return figures
    peak = [matmul_rate(network.dtype)]
    timed_programs = (
        {"sampling": drawing.measure(config, repeats or 3, limit)} if sampling else measure_steps(config, repeats or 8)
    )
    peak.append(matmul_rate(network.dtype))
    for row in timed_programs.values():
        row["fraction_of_matmul"] = row["flops_per_second"] / max(peak)
    return figures | {
        "matmul_flops_per_second": max(peak),
        **timed_programs,
        "peak_resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def report(figures: dict, device: str) -> str:
    """The figures as a table."""
    gib = 2**30
    lines = []
    rows = [name for name in ("training_step", "denoising_step", "sampling") if name in figures]
    if rows:
        lines += [
            f"{figures['parameters']:,} parameters, batch {figures['batch_size']}, "
            f"{figures['devices']} {device} device(s), matmul {figures['matmul_flops_per_second'] / 1e9:,.0f} GFLOP/s, "
            f"peak resident memory {figures['peak_resident_bytes'] / gib:.2f} GiB",
            f"{'':16}{'GFLOP':>12}{'seconds':>10}{'GFLOP/s':>10}{'of matmul':>11}{'compile s':>11}{'temp MiB':>10}",
        ]
    for name in rows:
        row = figures[name]
        lines.append(
            f"{name.replace('_', ' '):16}{row['flops'] / 1e9:12.2f}{row['seconds']:10.4f}"
            f"{row['flops_per_second'] / 1e9:10.1f}{row['fraction_of_matmul']:11.3f}"
            f"{row['compile_seconds']:11.1f}{row['temporary_bytes'] / 2**20:10.0f}"
        )
    if "sampling" in figures:
        s = figures["sampling"]
        most = s["largest"]
        lines += [
            f"{s['views_per_second']:.4g} views/s: {s['objects']} objects at once, preset {s['preset']}, "
            f"{s['num_steps']} steps, {s['evaluations_per_view']} evaluations a view, {s['known_views']} known views",
            f"largest batch in {most['limit_bytes'] / gib:.2f} GiB: {most['objects']} objects, which need "
            f"{most['device_bytes'] / gib:.2f} GiB; these {s['objects']} need {s['device_bytes'] / gib:.2f} GiB",
        ]
    if "largest_training_batch" in figures:
        most = figures["largest_training_batch"]
        lines.append(
            f"largest training batch in {most['limit_bytes'] / gib:.2f} GiB, remat {most['remat']}, in "
            f"{most['microbatches']} part(s): {most['batch_size']} pairs, which need "
            f"{most['device_bytes'] / gib:.2f} GiB"
        )
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    logging.set_verbosity(logging.WARNING)
    given = flags.FLAGS
    cpu.split(given.config.mesh.cpu_devices)
    head = record.head("step")
    figures = measure(
        given.config,
        given.repeats,
        sampling=given.sampling,
        largest_batch=given.largest_batch,
        gib=given.memory_gib,
    )
    print(report(figures, head["machine"]["device"]["kind"]))
    if given.json:
        record.write(given.json, "step", head, figures)


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", "configs/bench_cpu.py", "The configuration to measure.")
    flags.DEFINE_integer(
        "repeats", None, "Timed runs of each; the median counts. Without this 8, or 3 of a view.", lower_bound=1
    )
    flags.DEFINE_bool("sampling", False, "Measure views per second, and the largest batch of objects.")
    flags.DEFINE_bool("largest_batch", False, "Find the largest batch of pairs that training fits.")
    flags.DEFINE_float("memory_gib", None, "Memory to fit in, instead of the device's.", lower_bound=0.0)
    flags.DEFINE_string("json", None, "Also write the figures to this file.")
    app.run(main)
