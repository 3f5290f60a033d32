"""How a run stands, from the files in its folder alone: a run that trains is not disturbed, and no device is used."""

from __future__ import annotations

import contextlib
import datetime
import time
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from threedim import files, locks
from threedim.errors import MissingError
from threedim.output import curves
from threedim.training import checkpoints, metrics, preservation, run_info


def report(workdir: epath.PathLike) -> str:
    """Lines that say whether a run trains, how far it is, its losses, speed, time left and checkpoints.

    Draws its curves into ``curves.png`` in ``workdir``, local or gs://.

    Raises:
      MissingError: if ``workdir`` is no run's folder.
      UserError: if one of its files is damaged.
    """
    workdir = epath.Path(workdir)
    holder = locks.holder(workdir)
    said = {"run": f"{workdir}: {f'trains ({holder})' if holder else 'does not train'}"}
    try:
        config, _ = run_info.read_run_info(workdir)
    except MissingError:  # written after the first step
        if holder is None:
            raise
        return _table(said | {"step": "none is finished yet"})
    with files.interpreting(workdir / "config.json", "it holds the settings of the run"):
        num_steps, batch_size = int(config["train"]["num_steps"]), int(config["train"]["batch_size"])
    lines, saved = metrics.read(workdir), _checkpoints(workdir)
    step = max([line["step"] for line in lines] + [found for found, *_ in saved], default=0)
    said["step"] = f"{step:,} of {num_steps:,} ({100 * step / num_steps:.0f} %)"
    said |= _progress(lines, num_steps - step, batch_size)
    said |= {name: text for _, name, text in saved} or {"checkpoint": "none"}
    skipped = int(sum(line.get("skipped_steps") or 0 for line in lines))
    said["skipped"] = f"{skipped:,} steps, whose loss or gradient was not finite" if skipped else "no step"
    if lines:
        curves.plot(lines, workdir / "curves.png")
        said["curves"] = f"{workdir / 'curves.png'}"
    else:
        said["curves"] = f"none: {workdir / 'metrics.jsonl'} has no lines"
    return _table(said)


def _progress(lines: Sequence[Mapping[str, Any]], steps_left: int, batch_size: int) -> dict[str, str]:
    """Losses and speed by the last lines that have them."""
    said = {}
    for key, name in (("loss", "loss"), ("eval/loss", "held-out loss")):
        if line := next((line for line in reversed(lines) if {key, "time"} <= line.keys()), None):
            value = "not finite" if line[key] is None else f"{line[key]:.4g}"
            said[name] = f"{value} at step {line['step']:,}, {_when(line['time'])}"
    if rate := next((line["examples_per_second"] for line in reversed(lines) if line.get("examples_per_second")), None):
        left = datetime.timedelta(seconds=round(steps_left * batch_size / rate))
        said["speed"] = f"{rate:.4g} pairs a second" + (f"; {steps_left:,} steps left take about {left}" * bool(left))
    return said


def _checkpoints(workdir: epath.Path) -> list[tuple[int, str, str]]:
    """Step, name and description of the last and the best one, if there are such."""
    found = []
    for name, which in (("last checkpoint", None), ("best checkpoint", checkpoints.BEST)):
        try:
            step = checkpoints.find_step(workdir, which)
        except MissingError:
            continue
        folder = workdir / "checkpoints"
        with contextlib.suppress(FileNotFoundError):  # a running trainer removed it meanwhile
            loss = preservation.read_losses(folder, [step]).get(step)
            told = f"step {step:,}, {_when((folder / str(step) / 'files.json').stat().mtime)}"
            found.append((step, name, told + (f", held-out loss {loss:.4g}" if loss is not None else "")))
    return found


def _when(seconds: float) -> str:
    ago = datetime.timedelta(seconds=max(0, round(time.time() - seconds)))
    return f"{time.strftime('%Y-%m-%d %H:%M', time.localtime(seconds))} ({ago} ago)"


def _table(said: Mapping[str, str]) -> str:
    return "\n".join(f"{name + ':':17}{text}" for name, text in said.items())
