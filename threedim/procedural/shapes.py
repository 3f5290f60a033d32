"""Procedural chairs and cars to train on without any download, no two alike.

An object depends on (kind, seed) alone. Objects stand upright (z up) in a canonical pose, as in ShapeNet: chairs face
+x, cars drive along +x.
"""

from __future__ import annotations

import numpy as np
import trimesh

from threedim.procedural import cars, chairs
from threedim.procedural.solids import Builder

# The position of a kind is part of the random seed: a new one goes to the end.
STYLES = {"chair": chairs.STYLES, "car": cars.STYLES}
KINDS = tuple(STYLES)


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
    if kind not in KINDS:
        raise ValueError(f"unknown kind of shape {kind!r}; known are {', '.join(KINDS)}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    rng, build = np.random.default_rng([KINDS.index(kind), seed]), Builder()
    STYLES[kind][rng.integers(len(STYLES[kind]))](rng, build)
    return build.mesh()
