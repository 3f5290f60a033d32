"""Training state and training step [7.2]. Schedules count examples, so they do not depend on the batch size."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable
from typing import Any, Literal

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax

from threedim import diffusion
from threedim.augmentation import NO_AUGMENTATION, Augmentation, augment
from threedim.cameras import Camera
from threedim.models import ops
from threedim.models.unet import UNet

PyTree = Any
Batch = dict[str, jax.Array]

# Steps that `Metrics` remembers to have skipped or not.
RECENT = 1000


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a network is trained [7.2].

    Attributes:
      batch_size: pairs per step over all devices.
      learning_rate: reached at the end of the warm-up.
      warmup_examples: examples over which the learning rate rises linearly; 0 starts at full rate.
      adam_b1, adam_b2: Adam's decay rates.
      ema_half_life: half-life of the parameter average, in examples.
      ema_rampup: the half-life is at most this fraction of the examples seen, so that early averages do not consist of
        the initial weights.
      uncond_prob: probability of making a pair unconditional.
      seed: of the whole run.
      microbatches: parts of a batch that are computed one after another to save memory.
      relative_poses: gives cameras to the network in the coordinates of the pair's clean view.
      augmentation: random changes of every pair.
      num_steps, schedule, decay_start: "constant", or a "cosine" or "linear" decay of the learning rate to zero at
        ``num_steps``, beginning after ``decay_start`` examples.
      grad_clip: largest global norm of the gradient; 0 does not clip.
      color_weight: weight of color against brightness in the loss (``diffusion.loss``).
      resized_at: the step from which the run has this batch size, and the examples it had seen by then.
    """

    batch_size: int
    learning_rate: float
    warmup_examples: int
    adam_b1: float
    adam_b2: float
    ema_half_life: float
    ema_rampup: float
    uncond_prob: float
    seed: int
    microbatches: int = 1
    relative_poses: bool = False
    augmentation: Augmentation = NO_AUGMENTATION
    color_weight: float = 1.0
    num_steps: int = 1
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    decay_start: float = 0
    grad_clip: float = 0.0
    resized_at: tuple[int, int] = (0, 0)

    def __post_init__(self):
        if self.microbatches < 1 or self.batch_size % self.microbatches:
            raise ValueError(f"batch_size {self.batch_size} does not divide into {self.microbatches} microbatches")
        lowest = {"batch_size": 1, "learning_rate": 0, "warmup_examples": 0, "ema_half_life": 1, "color_weight": 0}
        lowest |= {"num_steps": 1, "decay_start": 0, "grad_clip": 0}
        for name, low in lowest.items():
            if not getattr(self, name) >= low:
                raise ValueError(f"{name} must be at least {low}, got {getattr(self, name)}")
        for name in ("uncond_prob", "adam_b1", "adam_b2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        if not self.ema_rampup > 0:
            raise ValueError(f"ema_rampup must be positive, got {self.ema_rampup}")
        if self.schedule not in ("constant", "cosine", "linear"):
            raise ValueError(f'schedule must be "constant", "cosine" or "linear", got {self.schedule!r}')
        if self.schedule != "constant" and self.decay_start >= (end := self.examples_after(self.num_steps)):
            raise ValueError(f"decay_start must be before the end of the run, {end} pairs, got {self.decay_start}")

    def examples_after(self, steps: jax.Array | int) -> jax.Array | int:
        """Examples seen after so many steps of the run."""
        since, seen = self.resized_at
        return seen + (steps - since) * self.batch_size

    @property
    def decay(self) -> np.ndarray:
        """Examples at which the decay of the learning rate begins and ends: (2,) float32."""
        return np.float32([self.decay_start, self.examples_after(self.num_steps)])

    def learning_rate_at(self, step: jax.Array | int, decay: jax.Array | None = None) -> jax.Array:
        """Learning rate of the step with this number, from 0; ``decay`` may replace the recipe's own."""
        examples = self.examples_after(jnp.asarray(step, jnp.float32) + 1)
        rate = self.learning_rate * jnp.minimum(1.0, examples / max(self.warmup_examples, 1))
        if self.schedule == "constant":
            return rate
        begin, end = self.decay if decay is None else decay
        done = jnp.clip((examples - begin) / (end - begin), 0.0, 1.0)
        return rate * (1.0 - done if self.schedule == "linear" else 0.5 + 0.5 * jnp.cos(jnp.pi * done))

    def ema_decay_at(self, step: jax.Array | int) -> jax.Array:
        """Decay of the parameter average in the step with this number: 0.5 ** (batch / half-life)."""
        examples = self.examples_after(jnp.asarray(step, jnp.float32) + 1)
        half_life = jnp.minimum(self.ema_half_life, self.ema_rampup * examples)
        return 0.5 ** (self.batch_size / half_life)

    def optimizer(self) -> optax.GradientTransformation:
        """Adam [7.2] without the learning rate, which depends on the step and not on the number of updates."""
        return optax.scale_by_adam(b1=self.adam_b1, b2=self.adam_b2)


@flax.struct.dataclass
class TrainState:
    """What a step updates and a checkpoint holds."""

    step: jax.Array
    params: PyTree
    ema_params: PyTree
    opt_state: PyTree


@flax.struct.dataclass
class Metrics:
    """Sums since the last log line over the steps that were not skipped, kept on the device."""

    steps: jax.Array
    loss: jax.Array
    grad_norm: jax.Array  # before clipping
    quartile_loss: jax.Array  # (4,) by t: [0, 1/4) is nearly clean, [3/4, 1) nearly noise
    quartile_count: jax.Array  # (4,)
    skipped_steps: jax.Array
    skipped: jax.Array  # (RECENT,) bool: whether step i was skipped, at i % RECENT; not reset by a log line

    @classmethod
    def zeros(cls) -> Metrics:
        """No steps yet. Each leaf has its own buffer, since all of them are donated to the step."""
        shapes = {"quartile_loss": (4,), "quartile_count": (4,)}
        sums = {name: jnp.zeros(shapes.get(name, ())) for name in cls.__dataclass_fields__ if name != "skipped"}
        return cls(**sums, skipped=jnp.zeros(RECENT, bool))


def named_key(key: jax.Array, name: str) -> jax.Array:
    """An independent key for each name."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()) & 0x7FFFFFFF)


def batch_images(batch: Batch) -> tuple[jax.Array, Camera]:
    """Images (batch, 2, height, width, 3) in [-1, 1] and cameras of a batch from the pipeline."""
    return batch["image"].astype(jnp.float32) / 127.5 - 1.0, Camera(batch["R"], batch["t"], batch["K"])


def init_params(network: UNet, key: jax.Array) -> PyTree:
    """Initial parameters of the network."""
    size = network.image_size
    image = jnp.zeros((1, size, size, 3))
    camera = Camera(jnp.eye(3)[None, None].repeat(2, 1), jnp.zeros((1, 2, 3)), jnp.eye(3)[None, None].repeat(2, 1))
    return network.init(key, image, image, jnp.zeros((1, 2)), camera, jnp.ones((1,), bool), train=False)["params"]


def init_state(network: UNet, recipe: Recipe, params: PyTree = None) -> TrainState:
    """The state before the first step, with fresh parameters that depend on the seed alone, or with those given."""
    if params is None:
        params = init_params(network, named_key(jax.random.key(recipe.seed), "init"))
    # The average starts as a copy, not the same buffers: both are donated to the first step.
    ema_params = jax.tree.map(jnp.copy, params)
    return TrainState(jnp.zeros((), jnp.int32), params, ema_params, recipe.optimizer().init(params))


def abstract_params(network: UNet) -> PyTree:
    """Shapes and dtypes of the network's parameters."""
    return jax.eval_shape(lambda: init_params(network, jax.random.key(0)))


def _in_microbatches(gradient: Callable[..., Any], parts: int) -> Callable[..., Any]:
    """A gradient of (params, examples, dropout_key) that is computed in so many parts, one after another."""
    if parts == 1:
        return gradient

    def whole(params: PyTree, examples: diffusion.Examples, dropout_key: jax.Array):
        def add(total: PyTree, part: tuple[jax.Array, diffusion.Examples]) -> tuple[PyTree, jax.Array]:
            (loss, example_loss), grads = gradient(params, part[1], jax.random.fold_in(dropout_key, part[0]))
            return jax.tree.map(jnp.add, total, (loss, grads)), example_loss

        # Every parts-th pair, so that each part is spread evenly over the devices.
        split = jax.tree.map(lambda leaf: leaf.reshape(-1, parts, *leaf.shape[1:]).swapaxes(0, 1), examples)
        zeros = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
        total, example_loss = jax.lax.scan(add, zeros, (jnp.arange(parts), split))
        loss, grads = jax.tree.map(lambda leaf: leaf / parts, total)
        return (loss, example_loss.T.reshape(-1)), grads

    return whole


def make_train_step(
    network: UNet, process: diffusion.Process, recipe: Recipe, gathered: jax.sharding.NamedSharding | None = None
) -> Callable[..., tuple[TrainState, Metrics]]:
    """The training step, ready to be jitted: gradients of the loss, Adam, parameter average, metrics.

    It takes `Recipe.decay` as a fourth argument, so that another length of the run is not another program. A step whose
    loss or gradient is not finite changes nothing but the step number and the metrics. The noise of a pair does not
    depend on the number of microbatches; its dropout does.

    Args:
      network, process, recipe: what is trained, and how.
      gathered: sharding of the parameters where they are used. Without it the compiler may shard the activations'
        channels like the parameters, and move activations between devices.
    """
    optimizer = recipe.optimizer()
    fusible, norm = ops.fusible, ops.norm
    if gathered is not None and gathered.mesh.shape["fsdp"] > 1:
        # Of arrays that are split among devices, XLA would gather more for these, and in float32.
        fusible, norm = lambda tree: tree, optax.tree.norm

    def train_step(
        state: TrainState, metrics: Metrics, batch: Batch, decay: jax.Array | None = None
    ) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(named_key(jax.random.key(recipe.seed), "train"), state.step)
        images, camera = batch_images(batch)
        if recipe.augmentation.enabled:
            images, camera = augment(images, camera, named_key(key, "augment"), recipe.augmentation)
        if recipe.relative_poses:
            camera = camera.relative_to(camera[:, :1])

        examples = diffusion.make_examples(images, camera, named_key(key, "loss"), process, recipe.uncond_prob)

        def loss_fn(params: PyTree, examples: diffusion.Examples, dropout_key: jax.Array):
            if gathered is not None:
                params = jax.lax.with_sharding_constraint(params, gathered)
            params = fusible(params)

            def apply(x, z, logsnr, camera, cond_mask):
                rngs = {"dropout": dropout_key}
                return network.apply({"params": params}, x, z, logsnr, camera, cond_mask, train=True, rngs=rngs)

            return diffusion.loss(apply, examples, recipe.color_weight)

        gradient = _in_microbatches(jax.value_and_grad(loss_fn, has_aux=True), recipe.microbatches)
        (loss, example_loss), grads = gradient(state.params, examples, named_key(key, "dropout"))
        grads = fusible(grads)
        grad_norm = norm(grads)
        if recipe.grad_clip:
            grads = optax.tree.scale(jnp.minimum(1.0, recipe.grad_clip / grad_norm), grads)
        updates, opt_state = optimizer.update(grads, state.opt_state)
        params = optax.apply_updates(
            state.params, optax.tree.scale(-recipe.learning_rate_at(state.step, decay), updates)
        )
        ema_params = optax.incremental_update(params, state.ema_params, 1.0 - recipe.ema_decay_at(state.step))

        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        # Not optax.apply_if_finite: it applies a bad update once there were many, and looks at every number again.
        before = state.params, state.ema_params, state.opt_state
        kept = optax.tree.where(finite, (params, ema_params, opt_state), before)
        quartile = jax.nn.one_hot(jnp.clip(4 * examples.t, 0, 3).astype(jnp.int32), 4)  # (batch, 4)
        sums = {
            "steps": 1.0,
            "loss": loss,
            "grad_norm": grad_norm,
            "quartile_loss": example_loss @ quartile,
            "quartile_count": quartile.sum(axis=0),
        }
        sums = {name: getattr(metrics, name) + jnp.where(finite, value, 0.0) for name, value in sums.items()}
        skipped_steps = metrics.skipped_steps + ~finite
        skipped = metrics.skipped.at[state.step % RECENT].set(~finite)
        return TrainState(state.step + 1, *kept), Metrics(**sums, skipped_steps=skipped_steps, skipped=skipped)

    return train_step
