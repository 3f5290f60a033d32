"""Six thousand procedural chairs and cars at 64 px by absolute poses, 16.5 million parameters: for one GPU.

``python -m scripts.train_demo`` trains it within ten minutes, and chooses the number of steps.
"""

from threedim.configs import shapes64


def get_config():
    c = shapes64.get_config("gpu")
    d = c.data
    d.dir, d.pose = "data/gpu64", "absolute"
    d.augment.scale, d.augment.hue = (1.0, 1.0), 0.0
    d.procedural.num_train_objects, d.procedural.views = 6000, 20
    c.diffusion.logsnr_shift = -2.0

    m = c.model
    m.ch, m.ch_mult, m.emb_ch, m.num_res_blocks, m.attn_resolutions = 32, (1, 2, 6, 8), 128, 1, (8, 16)

    t = c.train
    t.num_steps, t.schedule, t.grad_clip = 10_000, "cosine", 1.0
    t.num_workers, t.checkpoint_every, t.checkpoint_minutes = 12, 10_000, 1.0
    t.ema_half_life = 80_000.0

    c.evaluate.max_objects = 8
    return c
