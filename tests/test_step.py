import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import NETWORK, SIZE, random_batch, random_cameras

from threedim import diffusion
from threedim.augmentation import NO_AUGMENTATION, Augmentation
from threedim.cameras import Camera
from threedim.diffusion import Process
from threedim.training.step import (
    RECENT,
    Metrics,
    Recipe,
    abstract_params,
    batch_images,
    init_state,
    make_train_step,
    named_key,
)

RECIPE = Recipe(
    batch_size=8, learning_rate=0.02, warmup_examples=16, adam_b1=0.9, adam_b2=0.99,
    ema_half_life=20.0, ema_rampup=0.5, uncond_prob=0.25, seed=3,
)  # fmt: skip
# A schedule that stops short of clean: the oracle divides by sigma.
PROCESS = Process(logsnr_max=8.0)


RECORDS = []


def recipe(**changes):
    return dataclasses.replace(RECIPE, **changes)


@dataclasses.dataclass(frozen=True)
class Toy:
    """A network whose gradients can be written down: ``scale * z + shift``. ``root`` has one only where positive."""

    image_size: int = SIZE
    record: bool = False

    def init(self, key, x, z, logsnr, camera, cond_mask, *, train):
        assert not train
        assert x.shape == z.shape == (1, SIZE, SIZE, 3)
        shift = 0.1 * jax.random.normal(key, (3,))
        return {"params": {"scale": jnp.float32(0.5), "shift": shift, "root": jnp.float32(1.0)}}

    def apply(self, variables, x, z, logsnr, camera, cond_mask, *, train, rngs):
        assert train
        p = variables["params"]
        if self.record:
            record = {"dropout": jax.random.key_data(rngs["dropout"]), "z": z, "cond_mask": cond_mask}
            jax.debug.callback(lambda r: RECORDS.append(jax.tree.map(np.asarray, r)), record, ordered=True)
        return p["scale"] * z + p["shift"] + 0.0 * jnp.sqrt(p["root"])


@functools.cache
def toy_step(recipe=RECIPE, network=Toy()):
    """Compiled as the loop does: what goes in is overwritten."""
    return jax.jit(make_train_step(network, PROCESS, recipe), donate_argnums=(0, 1))


def run(step, state, batches):
    metrics = Metrics.zeros()
    for batch in batches:
        state, metrics = step(state, metrics, batch)
    return jax.tree.map(np.asarray, (state, metrics))


def batches(count):
    return [random_batch(8, seed=seed) for seed in range(count)]


