"""Speed of a training step and of a denoising step, compared with this machine's matrix products.

    python -m benchmarks.step --config=configs/bench_cpu.py [--config.model.ch=64] [--json=FILE]
    python -m benchmarks.step --sampling [--config.sample.preset=fast]     # views per second, and objects that fit
    python -m benchmarks.step --largest_batch [--config.train.remat=all]   # pairs that fit; only compiles
    python -m benchmarks.step --time_limit=300                             # seconds; prints what is there by then

FLOPs are those that the network needs, counted before optimization and without what rematerialization recomputes. The
rate of a large matrix product is measured before and after, in the same run, so that the fraction does not depend on
the clock. Programs are compiled and then read from the persistent cache, where the next run finds them. What fits is
determined by the compiler's own figures, against the memory of one device or --memory_gib.
"""

from __future__ import annotations

import dataclasses
import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import flags
from jax.sharding import AxisType, Mesh
from ml_collections import config_flags

from benchmarks import record
from benchmarks.programs import Sampling, compile_timed, example_batch, lower_training_step, matmul_rate, timed
from threedim import config as config_lib
from threedim import cpu, files
from threedim.errors import UserError
from threedim.training import hardware
from threedim.training.step import Metrics, abstract_params, init_params, init_state

GIB = 2**30
ROWS = ("training_step", "denoising_step", "sampling")
# Title, key, width, decimals and unit.
_COLUMNS = (
    ("GFLOP", "flops", 12, 2, 1e9),
    ("seconds", "seconds", 10, 4, 1),
    ("GFLOP/s", "flops_per_second", 10, 1, 1e9),
    ("of matmul", "fraction_of_matmul", 11, 3, 1),
    ("first compile", "first_compile_seconds", 15, 1, 1),
    ("cached", "cached_compile_seconds", 8, 1, 1),
    ("first step", "first_step_seconds", 12, 1, 1),
    ("temp MiB", "temporary_bytes", 10, 0, 2**20),
)


def training_program(config, options: dict[str, Any], row: dict) -> Callable[[], None]:
    """A function that runs the training step once and waits for it; fills ``row`` with what compiling it took."""
    network, process, recipe = config_lib.network(config), config_lib.process(config), config_lib.recipe(config)
    start = time.perf_counter()
    lowered, shapes = lower_training_step(network, process, recipe, config_lib.mesh(config))
    row["trace_seconds"] = time.perf_counter() - start
    compiled = _compile(lowered, row, options)
    row["flops"] = hardware.training_flops(network, process, recipe)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, shapes)
    state = jax.jit(init_state, static_argnums=(0, 1), out_shardings=shardings[0])(network, recipe)
    batch = example_batch(network.image_size, recipe.batch_size)
    metrics, batch = jax.device_put((Metrics.zeros(), batch), shardings[1:])

    def run() -> None:
        nonlocal state, metrics  # the state is donated, so that each step needs the previous one's
        state, metrics = jax.block_until_ready(compiled(state, metrics, batch))

    return run


def measure_training(config, repeats: int, row: dict) -> None:
    """Times the training step, from tracing it to running it ``repeats`` times; fills ``row`` as it goes."""
    _time(training_program(config, {}, row), repeats, row)
    row["pairs_per_second"] = config.train.batch_size / row["seconds"]


def measure_denoising(config, repeats: int, row: dict) -> None:
    """Times one network evaluation for ``config.train.batch_size`` objects, as each step of the sampler needs it."""
    sampling, mesh, objects = Sampling(config), config_lib.mesh(config), config.train.batch_size
    evaluate, shapes = sampling.evaluation(objects)
    compiled = _compile(sampling.lower_evaluation(objects, mesh), row)
    row["flops"] = hardware.count_flops(evaluate, *shapes)
    rng = np.random.default_rng(0)
    numbers = jax.tree.map(lambda s: (0.02 * rng.standard_normal(s.shape)).astype(s.dtype), shapes)
    args = jax.device_put(numbers, compiled.input_shardings[0])
    _time(lambda: compiled(*args), repeats, row)


