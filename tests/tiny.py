"""Networks small enough to compile in seconds, parameters without zeros, and inputs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

import threedim
from threedim import config as config_lib
from threedim import trained
from threedim.cameras import Camera, intrinsics, look_at
from threedim.configs import shapes64
from threedim.models.xunet import XUNet
from threedim.training.step import abstract_params

SIZE = 8
NETWORK = XUNet(
    image_size=SIZE, ch=32, ch_mult=(1, 2), emb_ch=16, num_res_blocks=1, attn_resolutions=(4,), attn_heads=2
)
# Compiles in half the time, and still has every kind of block.
SMALL = NETWORK.clone(num_res_blocks=0)


def fill(shapes, seed=0):
    """Parameters of these shapes, none of them zero: the zeros of a fresh network would hide mistakes."""
    rng = np.random.default_rng(seed)

    def leaf(path, shape):
        scale = 0.3 if len(shape.shape) < 2 else np.prod(shape.shape[:-1]) ** -0.5
        return jnp.asarray(rng.normal(size=shape.shape) * scale + (path[-1] == "scale"), shape.dtype)

    return traverse_util.path_aware_map(leaf, shapes)


def random_params(network=NETWORK, seed=0):
    return fill(abstract_params(network), seed)


def random_cameras(*axes, seed=0, size=SIZE):
    """NumPy cameras around the origin that look nearly at it, each with its own focal length."""
    rng = np.random.default_rng(seed)
    position = rng.normal(size=(*axes, 3)) + np.array([0.1, 0.2, 0.0])
    position *= rng.uniform(1.2, 2.0, (*axes, 1)) / np.linalg.norm(position, axis=-1, keepdims=True)
    K = np.tile(intrinsics(1.0, size), (*axes, 1, 1))
    K[..., 0, 0] = rng.uniform(0.8, 1.4, axes) * size
    K[..., 1, 1] = rng.uniform(0.8, 1.4, axes) * size
    return look_at(position, rng.uniform(-0.2, 0.2, (*axes, 3)), K)


def jax_cameras(*axes, seed=0, size=SIZE) -> Camera:
    """``random_cameras`` as JAX arrays."""
    return jax.tree.map(jnp.asarray, random_cameras(*axes, seed=seed, size=size))


def random_batch(batch, size=SIZE, seed=0):
    """A batch as the data pipeline yields it."""
    camera = random_cameras(batch, 2, seed=seed, size=size)
    image = np.random.default_rng(seed).integers(0, 256, (batch, 2, size, size, 3), np.uint8)
    return {"image": image, "R": camera.R, "t": camera.t, "K": camera.K}


def inputs(seed=0, batch=2, size=SIZE):
    """x, z, logsnr, camera, cond_mask of pairs; every second pair is unconditional."""
    rng = np.random.default_rng(seed)
    x, z = (jnp.asarray(rng.normal(size=(batch, size, size, 3)), jnp.float32) for _ in range(2))
    logsnr = jnp.asarray(np.stack([np.full(batch, 20.0), rng.uniform(-10, 10, batch)], axis=1), jnp.float32)
    return x, z, logsnr, jax_cameras(batch, 2, seed=seed, size=size), jnp.asarray([True, False] * (batch // 2))


@functools.cache
def plain(network):
    """A network's ``__call__``, compiled once for all tests."""
    return jax.jit(lambda params, *args: network.apply({"params": params}, *args, train=False))


def small_model(name):
    """A small network of zeros in place of a packaged one, which takes half a minute to compile."""
    assert name in trained.packaged_names()
    c = shapes64.get_config()
    m = c.model
    m.ch, m.ch_mult, m.emb_ch, m.num_res_blocks, m.attn_resolutions = 8, (1, 1), 8, 0, (32,)
    c.sample.num_steps, c.sample.guidance_weight = 1, 0.0
    sampler = config_lib.sampler(c)
    params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), abstract_params(sampler.denoiser.network))
    return threedim.Model(sampler, params, c, 0)
