"""Folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from etils import epath


@contextlib.contextmanager
def new_folder(folder: epath.PathLike) -> Iterator[epath.Path]:
    """Yields a hidden sibling to fill, which becomes ``folder`` on success and is deleted on an exception.

    What a killed process left behind is deleted by the next one that makes the same folder. Parents are made.

    Raises:
      FileExistsError: if ``folder`` exists.
    """
    folder = epath.Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} exists; choose another folder or delete it")
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
