"""Two files of one benchmark side by side: what they were made with, then every number that both have.

    python -m benchmarks.step --json=before.json
    python -m benchmarks.step --json=after.json
    python -m benchmarks.compare before.json after.json [--only REGEX]

What differs in machine, versions, commit or command comes first: a ratio of times says something about the code only
where the machine is the same. Exit code 1 if the files are not of the same benchmark.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from typing import Any

from etils import epath

from benchmarks import record


def numbers(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Every number in nested figures, with the path to it: ``training_step/seconds``."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from numbers(item, f"{name}/{key}".removeprefix("/"))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from numbers(item, f"{name}/{index}")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, value


def differences(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """One line for each thing in which the heads differ, and one for rows that have no head."""
    found: dict[str, list[str]] = {}
    for row in a["figures"].keys() & b["figures"].keys() if "heads" in a and "heads" in b else [""]:
        heads = [document["heads"].get(row) if "heads" in document else document for document in (a, b)]
        if None in heads:
            found.setdefault("not known of at least one file, which is from before there were heads", []).append(row)
            continue
        flat = [dict(_leaves({part: head.get(part) for part in record.HEAD})) for head in heads]
        for name in sorted(flat[0].keys() | flat[1].keys()):
            before, after = (each.get(name, "(nothing)") for each in flat)
            if before != after:
                found.setdefault(f"{name}: {before} → {after}", []).append(row)
    return [line + (f"   ({_rows(rows)})" if rows != [""] else "") for line, rows in sorted(found.items())]


def table(a: dict[str, Any], b: dict[str, Any], only: str = "") -> list[str]:
    """Lines of name, a, b and b/a for the numbers that both have; empty if there are none that match ``only``."""
    ours, theirs = dict(numbers(a["figures"])), dict(numbers(b["figures"]))
    names = [name for name in ours if name in theirs and re.search(only, name)]
    if not names:
        return []
    width = max(map(len, names))
    lines = [f"{'':{width}}{'a':>14}{'b':>14}{'b/a':>9}"]
    for name in names:
        ratio = f"{theirs[name] / ours[name]:.3f}" if ours[name] else "-"
        lines.append(f"{name:{width}}{ours[name]:14.6g}{theirs[name]:14.6g}{ratio:>9}")
    for title, mine, others in (("a", ours, theirs), ("b", theirs, ours)):
        alone = sum(name not in others and bool(re.search(only, name)) for name in mine)
        if alone:
            lines.append(f"in {title} alone: {alone} number(s)")
    return lines


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{name} {key}".strip())
    else:
        yield name, value


def _rows(rows: list[str]) -> str:
    return sorted(rows)[0] + (f" and {len(rows) - 1} more row(s)" if len(rows) > 1 else "")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("a", type=epath.Path, help="file of a benchmark's figures")
    parser.add_argument("b", type=epath.Path, help="another one of the same benchmark")
    parser.add_argument("--only", default="", help="regular expression: the numbers to print, by name")
    given = parser.parse_args(arguments)
    try:
        re.compile(given.only)
        a, b = record.read(given.a), record.read(given.b)
    except re.error as error:
        sys.exit(f"--only={given.only!r} is no regular expression: {error}")
    except (FileNotFoundError, ValueError) as error:
        sys.exit(str(error))
    if a["benchmark"] != b["benchmark"]:
        sys.exit(f"{given.a} is of benchmarks.{a['benchmark']}, {given.b} of benchmarks.{b['benchmark']}")
    lines = table(a, b, given.only)
    if not lines:
        matching = f" that matches {given.only!r}" if given.only else ""
        sys.exit(f"{given.a} and {given.b} have no number in common{matching}")
    print(f"benchmarks.{a['benchmark']}: a = {given.a}, b = {given.b}")
    different = differences(a, b)
    print("made with the same machine, versions, commit and command" if not different else "made differently (a → b):")
    for line in different:
        print(f"  {line}")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
