"""SRN chairs with the paper's settings: 471M parameters, 128 px, batch 128, guidance 2 [3, 7]."""

from configs import base


def get_config():
    c = base.get_config()
    c.sample.guidance_weight = 2.0
    c.sample.input_views = (64,)
    c.sample.num_views = 0
    return c
