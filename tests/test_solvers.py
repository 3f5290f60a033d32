import jax.numpy as jnp
import numpy as np
import pytest

from threedim import solvers
from threedim.diffusion import Process
from threedim.solvers import Estimate


def at(logsnr, x):
    return Estimate(jnp.asarray(x), jnp.float32(logsnr))


def gaussian_error(solver, num_steps):
    """Pictures of one number, normal with standard deviation 0.5: the best estimate and the exact flow are known."""
    variance, levels = 0.25, np.linspace(-8.0, 8.0, num_steps + 1).astype(np.float32)
    sigmoid = 1 / (1 + np.exp(-levels.astype(np.float64)))
    marginal = sigmoid * variance + 1 - sigmoid  # of z at each level
    z, before = np.float64(1.3) * np.sqrt(marginal[0]), None
    for i in range(num_steps):
        x_hat = np.sqrt(sigmoid[i]) * variance / marginal[i] * z
        now = at(levels[i], x_hat)
        before = now._replace(logsnr=now.logsnr - 1) if before is None else before
        z, before = float(solver(jnp.float32(z), now, before, jnp.float32(levels[i + 1]))[0]), now
    return abs(z - 1.3 * np.sqrt(marginal[-1]))


def test_orders_of_convergence():
    """Half the step: half the error of DDIM, a quarter of that of the second-order solver."""
    ddim = [gaussian_error(solvers.ddim, n) for n in (20, 40)]
    second = [gaussian_error(solvers.dpm_solver_2m, n) for n in (20, 40)]
    assert 1.7 < ddim[0] / ddim[1] < 2.4
    assert 3.2 < second[0] / second[1] < 6
    assert second[1] < ddim[1] / 8


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_keeps_the_variance_whatever_the_noise(eta):
    """If x̂ is the true picture, z_s is on the forward process at every share of new noise."""
    x, eps = np.random.default_rng(0).normal(size=(2, 200_000)).astype(np.float32) * [[0.0], [1.0]] + 0.3
    alpha, sigma = np.sqrt(1 / (1 + np.exp(1.0))), np.sqrt(1 / (1 + np.exp(-1.0)))
    z = alpha * x + sigma * (eps - 0.3)
    mean, deviation = solvers.ddim(jnp.asarray(z), at(-1.0, x), at(-1.0, x), jnp.float32(1.0), eta=eta)
    total = float(np.var(mean)) + (0.0 if deviation is None else float(deviation) ** 2)
    np.testing.assert_allclose(total, 1 / (1 + np.exp(1.0)), rtol=0.02)
    np.testing.assert_allclose(np.mean(mean), 0.3 * np.sqrt(1 / (1 + np.exp(-1.0))), atol=5e-3)


def test_spacings():
    process = Process()
    expected = process.logsnr(np.asarray([1, 0.75, 0.5, 0.25, 0], np.float32))
    np.testing.assert_allclose(solvers.spaced_in_t(process, 4), expected)
    assert solvers.spaced_in_logsnr(process, 5, (-8.0, 4.0)).tolist() == [-8, -5, -2, 1, 4, 20]
    assert solvers.spaced_in_logsnr(process, 1, (-8.0, 4.0)).tolist() == [-8, 20]
