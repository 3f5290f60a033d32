"""A folder has one writer at a time: a lock file says which process it is, and goes with it."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import psutil
from etils import epath

from threedim import files
from threedim.errors import UserError

NAME = ".lock"
# Seconds between signs of life, and without one after which a process on another host counts as gone.
_BEAT, _EXPIRES = 30.0, 120.0
_FIELDS = {"token": str, "what": str, "since": float, "host": str, "pid": int, "started": float, "alive": float}


@contextlib.contextmanager
def hold(folder: epath.PathLike, what: str) -> Iterator[None]:
    """Makes this process the only writer of a folder, local or gs://, which is created if missing.

    A lock is taken over if its holder is gone: at once if it ran on this host, otherwise two minutes after its last
    sign of life.

    Args:
      folder: holds the lock file.
      what: is done in it, for the message: "trains in".

    Raises:
      UserError: if another process holds it; says which, where and since when. Or if the folder cannot be written.
    """
    path = epath.Path(folder) / NAME
    is_new = not files.is_remote(path) and not path.parent.exists()
    mine = {"token": uuid.uuid4().hex, "what": what, "since": time.time(), **_here()}
    while not _created(path, mine):
        other = _read(path)
        if other is not None and not _is_gone(other):
            raise UserError(
                f"another process {other['what']} {folder}: {_describe(other)}. Wait for it, end it, or choose another "
                f"folder; if it is gone, delete {path}"
            )
        _remove(path, other)
    ended = threading.Event()
    beats = threading.Thread(target=_beat, args=(path, mine, ended), daemon=True, name="lock")
    beats.start()
    try:
        yield
    finally:
        ended.set()
        beats.join()
        _remove(path, mine)
        if is_new:
            with contextlib.suppress(OSError):  # something was written
                pathlib.Path(path.parent).rmdir()


def remove_left(folder: epath.PathLike) -> None:
    """Removes the lock of a process that was killed, where nothing takes it over; not in read-only folders."""
    path = epath.Path(folder) / NAME
    if (other := _read(path)) is not None and _is_gone(other):
        with contextlib.suppress(OSError):
            _remove(path, other)


def holder(folder: epath.PathLike) -> str | None:
    """The process that holds a folder, in words, or None; the lock stays as it is."""
    found = _read(epath.Path(folder) / NAME)
    return None if found is None or _is_gone(found) else _describe(found)


def _describe(holder: dict[str, Any]) -> str:
    since = time.strftime("%Y-%m-%d %H:%M", time.localtime(holder["since"]))
    return f"process {holder['pid']} on {holder['host']}, since {since}"


def _here() -> dict[str, Any]:
    """This process. The time of its start tells it from a later one of the same number."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": psutil.Process().create_time()}


def _is_gone(holder: dict[str, Any]) -> bool:
    if holder["host"] != socket.gethostname():
        return time.time() - holder["alive"] > _EXPIRES
    try:
        return abs(psutil.Process(holder["pid"]).create_time() - holder["started"]) > 5
    except psutil.NoSuchProcess:
        return True


def _created(path: epath.Path, mine: dict[str, Any]) -> bool:
    """Whether there was no lock file, and now is this one."""
    content = json.dumps(mine | {"alive": time.time()})
    if not files.is_remote(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with pathlib.Path(path).open("x") as file:
                file.write(content)
        except FileExistsError as error:
            if os.path.lexists(path):
                return False
            raise UserError(f"{path.parent} is not a folder") from error
        except OSError as error:
            raise UserError(f"{path.parent} cannot be written: {error.strerror}") from error
        return True
    if path.exists():
        return False
    path.write_text(content)
    time.sleep(1)  # object stores cannot create exclusively: the last of several writers wins
    return (_read(path) or {}).get("token") == mine["token"]


def _read(path: epath.Path) -> dict[str, Any] | None:
    """The holder; None if there is none, or if the file is damaged."""
    for _ in range(2):
        if not path.exists():  # also a link in a circle
            return None
        try:
            files.check_regular(path)
            holder = json.loads(path.read_text())
            holder = {name: kind(holder[name]) for name, kind in _FIELDS.items()}
            if all(0 <= number < 1e11 for number in holder.values() if not isinstance(number, str)):
                return holder
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            pass
        time.sleep(0.5)  # it is being written, or its writer was killed
    return None


def _remove(path: epath.Path, holder: dict[str, Any] | None) -> None:
    """Removes the lock file if it is still that of ``holder``."""
    if (_read(path) or {}).get("token") == (holder or {}).get("token"):
        path.unlink(missing_ok=True)


def _beat(path: epath.Path, mine: dict[str, Any], ended: threading.Event) -> None:
    while not ended.wait(_BEAT):
        if (_read(path) or {}).get("token") != mine["token"]:
            return
        # A full disk must not end the run. Processes on this host do not need the sign of life.
        with contextlib.suppress(OSError):
            files.write_atomically(path, json.dumps(mine | {"alive": time.time()}))
