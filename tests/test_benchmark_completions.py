"""Completions: which pixels show surface that the input camera sees, and the spread there."""

import numpy as np
import pytest
import trimesh

from benchmarks import completions
from threedim.cameras import Camera, intrinsics, look_at
from threedim.rendering.raycast import render_views
from threedim.rendering.render import procedural_shape

SIZE = 32
K = intrinsics(40.0, SIZE)


def cameras(*positions):
    return Camera.stack([look_at(position, (0.0, 0.0, 0.0), K) for position in positions])


def test_the_back_of_a_box_is_hidden():
    box = trimesh.creation.box((0.8, 0.8, 0.8))
    front, back, side = cameras((2.5, 0, 0.0), (-2.5, 0, 0.0), (1.8, 1.8, 0.0))
    seen, hidden = completions.surfaces(box, front, Camera.stack([front, back, side]), SIZE)
    assert seen[0].sum() > 150
    assert not hidden[0].any()
    assert hidden[1].sum() == seen[0].sum()
    assert not seen[1].any()
    # From the corner, half of the box.
    assert seen[2].sum() == pytest.approx(hidden[2].sum(), rel=0.1)
    assert not (seen & hidden).any()


def test_surfaces_are_where_the_pictures_have_them():
    mesh = procedural_shape("chair_test_000004", 0)
    targets = cameras((2.0, 1.0, 1.0), (-2.0, -1.0, 0.5))
    seen, hidden = completions.surfaces(mesh, targets[0], targets, SIZE)
    alpha = render_views(mesh, targets, SIZE, samples=1)[..., 3] > 0
    np.testing.assert_array_equal(seen | hidden, alpha)
    assert seen[0].sum() > 50 * hidden[0].sum()
    assert 0 < seen[1].sum() < hidden[1].sum()


def test_spread_and_error():
    truth = np.full((1, 4, 4, 3), 100, np.uint8)
    seen, hidden = np.zeros((2, 1, 4, 4), bool)
    seen[0, :2], hidden[0, 2] = True, True
    samples = np.stack([truth, truth]).copy()
    samples[:, 0, :2] += 3  # wrong by 3, and sure of it
    samples[0, 0, 2] -= 10
    samples[1, 0, 2] += 10
    found = completions.measure(samples, truth, seen, hidden)
    assert found == pytest.approx(
        {"seen_pixels": 0.5, "hidden_pixels": 0.25, "seen_spread": 0, "seen_error": 3,
         "hidden_spread": 10 * 2**0.5, "hidden_error": 0}
    )  # fmt: skip
