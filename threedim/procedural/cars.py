"""Procedural cars of several styles, with random proportions and colors. They drive along +x; lengths in meters."""

from __future__ import annotations

import numpy as np

from threedim.procedural import car_parts as parts
from threedim.procedural.car_parts import CHROME, PLASTIC, STATIONS, TIRE, Car, dress
from threedim.procedural.solids import Builder, circle, hsv, rounded_rectangle


def _base(rng: np.random.Generator, build: Builder, **given) -> Car:
    """A mid-sized car, except for ``given``."""
    u = rng.uniform
    body = {"length": u(4.2, 4.9), "width": u(1.75, 1.92), "clearance": u(0.18, 0.26), "belt": u(0.90, 1.0)}
    body |= {"deck": u(0.88, 0.96), "nose": u(0.70, 0.82), "roof": u(1.40, 1.52)}
    body |= {"cabin": (u(0.14, 0.19), u(0.68, 0.73), u(0.27, 0.33), u(0.54, 0.59)), "wheel": u(0.30, 0.35)}
    body |= {"axles": (u(0.17, 0.21), u(0.79, 0.83)), "panes": 2}
    car = Car(rng=rng, build=build, **(body | given))
    parts.paint(car)
    return car


def sedan(rng, build) -> None:
    """Also taxis and police cars."""
    dress(car := _base(rng, build, panes=int(rng.integers(2, 4))))
    if car.chance(0.25):
        parts.add_sign(car)


def hatchback(rng, build) -> None:
    """Small cars with a steep tail."""
    u = rng.uniform
    cabin = (u(0.01, 0.03), u(0.70, 0.76), u(0.07, 0.16), u(0.55, 0.60))
    car = _base(rng, build, length=u(3.5, 4.1), roof=u(1.42, 1.56), cabin=cabin, axles=(u(0.17, 0.2), u(0.8, 0.83)))
    dress(car, doors=(0.4, 0.7) if car.chance(0.5) else (0.3, 0.5, 0.72))


def suv(rng, build) -> None:
    """SUVs and station wagons: a long roof and a steep tail."""
    u = rng.uniform
    tall = rng.random() < 0.65
    cabin = (u(0.005, 0.02), u(0.68, 0.74), u(0.03, 0.08), u(0.56, 0.62))
    shape = {"roof": u(1.65, 1.85), "belt": u(1.05, 1.15), "nose": u(0.92, 1.05), "deck": u(1.0, 1.1)} if tall else {}
    wheels = {"wheel": u(0.36, 0.43), "clearance": u(0.28, 0.38)} if tall else {}
    car = _base(rng, build, cabin=cabin, panes=3, **shape, **wheels)
    dress(car)
    if car.chance(0.6):
        parts.add_rails(car)
    if tall and car.chance(0.35):  # the spare wheel
        x, z = car.x(0) - 0.07, car.clearance + 0.55
        car.build.disk([x, 0, z], car.wheel * 0.9, 0.2, TIRE, axis="x")
        car.build.disk([x - 0.1, 0, z], car.wheel * 0.55, 0.03, CHROME, axis="x", points=16)


def sports_car(rng, build) -> None:
    """Low and wide, some with a stripe or a spoiler."""
    u = rng.uniform
    cabin = (u(0.08, 0.16), u(0.60, 0.67), u(0.27, 0.36), u(0.45, 0.50))
    body = {"width": u(1.85, 2.0), "clearance": u(0.11, 0.16), "belt": u(0.76, 0.84), "deck": u(0.76, 0.86)}
    body |= {"nose": u(0.62, 0.70), "roof": u(1.12, 1.24), "wheel": u(0.30, 0.33)}
    car = _base(rng, build, **body, cabin=cabin, panes=1)
    car.stripe = car.chance(0.45)
    dress(car, doors=(0.38, 0.64))
    if car.chance(0.6):
        parts.add_spoiler(car)


def van(rng, build) -> None:
    """Panel vans, minibuses and campers: a box with a short nose."""
    u = rng.uniform
    cabin = (0.004, u(0.86, 0.93), u(0.008, 0.02), u(0.70, 0.78))
    panes = int(rng.integers(3, 5))
    body = {"length": u(4.3, 5.4), "width": u(1.85, 2.0), "belt": u(1.12, 1.25), "deck": u(1.1, 1.2)}
    body |= {"nose": u(0.88, 1.02), "roof": u(1.85, 2.35), "glazed": 1 if rng.random() < 0.5 else 99}
    car = _base(rng, build, **body, cabin=cabin, panes=panes)
    dress(car, doors=(0.3, 0.62, 0.8))
    if car.chance(0.2):
        parts.add_rails(car)