def measure_sampling(config, repeats: int, limit: int, row: dict) -> None:
    """Times sampling one view of ``config.sample.batch_size`` objects, on one device of ``limit`` bytes."""
    sampling, objects = Sampling(config), config.sample.batch_size or 1
    programs = {}

    def compile_program(count: int) -> jax.stages.Compiled:
        lowered = sampling.lower(count)
        if count != objects:
            return lowered.compile()
        return programs.setdefault(count, _compile(lowered, row))

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
    row |= {
        "flops": objects * sampling.flops_per_view,
        "preset": config.sample.preset,
        "num_steps": sampling.settings.num_steps,
        "evaluations_per_view": sampling.evaluations,
        "objects": objects,
        "known_views": sampling.known_views,
        "device_bytes": hardware.device_bytes(programs[objects]),
        "largest": {"batch_size": most, "device_bytes": needed, "limit_bytes": limit},
    }
    _time(lambda: programs[objects](params, *arguments), repeats, row)
    row["views_per_second"] = objects / row["seconds"]


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
    config,
    repeats: int | None = None,
    *,
    sampling: bool = False,
    largest_batch: bool = False,
    gib: float | None = None,
    figures: dict | None = None,
) -> dict:
    """Figures of the training step and the denoising step, or with ``sampling`` and ``largest_batch`` of those instead.

    ``repeats`` defaults to 8, or 3 for whole views; ``gib`` replaces the memory of one device. A dict ``figures`` has
    what is measured as soon as it is.

    Raises:
      UserError: if the objects to sample do not fit, or the device's memory is unknown.
    """
    network = config_lib.network(config)
    figures = {} if figures is None else figures
    figures |= {
        "batch_size": config.train.batch_size,
        "devices": jax.device_count(),
        "device_kind": jax.devices()[0].device_kind,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(abstract_params(network))),
    }
    if largest_batch:
        figures["largest_training_batch"] = largest_training_batch(config, hardware.memory_limit(gib))
        if not sampling:
            return figures
    figures["matmul_flops_per_second"] = matmul_rate(network.dtype)
    if sampling:
        measure_sampling(config, repeats or 3, hardware.memory_limit(gib), figures.setdefault("sampling", {}))
    else:
        measure_training(config, repeats or 8, figures.setdefault("training_step", {}))
        measure_denoising(config, repeats or 8, figures.setdefault("denoising_step", {}))
    figures["matmul_flops_per_second"] = max(figures["matmul_flops_per_second"], matmul_rate(network.dtype))
    return complete(figures)


