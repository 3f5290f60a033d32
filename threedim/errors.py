"""Mistakes that the user can fix, and how the command-line programs report them."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator

_REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR)


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
    """Ends the program with "error: ..." and exit code 1 on a `UserError`, or where nothing can be written."""
    try:
        with disk_errors():
            yield
    except UserError as error:
        sys.exit(f"error: {error}")


@contextlib.contextmanager
def disk_errors(folder: str = "") -> Iterator[None]:
    """Turns the system's refusals to write (a full or read-only disk, no permission) into a `UserError`.

    It names the file, or ``folder`` if the system does not say which.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _REFUSALS:
            raise
        where = error.filename or folder
        raise UserError(f"{where}{': ' if where else ''}{os.strerror(error.errno)}") from error
