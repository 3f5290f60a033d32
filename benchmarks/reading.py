"""What a trained network reads of the input view: its picture from noise in one step, right, and led astray.

    python -m benchmarks.reading --workdir=runs/shapes64 [--split=train] [--pairs=256] [--logsnr=-6] [--json=FILE]

Mean squared errors (colors in [-1, 1]) of x̂ for pairs of views of one object, the target drowned in noise:

* ``right``: as it is asked while sampling;
* ``other object``: with the view of another object in the place of the clean one: what the view is good for;
* ``other pose``: with the target camera of another pair: what the cameras are good for;
* ``mean picture``: what no network needs, the mean of all targets.

Where these are alike, the network draws some object and not this one. ``color`` is the slope of each drawn picture's
mean color, apart from its brightness, on the target's: 0 is gray, 1 is right. In training's loss all this shows late
and little. Data and augmentation are those of the run.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import app, flags, logging

from benchmarks import record
from threedim import config as config_lib
from threedim import diffusion
from threedim.augmentation import augment
from threedim.data import pipeline, sources
from threedim.training import checkpoints, run_info
from threedim.training.step import abstract_params, batch_images


def color_slope(drawn: np.ndarray, truth: np.ndarray) -> float:
    """Slope of the drawn pictures' mean colors on the true ones', both apart from their brightness.

    Args:
      drawn, truth: (pictures, height, width, 3).
    """
    drawn, truth = (a.mean(axis=(1, 2)) - a.mean(axis=(1, 2, 3))[:, None] for a in (drawn, truth))
    return float((drawn * truth).sum() / (truth * truth).sum())


def measure(workdir: str, split: str, pairs: int, logsnr: float, data_dir: str | None = None) -> dict:
    """Figures of the newest checkpoint's averaged weights; the same pairs and noise each time.

    Args:
      workdir: folder of a training run.
      split: "train" or "test".
      pairs: how many, at least 2.
      logsnr: of the noisy target.
      data_dir: where the run's data is now; None for where it was.

    Raises:
      FileNotFoundError: if there is no run, no checkpoint or no data.
      ValueError: if there are fewer than two pairs, or no such split.
    """
    if pairs < 2:
        raise ValueError(f"another object needs at least 2 pairs, got {pairs}")
    config = ml_collections.ConfigDict(run_info.read_run_info(workdir)[0])
    if data_dir:
        config.data.dir = data_dir
    network, process, recipe = config_lib.network(config), config_lib.process(config), config_lib.recipe(config)
    step = checkpoints.latest_step(workdir)
    if step is None:
        raise FileNotFoundError(f"no checkpoint in {workdir}")
    params = checkpoints.restore_params(workdir, abstract_params(network), step=step)

    batches = pipeline.train_batches(
        sources.open_from_config(config.data, split), batch_size=pairs, size=network.image_size, seed=config.seed
    )
    images, camera = batch_images(jax.tree.map(jnp.asarray, next(batches)))
    batches.close()
    key = jax.random.key(config.seed)
    images, camera = augment(images, camera, jax.random.fold_in(key, 0), recipe.augmentation)
    if recipe.relative_poses:
        camera = camera.relative_to(camera[:, :1])
    target, noise = images[:, 1], jnp.full((pairs,), logsnr)
    z = diffusion.q_sample(target, jax.random.normal(jax.random.fold_in(key, 1), target.shape), noise)
    levels = jnp.stack([jnp.full((pairs,), process.logsnr_max), noise], axis=1)

    @jax.jit
    def run(params, x, z, levels, camera):
        output = network.apply({"params": params}, x, z, levels, camera, jnp.ones((pairs,), bool), train=False)
        return process.predict_x(output, z, levels[:, 1])

    def draw(x, camera):
        return run(params, x, z, levels, camera)

    other = jnp.roll(jnp.arange(pairs), 1)
    other_pose = jax.tree.map(lambda leaf: jnp.stack([leaf[:, 0], leaf[other, 1]], axis=1), camera)
    drawn = {
        "right": draw(images[:, 0], camera),
        "other_object": draw(images[other, 0], camera),
        "other_pose": draw(images[:, 0], other_pose),
        "mean_picture": target.mean(axis=0),
    }
    errors = {name: float(jnp.mean((each - target) ** 2)) for name, each in drawn.items()}
    color = color_slope(np.asarray(drawn["right"]), np.asarray(target))
    return {"step": step, "split": split, "pairs": pairs, "logsnr": logsnr, "mse": errors, "color": color}


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    logging.set_verbosity(logging.WARNING)
    given, head = flags.FLAGS, record.head("reading")
    figures = measure(given.workdir, given.split, given.pairs, given.logsnr, given.data_dir)
    print(f"{given.workdir}, step {figures['step']:,}: {given.pairs} pairs of {given.split}, log SNR {given.logsnr:g}")
    for name, error in figures["mse"].items():
        print(f"{name.replace('_', ' '):14}{error:8.4f}")
    print(f"{'color':14}{figures['color']:8.3f}")
    if given.json:
        record.write(given.json, "reading", head, figures)


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
    flags.DEFINE_enum("split", "test", ["train", "test"], "Whose pairs.")
    flags.DEFINE_integer("pairs", 256, "How many.", lower_bound=2)
    flags.DEFINE_float("logsnr", -6.0, "Log signal-to-noise ratio of the noisy target.")
    flags.DEFINE_string("data_dir", None, "Where the data is, if no longer where the run had it.")
    flags.DEFINE_string("json", None, "Also write the figures to this file.")
    app.run(main)
