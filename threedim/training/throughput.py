"""Throughput, utilization and profiles of a training run."""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from threedim.errors import UserError
from threedim.training import hardware, sharding
from threedim.training.step import Metrics, Recipe


class Cost:
    """What a compiled training step needs.

    Args:
      compiled: the step.
      mesh: its devices.
      recipe: how it trains.
      count_flops: counts the FLOPs of one step over all devices, or returns None if that is impossible. It may take
        seconds, and is called on first use, after the first steps.

    Attributes:
      flops: of one step over all devices, if they can be counted.
      bytes_per_device: arguments, results and temporaries.
      peak: bfloat16 FLOP/s of all devices together by their data sheet, or None where unknown (CPU).
    """

    def __init__(
        self, compiled: jax.stages.Compiled, mesh: Mesh, recipe: Recipe, count_flops: Callable[[], float | None]
    ):
        chip = hardware.CHIPS.get(mesh.devices.flat[0].device_kind)
        self._count = count_flops
        self.bytes_per_device = hardware.device_bytes(compiled)
        self.peak = chip.flops * mesh.size if chip else None
        self._mesh, self._recipe = mesh, recipe

    @functools.cached_property
    def flops(self) -> float | None:
        flops = self._count()
        del self._count  # and with it the lowered program
        return flops

    def describe(self) -> str:
        """Batch, devices and memory in one line."""
        mesh, recipe = self._mesh, self._recipe
        kind = mesh.devices.flat[0].device_kind
        shape = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
        processes = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
        parts = f" in {recipe.microbatches} microbatches" if recipe.microbatches > 1 else ""
        return (
            f"{recipe.batch_size} pairs a step{parts}, {recipe.batch_size // mesh.size} a device; {mesh.size} {kind} "
            f"device(s){processes}, mesh {shape}; {self.bytes_per_device / 2**30:.2f} GiB a device"
        )


class Window:
    """Metrics and timing since the last log line; remembers which steps the ``before`` it have skipped."""

    def __init__(self, mesh: Mesh, recipe: Recipe, cost: Cost, before: Window | None = None):
        self.metrics = jax.device_put(Metrics.zeros(), sharding.replicated(mesh))
        if before is not None:
            self.metrics = self.metrics.replace(skipped=before.metrics.skipped)
        self._mesh, self._recipe, self._cost = mesh, recipe, cost
        self._waited = 0.0
        self._began = time.perf_counter()

    @contextlib.contextmanager
    def waiting(self):
        """A context whose time counts as waiting for data."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    @contextlib.contextmanager
    def paused(self):
        """A context whose time does not count. Waits for the devices first."""
        jax.block_until_ready(self.metrics)
        start = time.perf_counter()
        yield
        self._began += time.perf_counter() - start

    def scalars(self, step: int) -> dict[str, float]:
        """The scalars to log. Waits for the devices.

        ``mfu`` is model FLOPs utilization: the FLOPs of the step as a fraction of the devices' bfloat16 peak by their
        data sheet; omitted where that is unknown.
        """
        m = jax.tree.map(np.asarray, jax.device_get(self.metrics))
        seconds = time.perf_counter() - self._began
        quartiles = {
            f"loss_by_noise/quartile_{i + 1}": float(m.quartile_loss[i] / m.quartile_count[i])
            for i in range(4)
            if m.quartile_count[i]
        }
        steps = float(m.steps + m.skipped_steps)
        examples_per_second = steps * self._recipe.batch_size / seconds
        scalars = {
            "loss": float(m.loss / m.steps) if m.steps else math.nan,
            **quartiles,
            "grad_norm": float(m.grad_norm / m.steps) if m.steps else math.nan,
            "skipped_steps": float(m.skipped_steps),
            "learning_rate": float(self._recipe.learning_rate_at(step - 1)),
            "ema_decay": float(self._recipe.ema_decay_at(step - 1)),
            "seconds_per_step": seconds / steps,
            "examples_per_second": examples_per_second,
            "examples_per_second_per_device": examples_per_second / self._mesh.size,
            "data_wait_fraction": self._waited / seconds,
        }
        if self._cost.peak is not None and self._cost.flops is not None:
            scalars["mfu"] = self._cost.flops * steps / seconds / self._cost.peak
        return scalars


class Trace:
    """A profile of some steps for TensorBoard. Each process writes that of its own devices.

    Args:
      folder: TensorBoard's log folder.
      start: first profiled step; 0 profiles none.
      steps: number of profiled steps.

    Raises:
      UserError: if a number is out of range.
    """

    def __init__(self, folder: epath.Path, start: int, steps: int):
        if start < 0 or steps < 1:
            raise UserError(f"profile.start must be 0 or more and profile.steps 1 or more, got {start} and {steps}")
        self._folder, self._start, self._steps = folder, start, steps
        self._until: int | None = None

    def __enter__(self) -> Trace:
        return self

    def __exit__(self, *exception) -> None:
        if self._until is not None:
            self._stop()

    def before_step(self, done: int) -> None:
        """Call before each step, with the number of finished steps."""
        if self._start and done + 1 == self._start:
            jax.profiler.start_trace(str(self._folder))
            self._until = done + self._steps

    def after_step(self, done: int, state: Any) -> None:
        """Call after each step, with an array that the step computes."""
        if self._until is not None and done >= self._until:
            jax.block_until_ready(state)
            self._stop()

    def _stop(self) -> None:
        jax.profiler.stop_trace()
        self._until = None
