"""Procedural chairs and cars at 16 px, a thousand of them: an hour on two CPU cores.

Unlike ``demo``, which learns four objects by heart, it draws objects that it has never seen.
"""

from configs import demo


def get_config():
    c = demo.get_config()
    c.data.dir = "data/shapes16"
    c.data.holdout_views = 0
    p = c.data.procedural
    p.num_train_objects, p.num_test_objects, p.views, p.test_views = 1000, 16, 50, 24

    t = c.train
    t.num_steps, t.ema_half_life = 12_000, 20_000.0
    t.checkpoint_every, t.sample_every = 1000, 2000

    s = c.sample
    s.split, s.num_objects, s.num_views = "test", 8, 12
    s.guidance_weight = 1.0
    c.evaluate.input_view = 0
    return c
