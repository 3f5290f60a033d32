"""Chairs*: SRN chairs merged, shuffled and split anew, as the paper does for its ablations [3]."""

from configs import srn_chairs


def get_config():
    c = srn_chairs.get_config()
    c.data.dir = "data/srn_chairs_star"
    c.data.resplit_seed = 0
    return c
