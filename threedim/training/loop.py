"""The training loop. There is one; a variant enters by config or as another function."""

from __future__ import annotations

import contextlib
import datetime
import functools
import time

import jax
import ml_collections
from etils import epath

from threedim import config as config_lib
from threedim import cpu, distributed
from threedim.data import pipeline, sources
from threedim.data.records import read_info
from threedim.errors import UserError
from threedim.progress import progress
from threedim.training import initial, run_info, sharding
from threedim.training.checkpoints import Checkpoints
from threedim.training.metrics import MetricWriter
from threedim.training.preview import Preview
from threedim.training.step import NEVER, Metrics, TrainState, init_state, make_train_step
from threedim.training.watch import Cost, Trace, Window


class NonFiniteError(UserError, FloatingPointError):
    """The loss or its gradient is not finite; the message names the step and the last good checkpoint."""


def train(config: ml_collections.ConfigDict, workdir: epath.PathLike, *, allow_change: bool = False) -> TrainState:
    """Trains to ``config.train.num_steps``, from the newest checkpoint in ``workdir`` if there is one.

    On Ctrl-C or SIGTERM it saves and returns; called again, it goes on as if nothing had been. Batches, noise and
    dropout are functions of the seed and the step alone.

    Args:
      config: as in configs/base.py.
      workdir: folder of the run, local or gs://.
      allow_change: goes on although architecture, seed, batch size or data differ from the run's beginning.

    Returns:
      The last state.

    Raises:
      NonFiniteError: if the loss or its gradient stops being finite. Nothing after the last good step is saved.
      ValueError: if settings contradict each other, the devices, or the run in ``workdir``.
      CheckpointError: if the newest checkpoint is damaged.
    """
    workdir = epath.Path(workdir)
    t = config.train
    mesh = config_lib.mesh(config)
    network, process, recipe = config_lib.network(config), config_lib.process(config), config_lib.recipe(config)
    if recipe.batch_size % (mesh.size * recipe.microbatches):
        raise UserError(
            f"train.batch_size {recipe.batch_size} does not divide over {mesh.size} devices and {recipe.microbatches} "
            "microbatches"
        )
    for name in ("num_steps", "log_every", "checkpoint_every", "sample_steps"):
        if t[name] < 1:
            raise UserError(f"train.{name} must be at least 1, got {t[name]}")
    if t.sample_every:
        config_lib.sample_settings(config, num_steps=t.sample_steps)  # refused now, not after the first steps

    lead = distributed.is_lead()
    say = functools.partial(print, flush=True) if lead else lambda line: None
    records = distributed.lead_first(lambda: sources.prepare_from_config(config.data))
    dataset = sources.open_from_config(config.data, "train")
    distributed.check_same("the data set's fingerprint", dataset.fingerprint)

    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.set_mesh(mesh))
        checkpoints = stack.enter_context(
            Checkpoints(workdir, keep_last=t.keep_last, keep_every=t.keep_every, save_every=t.checkpoint_every)
        )
        latest = checkpoints.latest_step()
        if latest is not None:
            for line in run_info.check_run_info(workdir, config, dataset.fingerprint, allow_change, write=lead):
                say(f"changed since the run began: {line}")

        # One function for both: JAX traces it once.
        init = functools.partial(init_state, network, recipe)
        shapes = jax.eval_shape(init)
        shardings = sharding.state_shardings(mesh, shapes)
        if latest is None:
            params = ()
            if t.init_from:
                found, line = initial.read_initial(t.init_from, shapes.params, lambda: jax.jit(init)().params)
                params = (found,)
                say(line)
            if lead:
                run_info.write_run_info(workdir, config, dataset.fingerprint)
            options = cpu.compiler_options(loops=False)
            state, start = jax.jit(init, out_shardings=shardings, compiler_options=options)(*params), 0
        else:
            abstract = jax.tree.map(
                lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), shapes, shardings
            )
            state, start = checkpoints.restore(abstract, latest), latest
            say(f"resuming from step {start} in {workdir}")
        if start >= t.num_steps:
            say(f"nothing to do: {workdir} is trained to step {start} of {t.num_steps}")
            return state

        stop = stack.enter_context(distributed.StopSignal())
        batches = pipeline.train_batches(
            dataset,
            batch_size=recipe.batch_size,
            size=network.image_size,
            seed=config.seed,
            start_step=start,
            rows=sharding.local_rows(mesh, recipe.batch_size),
            num_workers=t.num_workers,
        )
        stack.callback(batches.close)
        preview = _preview(config, records, mesh) if t.sample_every else None
        writer = stack.enter_context(MetricWriter(workdir, start_step=start, enabled=lead))

        whole = sharding.replicated(mesh)
        step_fn = jax.jit(
            make_train_step(network, process, recipe, whole),
            in_shardings=(shardings, whole, sharding.batch_sharding(mesh)),
            out_shardings=(shardings, whole),
            donate_argnums=(0, 1),
            compiler_options=cpu.compiler_options(loops=t.microbatches > 1),
        )
        first = sharding.put_batch(next(batches), mesh, recipe.batch_size)
        began = time.perf_counter()
        lowered = step_fn.lower(state, jax.eval_shape(Metrics.zeros), first)
        step_fn = lowered.compile()
        compile_seconds = time.perf_counter() - began
        cost = Cost(lowered, step_fn, mesh, recipe)
        parameters = sum(leaf.size for leaf in jax.tree.leaves(shapes.params))

        def check_finite(step: int) -> None:
            bad = int(window.metrics.first_bad_step)
            if bad != NEVER:
                good = checkpoints.latest_step()
                raise NonFiniteError(
                    f"the loss or its gradient is not finite at step {bad + 1} (found at step {step}); "
                    + (f"the last good checkpoint is step {good}" if good is not None else "no checkpoint was saved")
                    + f" in {workdir}. Lower train.learning_rate or lengthen train.warmup_examples."
                )

        bar = stack.enter_context(progress(t.num_steps, initial=start, desc="train", enabled=lead))
        told = False
        trace = stack.enter_context(Trace(workdir / "tensorboard", config.profile.start, config.profile.steps))
        step, batch, window = start, first, Window(mesh, recipe, cost)
        while True:
            trace.before_step(step)
            state, window.metrics = step_fn(state, window.metrics, batch)
            step += 1
            if step == start + 1:
                say(cost.describe(mesh, recipe, parameters, len(dataset), compile_seconds))
            trace.after_step(step, state.step)
            stopped_by = stop.reached(step)
            last = step == t.num_steps or stopped_by is not None
            if not last:
                # While the device computes: the host reads the next batch.
                with window.waiting():
                    batch = sharding.put_batch(next(batches), mesh, recipe.batch_size)
            if step % t.log_every == 0 or last:
                check_finite(step)
                scalars = window.scalars(step)
                writer.scalars(step, scalars)
                bar.set(step, loss=scalars["loss"], examples_per_second=scalars["examples_per_second"])
                if not last and not told:
                    left = datetime.timedelta(seconds=round(scalars["seconds_per_step"] * (t.num_steps - step)))
                    say(
                        f"{scalars['seconds_per_step']:.3g} s and {cost.flops / 1e12:.3g} TFLOP a step: "
                        f"{t.num_steps - step:,} more take {left}"
                    )
                    told = True
                window = Window(mesh, recipe, cost)
            else:
                bar.set(step)
            if step % t.checkpoint_every == 0 or last:
                check_finite(step)
                checkpoints.save(step, state, force=last)
            if preview is not None and (step % t.sample_every == 0 or step == t.num_steps):
                with window.paused():
                    writer.images(step, {"held_out": preview.draw(state.ema_params)})
            if last:
                break
        checkpoints.wait()
        if stopped_by is not None and step < t.num_steps:
            bar.close()
            say(f"stopped by {stopped_by.name}: saved step {step} in {workdir}; the same command goes on from there")
        return state


def _preview(config: ml_collections.ConfigDict, records: epath.Path, mesh: jax.sharding.Mesh) -> Preview | None:
    """Held-out objects to draw now and then: of the test split, or held-out views of the training objects."""
    if config.data.holdout_views:
        split = "holdout"
    elif "test" in read_info(records).splits:
        split = "test"
    else:
        return None
    dataset = sources.open_from_config(config.data, split)
    return Preview(
        config_lib.denoiser(config),
        config_lib.process(config),
        config_lib.sample_settings(config, num_steps=config.train.sample_steps),
        dataset,
        rows=config.train.sample_objects,
        seed=config.seed,
        sharding=sharding.replicated(mesh),
    )
