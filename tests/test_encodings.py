import jax
import jax.numpy as jnp
import numpy as np
import pytest

from threedim.encodings import posenc_ddpm, posenc_nerf


def slow_nerf(x, min_deg, max_deg):
    """All sines, then all cosines, by rising degree; in float64."""
    angles = [2.0**degree * x.astype(np.float64) for degree in range(min_deg, max_deg)]
    return np.concatenate([x, *map(np.sin, angles), *map(np.cos, angles)], axis=-1)


@pytest.mark.parametrize("degrees", [(0, 4), (2, 5)])
def test_nerf_encoding(degrees):
    x = np.random.default_rng(0).uniform(-2, 2, (2, 5, 3)).astype(np.float32)
    encoded = posenc_nerf(jnp.asarray(x), *degrees)
    assert encoded.dtype == jnp.float32
    np.testing.assert_allclose(encoded, slow_nerf(x, *degrees), atol=1e-5)


def test_nerf_encoding_of_no_degrees_is_the_input():
    x = jnp.ones((2, 3))
    np.testing.assert_array_equal(posenc_nerf(x, 0, 0), x)
    np.testing.assert_array_equal(posenc_nerf(x, 4, 4), x)


def test_encodings_compute_in_float32_from_any_input():
    x = jnp.asarray([[0.3, -0.7, 1.1]], jnp.bfloat16)
    encoded = posenc_nerf(x, 0, 15)
    assert encoded.dtype == jnp.float32
    np.testing.assert_allclose(encoded, posenc_nerf(x.astype(jnp.float32), 0, 15), atol=1e-6)
    u = jnp.asarray([0.3], jnp.bfloat16)
    assert posenc_ddpm(u, 8).dtype == jnp.float32
    np.testing.assert_allclose(posenc_ddpm(u, 8), posenc_ddpm(u.astype(jnp.float32), 8), atol=1e-6)


@pytest.mark.parametrize(("channels", "max_time"), [(4, 1.0), (10, 8.0)])
def test_ddpm_encoding(channels, max_time):
    u = np.linspace(0, max_time, 7, dtype=np.float32).reshape(1, 7)
    encoded = posenc_ddpm(jnp.asarray(u), channels, max_time)
    assert encoded.shape == (1, 7, channels)
    half = channels // 2
    angle = 1000 * u[..., None].astype(np.float64) / max_time * 10_000.0 ** (-np.arange(half) / (half - 1))
    np.testing.assert_allclose(encoded, np.concatenate([np.sin(angle), np.cos(angle)], axis=-1), atol=3e-4)


def test_ddpm_encoding_takes_a_scalar():
    np.testing.assert_allclose(jax.jit(lambda u: posenc_ddpm(u, 4))(jnp.float32(0)), [0, 0, 1, 1])


@pytest.mark.parametrize("channels", [2, 33])
def test_impossible_channel_counts_are_refused(channels):
    with pytest.raises(ValueError, match=f"at least 4; got {channels}"):
        posenc_ddpm(jnp.zeros(3), channels)
