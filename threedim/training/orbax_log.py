"""What Orbax logs."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable
from typing import Any


def quiet_orbax() -> None:
    """Drops Orbax's progress messages, several per save, and copies of exceptions that it raises as well."""
    logging.getLogger("absl").addFilter(_not_orbax)  # adding it twice changes nothing
    logging.getLogger("asyncio").addFilter(_not_unretrieved)
    if not isinstance(sys.unraisablehook, _NotTooLate):
        sys.unraisablehook = _NotTooLate(sys.unraisablehook)


class _NotTooLate:
    """Shows what others do, but not TensorStore's threads that report to an event loop after a read has failed."""

    def __init__(self, show: Callable[[Any], None]):
        self._show = show

    def __call__(self, unraisable: Any) -> None:
        is_late = isinstance(unraisable.exc_value, RuntimeError) and "loop is closed" in str(unraisable.exc_value)
        if not is_late or threading.current_thread() is threading.main_thread():
            self._show(unraisable)


def _not_orbax(record: logging.LogRecord) -> bool:
    # Of _CHECKPOINT_METADATA nothing is used.
    is_known = record.exc_info is not None or "/metadata/" in record.pathname
    return "/orbax/" not in record.pathname or (record.levelno >= logging.WARNING and not is_known)


def _not_unretrieved(record: logging.LogRecord) -> bool:
    return "exception was never retrieved" not in record.getMessage()  # one for each array, after a failed save
