"""Views per second of the sampler, and the largest batch of objects that it fits on a device.

What is compiled and timed is what ``threedim.sampling.sample_views`` runs for every view: the scan over all denoising
steps, for a batch of objects at once, with room for the views of a whole rollout. It is the largest program of a
rollout; what adds a finished view to the known ones works in place.
"""

from __future__ import annotations

import functools
import statistics
import time

import jax
import jax.numpy as jnp

from benchmarks.compiling import placed
from benchmarks.fitting import largest, program_bytes
from benchmarks.inputs import batch_shapes, example_batch
from benchmarks.timing import timed
from threedim import config as config_lib
from threedim import cpu
from threedim.diffusion import Process
from threedim.sampling import Denoiser, KnownViews, Settings, sample_view
from threedim.training import hardware, sharding
from threedim.training.step import abstract_params, batch_images, init_params


def example(denoiser: Denoiser, process: Process, known_views: int, params, batch):
    """What ``sample_view`` takes for a batch of pairs: known views, target cameras, keys.

    The first picture of each pair stands for every known view; that is as much memory as different ones.
    """
    images, camera = batch_images(batch)
    objects = images.shape[0]
    seen_from = camera[:, 0].relative_to(camera[:, 0]) if denoiser.relative_poses else camera[:, 0]
    clean, conditional = jnp.full((objects,), process.logsnr_max), jnp.ones((objects,), bool)
    features = denoiser.encode_view(params, images[:, 0], clean, seen_from, conditional)
    features, cameras = jax.tree.map(
        lambda leaf: jnp.repeat(leaf[:, None], known_views, axis=1), (features, camera[:, 0])
    )
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(jnp.arange(objects))
    return KnownViews(features, cameras, jnp.full((objects,), known_views, jnp.int32)), camera[:, 1], keys


class Drawing:
    """The program that draws one view of each of some objects, as ``config.sample`` says.

    Attributes:
      known_views: room for so many: the input views, and all that a rollout draws.
    """

    def __init__(self, config):
        self.denoiser, self.process = config_lib.denoiser(config), config_lib.process(config)
        self.settings: Settings = config_lib.sample_settings(config)
        self.known_views = max(1, len(config.sample.input_views))
        if self.settings.conditioning == "stochastic":
            self.known_views += config.sample.num_views or 250  # 0 is all that an object has: of SRN's, 250
        self.size = self.denoiser.network.image_size
        self.params = abstract_params(self.denoiser.network)
        self.example = functools.partial(example, self.denoiser, self.process, self.known_views)

    def shapes(self, objects: int, mesh: jax.sharding.Mesh | None = None) -> tuple:
        """Shapes of all that the program takes; on a mesh, parameters are whole and the rest is split by objects."""
        return self._placed(
            (self.params, *jax.eval_shape(self.example, self.params, batch_shapes(self.size, objects))), mesh
        )

    def lower(self, objects: int, mesh: jax.sharding.Mesh | None = None) -> jax.stages.Lowered:
        """The program for so many objects, not yet compiled."""

        def draw(params, known, camera, keys):
            shape = (self.size, self.size, 3)
            return sample_view(self.denoiser, params, known, camera, keys, shape, self.process, self.settings)

        # A mesh is of devices that need not be those of this process.
        options = cpu.compiler_options(loops=True) if mesh is None else None
        return jax.jit(draw, compiler_options=options).lower(*self.shapes(objects, mesh))

    def lower_evaluation(self, objects: int, mesh: jax.sharding.Mesh | None = None) -> jax.stages.Lowered:
        """One network evaluation of each of so many objects, as a step of the sampler needs it; not yet compiled."""
        params, known, camera, _ = self.shapes(objects)
        view = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((objects, *leaf.shape[2:]), leaf.dtype), known.features)
        conditional = jnp.ones((objects,), bool)
        positions = jax.eval_shape(self.denoiser.embed_positions, params)
        target = jax.eval_shape(self.denoiser.embed_camera, params, camera, conditional, positions)

        def evaluate(fixed, z, logsnr, target, camera, view):
            params, positions = fixed
            if self.denoiser.relative_poses:  # they change with the known view that a step draws
                target = self.denoiser.embed_camera(params, camera, conditional, positions)
            return self.denoiser.denoise(params, z, logsnr, target, view)

        z = jax.ShapeDtypeStruct((objects, self.size, self.size, 3), jnp.float32)
        logsnr = jax.ShapeDtypeStruct((objects,), jnp.float32)
        shapes = ((params, positions), z, logsnr, target, camera, view)
        return jax.jit(evaluate).lower(*self._placed(shapes, mesh))

    def flops_per_evaluation(self) -> float:
        """Counted FLOPs of one network evaluation of one object, as the sampler needs it at every step."""
        return self.lower_evaluation(1).cost_analysis()["flops"]

    def _placed(self, shapes: tuple, mesh: jax.sharding.Mesh | None) -> tuple:
        """The first, which no object has a part in, on every device; the others split by objects."""
        if mesh is None:
            return shapes
        fixed, *rest = shapes
        return placed(fixed, sharding.replicated(mesh)), *placed(rest, sharding.batch_sharding(mesh))


def measure(config, repeats: int, limit: int) -> dict:
    """Figures of the sampler on one device of ``limit`` bytes: the largest batch, and speed at the batch asked for.

    Raises:
      ValueError: if ``config.sample.batch_size`` objects do not fit; the message says how many do.
    """
    drawing = Drawing(config)
    objects = config.sample.batch_size
    first = {}

    def compile_program(count: int) -> jax.stages.Compiled:
        lowered = drawing.lower(count)
        start = time.perf_counter()
        compiled = lowered.compile()
        if count == objects:
            first.update(compiled=compiled, seconds=time.perf_counter() - start)
        return compiled

    most, needed = largest(lambda count: program_bytes(lambda: compile_program(count)), limit, start=objects)
    if most < objects:
        raise ValueError(
            f"{objects} objects at once do not fit in {limit / 2**30:.2f} GiB, {most} do: set "
            "config.sample.batch_size, or draw fewer views (config.sample.num_views)"
        )
    compiled = first["compiled"]
    params = jax.jit(lambda: init_params(drawing.denoiser.network, jax.random.key(0)))()
    arguments = jax.jit(drawing.example)(params, example_batch(drawing.size, objects))
    seconds = statistics.median(timed(lambda: compiled(params, *arguments), repeats))
    evaluations = drawing.settings.evaluations(drawing.process)
    flops = objects * evaluations * drawing.flops_per_evaluation()
    return {
        "preset": config.sample.preset,
        "num_steps": drawing.settings.num_steps,
        "evaluations_per_view": evaluations,
        "objects": objects,
        "known_views": drawing.known_views,
        "flops": flops,
        "seconds": seconds,
        "views_per_second": objects / seconds,
        "flops_per_second": flops / seconds,
        "compile_seconds": first["seconds"],
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
        "device_bytes": hardware.device_bytes(compiled),
        "largest": {"objects": most, "device_bytes": needed, "limit_bytes": limit},
    }
