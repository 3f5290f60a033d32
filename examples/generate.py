"""Samples views around the object of a picture, with the sampler's loop written out [2.2, 7.3].

    python examples/generate.py PICTURE --elevation=20 --views=4 --steps=64 --out=generated

`threedim.Sampler` computes the same faster, with what does not change between steps computed once.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

import threedim
from threedim import pixels
from threedim.diffusion import posterior
from threedim.output import object_folder


def sample_view(model, known, cameras, target, key, num_steps, weight):
    """A view from the camera ``target``, (height, width, 3), given known ones (views, height, width, 3) in [-1, 1]."""
    denoiser, process = model.sampler.denoiser, model.sampler.process
    logsnrs = process.logsnr(1 - jnp.arange(num_steps + 1) / num_steps)  # from noise to picture
    key_start, key_noise, key_steps = (jax.random.fold_in(key, i) for i in range(3))
    noise_view = jax.random.normal(key_noise, known.shape[1:])  # what the unconditional branch has for a clean view

    def step(z, i):
        key_view, key_z = (jax.random.fold_in(jax.random.fold_in(key_steps, i), j) for j in range(2))
        index = jax.random.randint(key_view, (), 0, len(known))  # stochastic conditioning
        pair = jax.tree.map(lambda a, b: jnp.stack([a, b])[None], cameras[index], target)
        pair = pair.relative_to(pair[:, :1]) if denoiser.relative_poses else pair

        def output(view, logsnr, is_conditional):
            levels, mask = jnp.stack([logsnr, logsnrs[i]])[None], jnp.asarray([is_conditional])
            arguments = (view[None], z[None], levels, pair, mask)
            return denoiser.network.apply({"params": model.params}, *arguments, train=False)[0]

        conditional = output(known[index], jnp.float32(process.logsnr_max), True)
        unconditional = output(noise_view, jnp.float32(process.uncond_logsnr), False)
        guided = (1 + weight) * conditional - weight * unconditional
        x_hat = jnp.clip(process.predict_x(guided, z, logsnrs[i]), -1, 1)
        mean, variance = posterior(z, x_hat, logsnrs[i], logsnrs[i + 1])
        deviation = jnp.where(i < num_steps - 1, jnp.sqrt(variance), 0)  # the last step adds no noise
        return mean + deviation * jax.random.normal(key_z, z.shape), None

    z, _ = jax.lax.scan(step, jax.random.normal(key_start, known.shape[1:]), jnp.arange(num_steps))
    return jnp.clip(z, -1, 1)


def generate(model, view, targets, seed=0, num_steps=64, weight=1.0):
    """Views from the cameras ``targets``, (views, height, width, 3) uint8; each joins the known ones."""
    view = view.resized(model.sampler.denoiser.network.image_size)
    known, cameras = pixels.to_float(view.image)[None], threedim.Camera.stack([view.camera])
    sample = jax.jit(lambda *args: sample_view(model, *args, num_steps, weight))
    for index, target in enumerate(targets):
        image = pixels.to_uint8(sample(known, cameras, target, jax.random.fold_in(jax.random.key(seed), index)))
        known = np.concatenate([known, pixels.to_float(image)[None]])  # rounded to 8 bits, as pictures are
        cameras = threedim.Camera.stack([*cameras, target])
        print(f"view {index + 1} of {len(targets)}", flush=True)
    return pixels.to_uint8(known[1:])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture")
    parser.add_argument("--elevation", type=float, default=20.0, help="of its camera, degrees")
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--steps", type=int, default=64, help="denoising steps")
    parser.add_argument("--weights", default="shapes64")
    parser.add_argument("--out", default="generated", help="new folder")
    given = parser.parse_args()
    model, view = threedim.load(given.weights), threedim.photo(given.picture, elevation=given.elevation)
    targets = threedim.orbit(given.views)(view.camera)
    images = generate(model, view, targets, num_steps=given.steps)
    view = view.resized(images.shape[1])
    object_folder.write(given.out, view.image[None], threedim.Camera.stack([view.camera]), images, targets)
    print(f"{given.out}/index.html")
