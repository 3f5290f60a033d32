"""Stochastic conditioning: which views each step sees, and interrupted rollouts."""

import jax.numpy as jnp
import numpy as np
import pytest
from slow_sampler import PROCESS_V, SHAPE, Linear, Painter, keys, pictures, recorded, rounded, sample_views
from tiny import jax_cameras, random_cameras

from threedim.diffusion import Process
from threedim.sampling import KnownViews, Sampler, Settings, _sample_view_jit


def test_every_step_samples_a_view_of_those_known_so_far():
    batch, inputs, views, steps = 3, 2, 3, 48
    records, _ = recorded(batch, inputs, views, Settings(steps, 0.0))
    chosen = records["view"]["number"].astype(int)  # (view, step, object)
    for j in range(views):
        known = inputs + j
        for o in range(batch):
            assert set(chosen[j, :, o]) == set(range(known))
        observed = np.bincount(chosen[j].ravel(), minlength=known)
        expected = steps * batch / known
        assert np.sum((observed - expected) ** 2 / expected) < {2: 10.8, 3: 13.8, 4: 16.3}[known]
    assert not np.array_equal(chosen[0, :, 0], chosen[0, :, 1])
    assert not np.array_equal(chosen[0, :, 0] % 2, chosen[1, :, 0] % 2)


@pytest.mark.parametrize("relative", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_with_the_input_views_alone_no_finished_view_is_seen_or_encoded(monkeypatch, relative):
    batch, inputs, views, steps = 3, 2, 3, 32
    records, result = recorded(batch, inputs, views, Settings(steps, 0.0, conditioning="input"), relative=relative)
    chosen = records["view"]["pixel"]  # (view, step, object)
    known = pictures(batch, inputs)[:, :, 0, 0, 0]
    for j, o in np.ndindex(views, batch):
        first = np.isclose(chosen[j, :, o], known[o, 0], atol=1e-6)
        second = np.isclose(chosen[j, :, o], known[o, 1], atol=1e-6)
        assert np.all(first ^ second)
        assert 5 < first.sum() < 27  # beyond these once in 10^4

    # The first view is what it is with stochastic conditioning; of the others, no feature is computed.
    _, usual = recorded(batch, inputs, views, Settings(steps, 0.0), relative=relative)
    np.testing.assert_array_equal(result[:, 0], usual[:, 0])
    appended = []
    monkeypatch.setattr(Sampler, "_append", lambda *args: appended.append(args[3].shape) or args[2])
    recorded(batch, inputs, views, Settings(steps, 0.0, conditioning="input"), relative=relative)
    assert appended == [(batch, *SHAPE)] * (inputs - 1)


def test_what_is_not_known_is_never_read():
    process, views, count = Process(), pictures(3, 5), np.array([1, 3, 5])
    poisoned = np.where((np.arange(5) < count[:, None])[..., None, None, None], views, np.nan)
    known = KnownViews(jnp.asarray(poisoned), jax_cameras(*poisoned.shape[:2]), jnp.asarray(count, jnp.int32))
    sampler = Sampler(Painter(process, copy=True), process, Settings(20, 0.0))
    result, _ = _sample_view_jit()(sampler, None, known, jax_cameras(3), keys(3), SHAPE)
    assert np.all(np.isfinite(result))
    np.testing.assert_allclose(result[0], views[0, 0], atol=1e-3)
    for o in range(3):
        assert np.abs(views[o, : count[o]] - result[o]).max(axis=(1, 2, 3)).min() < 1e-3


ROLLOUT = {"process": PROCESS_V, "settings": Settings(4, 1.0)}
INPUT_ROLLOUT = {"process": PROCESS_V, "settings": Settings(4, 1.0, conditioning="input")}


@pytest.fixture(scope="module")
def rollout():
    arguments = (Linear(), None, pictures(3, 2), random_cameras(3, 2), random_cameras(3, 4, seed=1))
    return arguments, sample_views(*arguments, keys(3), **ROLLOUT)


@pytest.fixture(scope="module")
def input_rollout(rollout):
    """The same with the input views alone."""
    return sample_views(*rollout[0], keys(3), **INPUT_ROLLOUT)


def test_the_seed_decides_bit_for_bit(rollout):
    arguments, expected = rollout
    seen = []
    again = sample_views(*arguments, keys(3), **ROLLOUT, on_view=lambda index, view: seen.append((index, view)))
    np.testing.assert_array_equal(again, expected)
    assert [index for index, _ in seen] == [0, 1, 2, 3]
    np.testing.assert_array_equal(np.stack([view for _, view in seen], axis=1), expected)
    other = sample_views(*arguments, keys(3, seed=1), **ROLLOUT)
    assert np.all(np.abs(other - expected).max(axis=(2, 3, 4)) > 1e-3)
    assert len(np.unique(np.asarray(expected).reshape(12, -1), axis=0)) == 12


@pytest.mark.parametrize("done", [1, 4])
@pytest.mark.parametrize("from_files", [False, True])
@pytest.mark.parametrize("conditioning", ["stochastic", "input"])
def test_an_interrupted_rollout_resumes_exactly(rollout, input_rollout, done, from_files, conditioning):
    arguments, expected = rollout
    how = ROLLOUT
    if conditioning == "input":
        expected, how = input_rollout, INPUT_ROLLOUT
    finished = expected[:, :done]
    if from_files:
        finished = np.asarray(rounded(finished), np.float32)
    seen = []
    views = sample_views(*arguments, keys(3), **how, finished=finished, on_view=lambda i, _: seen.append(i))
    assert seen == list(range(done, 4))
    np.testing.assert_array_equal(views[:, done:], expected[:, done:])
    np.testing.assert_array_equal(views[:, :done], finished)
