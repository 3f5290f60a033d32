"""Procedural chairs of several styles, with random proportions and colors. They face +x; lengths in meters."""

from __future__ import annotations

import numpy as np
from scipy import interpolate

from threedim.procedural import chair_backs as backs
from threedim.procedural import chair_parts as parts
from threedim.procedural.chair_parts import METALS, PAINTS, WOODS, Plan
from threedim.procedural.solids import Builder, circle, hsv, jitter, rounded_path, turn


def _plan(rng: np.random.Generator, build: Builder, wood: float = 0.5) -> Plan:
    """Samples proportions and colors; ``wood`` is the probability of a wooden frame."""
    u, pick = rng.uniform, rng.random()
    palette = WOODS if pick < wood else METALS if pick < wood + 0.6 * (1 - wood) else PAINTS
    frame = jitter(rng, palette[rng.integers(len(palette))])
    fabric = hsv(rng.random(), u(0.25, 0.85), u(0.3, 0.9))
    if rng.random() < 0.4:
        fabric = jitter(rng, PAINTS[rng.integers(len(PAINTS))])
    seat = {"width": u(0.40, 0.52), "depth": u(0.39, 0.48), "height": u(0.41, 0.48), "thickness": u(0.025, 0.05)}
    seat |= {"rear": u(0.78, 1.0), "bar": u(0.014, 0.024), "points": 4 if rng.random() < 0.5 else 10}
    back = {"back_height": u(0.38, 0.62), "recline": u(0.04, 0.24), "curve": u(0.0, 0.06)}
    return Plan(rng, build, **seat, **back, frame=frame, fabric=fabric)


def _choose(p: Plan, *options) -> None:
    options[p.rng.integers(len(options))](p)


def _seat(p: Plan, cushioned: float) -> None:
    parts.flat_seat(p, p.fabric if p.chance(0.3) else p.frame)
    if p.chance(cushioned):
        parts.cushion(p, p.draw(0.03, 0.07))


def dining_chair(rng, build) -> None:
    """Four legs and any kind of back."""
    p = _plan(rng, build, wood=0.7)
    _choose(p, parts.straight_legs, parts.straight_legs, parts.splayed_legs, parts.hairpins, parts.panels)
    _seat(p, 0.5)
    _choose(p, backs.spindle_back, backs.ladder_back, backs.panel_back, backs.cross_back)
    if p.chance(0.3):
        backs.post_arms(p)


def windsor_chair(rng, build) -> None:
    """Splayed legs; a hoop or a low round back."""
    p = _plan(rng, build, wood=0.75)
    p.points, p.round = 10, p.chance(0.4)
    parts.splayed_legs(p)
    _seat(p, 0.15)
    _choose(p, backs.hoop_back, backs.hoop_back, backs.wrap_back)


def office_chair(rng, build) -> None:
    """A cushioned swivel chair, mostly with arms."""
    p = _plan(rng, build, wood=0.05)
    p.thickness, p.rear, p.curve = p.draw(0.06, 0.1), p.draw(0.9, 1.0), p.draw(0.02, 0.09)
    p.back_height, p.recline = p.draw(0.45, 0.75), p.draw(0.05, 0.2)
    parts.star_base(p)
    center = [0, 0, p.height - p.thickness / 2]
    p.build.rounded_box(center, [p.depth, p.width, p.thickness], p.thickness * 0.45, p.fabric)
    low, width = p.draw(0.08, 0.25), p.width * p.draw(0.8, 0.98)
    arch, waist = p.draw(0.0, 0.12), p.draw(0.75, 1.0)
    bends = [np.sin(np.pi * min(s + 0.15, 1) * 0.6) for s in np.linspace(0, 1, 8)]
    backs.arched_board(p, [width * (waist + (1 - waist) * b) for b in bends], low, 1, arch, p.draw(0.03, 0.07))
    spine = [[-0.3 * p.depth, 0, p.height - p.thickness], [-0.62 * p.depth, 0, p.height - 0.05]]
    spine += [p.at_back(0, s) - [0.035, 0, 0] for s in (low + 0.05, low + 0.35)]
    p.build.tube(rounded_path(spine, 0.05), 0.02, jitter(rng, (0.14, 0.14, 0.15)), 6)
    if p.chance(0.75):
        backs.loop_arms(p)
    if p.chance(0.25):
        head = p.at_back(0, 1.18)
        p.build.rounded_box(head, [0.05, 0.55 * width, 0.12], 0.025, p.fabric)
        p.build.bar(p.at_back(0, 0.8) - [0.02, 0, 0], head, 0.012, (0.15, 0.15, 0.16), points=6)


