"""Atomic writes of files and folders, on a local disk and on object stores (gs://)."""

from __future__ import annotations

import contextlib
import contextvars
import glob
import hashlib
import json
import os
import pathlib
import socket
import time
import uuid
import zipfile
from collections.abc import Iterator
from typing import Any

import psutil
from etils import epath

from threedim.errors import ExistsError, UserError

_INCOMPLETE = ".incomplete"
_STALE = 86_400.0  # seconds
_inside: contextvars.ContextVar[pathlib.Path | None] = contextvars.ContextVar("inside", default=None)


def is_remote(path: epath.PathLike) -> bool:
    """Whether a path is on an object store ("gs://..."), which cannot append, and where a write is atomic."""
    return "://" in os.fspath(path)


def path(text: str | None) -> str | None:
    """A path as a user gives it to a program, with ``~`` and environment variables as a shell would replace them.

    Paths of object stores ("gs://...") and None stay as they are.

    Raises:
      UserError: if the locale cannot represent a letter, of which libraries would complain once all is computed.
    """
    if text and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise UserError(f"{text!a}: Python does not read this path as UTF-8 here; set LC_ALL=C.UTF-8")
    return text if not text or is_remote(text) else os.path.expandvars(pathlib.Path(text).expanduser())


def check_name(name: str, where: epath.PathLike) -> None:
    """Raises `UserError` unless a name of an object is a file name: it may come from a file, and becomes a path."""
    if not name or name[0] == "." or {"/", "\\", "\0"} & set(name) or len(name.encode("utf-8", "replace")) > 200:
        rule = "must not be empty, begin with a dot, contain / or \\ or be longer than 200 bytes"
        raise UserError(f"{where}: {name[:50]!r} cannot be the name of an object: it {rule}")


@contextlib.contextmanager
def only_inside(folder: epath.PathLike | None) -> Iterator[None]:
    """Makes `leads_out` tell which paths lead out of a local folder; all are fine for None or an object store."""
    is_local = folder is not None and not is_remote(folder)
    token = _inside.set(pathlib.Path(folder).resolve() if is_local else None)
    try:
        yield
    finally:
        _inside.reset(token)


def leads_out(path: epath.PathLike) -> str | None:
    """What is wrong with reading a path, which links or ".." may lead out of the folder of `only_inside`, or None."""
    # Not pathlib's resolve, which raises where links lead in a circle.
    if (folder := _inside.get()) is None or (target := pathlib.Path(os.path.realpath(path))).is_relative_to(folder):
        return None
    return f"leads out of {folder}, to {target}; set allow_outside to read it"


def is_file(path: epath.PathLike) -> bool:
    """Whether there is a file: not a folder, and not a pipe, which etils takes for one, and whose reader waits."""
    return epath.Path(path).is_file() if is_remote(path) else pathlib.Path(path).is_file()


def check_regular(path: epath.PathLike) -> None:
    """Raises `UserError` if there is something else than a file at ``path``."""
    path = epath.Path(path)
    if path.exists() and not is_file(path):
        raise UserError(f"{path} is {'a folder' if path.is_dir() else 'a pipe or a device'}; expected a file")


def check_zip(archive: zipfile.ZipFile) -> None:
    """Raises `zipfile.BadZipFile` if the directory has fewer entries than it says, or leads out of the file.

    A damaged length in it hides the entries that follow, which `zipfile` does not notice.
    """
    entries = archive.infolist()
    archive.fp.seek(0, os.SEEK_END)
    archive.fp.seek(-min(archive.fp.tell(), 98 + 0xFFFF), os.SEEK_END)  # records of 56, 20 and 22 bytes, a comment
    tail = archive.fp.read()
    end = tail.rpartition(b"PK\5\6")[2]
    count, large = int.from_bytes(end[6:8], "little"), tail.rfind(b"PK\6\6")
    if count == 0xFFFF and large >= 0:  # more entries than two bytes can count
        count = int.from_bytes(tail[large + 32 : large + 40], "little")
    if count not in (len(entries), len(entries) & 0xFFFF):
        raise zipfile.BadZipFile(f"{count} entries are listed, but {len(entries)} found")
    if any(entry.header_offset < 0 for entry in entries):
        raise zipfile.BadZipFile("an entry begins before the file")


def write_atomically(path: epath.PathLike, data: bytes | str) -> None:
    """Writes a file atomically: a reader, or a crash at any time, finds the old content or the new.

    Creates parent folders; replaces an existing file. Text is written as UTF-8.
    """
    path = epath.Path(path)
    data = data.encode("utf-8") if isinstance(data, str) else data
    path.parent.mkdir(parents=True, exist_ok=True)
    if is_remote(path):
        path.write_bytes(data)
        return
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(folder: epath.PathLike) -> Iterator[epath.Path]:
    """Creates a folder atomically: yields a hidden sibling, which is renamed on success and deleted on an exception.

    Creates parent folders. Of several processes that create a folder of the same content, one does and all succeed.
    What processes left behind that were killed, on this host or a day ago, is deleted.

    Raises:
      ExistsError: if ``folder`` exists, with other content if it was created meanwhile.
    """
    folder = epath.Path(folder)
    if folder.exists():
        raise ExistsError(f"{folder} exists; choose another folder or delete it")
    # Hidden, so that listing the parent does not show an incomplete folder.
    stem = f".{folder.name}.{socket.gethostname()}"
    temporary = folder.parent / f"{stem}.{os.getpid()}.{uuid.uuid4().hex[:8]}{_INCOMPLETE}"
    temporary.mkdir(parents=True)
    for other in folder.parent.glob(f"{glob.escape(f'.{folder.name}.')}*{_INCOMPLETE}"):
        writer, pid, *_ = other.name.rsplit(".", 3)
        killed = writer == stem and not psutil.pid_exists(int(pid))
        if killed or time.time() - other.stat().mtime > _STALE:
            other.rmtree(missing_ok=True)
    try:
        yield temporary
        try:
            temporary.rename(folder)
        except OSError as error:
            if not folder.is_dir():
                raise
            if _digests(temporary) != _digests(folder):
                raise ExistsError(f"{folder} was created by another process meanwhile, with other content") from error
    finally:
        if temporary.exists():
            temporary.rmtree()


def _digests(folder: epath.Path) -> dict[str, str]:
    """The sha256 of each file in a local folder."""
    paths = [pathlib.Path(parent, name) for parent, _, names in os.walk(folder) for name in names]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def read_json(path: epath.Path) -> dict[str, Any]:
    """The content of a file that this project wrote, a JSON object; `UserError` if it is damaged or cannot be read."""
    check_regular(path)
    with interpreting(path):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:  # also a link that leads nowhere
            raise UserError(f"{path} cannot be read: {error.strerror}") from error
        if not isinstance(content, dict):
            raise TypeError(f"holds a {type(content).__name__} instead of an object")
        json.dumps(content, allow_nan=False)  # of NaN and infinity, which this project does not write
        return content


@contextlib.contextmanager
def interpreting(path: epath.PathLike, advice: str = "move it away") -> Iterator[None]:
    """Turns what wrong content of a file raises, while it is parsed and its fields are taken, into a `UserError`."""
    try:
        yield
    except UserError:
        raise
    except KeyError as error:
        raise UserError(f"{path} is damaged (it has no {error}); {advice}") from error
    except (ValueError, TypeError, AttributeError, IndexError, OverflowError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}); {advice}") from error
