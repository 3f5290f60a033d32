import jax
import jax.numpy as jnp
import numpy as np
import pytest

from threedim.encodings import posenc_ddpm, posenc_nerf


def slow_nerf(x, min_deg, max_deg):
    """One number after the other, float64."""
    out = np.empty((*x.shape[:-1], x.shape[-1] * (1 + 2 * (max_deg - min_deg))))
    for index in np.ndindex(x.shape[:-1]):
        vector = x[index].astype(np.float64)
        numbers = list(vector)
        for shift in (0, np.pi / 2):
            for degree in range(min_deg, max_deg):
                numbers += [np.sin(2.0**degree * v + shift) for v in vector]
        out[index] = numbers
    return out


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
    for index in np.ndindex(u.shape):
        for i in range(half):
            angle = 1000 * float(u[index]) / max_time * np.exp(-i * np.log(10000) / (half - 1))
            np.testing.assert_allclose(encoded[index][i], np.sin(angle), atol=3e-4)
            np.testing.assert_allclose(encoded[index][half + i], np.cos(angle), atol=3e-4)


def test_ddpm_encoding_takes_a_scalar():
    np.testing.assert_allclose(jax.jit(lambda u: posenc_ddpm(u, 4))(jnp.float32(0)), [0, 0, 1, 1])


@pytest.mark.parametrize("channels", [2, 33])
def test_impossible_channel_counts_are_refused(channels):
    with pytest.raises(ValueError, match=f"at least 4; got {channels}"):
        posenc_ddpm(jnp.zeros(3), channels)
