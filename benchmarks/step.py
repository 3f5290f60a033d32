"""Speed of a training step and of a denoising step, compared with this machine's matrix products.

    python -m benchmarks.step --config=configs/bench_cpu.py [--config.model.ch=64] [--json=FILE]
    python -m benchmarks.step --sampling [--config.sample.preset=fast]     # views per second, and objects that fit
    python -m benchmarks.step --largest_batch [--config.train.remat=all]   # pairs that fit; only compiles
    python -m benchmarks.step --compilation_cache=FOLDER                   # the second run shows a warm start

FLOPs are those that the network needs, counted before optimization and without what rematerialization recomputes. The
rate of a large matrix product is measured before and after, in the same run, so that the fraction does not depend on
the clock. What fits is determined by the compiler's own figures, against the memory of one device or --memory_gib.
"""

from __future__ import annotations

import dataclasses
import resource
import statistics
import time

import jax
import numpy as np
from absl import flags
from jax.sharding import AxisType, Mesh
from ml_collections import config_flags

from benchmarks import record
from benchmarks.programs import Sampling, example_batch, lower_training_step, matmul_rate, timed
from threedim import config as config_lib
from threedim import cpu
from threedim.errors import UserError
from threedim.training import hardware
from threedim.training.step import Metrics, abstract_params, init_params, init_state

GIB = 2**30


def measure_training(config, repeats: int) -> dict[str, float]:
    """Times the training step, from tracing it to running it ``repeats`` times."""
    network, process, recipe = config_lib.network(config), config_lib.process(config), config_lib.recipe(config)
    start = time.perf_counter()
    lowered, shapes = lower_training_step(network, process, recipe, config_lib.mesh(config))
    traced = time.perf_counter()
    compiled = lowered.compile()
    compile_seconds = time.perf_counter() - traced
    shardings = jax.tree.map(lambda leaf: leaf.sharding, shapes)
    state = jax.jit(init_state, static_argnums=(0, 1), out_shardings=shardings[0])(network, recipe)
    batch = example_batch(network.image_size, recipe.batch_size)
    metrics, batch = jax.device_put((Metrics.zeros(), batch), shardings[1:])
    times = []
    for _ in range(repeats + 1):  # the state is donated, so that each step needs the previous one's
        began = time.perf_counter()
        state, metrics = jax.block_until_ready(compiled(state, metrics, batch))
        times.append(time.perf_counter() - began)
        if len(times) == 1:
            to_first_step = time.perf_counter() - start
    row = _row(compiled, hardware.training_flops(network, process, recipe), times[1:])
    return row | {
        "pairs_per_second": recipe.batch_size / row["seconds"],
        "trace_seconds": traced - start,
        "compile_seconds": compile_seconds,
        "first_step_seconds": times[0],
        "seconds_to_first_step": to_first_step,
    }


def measure_denoising(config, repeats: int) -> dict[str, float]:
    """Times one network evaluation for ``config.train.batch_size`` objects, as each step of the sampler needs it."""
    sampling, mesh, objects = Sampling(config), config_lib.mesh(config), config.train.batch_size
    evaluate, shapes = sampling.evaluation(objects)
    start = time.perf_counter()
    compiled = sampling.lower_evaluation(objects, mesh).compile()
    compile_seconds = time.perf_counter() - start
    rng = np.random.default_rng(0)
    numbers = jax.tree.map(lambda s: (0.02 * rng.standard_normal(s.shape)).astype(s.dtype), shapes)
    args = jax.device_put(numbers, compiled.input_shardings[0])
    times = timed(lambda: compiled(*args), repeats + 1)
    row = _row(compiled, hardware.count_flops(evaluate, *shapes), times[1:])
    return row | {"compile_seconds": compile_seconds}


def measure_sampling(config, repeats: int, limit: int) -> dict:
    """Times sampling one view of ``config.sample.batch_size`` objects, on one device of ``limit`` bytes."""
    sampling, objects = Sampling(config), config.sample.batch_size or 1
    program: dict = {}

    def compile_program(count: int) -> jax.stages.Compiled:
        lowered = sampling.lower(count)
        start = time.perf_counter()
        compiled = lowered.compile()
        if count == objects:
            program.update(compiled=compiled, seconds=time.perf_counter() - start)
        return compiled

    most, needed = hardware.largest(
        lambda count: hardware.program_bytes(lambda: compile_program(count)), limit, start=objects
    )
    if most < objects:
        raise UserError(
            f"{objects} objects at once do not fit in {limit / GIB:.2f} GiB, {most} do: set config.sample.batch_size, "
            "or sample fewer views (config.sample.num_views)"
        )
    params = jax.jit(init_params, static_argnums=0)(sampling.denoiser.network, jax.random.key(0))
    arguments = jax.jit(sampling.example)(params, example_batch(sampling.size, objects))
    compiled = program["compiled"]
    row = _row(compiled, objects * sampling.flops_per_view, timed(lambda: compiled(params, *arguments), repeats))
    return row | {
        "preset": config.sample.preset,
        "num_steps": sampling.settings.num_steps,
        "evaluations_per_view": sampling.evaluations,
        "objects": objects,
        "known_views": sampling.known_views,
        "views_per_second": objects / row["seconds"],
        "compile_seconds": program["seconds"],
        "device_bytes": hardware.device_bytes(compiled),
        "largest": {"batch_size": most, "device_bytes": needed, "limit_bytes": limit},
    }


