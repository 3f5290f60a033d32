"""Writing files whole or not at all, on a local disk and on object stores (gs://)."""

from __future__ import annotations

import os
import uuid

from etils import epath


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
