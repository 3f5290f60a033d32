"""Seats and legs of procedural chairs, each in several kinds. Lengths in meters.

A chair faces +x, with its left at +y. The seat is centered over the origin, and the legs stand on z = 0.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from threedim.procedural.solids import Color, Design, circle, jitter, rounded_path, rounded_rectangle, turn

# fmt: off
WOODS = ((0.80, 0.62, 0.42), (0.65, 0.44, 0.26), (0.45, 0.28, 0.17), (0.29, 0.18, 0.12), (0.88, 0.76, 0.58),
         (0.56, 0.27, 0.16))
METALS = ((0.75, 0.76, 0.78), (0.22, 0.22, 0.24), (0.46, 0.47, 0.50), (0.72, 0.58, 0.34))
PAINTS = ((0.93, 0.92, 0.89), (0.21, 0.21, 0.24), (0.78, 0.16, 0.14), (0.15, 0.36, 0.62), (0.93, 0.72, 0.16),
          (0.20, 0.52, 0.38), (0.90, 0.45, 0.15), (0.40, 0.68, 0.75))
# fmt: on


@dataclasses.dataclass
class Plan(Design):
    """Proportions and colors."""

    width: float  # of the seat at the front, y
    depth: float  # of the seat, x
    height: float  # of the top of the seat
    thickness: float  # of the seat
    rear: float  # width of the seat at the rear / at the front
    bar: float  # half thickness of legs and posts
    points: int  # corners of their cross-section
    back_height: float
    recline: float  # tangent
    curve: float  # how far the back's edges come forward
    frame: Color
    fabric: Color
    round: bool = False

    @property
    def under(self) -> float:
        """Height of the top of the legs, inside the seat."""
        return self.height - 0.6 * self.thickness

    def corners(self, inset: float) -> list[np.ndarray]:
        """(x, y) of front left, front right, rear left and rear right, ``inset`` from the edges."""
        x, y = self.depth / 2 - inset, self.width / 2 - inset
        if self.round:
            x, y = 0.66 * x, 0.66 * y
        rear = y if self.round else self.width / 2 * self.rear - inset
        return [np.array(p) for p in ((x, y), (x, -y), (-x, rear), (-x, -rear))]

    @property
    def back_width(self) -> float:
        return 0.8 * self.width if self.round else self.width * self.rear

    def at_back(self, y: float, s: float) -> np.ndarray:
        """A point of the back: ``y`` across, ``s`` in [0, 1] from the seat to the top."""
        foot = -0.5 * self.depth * (0.8 if self.round else 1.0) + self.bar
        x = foot - self.recline * s * self.back_height + self.curve * (2 * y / self.back_width) ** 2 * s
        return np.array([x, y, self.height + s * self.back_height])

    def post(self, start, end, scale: float = 1.0, end_scale: float | None = None) -> None:
        """Adds a bar of the frame's thickness, times ``scale`` at the start and ``end_scale`` at the end."""
        end_scale = scale if end_scale is None else end_scale
        self.build.bar(start, end, self.bar * scale, self.frame, self.bar * end_scale, self.points)


def flat_seat(p: Plan, color: Color) -> None:
    """A board, round or narrower at the rear."""
    outline = rounded_rectangle(p.depth, p.width, p.draw(0.01, 0.09))
    if p.round:
        outline = circle(p.depth / 2, 24) * [1, p.width / p.depth]
    low, high, edge = p.height - p.thickness, p.height, min(0.01, p.thickness / 3)
    rings = []
    for z, inset in ((low, edge), (low + edge, 0), (high - edge, 0), (high, edge)):
        ring = outline * (1 - 2 * inset / p.width)
        taper = 1 if p.round else 1 - (1 - p.rear) * (0.5 - ring[:, 0] / p.depth)
        rings.append(np.stack([ring[:, 0], ring[:, 1] * taper, np.full(len(ring), z)], axis=-1))
    p.build.loft(np.stack(rings), color)


