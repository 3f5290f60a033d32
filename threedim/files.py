"""Writing files and folders whole or not at all, on a local disk and on object stores (gs://)."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator

from etils import epath

from threedim.errors import ExistsError


def is_remote(path: epath.PathLike) -> bool:
    """Whether a path names an object store ("gs://..."): no appending there, and a written object appears at once."""
    return "://" in os.fspath(path)


def write_atomically(path: epath.PathLike, data: bytes | str) -> None:
    """Writes a file so that a reader, or a crash at any moment, finds the old content or the new, never a part.

    Missing parent folders are made; an existing file is replaced. Text is written as UTF-8.
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
    """Yields a hidden sibling to fill, which becomes ``folder`` on success and is deleted on an exception.

    What a killed process left behind is deleted by the next one that makes the same folder. Parents are made.

    Raises:
      FileExistsError: if ``folder`` exists.
    """
    folder = epath.Path(folder)
    if folder.exists():
        raise ExistsError(f"{folder} exists; choose another folder or delete it")
    # Hidden, so that nobody who lists the parent takes a half-written folder for a whole one.
    temporary = folder.parent / f".{folder.name}.incomplete"
    if temporary.exists():
        temporary.rmtree()
    temporary.mkdir(parents=True)
    try:
        yield temporary
        temporary.rename(folder)
    except BaseException:
        temporary.rmtree(missing_ok=True)
        raise
