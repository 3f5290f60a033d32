"""Output folders are resumed with the settings that they were begun with, and never mixed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from threedim import config as config_lib
from threedim.errors import UserError


def read_json(path: epath.Path) -> Any:
    """The content of a file of results; `UserError` if it is damaged."""
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); move it away") from error


def check_claim(
    path: epath.Path, before: Mapping[str, Any] | None, now: Mapping[str, Any], what: str, flag: str
) -> None:
    """Raises `UserError` unless a folder is new, or holds results of the same settings.

    Args:
      path: the file in the folder that holds the settings.
      before: the settings in that file, or None if there is no file.
      now: the present settings.
      what: what the folder holds, such as "views sampled with".
      flag: the flag that chooses another folder.
    """
    folder, advice = path.parent, f"Choose another folder with {flag}, or move this one away."
    if before is not None:
        changes = config_lib.differences(before, config_lib.plain(now))
        config_lib.refuse(f"{folder} holds {what} other settings", changes, advice)
    elif folder.exists() and any(not child.name.startswith(".") for child in folder.iterdir()):
        raise UserError(f"{folder} is not empty and has no {path.name}. {advice}")