def test_learning_rate_warms_up_by_examples():
    for batch_size in (32, 128):
        r = recipe(batch_size=batch_size, learning_rate=1e-4, warmup_examples=10_000_000)
        for examples, expected in ((128, 1.28e-9), (2_500_096, 0.2500096e-4), (10_000_000, 1e-4), (64_000_000, 1e-4)):
            # The step that completes this number of examples.
            np.testing.assert_allclose(r.learning_rate_at(examples // batch_size - 1), expected, rtol=1e-5)
    assert recipe(warmup_examples=0).learning_rate_at(0) == np.float32(0.02)
    assert recipe(learning_rate=0.0).learning_rate_at(10) == 0


def test_parameter_average_ramps_up_to_its_half_life():
    """In examples. However long the half-life, the initial weights are soon forgotten."""
    for batch_size in (16, 64):
        r = recipe(batch_size=batch_size, ema_half_life=500_000.0, ema_rampup=0.05)
        steps = np.arange(12_800 // batch_size)
        decay = np.array(jax.vmap(r.ema_decay_at)(jnp.asarray(steps)))
        half_life = np.minimum(500_000, 0.05 * batch_size * (steps + 1))
        np.testing.assert_allclose(decay, 0.5 ** (batch_size / half_life), rtol=1e-5)
        assert decay.prod() < 1e-12
    late = float(r.ema_decay_at(500_000_000))
    np.testing.assert_allclose(late, 0.5 ** (64 / 500_000), rtol=1e-6)


def test_initial_state_is_a_function_of_the_seed():
    states = [jax.tree.map(np.asarray, init_state(Toy(), recipe(seed=seed))) for seed in (3, 3, 4)]
    jax.tree.map(np.testing.assert_array_equal, *states[:2])
    assert not np.array_equal(states[0].params["shift"], states[2].params["shift"])
    assert states[0].step == 0
    jax.tree.map(np.testing.assert_array_equal, states[0].params, states[0].ema_params)


def test_abstract_parameters_are_those_of_the_initial_state():
    shapes = jax.eval_shape(lambda: init_state(NETWORK, RECIPE).params)
    assert jax.tree.structure(shapes) == jax.tree.structure(abstract_params(NETWORK))
    assert jax.tree.leaves(shapes) == jax.tree.leaves(abstract_params(NETWORK))


def test_named_keys_are_independent():
    keys = [named_key(jax.random.key(seed), name) for seed, name in ((0, "a"), (0, "b"), (1, "a"))]
    assert len({tuple(jax.random.key_data(key).tolist()) for key in keys}) == 3


def test_batch_images():
    batch = random_batch(2)
    batch["image"][0, 0, 0, 0] = [0, 255, 51]
    images, camera = batch_images(jax.tree.map(jnp.asarray, batch))
    assert (images.dtype, images.shape) == (jnp.float32, (2, 2, SIZE, SIZE, 3))
    np.testing.assert_allclose(images[0, 0, 0, 0], [-1, 1, -0.6], atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, camera, Camera(batch["R"], batch["t"], batch["K"]))


def draws(r, step, batch):
    """z, eps and t of a step, with the step's keys."""
    images, camera = batch_images(jax.tree.map(jnp.asarray, batch))
    key = named_key(jax.random.fold_in(named_key(jax.random.key(r.seed), "train"), step), "loss")
    examples = diffusion.make_examples(images, camera, key, PROCESS, r.uncond_prob)
    z, logsnr, target = (np.asarray(a, np.float64) for a in (examples.z, examples.logsnr[:, 1], images[:, 1]))
    alpha, sigma = (np.sqrt(1 / (1 + np.exp(sign * logsnr)))[:, None, None, None] for sign in (-1, 1))
    return z, (z - alpha * target) / sigma, np.asarray(examples.t)


def slow_train(r, params, batches):
    """Adam, the average and the sums by hand, in float64."""
    p = {"scale": np.float64(params["scale"]), "shift": np.asarray(params["shift"], np.float64)}
    m, v = ({name: np.zeros_like(value) for name, value in p.items()} for _ in range(2))
    ema = dict(p)
    sums = {"steps": 0, "loss": 0.0, "grad_norm": 0.0, "quartile_loss": np.zeros(4), "quartile_count": np.zeros(4)}
    for step, batch in enumerate(batches):
        z, eps, t = draws(r, step, batch)
        residual = p["scale"] * z + p["shift"] - eps
        g = {"scale": 2 * np.mean(residual * z), "shift": 2 * residual.mean(axis=(0, 1, 2)) / 3}
        examples = (step + 1) * r.batch_size
        learning_rate = r.learning_rate * min(1, examples / r.warmup_examples)
        decay = 0.5 ** (r.batch_size / min(r.ema_half_life, r.ema_rampup * examples))
        for name in p:
            m[name] = r.adam_b1 * m[name] + (1 - r.adam_b1) * g[name]
            v[name] = r.adam_b2 * v[name] + (1 - r.adam_b2) * g[name] ** 2
            m_hat, v_hat = m[name] / (1 - r.adam_b1 ** (step + 1)), v[name] / (1 - r.adam_b2 ** (step + 1))
            p[name] = p[name] - learning_rate * m_hat / (np.sqrt(v_hat) + 1e-8)
            ema[name] = decay * ema[name] + (1 - decay) * p[name]
        per_example = (residual**2).mean(axis=(1, 2, 3))
        sums["steps"] += 1
        sums["loss"] += per_example.mean()
        sums["grad_norm"] += np.sqrt(g["scale"] ** 2 + np.sum(g["shift"] ** 2))
        for loss, time in zip(per_example, t, strict=True):
            quartile = next(q for q in range(4) if q / 4 <= time < (q + 1) / 4)
            sums["quartile_loss"][quartile] += loss
            sums["quartile_count"][quartile] += 1
    return p, ema, sums


def test_steps_equal_adam_by_hand():
    start = init_state(Toy(), RECIPE)
    p, ema, sums = slow_train(RECIPE, start.params, batches(4))
    state, metrics = run(toy_step(), start, batches(4))
    assert state.step == 4
    assert np.abs(p["shift"] - ema["shift"]).max() > 1e-3
    for name in ("scale", "shift"):
        np.testing.assert_allclose(state.params[name], p[name], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(state.ema_params[name], ema[name], rtol=1e-4, atol=1e-6)
    assert np.all(sums["quartile_count"] > 0)
    for name, expected in sums.items():
        np.testing.assert_allclose(getattr(metrics, name), expected, rtol=1e-4)
    assert metrics.skipped_steps == 0


def test_the_seed_decides_bit_for_bit():
    first, again = (run(toy_step(), init_state(Toy(), RECIPE), batches(3)) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    # The same initial state, so that what differs are the draws in training.
    other, _ = run(toy_step(recipe(seed=4)), init_state(Toy(), RECIPE), batches(3))
    assert not np.array_equal(first[0].params["shift"], other.params["shift"])


def test_every_step_has_its_own_draws():
    RECORDS.clear()
    run(toy_step(network=Toy(record=True)), init_state(Toy(), RECIPE), [random_batch(8)] * 4)
    jax.effects_barrier()
    assert len(RECORDS) == 4
    for name in ("dropout", "z", "cond_mask"):
        assert len({record[name].tobytes() for record in RECORDS}) == 4, name


@pytest.mark.parametrize(("name", "value"), [("scale", np.nan), ("shift", np.inf), ("root", 0.0)])
def test_a_step_that_is_not_finite_is_skipped(name, value):
    """At a ``root`` of 0 the loss is finite and its gradient is not."""
    state, metrics = run(toy_step(), init_state(Toy(), RECIPE), batches(4)[:2])
    sums = jax.tree.map(np.array, metrics)
    bad = state.replace(params={**state.params, name: jnp.full_like(state.params[name], value)})
    before = jax.tree.map(np.array, bad)
    after, metrics = toy_step()(bad, metrics, batches(4)[2])
    jax.tree.map(np.testing.assert_array_equal, after, before.replace(step=3))
    jax.tree.map(
        np.testing.assert_array_equal,
        metrics,
        metrics.replace(
            **{n: sums.__dict__[n] for n in ("steps", "loss", "grad_norm", "quartile_loss", "quartile_count")}
        ),
    )
    assert metrics.skipped_steps == 1
    assert np.flatnonzero(metrics.skipped).tolist() == [2]
    # The place of a step is its number modulo RECENT, and a good step clears it.
    good = after.replace(params=init_state(Toy(), RECIPE).params, step=jnp.asarray(RECENT + 2))
    after, metrics = toy_step()(good, metrics, batches(4)[3])
    assert not np.any(metrics.skipped)


def test_gradient_clipping_scales_the_gradient():
    """Adam's first moment after one step is the gradient times 1 - b1."""
    free, metrics = run(toy_step(), init_state(Toy(), RECIPE), batches(1))
    norm = float(metrics.grad_norm)
    clipped, logged = run(toy_step(recipe(grad_clip=norm / 4)), init_state(Toy(), RECIPE), batches(1))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b / 4, rtol=1e-4), clipped.opt_state.mu, free.opt_state.mu)
    assert logged.grad_norm == pytest.approx(norm)  # before clipping
    same, _ = run(toy_step(recipe(grad_clip=norm * 4)), init_state(Toy(), RECIPE), batches(1))
    jax.tree.map(np.testing.assert_array_equal, same.opt_state.mu, free.opt_state.mu)


@pytest.mark.parametrize(("schedule", "half"), [("constant", 1.0), ("linear", 0.5), ("cosine", 0.5)])
def test_the_learning_rate_falls_to_zero(schedule, half):
    r = recipe(schedule=schedule, num_steps=100, decay_start=20 * RECIPE.batch_size, warmup_examples=0)
    rates = [float(r.learning_rate_at(step)) / r.learning_rate for step in (0, 19, 59, 99)]
    np.testing.assert_allclose(rates, [1, 1, half, 1 if schedule == "constant" else 0], atol=1e-6)
    with pytest.raises(ValueError, match="decay_start must be before the end"):
        recipe(schedule="cosine", num_steps=2, decay_start=2 * RECIPE.batch_size)


def test_the_length_of_the_decay_is_not_in_the_program():
    programs, states = [], []
    for num_steps in (10, 20):
        r = recipe(schedule="linear", num_steps=num_steps)
        step, state = make_train_step(Toy(), PROCESS, r), init_state(Toy(), r)
        lowered = jax.jit(step).lower(state, Metrics.zeros(), batches(1)[0], r.decay)
        programs.append(lowered.as_text())
        states += [jax.jit(step)(state, Metrics.zeros(), batches(1)[0], *decay)[0] for decay in ((), (r.decay,))]
    assert programs[0] == programs[1]
    for own, given in (states[:2], states[2:]):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), own.params, given.params)
    assert states[0].params["scale"] != states[2].params["scale"]


def test_a_step_of_the_network_keeps_shapes_and_dtypes():
    network = NETWORK.clone(ch_mult=(1,), attn_resolutions=(SIZE,), num_res_blocks=0)
    state = jax.eval_shape(lambda: init_state(network, RECIPE))
    metrics, step = jax.eval_shape(Metrics.zeros), make_train_step(network, PROCESS, RECIPE)
    assert jax.eval_shape(step, state, metrics, random_batch(8)) == (state, metrics)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("batch_size", 0), ("learning_rate", -1e-4), ("learning_rate", float("nan")), ("warmup_examples", -1),
        ("ema_half_life", 0.0), ("ema_rampup", 0.0), ("color_weight", -1.0), ("uncond_prob", -0.1),
        ("uncond_prob", 1.0), ("uncond_prob", float("nan")), ("grad_clip", -1.0), ("num_steps", 0), ("decay_start", -1),
        ("schedule", "step"),
    ],
)  # fmt: skip
def test_impossible_recipes_are_refused(field, value):
    with pytest.raises(ValueError, match=rf"{field} must be .*, got '?{value}"):
        recipe(**{field: value})


