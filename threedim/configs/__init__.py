"""The folder ``configs`` of the repository, whose files are this package once it is installed (setup.py)."""

import pathlib

__path__ = [str(pathlib.Path(__file__).parents[2] / "configs")]
