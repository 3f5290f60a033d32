"""Settings are compared, and what was made with other ones is neither resumed nor mixed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
from etils import epath

from threedim.errors import UserError


def plain(config: Any) -> Any:
    """A config, a section of it or a nested dict as JSON reads it back: tuples become lists.

    Raises:
      UserError: if JSON cannot represent a value.
    """
    try:
        content = config.to_dict() if isinstance(config, ml_collections.ConfigDict) else config
        return json.loads(json.dumps(content, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise UserError(f"config cannot be written as JSON: {error}") from error


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested dicts by dotted name."""
    flat = {}
    for key, value in settings.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def differences(
    before: Mapping[str, Any], after: Mapping[str, Any], only: Sequence[str] = (), ignore: Sequence[str] = ()
) -> list[str]:
    """Lines such as "train.batch_size: 128 → 64" for the settings that differ.

    Args:
      before, after: nested dicts of JSON values, such as `plain` returns.
      only: fields or sections to compare; all if empty.
      ignore: fields or sections to leave out.
    """
    before, after = flatten(before), flatten(after)

    def within(name: str, fields: Sequence[str]) -> bool:
        return any(f"{name}.".startswith(f"{field}.") for field in fields)

    return [
        f"{name}: {_text(before, name)} → {_text(after, name)}"
        for name in sorted(before.keys() | after.keys())
        if (not only or within(name, only))
        and not within(name, ignore)
        # Equal numbers are equal settings: 1 is 1.0. An absent one differs from None.
        and (before.get(name) != after.get(name) or (name in before) != (name in after))
    ]


def refuse(what: str, changes: Sequence[str], advice: str) -> None:
    """Raises a `UserError` that lists the changes, if there are any."""
    if changes:
        raise UserError("\n  ".join([f"{what} (before → now):", *changes]) + f"\n{advice}")


def _text(flat: Mapping[str, Any], name: str) -> str:
    text = json.dumps(flat[name], ensure_ascii=False) if name in flat else "(absent)"
    return text if len(text) <= 100 else f"{text[:80]}… ({len(text)} long)"


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
        changes = differences(before, plain(now))
        refuse(f"{folder} holds {what} other settings", changes, advice)
    elif folder.exists() and any(not child.name.startswith(".") for child in folder.iterdir()):
        raise UserError(f"{folder} is not empty and has no {path.name}. {advice}")
