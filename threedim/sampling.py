"""Sampling by stochastic conditioning [2.2, 7.3].

A view is sampled in ``num_steps`` denoising steps, and at *every* step the network is conditioned on a view chosen
uniformly from all views known so far. A finished view joins the known ones. So views sampled one after another agree
with each other, although the network only ever sees a pair.

A known set is a fixed-capacity array plus a count, so that one compiled function samples every view of a rollout. It
holds what the network computes from a clean view alone, which is the same at every step. This includes relative poses:
the clean view's camera is the origin, and only the target's rays depend on the conditioning view.

Views that join the known set are rounded to 8 bits, as they are written to disk: a rollout resumed from its own PNG
files equals one that was never interrupted.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from threedim import cpu, solvers
from threedim.cameras import Camera
from threedim.diffusion import Process
from threedim.models.layers import fold_frames, take_frame

PyTree = Any


class Denoiser(Protocol):
    """The sampler's interface to a network, such as ``NetworkDenoiser``. Hashable; leading axes are (batch,).

    Attributes:
      relative_poses: whether the network takes cameras in the coordinates of the pair's clean view.
    """

    relative_poses: bool

    def encode_view(
        self, params: PyTree, x: jax.Array, logsnr: jax.Array, camera: Camera, cond_mask: jax.Array
    ) -> PyTree:
        """Features of clean views (batch, height, width, 3)."""

    def embed_positions(self, params: PyTree) -> PyTree:
        """The part of ``embed_camera`` that is the same for all cameras."""

    def embed_camera(self, params: PyTree, camera: Camera, cond_mask: jax.Array, positions: PyTree) -> PyTree:
        """Embeddings of target cameras."""

    def denoise(self, params: PyTree, z: jax.Array, logsnr: jax.Array, target: PyTree, view: PyTree) -> jax.Array:
        """The network's output (eps, v or x) for noisy targets, given one view's features each."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a view is sampled. The defaults are the paper's, except for the number of steps, 256 in the paper.

    Attributes:
      num_steps: denoising steps.
      conditioning: views that a step chooses from: "stochastic" for all known views [2.2]; "input" for the input views
        alone, an ablation of the paper [3.2].
      guidance_weight: w in ``(1 + w) eps_cond - w eps_uncond``; 0 skips the unconditional branch.
      fresh_uncond_noise: the unconditional branch has a noise frame in place of the clean view. False samples it once
        per view, so that its features are computed once; True samples it at every step.
      guidance_interval: lowest and highest λ with guidance (Kynkäänniemi et al. 2024, arXiv 2404.07724). Elsewhere only
        the conditional branch is computed.
      solver: the step from one noise level to the next, see ``threedim.solvers``.
      eta: of the solver "ddim": 0 adds no noise, 1 as much as ancestral sampling.
      spacing: steps are equal in "t", or in "logsnr" over ``logsnr_range``.
      logsnr_range: with spacing "logsnr", the first and the last noise level at which the network is evaluated.

    Raises:
      ValueError: if a value is out of range, or is set but not used by the solver or spacing.
    """

    num_steps: int = 250
    guidance_weight: float = 3.0
    fresh_uncond_noise: bool = False
    guidance_interval: tuple[float, float] = (-20.0, 20.0)
    solver: Literal["ancestral", "ddim", "dpm_solver_2m", "dpm_solver_2m_sde"] = "ancestral"
    eta: float = 0.0
    spacing: Literal["t", "logsnr"] = "t"
    logsnr_range: tuple[float, float] = (-10.0, 10.0)
    conditioning: Literal["stochastic", "input"] = "stochastic"

    def __post_init__(self):
        if self.num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {self.num_steps}")
        if not 0 <= self.guidance_weight < float("inf"):
            raise ValueError(f"guidance_weight must be finite and not negative, got {self.guidance_weight}")
        if len(self.guidance_interval) != 2 or not self.guidance_interval[0] <= self.guidance_interval[1]:
            raise ValueError(f"guidance_interval must be (lowest, highest) λ, got {self.guidance_interval}")
        if self.solver not in solvers.SOLVERS:
            raise ValueError(f"solver must be one of {', '.join(solvers.SOLVERS)}, got {self.solver!r}")
        if not 0 <= self.eta <= 1 or (self.eta > 0 and self.solver != "ddim"):
            raise ValueError(f'eta must be in [0, 1], and is of solver "ddim" alone; got {self.eta}')
        if self.spacing not in ("t", "logsnr"):
            raise ValueError(f'spacing must be "t" or "logsnr", got {self.spacing!r}')
        if self.spacing == "t" and self.logsnr_range != Settings.logsnr_range:
            raise ValueError(f'logsnr_range {self.logsnr_range} is of spacing "logsnr" alone; spacing is "t"')
        if self.conditioning not in ("stochastic", "input"):
            raise ValueError(f'conditioning must be "stochastic" or "input", got {self.conditioning!r}')

    def check(self, process: Process) -> None:
        """Raises ValueError unless the settings fit the process.

        ``logsnr_range`` must lie within that of the process, and a network trained by regression predicts the image in
        one step without guidance.
        """
        self.levels(process)
        if process.regression and (self.num_steps != 1 or self.guidance_weight != 0 or self.spacing != "t"):
            rule = 'in one step from noise: num_steps must be 1, guidance_weight 0 and spacing "t"'
            found = f"{self.num_steps}, {self.guidance_weight} and {self.spacing!r}"
            raise ValueError(f"a network trained by regression predicts the image {rule}; got {found}")

    def levels(self, process: Process) -> np.ndarray:
        """Noise levels, (num_steps + 1,), rising; the network is evaluated at all but the last."""
        if self.spacing == "t":
            return solvers.spaced_in_t(process, self.num_steps)
        return solvers.spaced_in_logsnr(process, self.num_steps, self.logsnr_range)

    def guided(self, process: Process) -> np.ndarray:
        """The steps with guidance, (num_steps,) bool."""
        low, high = self.guidance_interval
        # The schedule meets its ends only up to rounding.
        levels = self.levels(process)[:-1].clip(process.logsnr_min, process.logsnr_max)
        return (self.guidance_weight > 0) & (levels >= low) & (levels <= high)

    def evaluations(self, process: Process) -> int:
        """Network evaluations per view; a step with guidance takes two."""
        return self.num_steps + int(self.guided(process).sum())


class KnownViews(NamedTuple):
    """The views to choose the conditioning from."""

    features: PyTree  # of each view; leaves are (batch, capacity, ...). Entries from ``count`` on are never read
    camera: Camera  # of each view, axes (batch, capacity)
    count: jax.Array  # (batch,) int32, number of known views, at least 1


def shown_steps(num_steps: int) -> np.ndarray:
    """Up to eight of the steps, evenly spaced from the first to the last: (shown,) from 0."""
    return np.arange(shown := min(8, num_steps)) * (num_steps - 1) // max(shown - 1, 1)


def choose_view(key: jax.Array, count: jax.Array) -> jax.Array:
    """The index of a known view, uniform on ``range(count)``. ``key`` and ``count`` are (batch,)."""
    return jax.vmap(lambda k, n: jax.random.randint(k, (), 0, n))(key, count)


def _normal(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Noise of each example from its own key, so that it does not depend on the rest of the batch."""
    return jax.vmap(lambda k: jax.random.normal(k, shape))(key)