def test_microbatches_are_one_batch():
    """The network has no dropout: the sums are in another order, and that is all."""
    whole = run(toy_step(), init_state(Toy(), RECIPE), batches(3))
    parts = run(toy_step(recipe(microbatches=4)), init_state(Toy(), RECIPE), batches(3))
    for (path, a), (_, b) in zip(*map(jax.tree_util.tree_leaves_with_path, (whole, parts)), strict=True):
        np.testing.assert_allclose(b, a, rtol=2e-5, atol=1e-6, err_msg=jax.tree_util.keystr(path))


@dataclasses.dataclass(frozen=True)
class Poses(Toy):
    """Its output says where the cameras are."""

    def apply(self, variables, x, z, logsnr, camera, cond_mask, *, train, rngs):
        y = super().apply(variables, x, z, logsnr, camera, cond_mask, train=train, rngs=rngs)
        return y + (camera.R.sum(axis=(1, 2, 3)) + camera.t.sum(axis=(1, 2)))[:, None, None, None]


def test_with_relative_poses_training_does_not_see_where_the_world_is():
    batch = random_batch(8)
    camera, move = Camera(batch["R"], batch["t"], batch["K"]), random_cameras(8, 1, seed=5)
    losses = {}
    for relative in (False, True):
        step = jax.jit(make_train_step(Poses(), PROCESS, recipe(relative_poses=relative)))
        for name, seen in (("as given", camera), ("moved", camera.relative_to(move)), ("own", _relative(camera))):
            moved = batch | {"R": seen.R, "t": seen.t}
            losses[relative, name] = float(step(init_state(Poses(), RECIPE), Metrics.zeros(), moved)[1].loss)
    assert abs(losses[False, "moved"] - losses[False, "as given"]) > 1e-3
    np.testing.assert_allclose(losses[True, "moved"], losses[True, "as given"], rtol=1e-5)
    np.testing.assert_allclose(losses[True, "as given"], losses[False, "own"], rtol=1e-5)