def stool(rng, build) -> None:
    """Low stools and bar stools; no back or a very low one."""
    p = _plan(rng, build, wood=0.55)
    p.round = p.chance(0.65)
    p.width = p.depth = p.draw(0.31, 0.42)
    p.height, p.rear = (p.draw(0.6, 0.8), 1.0) if p.chance(0.6) else (p.draw(0.38, 0.5), 1.0)
    column = parts.star_base if p.height < 0.55 else parts.disk_base
    _choose(p, parts.straight_legs, parts.splayed_legs, parts.splayed_legs, column)
    p.thickness = p.draw(0.035, 0.06)
    _seat(p, 0.75)
    if p.height > 0.55 and p.chance(0.6):
        path = np.column_stack([circle(0.62 * p.depth / 2, 24), np.full(24, 0.33 * p.height)])
        p.build.tube(path, 0.009, p.frame, 6, closed=True)
    if p.height > 0.55 and p.chance(0.5):
        p.back_height, p.recline, p.curve = p.draw(0.16, 0.26), 0.1, 0.05
        _choose(p, backs.ladder_back, backs.panel_back)


def tube_chair(rng, build) -> None:
    """Bent steel tube: a sled or a cantilever."""
    p = _plan(rng, build, wood=0.1)
    p.points, p.rear, p.bar = 10, 1.0, p.draw(0.014, 0.02)
    _choose(p, parts.sled, parts.cantilever)
    parts.flat_seat(p, p.fabric)
    _choose(p, backs.panel_back, backs.ladder_back, backs.spindle_back)
    if p.chance(0.35):
        backs.post_arms(p)


def rocking_chair(rng, build) -> None:
    """Legs on curved runners and a high back."""
    p = _plan(rng, build, wood=0.85)
    p.recline, p.back_height = p.draw(0.2, 0.32), p.draw(0.55, 0.75)
    parts.rocker(p)
    _seat(p, 0.5)
    _choose(p, backs.spindle_back, backs.ladder_back, backs.hoop_back, backs.panel_back)
    if p.chance(0.8):
        backs.post_arms(p)


def folding_chair(rng, build) -> None:
    """Crossed legs and a low back."""
    p = _plan(rng, build, wood=0.5)
    p.points, p.back_height, p.bar = (4 if p.chance(0.5) else 10), p.draw(0.34, 0.45), p.draw(0.011, 0.017)
    parts.crossed(p)
    parts.flat_seat(p, p.fabric if p.chance(0.7) else p.frame)
    _choose(p, backs.ladder_back, backs.panel_back)


