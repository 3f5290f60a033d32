"""Your own objects, a folder of them (docs/data.md), on one GPU: ``--config.data.source=FOLDER``.

``:24gb`` and ``:80gb`` train at 64 px, ``:24gb_128`` and ``:80gb_128`` at 128 px. docs/training.md says what they need.
"""

import math

from threedim.configs import base
from threedim.errors import UserError

# Pixels, channels, pairs a step, microbatches and steps, by stage.
STAGES = {
    "24gb": (64, 128, 64, 1, 100_000),
    "80gb": (64, 192, 128, 1, 100_000),
    "24gb_128": (128, 128, 32, 2, 100_000),
    "80gb_128": (128, 192, 64, 2, 100_000),
}


def get_config(stage: str = "24gb"):
    if stage not in STAGES:
        raise UserError(
            f"own_objects has configs for {', '.join(STAGES)}, not for {stage!r}: --config=configs/own_objects.py:24gb"
        )
    size, channels, batch_size, microbatches, num_steps = STAGES[stage]
    c = base.get_config()
    d = c.data
    d.dir, d.source, d.num_test_objects = "data/own", "data/own/objects", 8
    # Objects of all kinds share no orientation and no size.
    d.pose, d.augment.scale, d.augment.hue = "relative", (0.8, 1.25), 0.5
    c.diffusion.prediction = "v"
    c.diffusion.logsnr_shift = -2.0 - 2.0 * math.log(size / 64)

    m = c.model
    m.image_size, m.ch, m.emb_ch, m.num_res_blocks = size, channels, 512, 2
    m.attn_resolutions = (size // 8, size // 4)

    t = c.train
    t.batch_size, t.microbatches, t.num_steps = batch_size, microbatches, num_steps
    t.learning_rate, t.warmup_examples, t.ema_half_life = 2e-4, 200_000, 200_000.0
    t.schedule, t.grad_clip = "cosine", 1.0
    t.eval_every, t.checkpoint_every, t.keep_every = 2_500, 2_500, 0
    t.sample_every, t.sample_steps = 5_000, 32

    s = c.sample
    s.preset, s.guidance_weight, s.batch_size = "fast", 1.0, 0
    s.cameras, s.num_views = "orbit", 24
    c.evaluate.input_view = 0
    return c
