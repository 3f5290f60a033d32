"""Compares two JSON files of one benchmark.

    python -m benchmarks.step --json=before.json
    python -m benchmarks.step --json=after.json
    python -m benchmarks.compare before.json after.json [--only=REGEX]

Prints what differs in machine, versions, commit and command, then every number that both files contain and the ratio
b/a. Times compare only if the machine is the same. Exits with code 1 if the files are of different benchmarks.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from typing import Any

from benchmarks import record
from threedim import errors, files
from threedim.errors import UserError


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Everything in nested figures with its path, such as ``training_step/seconds``."""
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(item, f"{name}/{key}".removeprefix("/"))
    else:
        yield name, value


def numbers(figures: dict[str, Any]) -> dict[str, float]:
    """The numbers in nested figures, by path."""
    return {name: value for name, value in leaves(figures) if type(value) in (int, float)}


def differences(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """One line for each difference in how two files were made."""
    before, after = (dict(leaves({name: content[name] for name in record.HEAD})) for content in (a, b))
    return [
        f"{name}: {before.get(name, '(none)')} → {after.get(name, '(none)')}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name, "(none)") != after.get(name, "(none)")
    ]


def table(a: dict[str, Any], b: dict[str, Any], only: str = "") -> list[str]:
    """Lines with name, a, b and b/a of the numbers that match ``only``; empty if there are none in common."""
    ours, theirs = numbers(a["figures"]), numbers(b["figures"])
    names = [name for name in ours if name in theirs and re.search(only, name)]
    if not names:
        return []
    width = max(map(len, names))
    lines = [f"{'':{width}}{'a':>14}{'b':>14}{'b/a':>9}"]
    for name in names:
        ratio = f"{theirs[name] / ours[name]:.3f}" if ours[name] else "-"
        lines.append(f"{name:{width}}{ours[name]:14.6g}{theirs[name]:14.6g}{ratio:>9}")
    return lines


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("a", type=files.path, help="JSON file of a benchmark")
    parser.add_argument("b", type=files.path, help="another one of the same benchmark")
    parser.add_argument("--only", default="", help="regular expression that selects numbers by name")
    given = parser.parse_args(arguments)
    with errors.one_line():
        try:
            re.compile(given.only)
        except re.error as error:
            raise UserError(f"--only={given.only!r} is not a regular expression: {error}") from error
        a, b = record.read(given.a), record.read(given.b)
        if a["benchmark"] != b["benchmark"]:
            raise UserError(f"{given.a} is of benchmarks.{a['benchmark']}, {given.b} of benchmarks.{b['benchmark']}")
        lines = table(a, b, given.only)
        if not lines:
            raise UserError(f"{given.a} and {given.b} have no number in common that matches {given.only!r}")
        print(f"benchmarks.{a['benchmark']}: a = {given.a}, b = {given.b}")
        different = differences(a, b)
        print("same machine, versions, commit and command" if not different else "made differently (a → b):")
        print("\n".join([*(f"  {line}" for line in different), *lines]))


if __name__ == "__main__":
    main()
