"""Two thousand procedural chairs and cars at 64 px with relative poses: trains the packaged weights ``shapes64``.

Training runs in stages, each started from the previous one with ``--config.train.init_from=WORKDIR``:

1. ``--config=configs/shapes64.py:regression`` regresses 16 px views in one step from noise. Every pair then depends on
   the input view, not only the very noisy ones.
2. ``:quarter`` trains the diffusion model at 16 px, where a step costs a sixth.
3. Without a suffix: 64 px and 3,842,035 parameters; two narrow levels for 64 and 32 px around the network of stage 2.
   The learning rate is meant for the end of training; use ``--config.train.learning_rate=1e-3`` while these two levels
   are new.

``:gpu_regression``, ``:gpu_quarter`` and ``:gpu`` are the same stages for a larger network on one GPU, in bfloat16,
with 7,577,731 parameters at 64 px.
"""

import math

from threedim.configs import shapes16
from threedim.errors import UserError

GPU_STAGES = ("gpu_regression", "gpu_quarter", "gpu")
STAGES = ("cpu", "regression", "quarter", *GPU_STAGES)


def get_config(stage: str = "cpu"):
    if stage not in STAGES:
        raise UserError(
            f"shapes64 has configs for {', '.join(STAGES)}, not for {stage!r}: e.g. --config=configs/shapes64.py:gpu"
        )
    c = shapes16.get_config()
    d = c.data
    d.dir, d.pose = "data/shapes64", "relative"
    d.augment.scale, d.augment.hue = (0.8, 1.25), 0.5
    p = d.procedural
    p.num_train_objects, p.num_test_objects, p.views, p.test_views = 2000, 16, 24, 24
    p.size, p.samples = 64, 8

    # Gives the 16 px content of a 64 px image as much noise as at 16 px: small budgets learn coarse structure first.
    c.diffusion.logsnr_shift = -2.0 * math.log(4)

    m = c.model
    m.image_size, m.attn_resolutions = 64, (2, 4)
    m.ch, m.ch_mult, m.emb_ch, m.num_res_blocks = 16, (1, 2, 2, 4, 4, 6), 64, 1
    m.norm_groups, m.zero_init = 8, False

    t = c.train
    t.num_steps, t.batch_size = 100_000, 16
    t.learning_rate, t.warmup_examples, t.ema_half_life = 1e-3, 16_000, 20_000.0
    t.color_weight = 3.0  # a network this small learns no color without it (docs/results.md)
    t.checkpoint_every, t.keep_last, t.sample_every = 250, 2, 1000

    if stage in ("regression", "quarter"):
        m.image_size, m.ch, m.ch_mult = 16, 32, (1, 2, 2, 3)  # without the two outer levels
        c.diffusion.logsnr_shift = 0.0
        t.sample_every = 0
    if stage == "cpu":
        t.batch_size, t.warmup_examples = 8, 1600  # starts from trained weights
        t.learning_rate, t.ema_rampup = 1.5e-4, 0.2

    if stage in GPU_STAGES:
        # Just below 20 MB in bfloat16, the limit for packaged weights.
        m.ch, m.ch_mult, m.emb_ch, m.dtype = 32, (1, 2, 2, 4, 4), 128, "bfloat16"
        m.attn_resolutions = (4, 8, 16)
        t.num_steps, t.batch_size, t.num_workers = 200_000, 128, 14
        t.learning_rate, t.warmup_examples, t.ema_half_life = 5e-4, 32_000, 100_000.0
        t.log_every, t.checkpoint_every, t.sample_every = 100, 2000, 0
    if stage in ("gpu_regression", "gpu_quarter"):
        m.image_size, m.ch, m.ch_mult = 16, 64, (1, 2, 2)
        c.diffusion.logsnr_shift, t.color_weight = 0.0, 9.0

    if stage in ("regression", "gpu_regression"):
        c.diffusion.regression, t.uncond_prob = True, 0.0
        t.color_weight = 9.0
        t.learning_rate = 3e-4 if stage == "regression" else 5e-4

    s = c.sample
    s.num_objects, s.objects_seed, s.num_views = 2, 0, 8
    s.input_views, s.cameras, s.orbit_elevation = (6,), "orbit", 20.0
    c.evaluate.input_view = 6  # of 24: at the same place on the spiral as view 64 of SRN's 251
    return c