def pickup(rng, build) -> None:
    """A cabin and an open bed, some with a load."""
    u = rng.uniform
    rear = u(0.34, 0.46)
    cabin = (rear, u(0.70, 0.75), rear + u(0.005, 0.03), u(0.58, 0.64))
    body = {"length": u(4.8, 5.6), "clearance": u(0.32, 0.42), "belt": u(1.08, 1.18), "deck": u(0.70, 0.78)}
    body |= {"nose": u(0.96, 1.06), "roof": u(1.68, 1.84), "wheel": u(0.37, 0.44)}
    car = _base(rng, build, **body, cabin=cabin, panes=1 if rear > 0.41 else 2)
    rail, step = u(1.02, 1.12), rear - 0.012
    floor, shares = car.deck, np.array([*STATIONS[:4], 0.2, 0.3, step, rear, *STATIONS[6:]])
    # The hull is low under the bed and rises steeply behind the cabin.
    parts.add_hull(car, shares, np.where(shares <= step + 1e-6, floor, car.top(shares)))
    parts.add_cabin(car)
    parts.add_wheels(car)
    x_rear, x_front = car.x(0.006), car.x(step)
    middle, length, tall = (x_rear + x_front) / 2, x_front - x_rear, rail - floor + 0.1
    for side in (1, -1):
        car.build.box([middle, side * (0.475 * car.width - 0.02), rail - tall / 2], [length, 0.07, tall], car.paint)
    for x in (x_rear + 0.03, x_front - 0.01):
        car.build.box([x, 0, rail - tall / 2 - 0.005], [0.06, 0.94 * car.width - 0.05, tall - 0.01], car.paint)
    car.build.box([middle, 0, floor + 0.03], [length - 0.05, 0.9 * car.width, 0.04], PLASTIC)
    if car.chance(0.35):  # a load
        for _ in range(int(rng.integers(1, 4))):
            size = np.array([u(0.4, 0.7), u(0.4, 0.8), u(0.3, 0.7)])
            x = u(x_rear + 0.1 + size[0] / 2, x_front - 0.1 - size[0] / 2)
            room = 0.42 * car.width - size[1] / 2
            y = np.clip(u(-0.3, 0.3) * car.width, -room, room)
            car.build.box([x, y, floor + 0.04 + size[2] / 2], size, hsv(u(0.05, 0.12), u(0.2, 0.6), u(0.4, 0.8)))
    parts.add_front(car)
    parts.add_rear(car, z=rail - 0.22, tall=0.27)
    parts.add_sides(car, (rear + 0.03, 0.7) if car.panes == 1 else (rear + 0.03, 0.54, 0.71))


def truck(rng, build) -> None:
    """A cab, and behind it a box, a tank or an open bed."""
    u = rng.uniform
    long = u(5.8, 8.0)
    cab = u(1.7, 2.1)
    half, tall = u(1.0, 1.15), u(2.2, 2.6)
    hood = u(0.0, 0.75) if rng.random() < 0.4 else u(0.0, 0.12)
    length = cab + hood
    body = {"clearance": u(0.42, 0.5), "belt": u(1.35, 1.5), "deck": 1.3, "nose": u(1.15, 1.25), "roof": tall}
    body |= {"cabin": (0.01, 1 - (hood + 0.06) / length, 0.02, 1 - (hood + u(0.15, 0.4)) / length)}
    body |= {"wheel": u(0.44, 0.52), "axles": (1 - (0.5 * hood + 0.75) / length,), "panes": 1}
    car = _base(rng, build, **body, length=length, width=2 * half)
    parts.add_hull(car)
    parts.add_cabin(car)
    parts.add_front(car, car.clearance + 0.42)
    parts.add_sides(car, ())
    cargo = long - length
    rear = car.x(0) - 0.12 - cargo
    rear_axles = [rear + 0.22 * cargo] + ([rear + 0.22 * cargo + 2.3 * car.wheel] if cargo > 4.2 else [])
    car.axles = (*car.axles, *(x / car.length + 0.5 for x in rear_axles))
    parts.add_wheels(car)
    frame = car.clearance + 0.4
    build.box([(rear + car.x(0.7)) / 2, 0, frame - 0.1], [car.x(0.7) - rear - 0.1, 0.9, 0.22], PLASTIC)
    (_box_cargo, _box_cargo, _tank, _open_bed)[rng.integers(4)](car, rear, cargo, frame, half)
    for side in (1, -1):
        build.box([rear - 0.01, side * 0.75 * half, frame - 0.06], [0.06, 0.3, 0.14], (0.8, 0.08, 0.08))
    build.box([rear + 0.02, 0, frame - 0.25], [0.1, 1.9 * half, 0.14], PLASTIC)


