"""Chairs*: SRN chairs merged, shuffled and re-split, as in the paper's ablations [3]."""

from threedim.configs import srn_chairs


def get_config():
    c = srn_chairs.get_config()
    c.data.dir = "data/srn_chairs_star"
    c.data.resplit_seed = 0
    # Objects from the original training split have 50 views, hence no view 64. The paper does not give its choice.
    c.sample.input_views = (49,)
    c.evaluate.input_view = 49
    c.evaluate.published = "chairs_star"
    return c