def armchair(rng, build) -> None:
    """Upholstered armchairs and sofas."""
    p = _plan(rng, build, wood=0.7)
    seats = int(rng.choice([1, 1, 1, 2]))
    inner, depth, seat = p.draw(0.5, 0.62) * seats, p.draw(0.55, 0.68), p.draw(0.36, 0.43)
    arm, arm_height, back = p.draw(0.09, 0.18), p.draw(0.12, 0.26), p.draw(0.34, 0.62)
    legs, soft = p.draw(0.05, 0.16), p.draw(0.03, 0.08)
    width = inner + 2 * arm
    for sx, sy in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
        x, y = sx * (depth / 2 - 0.05), sy * (width / 2 - 0.06)
        p.build.bar([x, y, 0], [x, y, legs + 0.05], 0.016, p.frame, 0.026, p.points)
    p.build.rounded_box([0, 0, (legs + seat - 0.08) / 2], [depth, width - 0.02, seat - 0.08 - legs], 0.02, p.fabric)
    pillow = jitter(rng, p.fabric, 0.06) if p.chance(0.6) else p.fabric
    for k in range(seats):
        y = (k - (seats - 1) / 2) * inner / seats
        size = [depth - 0.12, inner / seats - 0.008, 0.15]
        p.build.rounded_box([0.07, y, seat - 0.055], size, soft, pillow)
        size = [0.15, inner / seats - 0.01, back - 0.04]
        lean = turn("y", -p.recline * 40)
        p.build.rounded_box([-depth / 2 + 0.17, y, seat + back / 2 - 0.02], size, soft, pillow, lean)
    rest = [0.15, width - 0.04, seat + back - legs - 0.04]
    p.build.rounded_box([-depth / 2 + 0.06, 0, legs + rest[2] / 2], rest, soft, p.fabric, turn("y", -p.recline * 25))
    round_arm, top = p.chance(0.4), seat + arm_height
    for y in (width / 2 - arm / 2, arm / 2 - width / 2):
        center = [0.01, y, (legs + top) / 2]
        p.build.rounded_box(center, [depth + 0.02, arm, top - legs], min(soft, arm / 2.1), p.fabric)
        if round_arm:
            p.build.disk([0.02, y, top - 0.01], arm * 0.62, depth + 0.04, p.fabric, axis="x", points=16)


def shell_chair(rng, build) -> None:
    """One curved shell for seat and back, on any thin base."""
    p = _plan(rng, build, wood=0.35)
    p.points, p.bar, p.thickness = 10, p.draw(0.011, 0.018), 0.03
    tub = p.draw(0.3, 1.0)  # height of the sides
    # The base meets the shell near its middle, where it is low.
    size = p.width, p.depth
    p.width, p.depth, p.rear = 0.84 * p.width, 0.80 * p.depth, 1.0
    _choose(p, parts.splayed_legs, parts.splayed_legs, parts.disk_base, parts.star_base, parts.hairpins, parts.sled)
    p.width, p.depth = size
    high, flare = p.draw(0.32, 0.5), p.draw(0.05, 0.15)
    # The middle line from the front edge, back along the seat, up the back.
    x = np.array([0.50, 0.42, 0.20, -0.10, -0.32, -0.44, -0.48, -0.48, -0.48]) * p.depth
    x[-2:] -= 0.5 * flare, flare
    z = [-0.03, 0, 0, -0.005, 0.01, 0.07, 0.4 * high, 0.75 * high, high]
    half, rise = [0.40, 0.46, 0.50, 0.51, 0.51, 0.50, 0.47, 0.43, 0.33], [0, 0.02, 0.06, 0.10, 0.13, 0.11, 0.04, 0, 0]
    forward = np.array([0, 0, 0, 0, 0.02, 0.07, 0.11, 0.09, 0.05]) * tub
    line = interpolate.CubicSpline(range(9), np.column_stack([x, z, half, rise, forward]))(np.linspace(0, 8, 17))
    x, z, half, rise, forward = line.T[..., None]
    across = np.linspace(-1, 1, 11)
    bowl = np.abs(across) ** 2.2
    surface = [x + forward * bowl, across * half * p.width, p.height + z + np.maximum(rise, 0) * tub * bowl]
    p.build.slab(np.stack(surface, axis=-1), 0.016, p.fabric)
    if p.chance(0.3):
        p.build.rounded_box([0.05, 0, p.height + 0.024], [0.27, 0.32, 0.04], 0.018, jitter(rng, p.fabric, 0.15))


# fmt: off
STYLES = (
    dining_chair, dining_chair, windsor_chair, office_chair, stool, tube_chair, rocking_chair, folding_chair, armchair,
    shell_chair,
)
# fmt: on
