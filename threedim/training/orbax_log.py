"""What Orbax logs."""

from __future__ import annotations

import logging


def quiet_orbax() -> None:
    """Drops Orbax's progress messages, several per save, and copies of exceptions that it raises as well."""
    logging.getLogger("absl").addFilter(_not_orbax)  # adding it twice changes nothing
    logging.getLogger("asyncio").addFilter(_not_unretrieved)


def _not_orbax(record: logging.LogRecord) -> bool:
    raised = record.exc_info is not None
    return "/orbax/" not in record.pathname or (record.levelno >= logging.WARNING and not raised)


def _not_unretrieved(record: logging.LogRecord) -> bool:
    return "exception was never retrieved" not in record.getMessage()  # one for each array, after a failed save