def complete(figures: dict) -> dict:
    """The figures, with those that follow from others; some may be missing."""
    for row in (figures[name] for name in ROWS if name in figures):
        if "seconds" in row:
            row["flops_per_second"] = row["flops"] / row["seconds"]
            row["fraction_of_matmul"] = row["flops_per_second"] / figures["matmul_flops_per_second"]
    figures["peak_resident_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return figures


def report(figures: dict) -> str:
    """The figures as text; a dash for what is missing."""
    f = figures
    if "parameters" not in f:
        return "nothing was measured"
    lines = [f"{f['parameters']:,} parameters, {f['devices']} {f['device_kind']} device(s)"]
    rows = {name: f[name] for name in ROWS if name in f}
    if rows:
        lines[0] += (
            f", batch {f['batch_size']}, matmul {f['matmul_flops_per_second'] / 1e9:,.0f} GFLOP/s, "
            f"peak resident memory {f['peak_resident_bytes'] / GIB:.2f} GiB"
        )
        lines.append(" " * 16 + "".join(f"{title:>{width}}" for title, _, width, _, _ in _COLUMNS))
    for name, row in rows.items():
        cells = [
            f"{row[key] / unit:{width}.{decimals}f}" if row.get(key) is not None else f"{'–':>{width}}"
            for _, key, width, decimals, unit in _COLUMNS
        ]
        lines.append(f"{name.replace('_', ' '):16}{''.join(cells)}")
    for name, row in rows.items():
        if "from_cache" in row:
            found = "came from" if row["from_cache"] else "was not in"
            lines.append(f"the program of the {name.replace('_', ' ')} {found} the persistent compilation cache")
    if "pairs_per_second" in (train := f.get("training_step", {})):
        lines.append(f"{train['pairs_per_second']:.4g} pairs/s; tracing the step took {train['trace_seconds']:.1f} s")
    if "views_per_second" in (s := f.get("sampling", {})):
        lines.append(
            f"{s['views_per_second']:.4g} views/s: {s['objects']} objects in {s['device_bytes'] / GIB:.2f} GiB, "
            f"preset {s['preset']}, {s['num_steps']} steps, {s['evaluations_per_view']} evaluations per view, "
            f"{s['known_views']} known views"
        )
    for what, most in (("objects", s.get("largest")), ("pairs", f.get("largest_training_batch"))):
        if most:
            lines.append(
                f"largest batch in {most['limit_bytes'] / GIB:.2f} GiB: {most['batch_size']} {what}, which need "
                f"{most['device_bytes'] / GIB:.2f} GiB"
            )
    return "\n".join(lines)


def _compile(lowered: jax.stages.Lowered, row: dict, options: dict[str, Any] | None = None) -> jax.stages.Compiled:
    """Compiles a program and notes how long that takes and what memory it needs."""
    print("compiling ...", file=sys.stderr, flush=True)
    compiled, seconds = compile_timed(lowered, options or {})
    memory = compiled.memory_analysis()
    row |= {"temporary_bytes": memory.temp_size_in_bytes, "argument_bytes": memory.argument_size_in_bytes} | seconds
    return compiled


def _time(run: Callable[[], Any], repeats: int, row: dict) -> None:
    """Notes how long the first run takes, and the median of the others as they come."""
    (row["first_step_seconds"],), times = timed(run, 1), []
    for _ in range(repeats):
        times += timed(run, 1)
        row["seconds"] = statistics.median(times)


def define_common_flags() -> None:
    """Flags of the benchmarks that run a training step; `set_up` applies them."""
    cache = "Folder that keeps compiled programs for the next run; empty for none."
    flags.DEFINE_string("compilation_cache", "~/.cache/threedim/xla", cache)
    limit = "Seconds after which to print and write what is there, and end with exit code 124."
    flags.DEFINE_float("time_limit", None, limit, 0.0)


def set_up(given: flags.FlagValues) -> None:
    """Sets the compilation cache and the number of CPU devices, before JAX is used."""
    if given.compilation_cache:
        jax.config.update("jax_compilation_cache_dir", files.path(given.compilation_cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    cpu.split(given.config.mesh.cpu_devices)


def _measure(given: flags.FlagValues, figures: dict) -> None:
    set_up(given)
    what = {"sampling": given.sampling, "largest_batch": given.largest_batch}
    measure(given.config, given.repeats, **what, gib=given.memory_gib, figures=figures)


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", "configs/bench_cpu.py", "Configuration to measure.")
    flags.DEFINE_integer("repeats", None, "Timed runs, of which the median counts. Defaults to 8, or 3 of a view.", 1)
    flags.DEFINE_bool("sampling", False, "Measure views per second and the largest batch of objects.")
    flags.DEFINE_bool("largest_batch", False, "Find the largest batch of pairs that one device trains on.")
    flags.DEFINE_float("memory_gib", None, "Memory of one device, instead of its own.", 0.0)
    define_common_flags()
    so_far: dict = {}
    record.run("step", lambda given: _measure(given, so_far) or so_far, report, partial=lambda: complete(dict(so_far)))
