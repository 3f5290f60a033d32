"""The programs that benchmarks compile and time, for shapes or for random pairs; and timing."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from threedim import config as config_lib
from threedim import cpu
from threedim.cameras import intrinsics, orbit
from threedim.sampling import KnownViews
from threedim.training import hardware, sharding
from threedim.training.step import Metrics, abstract_params, batch_images, init_state, make_train_step


def placed(shapes, shardings):
    """Shapes with a sharding for each, or with one sharding for all."""
    if isinstance(shardings, jax.sharding.Sharding):
        shardings = jax.tree.map(lambda _: shardings, shapes)
    return jax.tree.map(lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where), shapes, shardings)


def example_batch(size: int, batch_size: int) -> dict[str, jax.Array]:
    """A batch of pairs of random images at ``size`` pixels, with cameras on an orbit."""
    rng = np.random.default_rng(0)
    camera = orbit(rng.uniform(0, 360, 2 * batch_size), 20.0, 2.0, intrinsics(size, size))
    poses = {"R": camera.R, "t": camera.t, "K": camera.K}
    batch = {name: value.reshape(batch_size, 2, *value.shape[1:]) for name, value in poses.items()}
    batch["image"] = rng.integers(0, 256, (batch_size, 2, size, size, 3), np.uint8)
    return jax.tree.map(jnp.asarray, batch)


def lower_training_step(network, process, recipe, mesh: Mesh) -> tuple[jax.stages.Lowered, tuple]:
    """The training step as the training loop compiles it, for devices that do not have to exist.

    Returns:
      The lowered step, and shapes of its state, metrics and batch with their shardings.
    """
    shapes = jax.eval_shape(lambda: init_state(network, recipe))
    state = placed(shapes, sharding.state_shardings(mesh, shapes))
    metrics = placed(jax.eval_shape(Metrics.zeros), sharding.replicated(mesh))
    batch = hardware.batch_shapes(network.image_size, recipe.batch_size, sharding.batch_sharding(mesh))
    shardings = jax.tree.map(lambda leaf: leaf.sharding, (state, metrics, batch))
    step = jax.jit(
        make_train_step(network, process, recipe, sharding.replicated(mesh)),
        in_shardings=shardings,
        out_shardings=shardings[:2],
        donate_argnums=(0, 1),
        compiler_options=_options(mesh),
    )
    return step.lower(state, metrics, batch), (state, metrics, batch)


class Sampling:
    """The programs that sample views as ``config.sample`` says.

    `lower` is what a rollout runs for every view of a batch of objects: the scan over all denoising steps. It is the
    rollout's largest program. ``known_views`` is its capacity for the input views and everything that is added to them.
    """

    def __init__(self, config):
        self.sampler = config_lib.sampler(config)
        self.denoiser, self.settings = self.sampler.denoiser, self.sampler.settings
        self.known_views = max(1, len(config.sample.input_views))
        if self.settings.conditioning == "stochastic":
            self.known_views += config.sample.num_views or 250  # 0 means all views of an object: 250 others in SRN
        self.size = self.denoiser.network.image_size
        self.params = abstract_params(self.denoiser.network)
        self.evaluations = self.settings.evaluations(self.sampler.process)

    def example(self, params, batch) -> tuple[KnownViews, Any, jax.Array]:
        """Known views, all of them the first image of each pair, target cameras and keys from a batch of pairs."""
        images, camera = batch_images(batch)
        objects = images.shape[0]
        seen_from = camera[:, 0].relative_to(camera[:, 0]) if self.denoiser.relative_poses else camera[:, 0]
        clean = jnp.full((objects,), self.sampler.process.logsnr_max)
        features = self.denoiser.encode_view(params, images[:, 0], clean, seen_from, jnp.ones((objects,), bool))
        features, cameras = jax.tree.map(
            lambda leaf: jnp.repeat(leaf[:, None], self.known_views, axis=1), (features, camera[:, 0])
        )
        keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(jnp.arange(objects))
        count = jnp.full((objects,), self.known_views, jnp.int32)
        return KnownViews(features, cameras, count), camera[:, 1], keys

    def shapes(self, objects: int) -> tuple:
        """Shapes of parameters, known views, target cameras and keys."""
        batch = hardware.batch_shapes(self.size, objects)
        return self.params, *jax.eval_shape(self.example, self.params, batch)

    def lower(self, objects: int, mesh: Mesh | None = None) -> jax.stages.Lowered:
        """Sampling one view of each of ``objects``, which a mesh splits among its devices."""

        sample = functools.partial(self.sampler.sample_view, shape=(self.size, self.size, 3))
        return _lower(sample, self.shapes(objects), mesh)

    def evaluation(self, objects: int) -> tuple[Callable, tuple]:
        """One network evaluation of each of ``objects``, as a step of the sampler needs it, and the shapes it takes."""
        params, known, camera, _ = self.shapes(objects)
        view = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((objects, *leaf.shape[2:]), leaf.dtype), known.features)
        conditional = jnp.ones((objects,), bool)
        positions = jax.eval_shape(self.denoiser.embed_positions, params)
        target = jax.eval_shape(self.denoiser.embed_camera, params, camera, conditional, positions)

        def evaluate(fixed, z, logsnr, target, camera, view):
            params, positions = fixed
            if self.denoiser.relative_poses:  # relative to the known view, which changes at every step
                target = self.denoiser.embed_camera(params, camera, conditional, positions)
            return self.denoiser.denoise(params, z, logsnr, target, view)

        z = jax.ShapeDtypeStruct((objects, self.size, self.size, 3), jnp.float32)
        logsnr = jax.ShapeDtypeStruct((objects,), jnp.float32)
        return evaluate, ((params, positions), z, logsnr, target, camera, view)

    def lower_evaluation(self, objects: int, mesh: Mesh | None = None) -> jax.stages.Lowered:
        """`evaluation`, lowered."""
        return _lower(*self.evaluation(objects), mesh)

    @functools.cached_property
    def flops_per_view(self) -> float:
        """FLOPs that one view of one object needs: those of all its network evaluations."""
        evaluate, shapes = self.evaluation(1)
        return self.evaluations * hardware.count_flops(evaluate, *shapes)


def compile_timed(
    lowered: jax.stages.Lowered, options: dict[str, Any] | None = None
) -> tuple[jax.stages.Compiled, dict[str, Any]]:
    """Compiles a program and, if the persistent cache did not have it, reads it from there as the next run will.

    ``options`` are XLA flags besides the program's own.

    Returns:
      The program, and "from_cache", "first_compile_seconds" and "cached_compile_seconds". What the cache does not hold
      has no cached compile. The first compile of a program from the cache is that of the run that put it there, in
      whole seconds.
    """
    found: dict[str, float] = {}

    def listen(event: str, seconds: float, **_) -> None:
        found[event.rpartition("/")[2]] = seconds

    def compile_once() -> tuple[jax.stages.Compiled, float, bool]:
        found.clear()
        jax.clear_caches()  # with these, and without options, JAX returns what it compiled before
        began = time.perf_counter()
        compiled = lowered.compile(compiler_options=options or {})
        return compiled, time.perf_counter() - began, "cache_retrieval_time_sec" in found

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        compiled, seconds, from_cache = compile_once()
        row = {"from_cache": from_cache, "first_compile_seconds": seconds, "cached_compile_seconds": None}
        if from_cache:
            first = found["compile_time_saved_sec"] + found["cache_retrieval_time_sec"]
            row |= {"first_compile_seconds": first, "cached_compile_seconds": seconds}
        elif jax.config.jax_compilation_cache_dir and (again := compile_once())[2]:
            row["cached_compile_seconds"] = again[1]
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    return compiled, row


def timed(run: Callable[[], Any], repeats: int) -> list[float]:
    """Seconds of each of several runs, until their results are ready."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return times


def matmul_rate(dtype: Any, repeats: int = 10) -> float:
    """FLOP/s of a large square matrix product in ``dtype``: the best of several runs.

    The matrices are random: a GPU multiplies constant ones faster, because its clock depends on how many bits change.
    """
    n = 2048 if jax.default_backend() == "cpu" else 8192
    a = jax.random.normal(jax.random.key(0), (n, n), dtype)
    product = jax.jit(lambda a: a @ a)
    jax.block_until_ready(product(a))
    return 2 * n**3 / min(timed(lambda: product(a), repeats))


def _lower(function: Callable, shapes: tuple, mesh: Mesh | None) -> jax.stages.Lowered:
    """On a mesh, the first argument is replicated and the others are split along their first axis."""
    if mesh is not None:
        fixed, *rest = shapes
        shapes = placed(fixed, sharding.replicated(mesh)), *placed(tuple(rest), sharding.batch_sharding(mesh))
    return jax.jit(function, compiler_options=_options(mesh)).lower(*shapes)


def _options(mesh: Mesh | None) -> dict[str, int] | None:
    """Compiler options; none for a mesh of another backend's devices."""
    here = mesh is None or mesh.devices.flat[0].platform == jax.default_backend()
    return cpu.compiler_options() if here else None
