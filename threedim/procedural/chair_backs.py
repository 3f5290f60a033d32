"""Backs and arms of procedural chairs, each in several kinds. Lengths in meters."""

from __future__ import annotations

import numpy as np

from threedim.procedural.chair_parts import Plan
from threedim.procedural.solids import Color, jitter, rounded_path


def _posts(p: Plan) -> float:
    """Adds two posts and returns the width between them."""
    half = p.back_width / 2 - p.bar
    for y in (half, -half):
        start = p.at_back(y, 0) - [0, 0, 0.7 * p.thickness]
        p.build.tube([start, p.at_back(y, 0.5), p.at_back(y, 1)], p.bar * np.array([1, 0.95, 0.8]), p.frame, p.points)
    return 2 * half


def _rail(p: Plan, s: float, width: float, tall: float, color: Color, thick: float = 0.02) -> None:
    """A level board along the curve of the back."""
    half, across = tall / p.back_height / 2, np.linspace(-width / 2, width / 2, 7)
    p.build.slab([[p.at_back(y, level) for y in across] for level in (s - half, s + half)], thick, color)


def arched_board(p: Plan, widths, low: float, high: float, arch: float, thick: float) -> None:
    """A board from ``low`` to ``high``, of ``widths`` from bottom to top; its top falls by ``arch`` to the edges."""
    rows = []
    for s, width in zip(np.linspace(0, 1, len(widths)), widths, strict=True):
        across = np.linspace(-width / 2, width / 2, 9)
        rows.append([p.at_back(y, low + s * (high - low - arch * (2 * y / width) ** 2)) for y in across])
    p.build.slab(rows, thick, p.fabric)


def spindle_back(p: Plan) -> None:
    """Upright spindles or slats between posts."""
    width = _posts(p)
    tall = p.draw(0.05, 0.1)
    _rail(p, 1 - tall / p.back_height / 2, width, tall, p.frame)
    low = 0.0
    if p.chance(0.5):
        low = p.draw(0.15, 0.3)
        _rail(p, low, width, 0.04, p.frame)
    count, flat = int(p.rng.integers(3, 8)), p.chance(0.5)
    half = 0.28 * width / (count + 1)
    for y in np.linspace(-width / 2, width / 2, count + 2)[1:-1]:
        if flat:
            surface = [[p.at_back(y - half, s), p.at_back(y + half, s)] for s in (low, 0.5, 0.95)]
            p.build.slab(surface, 0.011, p.frame)
        else:
            p.build.bar(p.at_back(y, low), p.at_back(y, 0.97), 0.009, p.frame, points=6)


def ladder_back(p: Plan) -> None:
    """Level boards between posts."""
    width = _posts(p)
    count = int(p.rng.integers(2, 6))
    tall = min(p.draw(0.035, 0.09), 0.62 * p.back_height / count)
    for s in np.linspace(1 - 0.5 * tall / p.back_height - 0.02, p.draw(0.22, 0.35), count):
        _rail(p, s, width, tall, p.frame, 0.016)


def panel_back(p: Plan) -> None:
    """A board or a cushion with a straight or arched top, on posts or on the seat."""
    low = p.draw(0.15, 0.35) if p.chance(0.5) else -0.02
    width = p.back_width - 2 * p.bar
    if low > 0 or p.chance(0.4):
        width = _posts(p)
    arch = p.draw(0.05, 0.3) if p.chance(0.5) else 0.0
    arched_board(p, 7 * [width], low, 0.97, arch, p.draw(0.018, 0.05))


def cross_back(p: Plan) -> None:
    """Two crossed bars between two rails."""
    width = _posts(p)
    for s in (0.95, 0.18):
        _rail(p, s, width, 0.055, p.frame)
    for sign in (1, -1):
        ends = [p.at_back(sign * 0.48 * width, 0.2), p.at_back(0, 0.56), p.at_back(-sign * 0.48 * width, 0.93)]
        p.build.tube(ends, 0.6 * p.bar, p.frame, p.points)


