"""Chairs*: SRN chairs merged, shuffled and split anew, as the paper does for its ablations [3]."""

from configs import srn_chairs


def get_config():
    c = srn_chairs.get_config()
    c.data.dir = "data/srn_chairs_star"
    c.data.resplit_seed = 0
    # The paper does not say. Objects from the training set have 50 views, so none of them has view 64.
    c.sample.input_views = (49,)
    c.evaluate.input_view = 49
    c.evaluate.published = "chairs_star"
    return c
