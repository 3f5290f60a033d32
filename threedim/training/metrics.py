"""Logs of a training run: scalars and pictures for TensorBoard, and the same scalars as JSON lines.

A run's folder (workdir) holds::

    metrics.jsonl                       one line per call: {"step": 100, "time": 1700000000.123, "loss": 0.5, ...}
    tensorboard/events.*                the same scalars, and the pictures
    samples/<name>_<step, 7 digits>.png the pictures

"time" is in seconds since 1970. JSON has no NaN and no infinity: they are written as null.
"""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorboardX
from etils import epath

from threedim import files, pixels
from threedim.errors import UserError

_FILE = "metrics.jsonl"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
# An object store cannot append: the file is written anew, at most this often (seconds), and at the end.
_REMOTE_INTERVAL = 60.0


class MetricWriter:
    """Writes a run's scalars and pictures; a context manager.

    On gs:// TensorBoard's file goes through ``google-cloud-storage`` (``pip install gcsfs`` installs it), and a killed
    run loses the last minute of its log. On a local disk each line is written immediately.

    Args:
      workdir: folder of the run, local or gs://.
      start_step: the step that the run resumes from. Lines that an earlier process logged after it are removed, and
        hidden from TensorBoard, so that no part of a curve appears twice. Pictures are replaced.
      enabled: False writes nothing: for all processes but one.

    Raises:
      UserError: if metrics.jsonl has a broken line; a truncated last line is dropped.
    """

    def __init__(self, workdir: epath.PathLike, *, start_step: int = 0, enabled: bool = True):
        self._tensorboard: tensorboardX.SummaryWriter | None = None
        if not enabled:
            return
        self._workdir = epath.Path(workdir)
        self._path = self._workdir / _FILE
        self._remote = files.is_remote(workdir)
        self._lines = _lines_until(self._path, start_step)
        self._written = time.monotonic()
        files.write_atomically(self._path, "".join(self._lines))
        self._file = None if self._remote else self._path.open("a", encoding="utf-8")
        self._tensorboard = tensorboardX.SummaryWriter(
            os.fspath(self._workdir / "tensorboard"),
            purge_step=start_step + 1 if start_step else 0,
            # The rest of the name is the time in seconds: without this a quick restart would replace the previous file.
            filename_suffix=f".from_{start_step:07d}",
        )

    def __enter__(self) -> MetricWriter:
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Writes single numbers by name; ValueError for anything else, and for the names "step" and "time"."""
        if self._tensorboard is None:
            return
        line: dict[str, Any] = {"step": int(step), "time": round(time.time(), 3)}
        for name, value in values.items():
            if name in line or np.size(value) != 1:
                raise ValueError(f"cannot log {name!r}: {'the name is taken' if name in line else np.shape(value)}")
            value = float(np.asarray(value).reshape(()))
            line[name] = value if math.isfinite(value) else None
            self._tensorboard.add_scalar(name, value, step)
        text = json.dumps(line, allow_nan=False) + "\n"
        if self._file is not None:
            self._file.write(text)
            self._file.flush()
            return
        self._lines.append(text)
        if time.monotonic() - self._written > _REMOTE_INTERVAL:
            self._write_all()

    def images(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Writes pictures, (height, width, 3) uint8, by name; ValueError if a name is no valid file name."""
        if self._tensorboard is None:
            return
        for name, picture in pictures.items():
            if not _NAME.fullmatch(name):
                raise ValueError(f"picture name {name!r} must be letters, digits, '_', '-' and '.': it names a file")
            pixels.save_png(self._workdir / "samples" / f"{name}_{step:07d}.png", picture)
            self._tensorboard.add_image(name, picture, step, dataformats="HWC")

    def close(self) -> None:
        """Writes what is pending. Later calls write nothing."""
        if self._tensorboard is None:
            return
        self._tensorboard.close()
        self._tensorboard = None
        if self._file is not None:
            self._file.close()
        else:
            self._write_all()

    def _write_all(self) -> None:
        files.write_atomically(self._path, "".join(self._lines))
        self._written = time.monotonic()


def read(workdir: epath.PathLike) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, also while it is written; none if there is no such file.

    Raises:
      UserError: if there is a broken line; a truncated last line is left out.
    """
    path = epath.Path(workdir) / _FILE
    return [values for _, values in _parsed(path)] if path.exists() else []


def _parsed(path: epath.Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each line of a file, and what it holds."""
    files.check_regular(path)
    with files.interpreting(path):
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        try:
            values = json.loads(line)
            values["step"] = int(values["step"])
            if not all(value is None or isinstance(value, int | float) for value in values.values()):
                raise TypeError("not a number")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            if number == len(lines) and not line.endswith("\n"):
                break  # the process was killed while it wrote this line
            raise UserError(f"{path}, line {number} is not a line of metrics; repair or move the file away") from error
        yield line if line.endswith("\n") else line + "\n", values


def _lines_until(path: epath.Path, last_step: int) -> list[str]:
    """Lines of an earlier process up to a step; none if the run begins at step 0."""
    if last_step == 0 or not path.exists():
        return []
    return [line for line, values in _parsed(path) if values["step"] <= last_step]
