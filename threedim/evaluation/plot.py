"""A small plot as SVG text, for a page that needs nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

_WIDTH, _HEIGHT = 720, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 22, 18, 40
# The tallest bar of counts, as a part of the height.
_BAR = 0.18


def psnr_by_angle(bins: Sequence[Mapping[str, float]]) -> str:
    """PSNR over bins of angles: mean, band of percentiles, baseline, and counts.

    Args:
      bins: `scores.summary`'s "psnr_by_angle": at least one.

    Returns:
      An ``<svg>`` element whose colors are the page's: classes grid, band, mean, dot, repeated, rdot and count.
    """
    values = [each[key] for each in bins for key in ("psnr", "psnr_p10", "psnr_p90", "repeated_psnr")]
    step = _tick(max(values) - min(values))
    low, high = math.floor(min(values) / step) * step, math.ceil(max(values) / step) * step
    high = max(high, low + step)
    last = max(each["to_degrees"] for each in bins)

    def x(angle: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * angle / last

    def y(psnr: float) -> float:
        return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (high - psnr) / (high - low)

    def points(key: str) -> list[tuple[float, float]]:
        return [(x((each["from_degrees"] + each["to_degrees"]) / 2), y(each[key])) for each in bins]

    bottom = _HEIGHT - _BOTTOM
    parts = []
    most = max(each["views"] for each in bins)
    for each in bins:
        height = (bottom - _TOP) * _BAR * each["views"] / most
        left, right = x(each["from_degrees"]) + 1, x(each["to_degrees"]) - 1
        parts.append(
            f'<rect class="count" x="{left:.1f}" y="{bottom - height:.1f}" width="{right - left:.1f}" '
            f'height="{height:.1f}"><title>{each["views"]} views</title></rect>'
        )
    for index in range(round((high - low) / step) + 1):
        value = low + index * step
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>'
        )
        parts.append(f'<text x="{_LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:g}</text>')
    for angle in range(0, int(last) + 1, 15 if last <= 90 else 30):
        parts.append(f'<text x="{x(angle):.1f}" y="{bottom + 16}" text-anchor="middle">{angle}°</text>')
    parts.append(f'<text x="{(_LEFT + _WIDTH) / 2}" y="{_HEIGHT - 6}" text-anchor="middle">angle, degrees</text>')
    parts.append(f'<text x="4" y="{_TOP - 2}">dB</text>')
    outline = points("psnr_p90") + points("psnr_p10")[::-1]
    parts.append(f'<polygon class="band" points="{_joined(outline)}"/>')
    for key, line, dot in (("repeated_psnr", "repeated", "rdot"), ("psnr", "mean", "dot")):
        parts.append(f'<polyline class="{line}" points="{_joined(points(key))}"/>')
        for (left, top), each in zip(points(key), bins, strict=True):
            label = f"{each['from_degrees']}° to {each['to_degrees']}°: {each[key]:.2f} dB"
            parts.append(
                f'<circle class="{dot}" cx="{left:.1f}" cy="{top:.1f}" r="3.5"><title>{label}</title></circle>'
            )
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="PSNR against the angle from the input view">'
        + "".join(parts)
        + "</svg>"
    )


def _joined(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{left:.1f},{top:.1f}" for left, top in points)


def _tick(span: float) -> float:
    """1, 2 or 5 times a power of ten, for about five lines."""
    rough = max(span, 1e-3) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
