"""Progress: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Mapping
from typing import Any

import tqdm


class Progress(contextlib.AbstractContextManager):
    """A bar with the time left on a terminal; a plain line now and then in a log file. A context manager.

    Args:
      total: number of items.
      initial: items finished by an earlier process.
      desc: what is counted.
      enabled: False shows nothing: for all processes but one.
      interval: seconds between plain lines, if ``file`` is not a terminal.
      file: standard error if None.
    """

    def __init__(
        self, total: int, *, initial=0, desc: str = "", enabled=True, interval: float = 30.0, file: Any = None
    ):
        self.total, self.initial = total, initial
        self._desc, self._interval, self._file = desc, interval, sys.stderr if file is None else file
        self._shown: dict[str, str] = {}
        self._done, self._printed = initial, None
        self._began = self._printed_at = time.monotonic()
        self._closed, self._bar = not enabled, None
        if enabled and self._file.isatty():
            size = {"dynamic_ncols": True} if _columns(self._file) else {"ncols": 80, "nrows": 24}
            options = {"file": self._file, "smoothing": 0.1, "unit": ""} | size
            self._bar = tqdm.tqdm(total=total, initial=initial, desc=desc, **options)

    def __exit__(self, *exception) -> None:
        self.close()

    def set(self, done: int, shown: Mapping[str, float] | None = None) -> None:
        """Sets the number of finished items; ``shown`` are numbers to display by name, such as the loss."""
        for name, value in (shown or {}).items():
            self._shown[name] = f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
        previous, self._done = self._done, done
        if self._closed:
            return
        if self._bar is not None:
            if shown:
                self._bar.set_postfix(self._shown, refresh=False)
            self._bar.update(done - previous)
        elif time.monotonic() - self._printed_at >= self._interval or (self._printed is None and done > self.initial):
            self._print()

    def advance(self, count: int = 1) -> None:
        """Adds to the number of finished items."""
        self.set(self._done + count)

    def close(self) -> None:
        """Shows the final state."""
        if self._closed:
            return
        self._closed = True
        if self._bar is not None:
            self._bar.close()
        elif self._printed != self._done:
            self._print()

    def _print(self) -> None:
        self._printed, self._printed_at = self._done, time.monotonic()
        elapsed = self._printed_at - self._began
        parts = [f"{self._desc} {self._done:,}/{self.total:,} ({100 * self._done / max(self.total, 1):.0f} %)"]
        parts += [f"{name} {text}" for name, text in self._shown.items()]
        parts.append(f"{tqdm.tqdm.format_interval(elapsed)} elapsed")
        if self._done > self.initial:
            left = elapsed / (self._done - self.initial) * (self.total - self._done)
            parts.append(f"{tqdm.tqdm.format_interval(left)} left")
        print(", ".join(parts), file=self._file, flush=True)


def _columns(file: Any) -> int:
    """Of a terminal: 0 if it says so, as some of CI do, in which tqdm shows nothing."""
    try:
        return os.get_terminal_size(file.fileno()).columns
    except OSError:  # it is not of the system
        return 80


def say(line: str) -> None:
    """Prints a line; on a terminal above the bar, if there is one."""
    with tqdm.tqdm.external_write_mode(sys.stdout):
        print(line, flush=True)
