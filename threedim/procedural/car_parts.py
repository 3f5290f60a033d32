"""Parts of procedural cars: a lofted hull, a glazed cabin, wheels, lights, bumpers and accessories.

A car drives along +x, with its left at +y and its wheels on z = 0. Lengths in meters.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from threedim.procedural.solids import Color, Design, circle, hsv, jitter, turn

_GRAYS: tuple[Color, ...] = ((0.93, 0.93, 0.93), (0.72, 0.74, 0.76), (0.45, 0.47, 0.50), (0.24, 0.25, 0.27))
_HUES = (0.0, 0.0, 0.03, 0.08, 0.13, 0.36, 0.50, 0.57, 0.60, 0.63)  # of car paint
GLASS: Color = (0.17, 0.23, 0.29)
PLASTIC: Color = (0.13, 0.13, 0.14)
TIRE: Color = (0.09, 0.09, 0.10)
CHROME: Color = (0.80, 0.82, 0.84)

# Right half of the hull's cross-section from bottom to top: (share of half the width, share of the height).
_SECTION = np.array(
    [(0.86, 0.0), (0.97, 0.05), (1.0, 0.2), (1.0, 0.55), (0.975, 0.82), (0.92, 0.95), (0.80, 1.0), (0.24, 1.015)]
)
# Cross-sections of the hull, in shares of its length.
STATIONS = np.array([0, 0.012, 0.05, 0.12, 0.25, 0.4, 0.55, 0.7, 0.8, 0.88, 0.94, 0.985, 1.0])


@dataclasses.dataclass
class Car(Design):
    """Proportions and colors. x positions are shares of the length: 0 is the tail, 1 the nose."""

    length: float
    width: float
    clearance: float
    belt: float  # top of the hull at the foot of the windscreen
    deck: float  # top of the hull at the tail
    nose: float  # top of the hull at the nose
    roof: float
    cabin: tuple[float, ...]  # x of its rear foot, front foot, rear of the roof, front of the roof
    wheel: float  # radius
    axles: tuple[float, ...]
    panes: int  # windows on a side
    glazed: int = 99  # how many of them, from the front, are of glass
    paint: Color = (0, 0, 0)
    second: Color = (0, 0, 0)
    roof_paint: Color = (0, 0, 0)
    lower: Color = PLASTIC
    two_tone: bool = False
    stripe: bool = False

    def x(self, share: float) -> float:
        return (share - 0.5) * self.length

    def top(self, share):
        """Height of the top of the hull."""
        rear, front = self.cabin[:2]
        heights = (self.deck - 0.03, self.deck, self.belt, self.belt, self.nose, self.nose - 0.05)
        knots = np.maximum.accumulate([0, 0.03, max(rear, 0.04), front, 0.965, 1])
        return np.interp(share, knots, heights)


def paint(car: Car) -> None:
    """Samples colors, in the same way for every kind of car."""
    rng = car.rng
    if car.chance(0.35):
        car.paint = jitter(rng, _GRAYS[rng.integers(len(_GRAYS))], 0.06)
    else:
        hue = rng.choice(_HUES) + rng.normal(0, 0.015) if car.chance(0.75) else rng.random()
        car.paint = hsv(hue, rng.uniform(0.45, 0.9), rng.uniform(0.35, 0.92))
    car.second = jitter(rng, (_GRAYS[0], _GRAYS[3], hsv(rng.random(), 0.7, 0.7))[rng.integers(3)], 0.05)
    car.roof_paint = car.second if car.chance(0.2) else car.paint
    car.lower = PLASTIC if car.chance(0.6) else tuple(0.75 * c for c in car.paint)
    car.two_tone, car.stripe = car.chance(0.15), False


# ---------------------------------------------------------------------------------------------------------------- body


def add_hull(car: Car, shares=STATIONS, top=None) -> None:
    """The painted body up to the belt line, lofted from tail to nose; ``top`` is its height at ``shares``."""
    top = car.top(shares) if top is None else top
    bluntness = car.draw(0.80, 0.90)
    end = np.minimum(shares, 1 - shares)
    half = car.width / 2 * np.interp(end, [0, 0.012, 0.06, 0.14], [bluntness, 0.94, 0.985, 1.0])
    bottom = car.clearance + np.interp(end, [0, 0.05, 0.12], [0.12, 0.03, 0.0])
    section = np.concatenate([_SECTION, _SECTION[::-1] * [-1, 1]])
    y = half[:, None] * section[:, 0]
    z = bottom[:, None] + (top - bottom)[:, None] * section[:, 1]
    rings = np.stack([np.broadcast_to(car.x(shares)[:, None], y.shape), y, z], axis=-1)
    colors = np.tile(np.asarray(car.paint, np.float64), (len(shares) - 1, len(section), 1))
    sides = len(_SECTION)
    mirrored = [2 * sides - 2 - k for k in range(sides - 1)]  # the quad beside point k on the other side
    colors[:, [0, 1, mirrored[0], mirrored[1]]] = car.lower
    colors[:, 2 * sides - 1] = PLASTIC  # the floor
    if car.two_tone:
        colors[:, [2, mirrored[2]]] = car.second
    if car.stripe:
        colors[:, sides - 1] = car.second
    car.build.loft(rings, colors, cap_color=car.paint)


def add_cabin(car: Car) -> None:
    """Cabin on the hull. Pillars and panes are faces of one loft, so no surface lies on another."""
    glass = jitter(car.rng, GLASS, 0.05)
    rear_foot, front_foot, rear_roof, front_roof = (car.x(share) for share in car.cabin)
    low = min(float(car.top(car.cabin[0])), float(car.top(car.cabin[1]))) - 0.05
    tall = car.roof - car.belt
    # (height, progress from foot to roof)
    sill, header = car.belt + 0.07 * tall, car.roof - 0.13 * tall
    levels = [(low, -0.05), (sill, 0.03), (header, 0.84), (car.roof - 0.03 * tall, 0.98), (car.roof, 1.1)]
    tumble = car.draw(0.78, 0.88)
    pillar = car.draw(0.012, 0.022) * car.length / max(front_foot - rear_foot, 0.1)
    panes = max(car.panes, 1)
    edges, flags = [0.0], []
    for k in range(panes):
        start = k / panes + (1.6 * pillar if k == 0 else pillar / 2)
        stop = (k + 1) / panes - (1.2 * pillar if k == panes - 1 else pillar / 2)
        edges += [start, stop]
        flags += [False, panes - k <= car.glazed]
    edges, flags = np.array([*edges, 1.0]), [*flags, False]
    bow, rings = car.draw(0.03, 0.09), []
    for z, s in levels:
        rear = rear_foot + (rear_roof - rear_foot) * min(s, 1.0)
        front = front_foot + (front_roof - front_foot) * min(s, 1.0)
        half = car.width / 2 * (0.93 + (tumble - 0.93) * min(s, 1.0))
        if s > 1:  # the roof's edge is rounded
            rear, front, half = rear + 0.08, front - 0.08, half - 0.09
        side = rear + (front - rear) * edges
        nose = [(front + bow * (1 - y**2), y * half, z) for y in (-0.88, 0, 0.88)]
        tail = [(rear - 0.5 * bow * (1 - y**2), y * half, z) for y in (0.84, 0, -0.84)]
        rings.append([(x, -half, z) for x in side] + nose + [(x, half, z) for x in side[::-1]] + tail)
    glazed = np.array([*flags, False, True, True, False, *flags[::-1], False, *2 * [car.glazed >= panes], False])
    colors = np.tile(np.asarray(car.paint, np.float64), (len(levels) - 1, len(glazed), 1))
    colors[1:] = car.roof_paint
    colors[1, glazed] = glass
    car.build.loft(rings, colors, cap_color=car.roof_paint)


def add_wheels(car: Car) -> None:
    """Wheels on their axles, with hubcaps, spokes or holes, in wheel arches."""
    rim = jitter(car.rng, CHROME if car.chance(0.7) else (0.25, 0.25, 0.27))
    style, spokes = int(car.rng.integers(3)), int(car.rng.integers(4, 8))
    wide, share = 0.11 * car.width, car.draw(0.58, 0.74)
    flare, cladding, r = car.draw(1.12, 1.2), car.chance(0.2), car.wheel
    for axle in car.axles:
        car.build.box([car.x(axle), 0, r], [0.1, car.width - wide, 0.1], PLASTIC)
        for side in (1, -1):
            x, y = car.x(axle), side * (car.width / 2 - wide / 2 + 0.012)
            out = side * wide / 2
            if 0 < axle < 1:  # a truck's rear axles are behind its hull
                room = 0.93 * float(car.top(axle)) - r
                _arch(car, x, side, max(min(r * (flare + 0.1 * cladding), room), 1.04 * r))
            car.build.disk([x, y, r], r, wide, TIRE, axis="y", points=22)
            if style != 1:
                car.build.disk([x, y + out, r], share * r, 0.02, rim, axis="y", points=18)
            if style == 0:
                car.build.disk([x, y + out, r], 0.28 * share * r, 0.04, (0.2, 0.2, 0.21), axis="y", points=10)
            elif style == 1:
                car.build.disk([x, y + out, r], share * r, 0.012, (0.22, 0.22, 0.24), axis="y", points=18)
                size = [0.2 * share * r, 0.03, share * r]
                for k in range(spokes):
                    turned = turn("y", 360 * k / spokes)
                    arm = turned @ [0, 0, 0.5 * share * r]
                    car.build.box([x + arm[0], y + out, r + arm[2]], size, rim, turned)
                car.build.disk([x, y + out, r], 0.25 * share * r, 0.042, rim, axis="y", points=10)
            else:
                for dx, dz in circle(0.6 * share * r, spokes):
                    car.build.disk([x + dx, y + out, r + dz], 0.19 * share * r, 0.03, (0.15, 0.15, 0.16), "y", 8)


def _arch(car: Car, x: float, side: int, radius: float) -> None:
    """A dark half disk that stands slightly out of the body."""
    low = car.clearance + 0.02
    start = np.arcsin(np.clip((low - car.wheel) / radius, -1, 1))
    angles = np.linspace(start, np.pi - start, 15)[::-1]
    points = np.stack([car.wheel + radius * np.sin(angles), x + radius * np.cos(angles)], axis=-1)  # (z, x)
    ends = sorted([side * (car.width / 2 - 0.15 * car.width), side * (car.width / 2 + 0.008)])
    car.build.prism(points, *ends, (0.06, 0.06, 0.065), axis="y")


def add_front(car: Car, z: float | None = None) -> None:
    """Headlights, grille, bumper and license plate."""
    x, w = car.x(1.0), car.width
    z = car.nose - 0.17 if z is None else z
    lamp = jitter(car.rng, (0.97, 0.96, 0.86), 0.03)
    style = car.rng.integers(3)
    half = w * car.draw(0.30, 0.33)
    for y in (half, -half):
        if style == 0:
            car.build.disk([x - 0.02, y, z], 0.105, 0.10, CHROME, axis="x", points=16)
            car.build.disk([x - 0.02, y, z], 0.085, 0.125, lamp, axis="x", points=16)
        else:
            car.build.rounded_box([x - 0.035, y, z], [0.11, 0.19 * w, 0.09 if style == 1 else 0.15], 0.03, lamp)
    grille = PLASTIC if car.chance(0.7) else CHROME
    wide = car.draw(0.28, 0.36) * w
    car.build.rounded_box([x - 0.03, 0, z - 0.02], [0.09, wide, car.draw(0.1, 0.2)], 0.02, grille)
    _bumper(car, x - 0.02, (0.95, 0.93, 0.85))


def add_rear(car: Car, z: float | None = None, tall: float | None = None) -> None:
    """Taillights, bumper and license plate."""
    x, w = car.x(0.0), car.width
    z = car.deck - 0.17 if z is None else z
    tall = car.draw(0.1, 0.2) if tall is None else tall
    wide = 0.07 if tall > 0.25 else car.draw(0.1, 0.2)
    red = jitter(car.rng, (0.80, 0.08, 0.08), 0.05)
    half = 0.405 * w - wide * w / 2
    for y in (half, -half):
        car.build.rounded_box([x + 0.03, y, z], [0.1, wide * w, tall], 0.025, red)
    _bumper(car, x + 0.02, (0.93, 0.93, 0.93))


def _bumper(car: Car, x: float, plate: Color) -> None:
    color = (PLASTIC, car.paint, CHROME)[car.rng.integers(3)]
    z, out = car.clearance + 0.2, np.sign(x)
    car.build.rounded_box([x, 0, z], [0.14, 0.93 * car.width, 0.17], 0.06, color)
    car.build.box([x + out * 0.07, 0, z], [0.02, 0.2 * car.width, 0.09], plate)


def add_sides(car: Car, doors) -> None:
    """Door seams at ``doors`` (shares of the length), handles and mirrors."""
    seam = tuple(0.45 * c for c in car.paint)
    low, high = car.clearance + 0.1, car.belt - 0.2 * (car.belt - car.clearance)
    chrome = car.chance(0.5)
    for side in (1, -1):
        y = side * (car.width / 2 - 0.017)
        for share in doors:
            car.build.box([car.x(share), y, (low + high) / 2], [0.018, 0.045, high - low], seam)
        for share in doors[1:]:
            car.build.box([car.x(share) - 0.16, y, high - 0.04], [0.14, 0.05, 0.03], CHROME if chrome else seam)
        x = car.x(car.cabin[1]) - 0.16 * car.length * max(car.cabin[1] - car.cabin[3], 0.02) / 0.12
        center = [x, side * (car.width / 2 + 0.05), car.belt + 0.09]
        car.build.rounded_box(center, [0.1, 0.2, 0.13], 0.04, car.paint)


def dress(car: Car, doors=(0.32, 0.5, 0.7), front_z=None, rear_z=None, rear_tall=None) -> None:
    """Adds everything that ordinary cars have."""
    add_hull(car)
    add_cabin(car)
    add_wheels(car)
    add_front(car, front_z)
    add_rear(car, rear_z, rear_tall)
    add_sides(car, doors)


def add_rails(car: Car) -> None:
    """Roof rails."""
    for y in (0.36 * car.width, -0.36 * car.width):
        ends = [[car.x(s), y, car.roof + 0.035] for s in (car.cabin[2] + 0.05, car.cabin[3] - 0.05)]
        car.build.bar(*ends, 0.022, PLASTIC, points=6)
        for x, y, z in ends:
            car.build.box([x, y, z - 0.04], [0.08, 0.03, 0.1], PLASTIC)


def add_sign(car: Car) -> None:
    """A taxi sign or emergency lights."""
    x = car.x(0.5 * (car.cabin[2] + car.cabin[3]))
    if car.chance(0.5):
        car.build.rounded_box([x, 0, car.roof + 0.07], [0.16, 0.5, 0.17], 0.03, (0.96, 0.85, 0.25))
        return
    car.build.rounded_box([x, 0, car.roof + 0.02], [0.22, 1.0, 0.08], 0.03, PLASTIC)
    car.build.rounded_box([x, 0.29, car.roof + 0.1], [0.2, 0.4, 0.13], 0.04, (0.15, 0.3, 0.9))
    car.build.rounded_box([x, -0.29, car.roof + 0.1], [0.2, 0.4, 0.13], 0.04, (0.85, 0.12, 0.12))


def add_spoiler(car: Car) -> None:
    """A rear wing."""
    x, z = car.x(0.05), car.deck + car.draw(0.12, 0.25)
    color = car.second if car.chance(0.5) else car.paint
    car.build.box([x, 0, z], [0.26, 0.86 * car.width, 0.035], color, turn("y", 8))
    for side in (1, -1):
        center = [x + 0.03, side * 0.3 * car.width, (z + car.deck - 0.06) / 2]
        car.build.box(center, [0.12, 0.04, z - car.deck + 0.06], color)
