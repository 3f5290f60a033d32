"""The curves of a training run as one picture."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from threedim import files

_LOSSES = {"loss": "loss"} | {
    f"loss_by_noise/quartile_{index}": name
    for index, name in enumerate(("nearly clean", "less noise", "more noise", "nearly noise"), start=1)
}
_LOSSES["eval/loss"] = "held out"
_OTHERS = {
    "eval/psnr": "PSNR of held-out previews, dB",
    "learning_rate": "learning rate",
    "examples_per_second": "pairs a second",
}


def plot(lines: Sequence[Mapping[str, Any]], path: epath.PathLike) -> None:
    """Draws what `metrics.read` returns, against the step: losses, and beside them what else there is.

    Writes the PNG ``path``, local or gs://, atomically. Values that are None are gaps.
    """
    # Here: half a second that no training run waits for. Without pyplot: no display, no global state.
    from matplotlib.figure import Figure

    panels = [_LOSSES, *({key: title} for key, title in _OTHERS.items() if any(key in line for line in lines))]
    figure = Figure(figsize=(6 + 3.5 * (len(panels) - 1), 4), layout="constrained")
    axes = figure.subplots(1, len(panels), width_ratios=[2] + [1] * (len(panels) - 1), squeeze=False)[0]
    for axis, curves in zip(axes, panels, strict=True):
        for key, label in curves.items():
            points = [(line["step"], line[key]) for line in lines if key in line]
            steps, values = zip(*points, strict=True) if points else ((), ())
            values = [float("nan") if value is None else value for value in values]
            # A single point is no line.
            style = {"color": "black"} if key in ("loss", *_OTHERS) else {"linewidth": 1}
            axis.plot(steps, values, label=label, marker="." if len(points) < 30 else None, **style)
        axis.set(title="loss, by quarter of noise" if curves is _LOSSES else label, xlabel="step")
        axis.grid(alpha=0.3)
    axes[0].set_yscale("log")
    axes[0].legend()
    encoded = io.BytesIO()
    figure.savefig(encoded, format="png", dpi=120)
    files.write_atomically(path, encoded.getvalue())
