"""Which checkpoints are kept beside the newest ones: policies for Orbax, and the held-out losses that they go by."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping

from etils import epath
from orbax.checkpoint import checkpoint_managers

from threedim import files

# In the folder of a checkpoint, so that the two are deleted or moved away together.
_FILE = "eval.json"


def read_losses(folder: epath.Path, steps: Iterable[int]) -> dict[int, float]:
    """Held-out losses by step, of those checkpoints in ``folder`` that have one."""
    losses = {}
    for step in steps:
        path = folder / str(step) / _FILE
        if path.exists():
            with files.interpreting(path, "delete it: the held-out loss of this checkpoint then counts as unknown"):
                losses[step] = float(files.read_json(path)["loss"])
    return losses


def write_loss(folder: epath.Path, loss: float) -> None:
    """Notes the held-out loss of a checkpoint in its folder."""
    (folder / _FILE).write_text(json.dumps({"loss": loss}))


@dataclasses.dataclass(frozen=True)
class FirstOfEach(checkpoint_managers.PreservationPolicy):
    """Keeps the first checkpoint at or after each multiple of ``every`` steps; none if it is 0."""

    every: int

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        del context
        every, first = self.every or math.inf, {}
        for step in sorted(c.step for c in checkpoints):
            first.setdefault(step // every, step)
        return [c.step >= every and first[c.step // every] == c.step for c in checkpoints]


@dataclasses.dataclass(frozen=True)
class Lowest(checkpoint_managers.PreservationPolicy):
    """Keeps the checkpoint with the lowest of ``losses``, which are by step; the first of equals."""

    losses: Mapping[int, float]

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        del context
        known = [(self.losses[c.step], c.step) for c in checkpoints if c.step in self.losses]
        return [bool(known) and c.step == min(known)[1] for c in checkpoints]
