"""Provenance of results: commit, package versions, machine, device, files."""

from __future__ import annotations

import hashlib
import os
import pathlib
import platform
import subprocess
from importlib import metadata
from typing import Any

import jax
from etils import epath

_PACKAGES = ("jax", "jaxlib", "flax", "numpy", "scipy", "pillow", "dm-pix")


def commit() -> dict[str, Any] | None:
    """The git commit of this code and whether files were modified; None outside of a git checkout."""
    here = pathlib.Path(__file__).resolve()

    def git(*arguments: str) -> str:
        # Read only: no locks.
        command = ["git", "--no-optional-locks", "-C", str(here.parent), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.strip()

    try:
        # An installed copy may be inside of another checkout.
        git("ls-files", "--error-unmatch", "__init__.py")
        changed = git("status", "--porcelain", "--untracked-files=no", "--", str(here.parents[1]))
        return {"hash": git("rev-parse", "HEAD"), "modified": bool(changed)}
    except (OSError, subprocess.SubprocessError):
        return None


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in _PACKAGES}


def processor() -> dict[str, Any]:
    """CPU model, and the number of cores that this process may use."""
    model = platform.processor() or platform.machine()
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        named = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = named[0] if named else model
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cpu": model, "cores": cores}


def device() -> dict[str, Any]:
    """The devices of this process, and the number of processes."""
    first, *others = jax.local_devices()
    found = {"platform": first.platform, "kind": first.device_kind}
    return found | {"count": 1 + len(others), "processes": jax.process_count()}


def file_identity(path: epath.PathLike) -> dict[str, str]:
    """Name and sha256 of a file."""
    with epath.Path(path).open("rb") as file:
        return {"name": epath.Path(path).name, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
