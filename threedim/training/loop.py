"""The training loop."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath

from threedim import config as config_lib
from threedim import cpu, distributed, locks
from threedim.data import pipeline, sources
from threedim.data.records import ObjectDataset, read_info
from threedim.errors import MissingError, UserError
from threedim.models.unet import UNet
from threedim.progress import Progress, say
from threedim.trained import open_trained
from threedim.training import hardware, run_info, sharding
from threedim.training.checkpoints import Checkpoints, find_step
from threedim.training.held_out import SEED, HeldOutLoss
from threedim.training.initial import fit_params
from threedim.training.metrics import MetricWriter
from threedim.training.preview import Preview
from threedim.training.step import RECENT, Metrics, Recipe, TrainState, init_state, make_train_step
from threedim.training.throughput import Cost, Trace, Window

# So many skipped steps of the last `RECENT` ones end a run.
MAX_SKIPPED = 10


class NonFiniteError(UserError, FloatingPointError):
    """Too many steps had a loss or gradient that is not finite; the message names the last of them and a checkpoint."""


@dataclasses.dataclass(frozen=True)
class _Run:
    """What a run trains, with what, on what."""

    config: ml_collections.ConfigDict
    workdir: epath.Path
    mesh: jax.sharding.Mesh
    network: UNet
    recipe: Recipe
    dataset: ObjectDataset
    held_out: ObjectDataset | None


def train(config: ml_collections.ConfigDict, workdir: epath.PathLike, *, allow_change: bool = False) -> TrainState:
    """Trains to ``config.train.num_steps``, from the newest checkpoint in ``workdir`` if there is one.

    On Ctrl-C or SIGTERM it saves and returns; called again, it resumes exactly, as everything random depends on the
    seed and the step alone.

    Args:
      config: as in configs/base.py.
      workdir: folder of the run, local or gs://.
      allow_change: resumes although architecture, seed, batch size or data differ from those of the run.

    Returns the last state.

    Raises:
      UserError: if settings contradict each other, the devices, or the run in ``workdir``; if another process trains
        there; if its newest checkpoint is damaged (`CheckpointError`); or if ten of the last thousand steps were
        skipped, since their loss or gradient was not finite (`NonFiniteError`).
    """
    # --- Check the settings and the data, before anything is written ---
    run = _check(config, epath.Path(workdir), allow_change)
    t = config.train

    with contextlib.ExitStack() as stack:
        if distributed.is_lead():
            stack.enter_context(locks.hold(workdir, "trains in"))
        stack.enter_context(jax.set_mesh(run.mesh))
        checkpoints = Checkpoints(workdir, keep_last=t.keep_last, keep_every=t.keep_every)
        stack.enter_context(checkpoints)

        # --- Restore the newest checkpoint, or begin ---
        state, start, changes = _restore_or_begin(run, checkpoints, allow_change)
        if start >= t.num_steps:
            _say(f"nothing to do: {workdir} is trained to step {start} of {t.num_steps}")
            return state
        if start:
            resized_at = run_info.resized_at(workdir, start, t.batch_size)
            run = dataclasses.replace(run, recipe=dataclasses.replace(run.recipe, resized_at=resized_at))

        return _train_from(run, checkpoints, state, start, changes, stack)


def _train_from(
    run: _Run,
    checkpoints: Checkpoints,
    state: TrainState,
    start: int,
    changes: list[str],
    stack: contextlib.ExitStack,
) -> TrainState:
    """Trains from a state and its step with changed settings; what is opened is left to ``stack``."""
    config, workdir, t = run.config, run.workdir, run.config.train

    # --- Open what the loop uses, and compile the step ---
    lead = distributed.is_lead()
    next_batch = _open_data(run, start, stack)
    held_out_loss, preview = _open_held_out(run)
    writer = stack.enter_context(MetricWriter(workdir, start_step=start, enabled=lead))
    step_fn, cost = _compile(run, state)
    batch = next_batch()
    stop = stack.enter_context(distributed.StopSignal())
    bar = stack.enter_context(Progress(t.num_steps, initial=start, desc="training, steps", enabled=lead))
    bar.set(start, {"checkpoint": start} if start else {})
    trace = stack.enter_context(Trace(run.workdir / "tensorboard", config.profile.start, config.profile.steps))

    # --- Train ---
    step, window, stopped_by = start, Window(run.mesh, run.recipe, cost), None
    save_due, saved_at = False, time.monotonic()
    while step < t.num_steps and stopped_by is None:
        trace.before_step(step)
        state, window.metrics = step_fn(state, window.metrics, batch)
        step += 1
        if step == start + 1 and lead:  # not before: a command that fails must not change the record
            run_info.write_run_info(workdir, config, run.dataset.fingerprint, start, changes)
        trace.after_step(step, state.step)
        stopped_by = stop.reached(step)
        last = step == t.num_steps or stopped_by is not None
        if not last:
            with window.waiting():  # the host reads the next batch while the device computes
                batch = next_batch()
        logs = step % t.log_every == 0 or last
        eval_loss = None
        if held_out_loss is not None and _due(step, t.eval_every, t) and stopped_by is None:
            with window.paused():
                eval_loss = held_out_loss(state.ema_params)
            writer.scalars(step, {"eval/loss": eval_loss})
            save_due |= eval_loss < checkpoints.best()[0]
        save_due |= last or step % t.checkpoint_every == 0
        if logs or jax.process_count() == 1:
            save_due |= distributed.lead_decides(time.monotonic() - saved_at > 60 * t.checkpoint_minutes)
        if save_due or logs:
            finite = _check_finite(run, checkpoints, window.metrics, step)
        shown = {}
        if logs:
            scalars = window.scalars(step)
            writer.scalars(step, scalars)
            shown = {"loss": scalars["loss"], "pairs/s": scalars["examples_per_second"]}
            if step - start <= t.log_every and not last:
                _say_time_left(scalars["seconds_per_step"], cost, t.num_steps - step)
            window = Window(run.mesh, run.recipe, cost, window)
        if save_due and (finite or last):
            checkpoints.save(step, state, eval_loss)
            save_due, saved_at, shown["checkpoint"] = False, time.monotonic(), step
        bar.set(step, shown)
        if preview is not None and _due(step, t.sample_every, t):
            with window.paused():
                picture, psnr = preview.sample(state.ema_params)
                writer.images(step, {"held_out": picture})
                writer.scalars(step, {"eval/psnr": psnr})

    # --- End ---
    checkpoints.wait()
    bar.close()
    eval_loss, best = checkpoints.best()
    if best:
        _say(f"lowest eval/loss {eval_loss:.4g} at step {best}, which --config.sample.checkpoint_step=-1 samples from")
    if step < t.num_steps:
        _say(f"stopped by {stopped_by.name}: saved step {step} in {workdir}; the same command resumes from there")
    return state


def _check(config: ml_collections.ConfigDict, workdir: epath.Path, allow_change: bool) -> _Run:
    """Everything that can be refused without reading a checkpoint; prepares the data if needed."""
    t = config.train
    mesh, network, recipe = config_lib.mesh(config), config_lib.network(config), config_lib.recipe(config)
    if recipe.batch_size % (mesh.size * recipe.microbatches):
        raise UserError(
            f"train.batch_size {recipe.batch_size} does not divide over {mesh.size} devices and {recipe.microbatches} "
            "microbatches"
        )
    for name in ("num_steps", "log_every", "checkpoint_every", "eval_examples", "sample_objects", "sample_steps"):
        if t[name] < 1:
            raise UserError(f"train.{name} must be at least 1, got {t[name]}")
    if not t.checkpoint_minutes > 0:
        raise UserError(f"train.checkpoint_minutes must be positive, got {t.checkpoint_minutes}")
    if t.sample_every:
        config_lib.sampler_settings(config, num_steps=t.sample_steps)
    with contextlib.suppress(MissingError):  # of a run that has no checkpoint yet
        find_step(workdir)
        run_info.check_run_info(workdir, config, allow_change=allow_change)
    records = distributed.lead_first(lambda: sources.prepare_from_config(config.data))
    dataset = sources.open_from_config(config.data, "train")
    distributed.check_same("the fingerprint of the data set", dataset.fingerprint)
    return _Run(config, workdir, mesh, network, recipe, dataset, _held_out(config, records))


def _restore_or_begin(run: _Run, checkpoints: Checkpoints, allow_change: bool) -> tuple[TrainState, int, list[str]]:
    """The state to train from, on the mesh, its step, and the settings that have changed since."""
    # One function for shapes and values: JAX traces it once.
    init = functools.partial(init_state, run.network, run.recipe)
    shapes = jax.eval_shape(init)
    shardings = sharding.state_shardings(run.mesh, shapes)
    latest = checkpoints.latest_step()
    if latest is not None:
        changes = run_info.check_run_info(run.workdir, run.config, run.dataset.fingerprint, allow_change)
        for line in changes:
            _say(f"changed since the run began: {line}")
        abstract = jax.tree.map(
            lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), shapes, shardings
        )
        state = checkpoints.restore(abstract, latest)
        _say(f"resuming from step {latest} in {run.workdir}")
        return state, latest, changes
    params = ()
    if source := run.config.train.init_from:
        trained = open_trained(source)
        trained.check_layers(run.config)
        fitted, how = fit_params(trained.params(), shapes.params, lambda: jax.jit(init)().params)
        params = (fitted,)
        size = trained.config.model.image_size
        _say(f"starting from {source}, trained for {trained.step:,} steps at {size} px: {how}")
    options = cpu.compiler_options()
    return jax.jit(init, out_shardings=shardings, compiler_options=options)(*params), 0, []


def _open_data(run: _Run, start: int, stack: contextlib.ExitStack) -> Callable[[], dict[str, jax.Array]]:
    """A function that returns the next batch on the devices, from that of step ``start`` on."""
    batch_size = run.recipe.batch_size
    batches = pipeline.train_batches(
        run.dataset,
        batch_size=batch_size,
        size=run.network.image_size,
        seed=run.config.seed,
        start_step=start,
        rows=sharding.local_rows(run.mesh, batch_size),
        num_workers=min(run.config.train.num_workers, os.cpu_count() or 1),
    )
    stack.callback(batches.close)
    return lambda: sharding.put_batch(next(batches), run.mesh, batch_size)


def _compile(run: _Run, state: TrainState) -> tuple[Callable[..., Any], Cost]:
    """The compiled training step, and what it costs."""
    whole, process = sharding.replicated(run.mesh), config_lib.process(run.config)
    decay = jax.device_put(run.recipe.decay, whole)
    shardings = sharding.state_shardings(run.mesh, state)
    step_fn = jax.jit(
        make_train_step(run.network, process, run.recipe, whole),
        in_shardings=(shardings, whole, sharding.batch_sharding(run.mesh), whole),
        out_shardings=(shardings, whole),
        donate_argnums=(0, 1),
        compiler_options=cpu.compiler_options(),
    )
    batch = hardware.batch_shapes(run.network.image_size, run.recipe.batch_size, sharding.batch_sharding(run.mesh))
    began = time.perf_counter()
    with distributed.dies_on_interrupt():
        lowered = step_fn.lower(state, jax.eval_shape(Metrics.zeros), batch, decay)
        compiled = lowered.compile()
    seconds = time.perf_counter() - began
    platform = run.mesh.devices.flat[0].platform
    count_flops = functools.partial(hardware.step_flops, lowered, platform, run.network, process, run.recipe)
    cost = Cost(compiled, run.mesh, run.recipe, count_flops)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    _say(f"{parameters:,} parameters; {len(run.dataset):,} objects; {cost.describe()}; compiled in {seconds:.0f} s")
    return lambda *args: compiled(*args, decay), cost


def _check_finite(run: _Run, checkpoints: Checkpoints, metrics: Metrics, step: int) -> bool:
    """Whether the last step was finite; waits for it. Raises after too many that were not."""
    skipped = np.roll(jax.device_get(metrics.skipped), -step)  # the last step is last
    count = int(skipped.sum())
    if count >= MAX_SKIPPED:
        checkpoints.wait()
        good = checkpoints.latest_step()
        raise NonFiniteError(
            f"{count} of the last {RECENT:,} steps were skipped, the last at step {step - int(skipped[::-1].argmax())} "
            f"(seed {run.config.seed}): their loss or gradient is not finite. "
            + (f"The last checkpoint is that of step {good}" if good is not None else "No checkpoint was saved")
            + f" in {run.workdir}. Lower train.learning_rate, lengthen train.warmup_examples or set train.grad_clip."
        )
    return not skipped[-1]


def _say_time_left(seconds_per_step: float, cost: Cost, steps: int) -> None:
    left = datetime.timedelta(seconds=round(seconds_per_step * steps))
    work = f" and {cost.flops / 1e12:.3g} TFLOP" if cost.flops is not None else ""
    _say(f"{seconds_per_step:.3g} s{work} a step; {steps:,} steps left take about {left}")


def _due(step: int, every: int, t: ml_collections.ConfigDict) -> bool:
    return step % every == 0 or step == t.num_steps


def _held_out(config: ml_collections.ConfigDict, records: epath.Path) -> ObjectDataset | None:
    """What is evaluated while training: the test split, or held-out views of the training objects."""
    if not (config.train.eval_every or config.train.sample_every):
        return None
    split = "holdout" if config.data.holdout_views else "test"
    if split == "test" and "test" not in read_info(records).splits:
        _say("nothing is held out: no eval/loss, no previews (set data.holdout_views or data.num_test_objects)")
        return None
    dataset = sources.open_from_config(config.data, split)
    if min(map(dataset.num_views, range(len(dataset)))) < 2:
        raise UserError(
            f"train.eval_every and train.sample_every need two views of each object of the split {split!r}: change "
            "data.holdout_views, or set both to 0"
        )
    return dataset


def _open_held_out(run: _Run) -> tuple[HeldOutLoss | None, Preview | None]:
    """The held-out loss and the previews, if asked for."""
    config, t, loss, preview = run.config, run.config.train, None, None
    if run.held_out is not None and t.eval_every:
        process = config_lib.process(config)
        loss = HeldOutLoss(run.network, process, run.recipe, run.held_out, examples=t.eval_examples, mesh=run.mesh)
    if run.held_out is not None and t.sample_every:
        sampler, whole = config_lib.sampler(config, num_steps=t.sample_steps), sharding.replicated(run.mesh)
        preview = Preview(sampler, run.held_out, rows=t.sample_objects, seed=SEED, sharding=whole)
    return loss, preview


def _say(line: str) -> None:
    """Prints a line, in one of several processes."""
    if distributed.is_lead():
        say(line)