def hoop_back(p: Plan) -> None:
    """A Windsor chair's bent hoop with spindles."""
    half = p.back_width / 2 - p.bar
    angles = np.linspace(0, np.pi, 15)
    power = p.draw(0.45, 0.9)
    shape = [(half * np.sign(np.cos(a)) * abs(np.cos(a)) ** power, np.sin(a) ** power) for a in angles]
    p.build.tube([p.at_back(y, s) - [0, 0, 0.02 * (s == 0)] for y, s in shape], 0.7 * p.bar, p.frame)
    count = int(p.rng.integers(4, 8))
    for y in np.linspace(-0.78, 0.78, count):
        top = (1 - abs(y) ** (2 / power)) ** (power / 2)
        p.build.bar(p.at_back(0.8 * half * y, -0.02), p.at_back(half * y, top), 0.008, p.frame, points=6)


def wrap_back(p: Plan) -> None:
    """A low band on spindles around the rear of the seat: captain's and tub chairs."""
    a, b = 0.5 * p.depth, 0.5 * p.width
    reach, low = p.draw(75, 105), p.draw(0.45, 0.6)
    angles = np.deg2rad(180 + np.linspace(-reach, reach, 15))
    height = min(p.back_height, 0.34)

    def around(s, t, lift=0.0):
        lean = 1 + 0.12 * s
        return [lean * a * np.cos(t), lean * b * np.sin(t), p.height + height * (s + lift)]

    rows = [[around(s, t) for t in angles[::-1]] for s in (low, 0.75, 1.0)]
    p.build.slab(rows, 0.03, p.fabric if p.chance(0.5) else p.frame)
    for t in angles[1:-1:2]:
        foot = [0.9 * a * np.cos(t), 0.9 * b * np.sin(t), p.height - 0.4 * p.thickness]
        p.build.bar(foot, around(low, t, lift=0.05), 0.01, p.frame)


def post_arms(p: Plan) -> None:
    """Armrests on posts, from the front of the seat to the back."""
    z, wide = p.draw(0.18, 0.24), p.draw(0.9, 1.5)
    pad = p.fabric if p.chance(0.4) else p.frame
    for side in (1, -1):
        y = side * (p.width / 2 + 0.01)
        front = np.array([0.3 * p.depth, y, p.height + z])
        rear = p.at_back(side * (p.back_width / 2 - p.bar), min(z / p.back_height, 0.9))
        p.post([0.28 * p.depth, y - side * 0.03, p.height - 0.5 * p.thickness], front, 0.8)
        line = np.add([front, (front + rear) / 2, rear], [[0.05, 0, 0], [0, side * 0.01, 0], [0, 0, 0]])
        across = [0, p.bar * wide, 0]
        p.build.slab([line - across, line + across], 0.022, pad)


def loop_arms(p: Plan) -> None:
    """A bent tube with a pad on each side."""
    z, r = p.draw(0.17, 0.23), p.draw(0.011, 0.018)
    for side in (1, -1):
        y = side * (p.width / 2 + 0.025)
        x_front, x_rear = p.draw(0.22, 0.4) * p.depth, -0.3 * p.depth
        inner = side * 0.4 * p.width
        corners = [[x_front - 0.08, inner, p.under], [x_front - 0.05, y, p.under], [x_front, y, p.height + z]]
        corners += [[x_rear, y, p.height + z], [x_rear + 0.04, y, p.under], [x_rear + 0.07, inner, p.under]]
        p.build.tube(rounded_path(corners, 0.06), r, p.frame)
        middle = [(x_front + x_rear) / 2, y, p.height + z + 0.012]
        p.build.rounded_box(middle, [0.75 * (x_front - x_rear), 0.055, 0.03], 0.012, jitter(p.rng, (0.13, 0.13, 0.14)))
