import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import jax_cameras

from threedim import diffusion
from threedim.diffusion import Process, alpha_sigma, logsnr_schedule, posterior, q_sample

LOGSNRS = [(-20.0, -14.1), (-20.0, 20.0), (-9.3, -9.29), (-3.0, 0.5), (9.0, 20.0), (19.5, 20.0)]
KEY = jax.random.key(0)


def alpha_sigma_64(logsnr):
    """From the definitions alpha^2 + sigma^2 = 1 and alpha^2 / sigma^2 = exp(logsnr)."""
    snr = np.exp(np.float64(logsnr))
    return np.sqrt(snr / (1 + snr)), np.sqrt(1 / (1 + snr))


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_schedule_is_that_of_the_paper():
    t, b = np.linspace(0, 1, 101), np.arctan(np.exp(-20 / 2))
    a = np.arctan(np.exp(20 / 2)) - b
    expected = -2 * np.log(np.tan(a * t + b))
    logsnr = logsnr_schedule(jnp.asarray(t, jnp.float32))
    # In float32 the tangent has no more than three digits where its argument nears pi/2.
    np.testing.assert_allclose(logsnr, expected, atol=4e-3)
    np.testing.assert_allclose(logsnr[:90], expected[:90], atol=2e-5)
    assert np.all(np.diff(logsnr) < 0)
    np.testing.assert_allclose([logsnr[0], logsnr[50], logsnr[-1]], [20, 0, -20], atol=4e-3)


def test_schedule_takes_other_ends_and_moves_between_them():
    logsnr = Process(logsnr_shift=-3.0).logsnr(jnp.asarray([0.0, 0.25, 0.5, 1.0]))
    np.testing.assert_allclose(logsnr, [20, -2 * np.log(np.tan(np.pi / 8)) - 3, -3, -20], atol=4e-3)
    logsnr = Process(logsnr_min=-6.0, logsnr_max=12.0).logsnr(jnp.asarray([0.0, 1.0]))
    np.testing.assert_allclose(logsnr, [12, -6], atol=1e-4)


def test_forward_process():
    x, eps = normal(3, 2, 2, 3), normal(3, 2, 2, 3, seed=1)
    logsnr = np.array([-20.0, 0.3, 20.0], np.float32)
    z = q_sample(jnp.asarray(x), jnp.asarray(eps), jnp.asarray(logsnr))
    alpha, sigma = (each[:, None, None, None] for each in alpha_sigma_64(logsnr))
    np.testing.assert_allclose(z, alpha * x + sigma * eps, rtol=1e-5, atol=1e-6)


