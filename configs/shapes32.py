"""Fifteen hundred procedural cars at 32 px: the ablations on a CPU (docs/results.md)."""

import math

from threedim.configs import shapes16


def get_config():
    c = shapes16.get_config()
    c.data.dir = "data/shapes32"
    p = c.data.procedural
    p.kinds, p.num_train_objects, p.num_test_objects = ("car",), 1500, 24
    p.views, p.test_views, p.size, p.samples = 40, 24, 32, 8
    c.diffusion.logsnr_shift = -math.log(4)  # the 16 px content gets as much noise as at 16 px

    m = c.model
    m.image_size, m.ch, m.ch_mult, m.attn_resolutions = 32, 16, (1, 2, 3, 4), (4, 8)
    m.norm_groups, m.zero_init = 8, False

    t = c.train
    t.batch_size, t.num_steps, t.schedule = 8, 4000, "cosine"
    t.color_weight = 3.0  # a network this small learns no color without it (docs/results.md)
    t.checkpoint_every, t.keep_last, t.sample_every = 250, 2, 0

    c.mesh.cpu_devices = 1
    c.sample.input_views, c.evaluate.input_view = (6,), 6
    return c