def largest_training_batch(config, limit: int) -> dict:
    """The largest batch of pairs that one device of ``limit`` bytes trains on."""
    network, process, recipe = config_lib.network(config), config_lib.process(config), config_lib.recipe(config)
    mesh = Mesh([[jax.local_devices()[0]]], ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)

    def bytes_of(pairs: int) -> float:
        whole = dataclasses.replace(recipe, batch_size=pairs * recipe.microbatches)
        return hardware.program_bytes(lambda: lower_training_step(network, process, whole, mesh)[0].compile())

    pairs, needed = hardware.largest(bytes_of, limit, start=max(1, recipe.batch_size // recipe.microbatches))
    return {
        "batch_size": pairs * recipe.microbatches,
        "microbatches": recipe.microbatches,
        "remat": config.train.remat,
        "device_bytes": needed,
        "limit_bytes": limit,
    }


def measure(
    config, repeats: int | None = None, *, sampling: bool = False, largest_batch: bool = False, gib: float | None = None
) -> dict:
    """Figures of the training step and the denoising step, or with ``sampling`` and ``largest_batch`` of those instead.

    ``repeats`` defaults to 8, or 3 for whole views; ``gib`` replaces the memory of one device.

    Raises:
      UserError: if the objects to sample do not fit, or the device's memory is unknown.
    """
    network = config_lib.network(config)
    figures = {
        "batch_size": config.train.batch_size,
        "devices": jax.device_count(),
        "device_kind": jax.devices()[0].device_kind,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(abstract_params(network))),
    }
    if largest_batch:
        figures["largest_training_batch"] = largest_training_batch(config, hardware.memory_limit(gib))
        if not sampling:
            return figures
    peak = [matmul_rate(network.dtype)]
    if sampling:
        rows = {"sampling": measure_sampling(config, repeats or 3, hardware.memory_limit(gib))}
    else:
        rows = {
            "training_step": measure_training(config, repeats or 8),
            "denoising_step": measure_denoising(config, repeats or 8),
        }
    peak.append(matmul_rate(network.dtype))
    for row in rows.values():
        row["fraction_of_matmul"] = row["flops_per_second"] / max(peak)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return figures | {"matmul_flops_per_second": max(peak), **rows, "peak_resident_bytes": resident}


def report(figures: dict) -> str:
    """The figures as text."""
    f = figures
    lines = [f"{f['parameters']:,} parameters, {f['devices']} {f['device_kind']} device(s)"]
    rows = {name: f[name] for name in ("training_step", "denoising_step", "sampling") if name in f}
    if rows:
        lines[0] += (
            f", batch {f['batch_size']}, matmul {f['matmul_flops_per_second'] / 1e9:,.0f} GFLOP/s, "
            f"peak resident memory {f['peak_resident_bytes'] / GIB:.2f} GiB"
        )
        titles = f"{'GFLOP':>12}{'seconds':>10}{'GFLOP/s':>10}{'of matmul':>11}{'compile s':>11}{'temp MiB':>10}"
        lines.append(" " * 16 + titles)
    for name, row in rows.items():
        lines.append(
            f"{name.replace('_', ' '):16}{row['flops'] / 1e9:12.2f}{row['seconds']:10.4f}"
            f"{row['flops_per_second'] / 1e9:10.1f}{row['fraction_of_matmul']:11.3f}"
            f"{row['compile_seconds']:11.1f}{row['temporary_bytes'] / 2**20:10.0f}"
        )
    if train := f.get("training_step"):
        lines.append(
            f"{train['pairs_per_second']:.4g} pairs/s; first step after {train['seconds_to_first_step']:.1f} s: "
            f"{train['trace_seconds']:.1f} s to trace, {train['compile_seconds']:.1f} s to compile, "
            f"{train['first_step_seconds']:.1f} s to run"
        )
    if s := f.get("sampling"):
        lines.append(
            f"{s['views_per_second']:.4g} views/s: {s['objects']} objects in {s['device_bytes'] / GIB:.2f} GiB, "
            f"preset {s['preset']}, {s['num_steps']} steps, {s['evaluations_per_view']} evaluations per view, "
            f"{s['known_views']} known views"
        )
    for what, most in (("objects", (s or {}).get("largest")), ("pairs", f.get("largest_training_batch"))):
        if most:
            lines.append(
                f"largest batch in {most['limit_bytes'] / GIB:.2f} GiB: {most['batch_size']} {what}, which need "
                f"{most['device_bytes'] / GIB:.2f} GiB"
            )
    return "\n".join(lines)


def _row(compiled: jax.stages.Compiled, flops: float, times: list[float]) -> dict[str, float]:
    """What every timed program reports; seconds are medians."""
    seconds, memory = statistics.median(times), compiled.memory_analysis()
    return {
        "flops": flops,
        "seconds": seconds,
        "flops_per_second": flops / seconds,
        "temporary_bytes": memory.temp_size_in_bytes,
        "argument_bytes": memory.argument_size_in_bytes,
    }


def _measure(given: flags.FlagValues) -> dict:
    if given.compilation_cache:
        jax.config.update("jax_compilation_cache_dir", given.compilation_cache)
    cpu.split(given.config.mesh.cpu_devices)
    what = {"sampling": given.sampling, "largest_batch": given.largest_batch}
    return measure(given.config, given.repeats, **what, gib=given.memory_gib)


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", "configs/bench_cpu.py", "Configuration to measure.")
    flags.DEFINE_integer("repeats", None, "Timed runs, of which the median counts. Defaults to 8, or 3 of a view.", 1)
    flags.DEFINE_bool("sampling", False, "Measure views per second and the largest batch of objects.")
    flags.DEFINE_bool("largest_batch", False, "Find the largest batch of pairs that one device trains on.")
    flags.DEFINE_float("memory_gib", None, "Memory of one device, instead of its own.", 0.0)
    flags.DEFINE_string("compilation_cache", None, "Folder that keeps compiled programs for the next run.")
    record.run("step", _measure, report)
