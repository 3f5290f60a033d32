"""A thousand procedural chairs and cars at 16 px: trains in an hour on two CPU cores.

Unlike ``demo``, which memorizes four objects, it generalizes to unseen objects.
"""

from threedim.configs import demo


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
