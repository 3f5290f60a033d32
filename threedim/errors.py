"""Mistakes that the user can fix, and how the command-line programs report them."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator


class UserError(ValueError):
    """A mistake that the user can fix: a wrong setting, a missing or damaged file, data that does not fit.

    Programs print it as one line. Any other exception is a bug, or raised by somebody's own code: it keeps its
    traceback.
    """


class MissingError(UserError, FileNotFoundError):
    """A file, a folder, or something expected in it does not exist."""


class ExistsError(UserError, FileExistsError):
    """Something exists already and would be overwritten."""


@contextlib.contextmanager
def one_line() -> Iterator[None]:
    """Ends the program with "error: ..." and exit code 1 on a `UserError`."""
    try:
        yield
    except UserError as error:
        sys.exit(f"error: {error}")
