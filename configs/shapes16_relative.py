"""The stage of ``shapes64`` at 16 px for itself: two thousand chairs and cars by relative poses, the packaged weights.

Begun with ``--config.train.init_from`` from a run of ``--config=configs/shapes64.py:regression``.
"""

from configs import shapes64


def get_config():
    return shapes64.get_config("quarter")