def slow_posterior(z, x, logsnr_t, logsnr_s):
    """q(z_s | z_t, x) is proportional to q(z_t | z_s) q(z_s | x): a product of two Gaussians in z_s."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = alpha_sigma_64(logsnr_t), alpha_sigma_64(logsnr_s)
    ratio = alpha_t / alpha_s  # z_t = ratio z_s + noise
    variance_ts = sigma_t**2 - ratio**2 * sigma_s**2
    precision = ratio**2 / variance_ts + 1 / sigma_s**2
    mean = (ratio * z / variance_ts + alpha_s * x / sigma_s**2) / precision
    return mean, 1 / precision


@pytest.mark.parametrize(("logsnr_t", "logsnr_s"), LOGSNRS)
@pytest.mark.parametrize("scalar", [True, False])
def test_posterior_is_the_gaussian_conditional(logsnr_t, logsnr_s, scalar):
    x = np.random.default_rng(0).uniform(-1, 1, (4, 3, 3, 2)).astype(np.float32)
    alpha, sigma = alpha_sigma_64(logsnr_t)
    z = (alpha * x + sigma * normal(4, 3, 3, 2)).astype(np.float32)
    shape = () if scalar else (4,)
    levels = [jnp.full(shape, level, jnp.float32) for level in (logsnr_t, logsnr_s)]
    mean, variance = posterior(jnp.asarray(z), jnp.asarray(x), *levels)
    logsnr_t, logsnr_s = (float(np.float32(level)) for level in (logsnr_t, logsnr_s))
    expected_mean, expected_variance = slow_posterior(z, x, logsnr_t, logsnr_s)
    np.testing.assert_allclose(mean, expected_mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.broadcast_to(variance, z.shape), np.full(z.shape, expected_variance), rtol=1e-4)


@pytest.mark.parametrize("prediction", ["eps", "v", "x"])
@pytest.mark.parametrize("logsnr", [-7.0, 3.0])
def test_x_comes_back_from_the_target(prediction, logsnr):
    process = Process(prediction)
    x, eps = jnp.asarray(normal(2, 2, 2, 3)), jnp.asarray(normal(2, 2, 2, 3, seed=1))
    logsnr = jnp.full((2,), logsnr)
    z, output = q_sample(x, eps, logsnr), process.target(x, eps, logsnr)
    np.testing.assert_allclose(process.predict_x(output, z, logsnr), x, atol=5e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prediction": "x0"}, "prediction must be"),
        ({"regression": True}, r'regression needs prediction "x" or "v", got "eps"'),
        ({"logsnr_min": 3.0, "logsnr_max": 3.0}, "must be below"),
        ({"logsnr_min": float("nan")}, "must be below"),
    ],
)
def test_process_refuses_nonsense(fields, message):
    with pytest.raises(ValueError, match=message):
        Process(**fields)


BATCH, PROCESS = 4096, Process(uncond_logsnr=-13.0)


@jax.jit
def network_inputs(key, uncond_prob):
    """What the loss gives to the network, and the pictures it came from."""
    images = jnp.asarray(np.random.default_rng(5).uniform(-1, 1, (BATCH, 2, 2, 2, 3)), jnp.float32)
    seen = {}

    def network(x, z, logsnr, camera, cond_mask):
        seen.update(x=x, z=z, logsnr=logsnr, camera=camera, cond_mask=cond_mask)
        return jnp.zeros_like(z)

    examples = diffusion.make_examples(images, jax_cameras(BATCH, 2), key, PROCESS, uncond_prob)
    diffusion.loss(network, examples)
    alpha, sigma = alpha_sigma(seen["logsnr"][:, 1], 4)
    eps = (seen["z"] - alpha * images[:, 1]) / sigma  # worth reading where t is not near 0
    return seen | {"images": images, "eps": eps, "t": examples.t}


@pytest.mark.parametrize("prediction", ["eps", "v", "x"])
def test_loss_is_the_squared_distance_to_the_target_of_frame_1(prediction):
    images = jnp.asarray(np.random.default_rng(1).uniform(-1, 1, (16, 2, 4, 4, 3)), jnp.float32)

    def network(x, z, logsnr, camera, cond_mask):
        alpha, sigma = alpha_sigma(logsnr[:, 1], 4)
        eps = (z - alpha * images[:, 1]) / sigma
        exact = {"eps": eps, "v": alpha * eps - sigma * images[:, 1], "x": images[:, 1]}[prediction]
        return exact + 0.5 * jnp.arange(16)[:, None, None, None] / 16

    # A schedule that stops short of clean: dividing by a sigma near zero would cost the digits.
    process = Process(prediction, logsnr_max=8.0)
    examples = diffusion.make_examples(images, jax_cameras(16, 2), KEY, process, 0.5)
    total, each = diffusion.loss(network, examples)
    expected = (0.5 * np.arange(16) / 16) ** 2
    np.testing.assert_allclose(each, expected, atol=1e-4)
    np.testing.assert_allclose(total, expected.mean(), atol=1e-4)


@pytest.mark.parametrize("weight", [1.0, 9.0])
def test_color_counts_as_much_as_it_is_told_to(weight):
    """An error of the same power in brightness alone, and in color alone."""
    errors = jnp.asarray([[1.0, 1.0, 1.0], [1.0, -1.0, 0.0]])[:, None, None] * jnp.ones((2, 2, 2, 1))
    examples = diffusion.make_examples(jnp.zeros((2, 2, 2, 2, 3)), jax_cameras(2, 2), KEY, PROCESS, 0.0)
    total, each = diffusion.loss(lambda *_: examples.label + errors, examples, weight)
    noise = jax.nn.sigmoid(-examples.logsnr[1, 1])
    assert 0.01 < noise < 0.99
    np.testing.assert_allclose(each, [1.0, (1 + (weight - 1) * noise) * 2 / 3], atol=1e-5)
    np.testing.assert_allclose(total, each.mean(), rtol=1e-6)


def test_network_sees_the_clean_view_and_the_noisy_target():
    seen = network_inputs(KEY, 0.0)
    assert np.all(seen["cond_mask"])
    np.testing.assert_array_equal(seen["x"], seen["images"][:, 0])
    np.testing.assert_array_equal(seen["logsnr"][:, 0], 20.0)
    np.testing.assert_allclose(seen["logsnr"][:, 1], logsnr_schedule(seen["t"]), atol=4e-3)
    np.testing.assert_array_equal(seen["camera"].t, jax_cameras(BATCH, 2).t)
    eps = np.asarray(seen["eps"])[np.asarray(seen["t"]) > 0.1]
    np.testing.assert_allclose(eps.mean(), 0, atol=0.02)
    np.testing.assert_allclose(eps.std(), 1, atol=0.02)
    assert len(np.unique(eps[:, 0, 0, 0])) > 0.99 * len(eps)


def test_time_is_uniform():
    t = np.asarray(network_inputs(KEY, 0.1)["t"])
    counts = np.histogram(t, bins=16, range=(0, 1))[0]
    assert counts.sum() == BATCH
    # Chi-square with 15 degrees of freedom: 37.7 is passed once in a thousand.
    assert np.sum((counts - 256) ** 2 / 256) < 37.7


def test_a_regression_sees_noise_alone():
    images = jnp.asarray(np.random.default_rng(1).uniform(-1, 1, (256, 2, 4, 4, 3)), jnp.float32)
    trained = diffusion.make_examples(images, jax_cameras(256, 2), KEY, Process("x", regression=True), 0.0)
    np.testing.assert_array_equal(trained.t, 1.0)
    np.testing.assert_array_equal(trained.logsnr[:, 1], Process().logsnr(jnp.ones(256)))
    # The image is the label, and nothing of it is left in z.
    np.testing.assert_array_equal(trained.label, images[:, 1])
    np.testing.assert_array_equal(trained.x, images[:, 0])
    assert abs(np.corrcoef(trained.z.ravel(), images[:, 1].ravel())[0, 1]) < 0.03
    np.testing.assert_allclose([trained.z.mean(), trained.z.std()], [0, 1], atol=0.03)


def test_a_regression_of_v_puts_out_the_same_picture():
    images = jnp.asarray(np.random.default_rng(1).uniform(-1, 1, (8, 2, 4, 4, 3)), jnp.float32)
    process = Process("v", regression=True)
    examples = diffusion.make_examples(images, jax_cameras(8, 2), KEY, process, 0.0)
    np.testing.assert_allclose(examples.label, -images[:, 1], atol=1e-3)
    found = process.predict_x(examples.label, examples.z, examples.logsnr[:, 1])
    np.testing.assert_allclose(found, images[:, 1], atol=1e-6)


@pytest.mark.parametrize("uncond_prob", [0.1, 0.6])
def test_unconditional_pairs(uncond_prob):
    seen = network_inputs(KEY, uncond_prob)
    dropped = ~np.asarray(seen["cond_mask"])
    deviation = np.sqrt(uncond_prob * (1 - uncond_prob) / BATCH)
    assert abs(dropped.mean() - uncond_prob) < 4 * deviation

    x, images = np.asarray(seen["x"]), np.asarray(seen["images"])
    np.testing.assert_array_equal(x[~dropped], images[~dropped, 0])
    noise = x[dropped]
    np.testing.assert_allclose(noise.mean(), 0, atol=0.06)
    np.testing.assert_allclose(noise.std(), 1, atol=0.06)
    assert np.abs(noise).max() > 3  # Gaussian, not uniform
    for other in (images[dropped, 0], images[dropped, 1], np.asarray(seen["z"])[dropped]):
        assert abs(np.corrcoef(noise.ravel(), other.ravel())[0, 1]) < 0.06

    np.testing.assert_array_equal(seen["logsnr"][dropped, 0], -13.0)
    np.testing.assert_array_equal(seen["logsnr"][~dropped, 0], 20.0)
    np.testing.assert_allclose(seen["logsnr"][:, 1], PROCESS.logsnr(seen["t"]), atol=4e-3)
    assert abs(np.asarray(seen["t"])[dropped].mean() - 0.5) < 0.06


def test_the_key_decides_everything_random():
    first, again, other = (network_inputs(jax.random.key(seed), 0.5) for seed in (1, 1, 2))
    for name in ("x", "z", "logsnr", "cond_mask", "t"):
        np.testing.assert_array_equal(first[name], again[name])
        assert not np.array_equal(first[name], other[name]), name
