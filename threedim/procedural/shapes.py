"""Procedural chairs and cars to train on without any download, no two alike.

An object depends on (kind, seed) alone. Objects stand upright (z up) in a canonical pose, as in ShapeNet: chairs face
+x, cars drive along +x.
"""

from __future__ import annotations

import numpy as np
import trimesh

from threedim.procedural.cars import make_car
from threedim.procedural.chairs import make_chair

# The number is part of the random seed, so that adding a kind does not change the others.
_MAKERS = {"chair": (0, make_chair), "car": (1, make_car)}
KINDS = tuple(_MAKERS)


def make_shape(kind: str, seed: int) -> trimesh.Trimesh:
    """Makes one object.

    Args:
      kind: "chair" or "car".
      seed: not negative.

    Returns:
      A mesh of a few thousand faces, colored by face (sRGB), z up, facing +x; the center of its bounding box is the
      origin, its farthest vertex at distance 1.

    Raises:
      ValueError: if there is no such kind, or the seed is negative.
    """
    if kind not in _MAKERS:
        raise ValueError(f"unknown kind of shape {kind!r}; known are {', '.join(KINDS)}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    number, make = _MAKERS[kind]
    return make(np.random.default_rng([number, seed]))
