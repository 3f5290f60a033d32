"""Compares variants of a training step in one run, so that the machine's clock and load change for all of them.

    python -m benchmarks.variants --config=configs/gpu64.py --variant=model.attention=cudnn
    python -m benchmarks.variants --variant='train.remat=blocks xla_gpu_autotune_level=0' --repeats=50

The first row is the configuration as it is. A variant is some fields of the configuration and XLA flags with their
values, separated by spaces. All programs are compiled first and stay in memory; then each runs a step in turn.
"""

from __future__ import annotations

import ast
import statistics
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags

from benchmarks import record, step
from benchmarks.programs import timed
from threedim.errors import UserError


def parse(config: ConfigDict, variant: str) -> tuple[ConfigDict, dict[str, Any]]:
    """A copy of the configuration with a variant's fields, and its XLA flags.

    Raises:
      UserError: if it is not of the form ``name=value ...``, or the configuration has no such field.
    """
    config, options = config.copy_and_resolve_references(), {}
    for part in variant.split():
        name, equals, value = part.partition("=")
        section, _, field = name.partition(".")
        known = name.startswith("xla_") or (isinstance(config.get(section), ConfigDict) and field in config[section])
        if not equals or not known:
            raise UserError(f"--variant={variant}: expected fields of the configuration or XLA flags, got {part!r}")
        try:
            value = ast.literal_eval(value)
        except (SyntaxError, ValueError):  # text
            value = {"true": True, "false": False}.get(value, value)
        if name.startswith("xla_"):
            options[name] = value
            continue
        try:
            config[section][field] = value
        except TypeError as error:
            raise UserError(f"--variant={variant}: {error}") from error
    return config, options


def measure(config: ConfigDict, variants: list[str], repeats: int, figures: dict[str, Any]) -> dict[str, Any]:
    """Medians of ``repeats`` steps of each variant, which ``figures`` has as soon as they are measured."""
    parsed = {"as it is": (config, {})} | {variant: parse(config, variant) for variant in variants}
    rows = {name: figures.setdefault(name, {}) for name in parsed}
    runs = {name: step.training_program(*parsed[name], row) for name, row in rows.items()}
    for name, run in runs.items():
        (rows[name]["first_step_seconds"],) = timed(run, 1)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            times[name] += timed(run, 1)
            row, batch = rows[name], parsed[name][0].train.batch_size
            row["seconds"], row["fastest_seconds"] = statistics.median(times[name]), min(times[name])
            row["pairs_per_second"] = batch / row["seconds"]
    return figures


def report(figures: dict[str, Any]) -> str:
    """The figures as text, with the speed relative to the first row."""
    lines = [f"{'seconds':>9}{'fastest':>9}{'pairs/s':>9}{'speed':>7}{'compile':>9}{'cached':>8}{'temp GiB':>10}"]
    first = next(iter(figures.values()), {}).get("pairs_per_second")
    for name, row in figures.items():
        cells = [
            (row.get("seconds"), 9, 4),
            (row.get("fastest_seconds"), 9, 4),
            (row.get("pairs_per_second"), 9, 1),
            (row["pairs_per_second"] / first if "pairs_per_second" in row else None, 7, 3),
            (row.get("first_compile_seconds"), 9, 1),
            (row.get("cached_compile_seconds"), 8, 1),
            (row["temporary_bytes"] / step.GIB if "temporary_bytes" in row else None, 10, 2),
        ]
        numbers = [f"{'–':>{width}}" if value is None else f"{value:{width}.{d}f}" for value, width, d in cells]
        lines.append("".join(numbers) + f"  {name}")
    return "\n".join([f"{jax.device_count()} {jax.devices()[0].device_kind} device(s), training step", *lines])


def _measure(given: flags.FlagValues, figures: dict[str, Any]) -> dict[str, Any]:
    step.set_up(given)
    return measure(given.config, given.variant, given.repeats, figures)


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", "configs/bench_cpu.py", "Configuration to compare variants of.")
    flags.DEFINE_multi_string("variant", [], "Fields of the configuration and XLA flags; may be repeated.")
    flags.DEFINE_integer("repeats", 20, "Timed steps of each variant, of which the median counts.", 1)
    step.define_common_flags()
    so_far: dict[str, Any] = {}
    record.run("variants", lambda given: _measure(given, so_far), report, partial=lambda: so_far)
