"""The sampler against slow loops, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from slow_sampler import (
    PROCESS_V,
    RECORDS,
    SHAPE,
    TRACES,
    Linear,
    Painter,
    Recorder,
    Traced,
    keys,
    linear_output,
    network_output,
    numbered_cameras,
    pictures,
    sample_views,
    slow_sample_views,
    truth,
)
from tiny import SMALL, random_cameras, random_params

from threedim.diffusion import Process
from threedim.models.concat_unet import ConcatUNet
from threedim.models.unet import NetworkDenoiser
from threedim.sampling import Sampler, Settings, _sample_view_jit, shown_steps

REGRESSION = Process("x", regression=True)
SLOW, BATCH_AXIS = pytest.mark.slow, r"images .* must share the batch axis"
CONCAT = ConcatUNet(8, ch=32, ch_mult=(1, 2), emb_ch=16, num_res_blocks=0, attn_resolutions=(4,), attn_heads=2)


@pytest.mark.parametrize(
    ("process", "settings"),
    [
        (Process(), Settings(7, 1.5)),
        (Process("v", uncond_logsnr=20.0), Settings(6, 3.0, fresh_uncond_noise=True)),
        # A schedule that ends noisy: there, noise in the last step would show.
        (Process("v", logsnr_min=-6.0, logsnr_max=1.0, uncond_logsnr=-6.0), Settings(5, 0.5)),
        pytest.param(Process("v", logsnr_max=1.0), Settings(1, 0.0), marks=SLOW),
        (Process(), Settings(6, 1.0, guidance_interval=(-2.0, 2.0), fresh_uncond_noise=True)),
        pytest.param(Process("v"), Settings(5, 1.0, guidance_interval=(30.0, 40.0)), marks=SLOW),
        pytest.param(Process("v"), Settings(6, 0.5, solver="ddim"), marks=SLOW),
        (Process(), Settings(6, 0.5, solver="ddim", eta=0.7)),
        pytest.param(Process("v"), Settings(7, 0.5, solver="dpm_solver_2m"), marks=SLOW),
        (Process("v"), Settings(7, 0.5, solver="dpm_solver_2m", spacing="logsnr", logsnr_range=(-6.0, 5.0))),
        (Process(), Settings(7, 0.5, solver="dpm_solver_2m_sde", guidance_interval=(-3.0, 20.0))),
        pytest.param(Process(logsnr_max=1.0), Settings(2, 0.5, solver="dpm_solver_2m_sde"), marks=SLOW),
        pytest.param(Process("x", logsnr_max=1.0), Settings(5, 0.5), marks=SLOW),
        pytest.param(Process("v"), Settings(5, 0.5, conditioning="input"), marks=SLOW),
        (REGRESSION, Settings(1, 0.0, conditioning="input")),
        (REGRESSION, Settings(1, 0.0, conditioning="input", solver="dpm_solver_2m_sde")),
    ],
)
def test_sampler_equals_slow_loops(process, settings):
    images, cameras, targets = pictures(2, 2), random_cameras(2, 2), random_cameras(2, 2, seed=1)
    fast = sample_views(Linear(), None, images, cameras, targets, keys(2), process=process, settings=settings)
    slow = slow_sample_views(linear_output, images, cameras, targets, keys(2), process, settings, fast)
    assert (fast.shape, fast.dtype) == ((2, 2, *SHAPE), jnp.float32)
    assert np.mean(np.abs(slow) < 0.999) > 0.05  # not all of it clipped
    np.testing.assert_allclose(fast, slow, atol=2e-4)


@pytest.mark.parametrize(
    ("network", "fresh", "relative"),
    [
        (SMALL, False, True),
        *(pytest.param(*p, marks=SLOW) for p in ((SMALL, False, False), (SMALL, True, False), (CONCAT, False, True))),
    ],
)
def test_cached_rollout_of_the_network_equals_the_plain_network(network, fresh, relative):
    """Cached features and both branches in one batch, against ``__call__`` on every pair."""
    params, settings = random_params(network), Settings(4, 2.0, fresh)
    images, cameras, targets = pictures(2, 1, shape=(8, 8, 3)), random_cameras(2, 1), random_cameras(2, 2, seed=1)
    arguments = images, cameras, targets, keys(2)
    fast = sample_views(NetworkDenoiser(network, relative), params, *arguments, process=PROCESS_V, settings=settings)
    slow = slow_sample_views(network_output(network, params), *arguments, PROCESS_V, settings, fast, relative)
    assert np.mean(np.abs(slow) < 0.999) > 0.3
    np.testing.assert_allclose(fast, slow, atol=5e-4)


def test_a_perfect_prediction_gives_the_true_picture():
    params = jnp.asarray(np.random.default_rng(0).normal(size=(*SHAPE, 3)), jnp.float32)
    targets = random_cameras(2, 3)
    arguments = Painter(PROCESS_V), params, pictures(2, 1), random_cameras(2, 1, seed=1), targets, keys(2)
    views = sample_views(*arguments, process=PROCESS_V, settings=Settings(9, 3.0))
    np.testing.assert_allclose(views, truth(params, targets.t), atol=2e-4)


@pytest.mark.parametrize(("guidance_weight", "branches"), [(0.0, 1), (0.1, 2)])
def test_a_rollout_compiles_once_and_without_guidance_one_branch(guidance_weight, branches):
    TRACES.clear()
    compiled, after_view = _sample_view_jit()._cache_size(), []
    settings = {"process": Process(), "settings": Settings(3, guidance_weight)}
    arguments = Traced(), None, pictures(2, 3), random_cameras(2, 3), random_cameras(2, 5, seed=1), keys(2)
    sample_views(*arguments, **settings, on_view=lambda i, view: after_view.append((i, view.shape, len(TRACES))))
    assert _sample_view_jit()._cache_size() == compiled + 1
    assert set(TRACES) == {(2 * branches, *SHAPE)}
    assert after_view == [(index, (2, *SHAPE), len(TRACES)) for index in range(5)]


@pytest.mark.parametrize("num_steps", [1, 3, 11])
def test_steps_of_the_first_view_are_given_out(num_steps):
    process, given = Process(), []
    settings = {"process": process, "settings": Settings(num_steps, 0.0)}
    arguments = Recorder(), None, pictures(2, 1), numbered_cameras(2, 0, 1), numbered_cameras(2, 1, 2), keys(2)
    RECORDS.clear()
    plain = sample_views(*arguments, **settings)
    jax.effects_barrier()
    seen, levels = np.stack([record["z"] for record in RECORDS[:num_steps]]), Settings(num_steps).levels(process)
    views = sample_views(*arguments, **settings, on_steps=given.append)
    np.testing.assert_array_equal(views, plain)
    chosen = shown_steps(num_steps)
    assert (chosen[0], chosen[-1], len(chosen)) == (0, num_steps - 1, min(8, num_steps))
    assert np.ptp(np.diff(chosen)) <= 1 if num_steps > 1 else True
    (steps,) = given
    assert steps.shape == (2, len(chosen), 2, *SHAPE)
    np.testing.assert_array_equal(steps[:, :, 0].swapaxes(0, 1), seen[chosen])
    for place, step in enumerate(chosen):
        estimate = process.predict_x(0.3 * seen[step], seen[step], np.full(2, levels[step]))
        np.testing.assert_allclose(steps[:, place, 1], np.clip(estimate, -1, 1), atol=1e-5)
    sample_views(*arguments, **settings, finished=np.asarray(views[:, :1]), on_steps=given.append)
    assert len(given) == 1


def test_outside_the_guidance_interval_one_branch_is_computed():
    settings, process = Settings(10, 2.0, guidance_interval=(-3.0, 2.0)), Process("v")
    RECORDS.clear()
    arguments = Recorder(), None, pictures(2, 1), numbered_cameras(2, 0, 1), numbered_cameras(2, 1, 1), keys(2)
    sample_views(*arguments, process=process, settings=settings)
    jax.effects_barrier()
    levels = [float(record["logsnr"][0]) for record in RECORDS]
    np.testing.assert_allclose(levels, process.logsnr(np.linspace(1, 0.1, 10, dtype=np.float32)), rtol=1e-4)
    branches = [len(record["z"]) // 2 for record in RECORDS]
    assert branches == [2 if -3 <= level <= 2 else 1 for level in levels]
    assert settings.evaluations(process) == sum(branches)
    assert 1 < branches.count(2) < 9


def test_network_evaluations_are_counted():
    process = Process()
    assert Settings().evaluations(process) == 500
    assert Settings(guidance_weight=0.0).evaluations(process) == 250
    assert Settings(40, 3.0, guidance_interval=(25.0, 30.0)).evaluations(process) == 40


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"images": pictures(2, 0), "cameras": numbered_cameras(2, 0, 0)}, BATCH_AXIS),
        ({"cameras": numbered_cameras(2, 0, 2)}, BATCH_AXIS),
        ({"cameras": numbered_cameras(3, 0, 1)}, BATCH_AXIS),
        ({"targets": numbered_cameras(1, 0, 2)}, BATCH_AXIS),
        ({"key": (3,)}, BATCH_AXIS),
        ({"key": ()}, BATCH_AXIS),
        ({"targets": numbered_cameras(2, 0, 0)}, "no target cameras"),
        ({"finished": np.zeros((1, 1, 4, 4, 3))}, "finished views are"),
    ],
)
def test_inputs_that_do_not_fit_together_are_refused(changes, said):
    fields = {"images": pictures(2, 1), "cameras": numbered_cameras(2, 0, 1), "targets": numbered_cameras(2, 1, 2)}
    fields = fields | {"key": (2,)} | changes
    fields["key"] = jax.random.split(jax.random.key(0), fields["key"])
    with pytest.raises(ValueError, match=said):
        sample_views(Linear(), None, **fields, process=Process(), settings=Settings(1))


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"num_steps": 0}, "num_steps must be at least 1, got 0"),
        ({"guidance_weight": -0.1}, "guidance_weight must be finite and not negative, got -0.1"),
        ({"guidance_weight": float("nan")}, "guidance_weight"),
        ({"guidance_weight": float("inf")}, "guidance_weight"),
        ({"guidance_interval": (2.0, 1.0)}, r"guidance_interval must be \(lowest, highest\) λ, got \(2.0, 1.0\)"),
        ({"guidance_interval": (2.0,)}, "guidance_interval"),
        ({"solver": "heun"}, "solver must be one of ancestral, ddim, dpm_solver_2m, dpm_solver_2m_sde, got 'heun'"),
        ({"solver": "ddim", "eta": 1.1}, r"eta must be in \[0, 1\]"),
        ({"eta": 0.5}, 'eta .* is of solver "ddim" alone; got 0.5'),
        ({"conditioning": "last"}, 'conditioning must be "stochastic" or "input", got \'last\''),
        ({"logsnr_range": (-5.0, 5.0)}, r'logsnr_range \(-5.0, 5.0\) is of spacing "logsnr" alone; spacing is "t"'),
        ({"spacing": "karras"}, 'spacing must be "t" or "logsnr", got \'karras\''),
    ],
)
def test_impossible_settings_are_refused(fields, match):
    with pytest.raises(ValueError, match=match):
        Settings(**fields)


@pytest.mark.parametrize("logsnr_range", [(3.0, -3.0), (-25.0, 10.0), (-10.0, 20.0)])
def test_a_range_of_noise_levels_outside_the_process_is_refused(logsnr_range):
    with pytest.raises(ValueError, match="logsnr_range must rise within"):
        Settings(5, spacing="logsnr", logsnr_range=logsnr_range).levels(Process())


def test_one_step_of_a_regression_returns_the_picture_bit_for_bit():
    params = jnp.asarray(np.random.default_rng(0).normal(size=(*SHAPE, 3)), jnp.float32)
    targets, settings = random_cameras(2, 2), Settings(1, 0.0, conditioning="input")
    arguments = Painter(REGRESSION), params, pictures(2, 1), random_cameras(2, 1), targets, keys(2)
    views = sample_views(*arguments, process=REGRESSION, settings=settings)
    expected = np.stack([jax.jit(truth)(params, jnp.asarray(targets.t[:, j])) for j in range(2)], axis=1)
    np.testing.assert_array_equal(views, expected)


@pytest.mark.parametrize(
    "fields",
    [
        {"num_steps": 2, "guidance_weight": 0.0},
        {"num_steps": 1, "guidance_weight": 0.5},
        {"num_steps": 1, "guidance_weight": 0.0, "spacing": "logsnr"},
    ],
)
def test_more_than_a_regression_has_learned_is_refused(fields):
    with pytest.raises(ValueError, match=r"one step from noise: num_steps must be 1"):
        Sampler(Linear(), REGRESSION, Settings(**fields))
