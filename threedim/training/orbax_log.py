"""What Orbax logs."""

from __future__ import annotations

import logging


def quiet_orbax() -> None:
    """Drops Orbax's progress messages, several per save, and copies of exceptions that it raises as well."""
    logging.getLogger("absl").addFilter(_not_orbax)  # adding it twice changes nothing
    logging.getLogger("asyncio").addFilter(_not_unretrieved)


def _not_orbax(record: logging.LogRecord) -> bool:
    # Of _CHECKPOINT_METADATA nothing is used.
    is_known = record.exc_info is not None or "Failed to read Metadata file" in record.getMessage()
    return "/orbax/" not in record.pathname or (record.levelno >= logging.WARNING and not is_known)


def _not_unretrieved(record: logging.LogRecord) -> bool:
    return "exception was never retrieved" not in record.getMessage()  # one for each array, after a failed save
