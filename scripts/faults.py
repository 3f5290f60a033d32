"""Applies the one-line faults of tests/faults.txt one after another, and checks that the tests find each.

    python -m scripts.faults [--only=TEXT] [--check]

A line of the file is ``path | original | faulty | tests``: the original text occurs once in the file, and at least one
of the tests (files or ids, slow ones included) must fail with the faulty text. ``--check`` only looks for the texts.
Works on a copy of the checkout in a temporary folder; commit or discard changes first if they matter.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[1]
FAULTS = ROOT / "tests" / "faults.txt"


class Fault(NamedTuple):
    """One line of the file."""

    path: str
    original: str
    faulty: str
    tests: str


def read() -> list[Fault]:
    """The faults; ValueError if a line is malformed or its text does not occur exactly once."""
    faults = []
    for number, line in enumerate(FAULTS.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        fields = [field.strip() for field in line.split(" | ")]
        if len(fields) != 4:
            raise ValueError(f"{FAULTS}, line {number}: expected path | original | faulty | tests")
        fault = Fault(*fields)
        if (count := (ROOT / fault.path).read_text(encoding="utf-8").count(fault.original)) != 1:
            raise ValueError(f"{FAULTS}, line {number}: {fault.original!r} occurs {count} times in {fault.path}")
        faults.append(fault)
    return faults


def is_found(fault: Fault, copy: pathlib.Path) -> bool:
    """Whether a test fails with the fault in the copy, which is restored."""
    path = copy / fault.path
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(fault.original, fault.faulty), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-m", "slow or not slow", "-p", "no:cacheprovider"]
    try:
        environment = os.environ | {"PYTHONPATH": str(copy)}
        done = subprocess.run([*command, *fault.tests.split()], cwd=copy, env=environment, capture_output=True)
    finally:
        path.write_text(text, encoding="utf-8")
    if done.returncode not in (0, 1):
        raise RuntimeError(f"{fault.path}: pytest ended with {done.returncode}:\n{done.stdout.decode()[-2000:]}")
    return done.returncode == 1


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser("python -m scripts.faults", description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", help="Only faults whose path contains this text.")
    parser.add_argument("--check", action="store_true", help="Only check that the original texts exist.")
    given = parser.parse_args()
    faults = [fault for fault in read() if given.only in fault.path]
    if given.check:
        print(f"{len(faults)} faults")
        return
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = pathlib.Path(folder) / "copy"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", ".venv", "runs", "data", "__pycache__"))
        # The ignored names are also packages here.
        shutil.copytree(ROOT / "threedim" / "data", copy / "threedim" / "data", dirs_exist_ok=True)
        for number, fault in enumerate(faults, start=1):
            found = is_found(fault, copy)
            missed += not found
            said = f"{'found ' if found else 'MISSED'} {fault.path}: {fault.faulty}"
            print(f"[{number}/{len(faults)}] {said}", flush=True)
    if missed:
        sys.exit(f"{missed} of {len(faults)} faults were not found")


if __name__ == "__main__":
    main()