@pytest.mark.slow
def test_augmentation_comes_before_relative_poses():
    batch = random_batch(8)

    def loss(augmentation=NO_AUGMENTATION, relative=False, **changes):
        step = jax.jit(make_train_step(Poses(), PROCESS, recipe(relative_poses=relative, augmentation=augmentation)))
        return float(step(init_state(Poses(), RECIPE), Metrics.zeros(), batch | changes)[1].loss)

    turned, larger, recolored = Augmentation(orientation=True), Augmentation(scale=(2.0, 2.0)), Augmentation(hue=0.5)
    assert abs(loss(turned) - loss()) > 1e-3
    np.testing.assert_allclose(loss(turned, relative=True), loss(relative=True), rtol=1e-5)
    for relative in (False, True):
        np.testing.assert_allclose(loss(larger, relative), loss(relative=relative, t=2 * batch["t"]), rtol=1e-5)
        assert abs(loss(larger, relative) - loss(relative=relative)) > 1e-3
    # The toy's output depends on z alone, which has the augmented colors; where there are none, on nothing new.
    assert abs(loss(recolored) - loss()) > 1e-6
    gray = np.broadcast_to(batch["image"][..., :1], batch["image"].shape)
    assert loss(recolored, image=gray) == loss(image=gray)


def test_augmentation_is_new_at_every_step():
    batch, effects = random_batch(8), set()
    step = jax.jit(make_train_step(Poses(), PROCESS, recipe(augmentation=Augmentation(orientation=True))))
    plain = jax.jit(make_train_step(Poses(), PROCESS, RECIPE))
    for number in range(3):
        now = init_state(Poses(), RECIPE).replace(step=jnp.asarray(number, jnp.int32))
        effects.add(float(step(now, Metrics.zeros(), batch)[1].loss - plain(now, Metrics.zeros(), batch)[1].loss))
    assert len(effects) == 3


def _relative(camera):
    """In the coordinates of each pair's clean view, by matrices."""
    matrix = np.linalg.inv(camera.to_matrix()[:, :1].astype(np.float64)) @ camera.to_matrix()
    return Camera.from_matrix(matrix, camera.K)
