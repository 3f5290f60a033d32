"""Mistakes that the user can fix, and how the command-line programs report them."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator

_REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR)
_LONGEST = 1000  # letters of a line


class UserError(ValueError):
    """A mistake that the user can fix: a wrong setting, a missing or damaged file, data that does not fit.

    Programs print it as one line. Any other exception is a bug, or raised by somebody's own code: it keeps its
    traceback. What the message quotes from files is shortened, and shown without control characters.
    """

    def __init__(self, message: object = ""):
        super().__init__("\n".join(map(_readable, str(message).split("\n"))))


def _readable(line: str) -> str:
    line = line if len(line) <= _LONGEST else f"{line[: _LONGEST // 2]} … {line[-_LONGEST // 4 :]}"
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in line)


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