def cushion(p: Plan, thickness: float) -> None:
    """A cushion on the seat."""
    if p.round:
        profile = ((0.90, -0.05), (0.97, 0.3), (0.97, 0.6), (0.88, 0.95), (0.6, 1.08))
        outline = circle(1.0, 24) * [1, p.width] / [1, p.depth]
        p.build.lathe(outline, [(r * p.depth / 2, p.height + z * thickness) for r, z in profile], p.fabric)
    else:
        size = [0.94 * p.depth, 0.94 * p.width * p.rear, thickness]
        p.build.rounded_box([0.01, 0, p.height + 0.4 * thickness], size, 0.45 * thickness, p.fabric)


def straight_legs(p: Plan) -> None:
    """Four legs, some with an apron or stretchers."""
    taper = p.draw(0.55, 1.0)
    feet = p.corners(1.3 * p.bar)
    for x, y in feet:
        p.post([x, y, 0], [x, y, p.under], taper, 1)
    if p.chance(0.6):
        _apron(p, feet)
    if p.chance(0.5):
        _stretchers(p, feet, feet)


def splayed_legs(p: Plan) -> None:
    """Four legs that spread outwards."""
    spread = p.draw(0.10, 0.26)
    tops = p.corners(0.09)
    feet = [top + spread * (0.35 * np.sign(top) + 0.2 * top / np.linalg.norm(top)) for top in tops]
    taper = p.draw(0.45, 0.9)
    for top, foot in zip(tops, feet, strict=True):
        p.post([*foot, 0], [*top, p.under], taper, 1.1)
    if p.chance(0.5):
        _stretchers(p, feet, tops)


def _apron(p: Plan, feet) -> None:
    z, tall = p.height - p.thickness - 0.022, p.draw(0.04, 0.07)
    fl, fr, rl, rr = feet
    for a, b in ((fl, fr), (rl, rr), (fl, rl), (fr, rr)):
        middle, span = (a + b) / 2, b - a
        size = [np.linalg.norm(span), p.bar * 1.1, tall]
        p.build.box([*middle, z], size, p.frame, turn("z", np.rad2deg(np.arctan2(span[1], span[0]))))


def _stretchers(p: Plan, feet, tops) -> None:
    s = p.draw(0.2, 0.5)
    fl, fr, rl, rr = (np.array([*(foot + s * (top - foot)), s * p.under]) for foot, top in zip(feet, tops, strict=True))
    p.post(fl, rl, 0.6)
    p.post(fr, rr, 0.6)
    if p.chance(0.5):
        p.post((fl + rl) / 2, (fr + rr) / 2, 0.6)
    else:
        for ends in ((fl, fr), (rl, rr)):
            p.post(*np.add(ends, [0, 0, 0.04]), 0.6)


def star_base(p: Plan) -> None:
    """A swivel column on spokes with casters."""
    spokes, reach = int(p.rng.integers(4, 6)), p.draw(0.27, 0.33)
    dark = jitter(p.rng, (0.12, 0.12, 0.13))
    turned = p.draw(0, 360)
    for k in range(spokes):
        tip = turn("z", turned + 360 * k / spokes) @ [reach, 0, 0.075]
        p.build.bar([0, 0, 0.13], tip, 0.028, p.frame, 0.017, 6)
        tip[2] = 0.032
        p.build.disk(tip, 0.032, 0.05, dark, axis="y", points=12)
    p.build.bar([0, 0, 0.09], [0, 0, 0.26], 0.035, dark, points=12)
    p.build.bar([0, 0, 0.22], [0, 0, p.under], 0.021, (0.6, 0.61, 0.63), points=12)
    p.build.box([0, 0, p.height - p.thickness - 0.015], [0.24, 0.2, 0.04], dark)