def _fold_in(key: jax.Array, data: jax.Array | int) -> jax.Array:
    return jax.vmap(lambda k: jax.random.fold_in(k, data))(key)


@dataclasses.dataclass(frozen=True)
class Sampler:
    """Samples views with a trained network; hashable, so that compiled programs are keyed by it.

    Raises:
      ValueError: if the settings do not fit the process.
    """

    denoiser: Denoiser
    process: Process  # that the denoiser was trained for
    settings: Settings

    def __post_init__(self):
        self.settings.check(self.process)

    def sample_views(
        self,
        params: PyTree,
        images: jax.Array,
        cameras: Camera,
        targets: Camera,
        key: jax.Array,
        *,
        finished: jax.Array | None = None,
        on_view: Callable[[int, jax.Array], None] | None = None,
        on_steps: Callable[[jax.Array], None] | None = None,
    ) -> jax.Array:
        """Samples views one after another, in the given order; each joins the known ones [2.2].

        With ``settings.conditioning`` "input" they do not join them.

        Args:
          params: parameters of the network.
          images: the input views, (batch, inputs, height, width, 3) in [-1, 1]; at least one.
          cameras: their cameras, axes (batch, inputs).
          targets: cameras to sample, axes (batch, views).
          key: (batch,) keys. The views of an object depend on its own key alone, not on the rest of the batch.
          finished: (batch, finished, height, width, 3), the first views of an interrupted rollout, which then continues
            after them and returns what it would have returned without the interruption.
          on_view: called with the index and the (batch, height, width, 3) images of each view when it is finished.
          on_steps: called before that for the first view, unless it was finished, with what `sample_view` returns of
            its steps.

        Returns:
          (batch, views, height, width, 3) in [-1, 1], float32.

        Raises:
          ValueError: if shapes do not fit together, or there is no input view or no target.
        """
        images = jnp.asarray(images, jnp.float32)
        cameras, targets = jax.tree.map(jnp.asarray, (cameras, targets))
        batch, inputs, *shape = images.shape
        views = targets.t.shape[1]
        if inputs < 1 or cameras.t.shape[:2] != (batch, inputs) or targets.t.shape[0] != batch or key.shape != (batch,):
            found = f"images {images.shape}, cameras {cameras.t.shape[:-1]}, targets {targets.t.shape[:-1]} and keys"
            rule = "must share the batch axis, with at least one input view and a camera for each"
            raise ValueError(f"{found} {key.shape} {rule}")
        if views < 1:
            raise ValueError("no target cameras")
        if finished is not None and (finished.shape[0] != batch or list(finished.shape[2:]) != shape):
            raise ValueError(f"finished views are {finished.shape}, not {(batch, 'finished', *shape)}")
        done = [] if finished is None else [jnp.asarray(finished[:, i], jnp.float32) for i in range(finished.shape[1])]
        joins = self.settings.conditioning == "stochastic"
        known = self._begin(params, images[:, 0], cameras[:, 0], inputs + views if joins else inputs)
        for i in range(1, inputs):
            known = self._append(params, known, images[:, i], cameras[:, i])
        for i in range(views):
            if i >= len(done):
                view, steps = _sample_view_jit()(self, params, known, targets[:, i], _fold_in(key, i), tuple(shape))
                if on_steps is not None and i == 0:
                    on_steps(steps)
                if on_view is not None:
                    on_view(i, view)
                done.append(view)
            if joins and i + 1 < views:
                known = self._append(params, known, done[i], targets[:, i])
        return jnp.stack(done[:views], axis=1)

    def lower_view(
        self, params: PyTree, images: jax.Array, cameras: Camera, targets: Camera, key: jax.Array
    ) -> jax.stages.Lowered:
        """The program that `sample_views` runs for every view, its largest. Its arguments, or shapes of them."""
        inputs = images.shape[1]
        capacity = inputs + (targets.t.shape[1] if self.settings.conditioning == "stochastic" else 0)

        def begin(params: PyTree, images: jax.Array, cameras: Camera, targets: Camera) -> tuple[KnownViews, Camera]:
            return self._begin(params, images[:, 0], cameras[:, 0], capacity), targets[:, 0]

        known, target = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=getattr(key, "sharding", None)),
            jax.eval_shape(begin, params, images, cameras, targets),
        )
        return _sample_view_jit().lower(self, params, known, target, key, tuple(images.shape[2:]))

    def sample_view(
        self, params: PyTree, known: KnownViews, camera: Camera, key: jax.Array, shape: tuple[int, int, int]
    ) -> tuple[jax.Array, jax.Array]:
        """Samples one view per example, a ``jax.lax.scan`` over the steps [2.2, 7.3].

        Target cameras have axes (batch,), keys (batch,), and ``shape`` is (height, width, channel).

        Returns:
          The views, (batch, height, width, channel) in [-1, 1], float32; and (batch, shown, 2, height, width, channel)
          of the steps `shown_steps`: what the network was given, which exceeds [-1, 1], and its estimate x̂ in [-1, 1].
        """
        settings, levels = self.settings, self.settings.levels(self.process)
        last, shown = settings.num_steps - 1, len(shown_steps(settings.num_steps))
        solver = solvers.SOLVERS[settings.solver]
        if settings.solver == "ddim":
            solver = functools.partial(solver, eta=settings.eta)
        key_start, key_uncond, key_steps = (_fold_in(key, stream) for stream in range(3))
        predict_x = self._predictor(params, known, camera, key_uncond, shape)

        def step(carry: tuple[jax.Array, ...], i: jax.Array) -> tuple[tuple[jax.Array, ...], None]:
            z, x_before, kept = carry
            key = _fold_in(key_steps, i)
            logsnrs = jnp.asarray(levels)
            x_hat = jnp.clip(predict_x(z, i, key), -1.0, 1.0)
            # The first step has no previous estimate; the last one goes so far in λ that extrapolation would overshoot.
            x_before = jnp.where((i == 0) | (i == last), x_hat, x_before)
            now, before = solvers.Estimate(x_hat, logsnrs[i]), solvers.Estimate(x_before, logsnrs[i - 1])
            mean, deviation = solver(z, now, before, logsnrs[i + 1])
            if deviation is not None:
                mean += jnp.where(i < last, deviation, 0.0) * _normal(_fold_in(key, 1), shape)
            # The last step that is written to a place stays: that of `shown_steps`.
            place = -(-i * (shown - 1) // max(last, 1))
            kept = jax.lax.dynamic_update_index_in_dim(kept, jnp.stack([z, x_hat], axis=1), place, axis=1)
            return (mean, x_hat, kept), None

        start = _normal(key_start, shape)
        kept = jnp.zeros((start.shape[0], shown, 2, *shape), start.dtype)
        (z, _, kept), _ = jax.lax.scan(step, (start, jnp.zeros_like(start), kept), jnp.arange(settings.num_steps))
        return jnp.clip(z, -1.0, 1.0), kept

    def _predictor(
        self, params: PyTree, known: KnownViews, camera: Camera, key_uncond: jax.Array, shape: tuple[int, int, int]
    ) -> Callable[[jax.Array, jax.Array, jax.Array], jax.Array]:
        """The function (z, step, key) -> x̂ with guidance, unclipped. Computes what is the same at all steps once."""
        denoiser, process, settings = self.denoiser, self.process, self.settings
        batch = key_uncond.shape[0]
        conditional, unconditional = jnp.ones((batch,), bool), jnp.zeros((batch,), bool)
        levels, guided = settings.levels(process), settings.guided(process)
        w = settings.guidance_weight

        def encode_noise(key: jax.Array) -> PyTree:
            logsnr = jnp.full((batch,), process.uncond_logsnr)
            return denoiser.encode_view(params, _normal(key, shape), logsnr, camera, unconditional)

        positions = denoiser.embed_positions(params)
        if guided.any():
            uncond_target = denoiser.embed_camera(params, camera, unconditional, positions)
            noise_features = encode_noise(key_uncond)

        def embed_target(camera: Camera) -> tuple[PyTree, PyTree]:
            """For the conditional branch, and for both branches in one batch."""
            target = denoiser.embed_camera(params, camera, conditional, positions)
            return target, jax.tree.map(fold_frames, uncond_target, target) if guided.any() else None

        fixed_target = None if denoiser.relative_poses else embed_target(camera)

        def predict_x(z: jax.Array, i: jax.Array, key: jax.Array) -> jax.Array:
            index = choose_view(_fold_in(key, 0), known.count)
            view, view_camera = jax.tree.map(
                lambda leaf: jax.vmap(lambda row, i: row[i])(leaf, index), (known.features, known.camera)
            )
            logsnr = jnp.full((batch,), jnp.asarray(levels)[i])
            target, both_targets = fixed_target or embed_target(camera.relative_to(view_camera))

            def without_guidance() -> jax.Array:
                return denoiser.denoise(params, z, logsnr, target, view)

            def with_guidance() -> jax.Array:
                uncond = encode_noise(_fold_in(key, 2)) if settings.fresh_uncond_noise else noise_features
                # Both branches in one batch. eps, v and x are affine in one another at fixed z, so mixing the outputs,
                # with weights that sum to 1, is mixing eps.
                both_z, both_logsnr, both_views = jax.tree.map(fold_frames, (z, logsnr, uncond), (z, logsnr, view))
                output = denoiser.denoise(params, both_z, both_logsnr, both_targets, both_views)
                return (1 + w) * take_frame(output, 1) - w * take_frame(output, 0)

            if guided.all():
                output = with_guidance()
            elif guided.any():
                output = jax.lax.cond(jnp.asarray(guided)[i], with_guidance, without_guidance)
            else:
                output = without_guidance()
            return process.predict_x(output, z, logsnr)

        return predict_x

    def _encode(self, params: PyTree, image: jax.Array, camera: Camera) -> PyTree:
        """Features of views (batch, height, width, 3), rounded to 8 bits."""
        batch = image.shape[0]
        image = jnp.round((image + 1.0) * 127.5) / 127.5 - 1.0
        logsnr = jnp.full((batch,), self.process.logsnr_max)
        seen_from = camera.relative_to(camera) if self.denoiser.relative_poses else camera
        return self.denoiser.encode_view(params, image, logsnr, seen_from, jnp.ones((batch,), bool))

    @functools.partial(jax.jit, static_argnames=("self", "capacity"))
    def _begin(self, params: PyTree, image: jax.Array, camera: Camera, capacity: int) -> KnownViews:
        """A known set of one view, sharded over devices as the view is."""
        first = (self._encode(params, image, camera), camera)
        features, camera = jax.tree.map(
            lambda leaf: jnp.pad(leaf[:, None], [(0, 0), (0, capacity - 1)] + [(0, 0)] * (leaf.ndim - 1)), first
        )
        return KnownViews(features, camera, jnp.ones_like(image[:, 0, 0, 0], jnp.int32))

    @functools.partial(jax.jit, static_argnames=("self",), donate_argnames=("known",))
    def _append(self, params: PyTree, known: KnownViews, image: jax.Array, camera: Camera) -> KnownViews:
        new = (self._encode(params, image, camera), camera)
        place = jax.vmap(lambda row, value, i: row.at[i].set(value.astype(row.dtype)))
        features, camera = jax.tree.map(
            lambda leaf, value: place(leaf, value, known.count), (known.features, known.camera), new
        )
        return KnownViews(features, camera, known.count + 1)


@functools.cache
def _sample_view_jit() -> Callable[..., tuple[jax.Array, jax.Array]]:
    """`Sampler.sample_view`, compiled once per sampler and shapes."""
    options = cpu.compiler_options()
    return jax.jit(Sampler.sample_view, static_argnames=("self", "shape"), compiler_options=options)
