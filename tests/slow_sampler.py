"""Denoisers for tests of the sampler, and a sampler of plain loops to compare with."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from tiny import plain

from threedim.cameras import Camera
from threedim.diffusion import Process, alpha_sigma
from threedim.sampling import Sampler

SHAPE = (2, 2, 3)
PROCESS_V = Process("v")
EYE = np.eye(3, dtype=np.float32)


def keys(batch, seed=0):
    return jax.random.split(jax.random.key(seed), batch)


def pictures(*axes, shape=SHAPE, seed=0):
    """Pictures in [-1, 1], in steps of 8 bits."""
    levels = np.random.default_rng(seed).integers(0, 256, (*axes, *shape))
    return (levels / 127.5 - 1).astype(np.float32)


def numbered_cameras(batch, first, count):
    """Cameras that can be told apart: number ``i`` is at (i, object, 0)."""
    t = np.stack([*np.meshgrid(np.arange(first, first + count), np.arange(batch)), np.zeros((batch, count))], axis=-1)
    eye = np.broadcast_to(EYE, (batch, count, 3, 3))
    return Camera(eye, t, eye)


def sample_views(denoiser, params, images, cameras, targets, key, *, process, settings, **rest):
    return Sampler(denoiser, process, settings).sample_views(params, images, cameras, targets, key, **rest)


def rounded(picture):
    """Rounded to 8 bits, as in a file."""
    return np.round((np.asarray(picture, np.float64) + 1) * 127.5) / 127.5 - 1


@dataclasses.dataclass(frozen=True)
class Painter:
    """Predicts the true picture: that of the target camera, or with ``copy`` the clean view."""

    process: Process
    copy: bool = False
    relative_poses: bool = False

    def encode_view(self, params, x, logsnr, camera, cond_mask):
        return x

    def embed_positions(self, params):
        return jnp.asarray(0.25)

    def embed_camera(self, params, camera, cond_mask, positions):
        return None if self.copy else truth(params, camera.t)

    def denoise(self, params, z, logsnr, target, view):
        alpha, sigma = alpha_sigma(logsnr, 4)
        x = view if self.copy else target
        return self.process.target(x, (z - alpha * x) / sigma, logsnr)


def truth(params, t):
    """A picture for every camera: (..., 3) centers to (..., *SHAPE)."""
    return 0.9 * jnp.sin(jnp.einsum("hwck,...k->...hwc", params, t))


def slow_encode(x, logsnr, t, cond):
    return 0.7 * x + (0.02 * logsnr + 0.5 * cond * t.sum(-1))[..., None, None, None]


def slow_embed(t, cond):
    return (cond * (0.3 * t[..., 0] - 0.2 * t[..., 1]) + 0.1)[..., None, None, None]


def slow_denoise(z, logsnr, target, view):
    return 0.8 * z + 0.5 * view + target + 0.01 * logsnr[..., None, None, None]


@dataclasses.dataclass(frozen=True)
class Linear:
    """Every input changes the output. The formulas serve NumPy in the oracle below, too."""

    relative_poses: bool = False

    def encode_view(self, params, x, logsnr, camera, cond_mask):
        return slow_encode(x, logsnr, camera.t, cond_mask)

    def embed_positions(self, params):
        return jnp.asarray(0.25)

    def embed_camera(self, params, camera, cond_mask, positions):
        return slow_embed(camera.t, cond_mask) + (positions - 0.25)

    def denoise(self, params, z, logsnr, target, view):
        return slow_denoise(z, logsnr, target, view)


RECORDS = []


@dataclasses.dataclass(frozen=True)
class Recorder:
    """Records the inputs of each call to ``denoise``, one record per step."""

    relative_poses: bool = False

    def encode_view(self, params, x, logsnr, camera, cond_mask):
        return {"number": camera.t[:, 0], "pixel": x[:, 0, 0, 0]}

    def embed_positions(self, params):
        return jnp.asarray(0.25)

    def embed_camera(self, params, camera, cond_mask, positions):
        return None

    def denoise(self, params, z, logsnr, target, view):
        record = {"z": z, "logsnr": logsnr, "view": view}
        jax.debug.callback(lambda r: RECORDS.append(jax.tree.map(np.asarray, r)), record, ordered=True)
        return 0.3 * z


def recorded(batch, inputs, views, settings, relative=False):
    """Records of a rollout as (view, step, ...) where all steps have the same shapes, and the views."""
    RECORDS.clear()
    cameras = numbered_cameras(batch, 0, inputs), numbered_cameras(batch, inputs, views)
    denoiser, images = Recorder(relative_poses=relative), pictures(batch, inputs)
    result = sample_views(denoiser, None, images, *cameras, keys(batch), process=PROCESS_V, settings=settings)
    jax.effects_barrier()
    assert len(RECORDS) == views * settings.num_steps
    return jax.tree.map(lambda *r: np.stack(r).reshape(views, settings.num_steps, *r[0].shape), *RECORDS), result


TRACES = []


@dataclasses.dataclass(frozen=True)
class Traced(Linear):
    """Counts how often it is compiled."""

    def denoise(self, params, z, logsnr, target, view):
        TRACES.append(z.shape)
        return super().denoise(params, z, logsnr, target, view)


def slow_levels(process, settings):
    """Noise levels that the picture goes through, and at which of them there is guidance."""
    if settings.spacing == "logsnr":
        low, high = settings.logsnr_range
        step = (high - low) / max(settings.num_steps - 1, 1)
        levels = [low + i * step for i in range(settings.num_steps)] + [process.logsnr_max]
    else:
        # The float32 levels, since the schedule itself has but few digits near t = 1.
        levels = process.logsnr(jnp.linspace(1.0, 0.0, settings.num_steps + 1))
    low, high = settings.guidance_interval
    guided = [settings.guidance_weight > 0 and low - 0.01 < level < high + 0.01 for level in levels]
    return np.asarray(levels, np.float64), guided


def slow_step(settings, z, x_hat, x_before, levels, i):
    """Mean and standard deviation at the next level. One formula for all solvers: DDIM's, with the share of new noise
    and the order that make it each of them."""
    eta = {"ancestral": 1, "ddim": settings.eta, "dpm_solver_2m": 0, "dpm_solver_2m_sde": 1}[settings.solver]
    lt, ls = levels[i], levels[i + 1]
    alpha, sigma = np.sqrt(1 / (1 + np.exp(-lt))), np.sqrt(1 / (1 + np.exp(lt)))
    alpha_s, sigma_s = np.sqrt(1 / (1 + np.exp(-ls))), np.sqrt(1 / (1 + np.exp(ls)))
    if settings.solver.startswith("dpm") and 0 < i < settings.num_steps - 1:
        x_hat = x_hat + (x_hat - x_before) * (ls - lt) / (lt - levels[i - 1]) / 2
    deviation = eta * sigma_s * np.sqrt(1 - np.exp(lt - ls))
    return alpha_s * x_hat + np.sqrt(sigma_s**2 - deviation**2) * (z - alpha * x_hat) / sigma, deviation


def slow_sample_views(output, images, cameras, targets, key, process, settings, joined, relative=False):
    """Float64 loops over objects, views and steps, with the same noise.

    ``output(x, logsnr_x, camera_x, z, logsnr, camera, cond)`` is the plain network on one pair. ``joined`` are the
    pictures that join the known views (objects, views, ...): the fast sampler's own, so that a last bit does not decide
    how one is rounded to 8 bits. With ``relative``, cameras are in the coordinates of the pair's clean view.
    """
    shape, sample = images.shape[2:], lambda k, shape: np.asarray(jax.random.normal(k, shape), np.float64)
    levels, guided = slow_levels(process, settings)
    result = np.empty((*targets.t.shape[:2], *shape))
    w = settings.guidance_weight
    for o, j in np.ndindex(result.shape[:2]):
        known = [(images[o, i], cameras[o, i]) for i in range(images.shape[1])]
        if settings.conditioning == "stochastic":
            known += [(rounded(joined[o, i]), targets[o, i]) for i in range(j)]
        key_start, key_uncond, key_steps = (
            jax.random.fold_in(jax.random.fold_in(key[o], j), stream) for stream in range(3)
        )
        z, x_before, noise_frame = sample(key_start, shape), None, sample(key_uncond, shape)
        for i in range(settings.num_steps):
            key_step = jax.random.fold_in(key_steps, i)
            x, camera_x = known[int(jax.random.randint(jax.random.fold_in(key_step, 0), (), 0, len(known)))]
            target = targets[o, j]
            if relative:
                camera_x, target = camera_x.relative_to(camera_x), target.relative_to(camera_x)
            if settings.fresh_uncond_noise:
                noise_frame = sample(jax.random.fold_in(key_step, 2), shape)
            lt = levels[i]
            alpha, sigma = np.sqrt(1 / (1 + np.exp(-lt))), np.sqrt(1 / (1 + np.exp(lt)))

            def eps_hat(y, z=z, alpha=alpha, sigma=sigma):
                return {"eps": y, "v": alpha * y + sigma * z, "x": (z - alpha * y) / sigma}[process.prediction]

            eps = eps_hat(output(x, process.logsnr_max, camera_x, z, lt, target, True))
            if guided[i]:
                y = output(noise_frame, process.uncond_logsnr, camera_x, z, lt, target, False)
                eps = (1 + w) * eps - w * eps_hat(y)
            x_hat = np.clip((z - sigma * eps) / alpha, -1, 1)
            z, deviation = slow_step(settings, z, x_hat, x_before, levels, i)
            x_before = x_hat
            if i + 1 < settings.num_steps:
                z = z + deviation * sample(jax.random.fold_in(key_step, 1), shape)
        result[o, j] = np.clip(z, -1, 1)
    return result


def linear_output(x, logsnr_x, camera_x, z, logsnr, camera, cond):
    view = slow_encode(np.asarray(x, np.float64), np.float64(logsnr_x), np.asarray(camera_x.t, np.float64), cond)
    target = slow_embed(np.asarray(camera.t, np.float64), cond)
    return slow_denoise(z, np.float64(logsnr), target, view)


def network_output(network, params):
    """The plain network as an ``output`` of ``slow_sample_views``."""

    def output(x, logsnr_x, camera_x, z, logsnr, camera, cond):
        pair = jax.tree.map(lambda leaf: leaf[None], Camera.stack([camera_x, camera]))
        x, z = (np.asarray(a, np.float32)[None] for a in (x, z))
        logsnr = np.asarray([[logsnr_x, logsnr]], np.float32)
        return np.asarray(plain(network)(params, x, z, logsnr, pair, np.asarray([cond]))[0], np.float64)

    return output