def disk_base(p: Plan) -> None:
    """A column on a round foot."""
    foot, column = p.draw(0.19, 0.26), p.draw(0.02, 0.035)
    profile = [(foot, 0), (foot, 0.012), (0.75 * foot, 0.03), (1.6 * column, 0.07), (column, 0.14), (column, p.under)]
    if p.chance(0.4):  # tulip
        profile = [(foot, 0), (foot, 0.01), (0.6 * foot, 0.05), (0.3 * foot, 0.15), (0.25 * foot, p.under)]
    p.build.lathe(circle(1.0, 24), profile, p.frame)


def sled(p: Plan) -> None:
    """A bent tube on each side that rests on the floor."""
    lean, r = p.draw(0.0, 0.08), 0.7 * p.bar
    for x_front, y in p.corners(0.03)[:2]:
        corners = [[x_front - lean, y, p.under], [x_front + 0.02, y, r]]
        corners += [[-x_front - 0.03, y, r], [-x_front + lean, y, p.under]]
        p.build.tube(rounded_path(corners, 0.07), r, p.frame)
    y = p.width / 2 - 0.03
    for x in (0.3 * p.depth, -0.3 * p.depth):
        p.build.bar([x, -y, p.height - p.thickness], [x, y, p.height - p.thickness], r, p.frame, points=8)


def cantilever(p: Plan) -> None:
    """A bent tube without rear legs."""
    r, x = 0.75 * p.bar, p.depth / 2 - 0.02
    y, under = p.width / 2 - r, p.height - p.thickness
    corners = [[-x, y, under], [x, y, under], [x + 0.02, y, r], [-x, y, r]]
    corners += [[a, -b, c] for a, b, c in corners[::-1]]
    p.build.tube(rounded_path(corners, 0.08), r, p.frame)


def rocker(p: Plan) -> None:
    """Legs on two curved runners."""
    radius, lift = p.draw(0.9, 1.3), 0.02
    reach = np.rad2deg(p.depth / radius)
    angles = np.deg2rad(np.linspace(-90 - 0.85 * reach, -90 + 0.62 * reach, 13))
    for side in (0, 1):
        (front, y), (rear, _) = p.corners(0.05)[side], p.corners(0.05)[side + 2]
        y = float(y) * p.rear
        runner = [[-0.06 + radius * np.cos(a), y, radius + lift + radius * np.sin(a)] for a in angles]
        p.build.tube(runner, 0.018, p.frame, 4)
        for x, top in ((front - 0.02, front), (rear + 0.04, rear)):
            z = radius + lift - np.sqrt(radius**2 - (x + 0.06) ** 2)
            p.post([x, y, z], [top, y, p.under], 0.9, 1)


def crossed(p: Plan) -> None:
    """Two crossing pairs of legs, as on a folding chair."""
    x, r = p.depth / 2 - 0.03, 0.8
    for side in (1, -1):
        y = side * (p.width * p.rear / 2 - 0.02)
        p.post([-x - 0.04, y, 0.01], [x - 0.02, y, p.under], r)
        y -= side * 2.2 * p.bar
        p.post([x + 0.02, y, 0.01], [-x, y, p.under], r)
    y = p.width * p.rear / 2 - 0.02
    for x_bar in (-x - 0.02, x):
        p.post([x_bar, -y, 0.06], [x_bar, y, 0.06], 0.6)


def panels(p: Plan) -> None:
    """A board on each side."""
    inset = p.draw(0.0, 0.06)
    for side in (1, -1):
        y = side * (p.width * p.rear / 2 - inset - 0.015)
        p.build.box([0, y, p.under / 2], [0.9 * p.depth, 0.028, p.under], p.frame)
    z = p.draw(0.3, 0.8) * p.height
    p.build.box([0, 0, z], [0.025, p.width * p.rear - 2 * inset - 0.03, 0.09], p.frame)


def hairpins(p: Plan) -> None:
    """Two thin rods that meet at each foot."""
    for x, y in p.corners(0.09):
        foot = np.array([1.2 * x, 1.15 * y, 0])
        for dx, dy in ((0.05, 0), (0, 0.05)):
            top = [x - np.sign(x) * dx, y - np.sign(y) * dy, p.under]
            p.build.bar(foot, top, 0.008, p.frame, points=6)
