"""Weights that come with the package: ``threedim.load("shapes64")``, ``--config.sample.weights=shapes64``.

Beside NAME.safetensors lie its model card, NAME.md, and a sheet of samples, NAME.png; configs/NAME.py is what it was
trained with. ``python -m scripts.model_card`` writes the card and the sheet.
"""

from __future__ import annotations

import os

from etils import epath

from threedim.errors import MissingError
from threedim.weights import SUFFIX

FOLDER = epath.Path(__file__).parent


def names() -> list[str]:
    """Names of the weights that there are, sorted."""
    return sorted(path.stem for path in FOLDER.glob(f"*{SUFFIX}"))


def resolve(path: epath.PathLike) -> epath.Path:
    """The file that a name stands for; anything that is no name, as it is.

    A name has neither slash nor suffix, and no file or folder of the working directory is called so.

    Raises:
      FileNotFoundError: if no weights have that name; lists those that there are.
    """
    text, path = os.fspath(path), epath.Path(path)
    if not text or "/" in text or os.sep in text or path.suffix or path.exists():
        return path
    if text not in names():
        there = f"there are: {', '.join(names())}" if names() else "this copy of the package has none yet"
        raise MissingError(
            f"{text}: no folder, and no weights of that name come with the package; {there}. A path is possible, too: "
            f"of a run's folder, or of a file ending in {SUFFIX}"
        )
    return FOLDER / f"{text}{SUFFIX}"
