"""Procedural chairs and cars at 128 px, 63,102,563 parameters: hours on one GPU of 80 GB.

Begins from the 64 px network of ``configs/gpu64.py``: one new level around its levels, which are twice as wide::

    python -m scripts.train_demo --config=configs/shapes128.py --minutes=600 \\
        -- --config.train.init_from=runs/gpu64/gpu64.safetensors

Without ``init_from`` it begins from nothing. docs/training.md says what it needs.
"""

import math

from threedim.configs import gpu64


def get_config():
    c = gpu64.get_config()
    c.data.dir = "data/shapes128"
    c.data.procedural.num_train_objects, c.data.procedural.size = 20_000, 128
    c.diffusion.logsnr_shift -= 2.0 * math.log(2)  # as much noise in the 64 px content as at 64 px

    m = c.model
    m.image_size, m.ch, m.ch_mult = 128, 64, (1, 1, 2, 6, 8)

    t = c.train
    t.num_steps, t.learning_rate, t.ema_half_life = 200_000, 2e-4, 500_000.0
    t.checkpoint_every, t.checkpoint_minutes = 5_000, 10.0
    return c