def _box_cargo(car: Car, rear: float, cargo: float, frame: float, half: float) -> None:
    middle, top = rear + cargo / 2, car.roof + car.draw(-0.15, 0.6)
    size = [cargo, 2 * half + 0.04, top - frame - 0.05]
    car.build.rounded_box([middle, 0, (top + frame + 0.05) / 2], size, 0.05, car.second)
    band = [0.8 * cargo, size[1] + 0.024, car.draw(0.2, 0.6) * size[2]]
    car.build.box([middle, 0, (top + frame) / 2], band, car.paint)


def _tank(car: Car, rear: float, cargo: float, frame: float, half: float) -> None:
    radius, rings = car.draw(0.75, 0.95) * half, []
    for share, scale in ((0, 0.75), (0.03, 0.95), (0.08, 1), (0.92, 1), (0.97, 0.95), (1, 0.75)):
        outline = scale * circle(radius, 20) + [0, frame + radius]
        rings.append(np.column_stack([np.full(20, rear + share * cargo), outline]))
    car.build.loft(rings, car.second)
    for share in (0.25, 0.75):
        car.build.disk([rear + share * cargo, 0, frame + radius], radius + 0.03, 0.1, car.paint, axis="x")
    car.build.box([rear + cargo / 2, 0, frame + 0.1], [0.9 * cargo, 0.9 * half, 0.3], PLASTIC)


def _open_bed(car: Car, rear: float, cargo: float, frame: float, half: float) -> None:
    middle = rear + cargo / 2
    car.build.box([middle, 0, frame + 0.09], [cargo, 2 * half, 0.1], PLASTIC)
    height = car.draw(0.3, 0.9)
    for y in (half - 0.05, 0.05 - half):
        car.build.box([middle, y, frame + 0.05 + height / 2], [cargo - 0.02, 0.07, height], car.second)
    for x in (rear + 0.05, rear + cargo - 0.05):
        car.build.box([x, 0, frame + 0.04 + height / 2], [0.07, 2 * half - 0.12, height - 0.02], car.second)
    if car.chance(0.6):
        size = [0.8 * cargo, 1.6 * half, car.draw(0.4, 1.0)]
        load = hsv(car.draw(0.05, 0.13), car.draw(0.2, 0.6), car.draw(0.35, 0.75))
        car.build.rounded_box([middle, 0, frame + 0.1 + size[2] / 2], size, 0.25, load)


def bus(rng, build) -> None:
    """City buses and coaches."""
    u = rng.uniform
    length = u(7.5, 11.0)
    cabin = (0.002, u(0.992, 0.997), u(0.003, 0.008), u(0.97, 0.985))
    body = {"width": u(2.4, 2.6), "clearance": u(0.28, 0.36), "belt": u(1.35, 1.55), "deck": u(1.35, 1.5), "nose": 1.4}
    body |= {"roof": u(2.75, 3.2), "wheel": u(0.46, 0.52), "axles": (u(0.2, 0.27), u(0.76, 0.84))}
    car = _base(rng, build, **body, length=length, cabin=cabin, panes=int(rng.integers(5, 9)))
    car.nose = car.belt - 0.02
    car.two_tone = car.chance(0.6)
    dress(car, (0.5, 0.9), front_z=car.clearance + 0.5, rear_z=car.clearance + 0.65, rear_tall=0.4)
    car.build.box([car.x(cabin[3]), 0, car.roof - 0.15], [0.08, 0.55 * car.width, 0.2], PLASTIC)
    if car.chance(0.6):
        outline = np.add(rounded_rectangle(0.3 * length, 0.6 * car.width, 0.2), [car.x(u(0.3, 0.6)), 0])
        car.build.prism(outline, car.roof - 0.05, car.roof + 0.16, car.roof_paint)


STYLES = (sedan, sedan, hatchback, suv, sports_car, van, pickup, truck, bus)
