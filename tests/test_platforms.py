"""Packages that have no wheels for some systems: the rest works without, and what needs them says so."""

import re
import runpy

import pytest
from commands import REPOSITORY, run_python
from packaging.markers import Marker

from threedim.data import records
from threedim.errors import UserError
from threedim.rendering import raycast
from threedim.rendering.render import render_procedural

# As on Windows, where grain does without array_record.
WITHOUT = """
import platform, sys
sys.modules["array_record"] = sys.modules["embreex"] = None
system, platform.system = platform.system, lambda: "Windows"
import grain
platform.system = system
import threedim.sample, threedim.training.loop, threedim.evaluation.protocol, threedim.rendering.render
"""


@pytest.mark.slow
def test_everything_can_be_imported_without():
    done = run_python("-c", WITHOUT)
    assert done.returncode == 0, done.stderr


def test_what_is_missing_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(raycast, "EmbreeScene", None)
    with pytest.raises(UserError, match=r"rendering needs the package embreex.*ARM"):
        render_procedural(tmp_path / "out", "train", num_objects=1)
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(records, "array_record_data_source", None)
    with pytest.raises(UserError, match=r"prepared data needs the package array_record.*Windows"):
        records.check_supported()


def test_markers(monkeypatch):
    monkeypatch.setattr("setuptools.setup", lambda **given: requirements.extend(given["install_requires"]))
    requirements = []
    runpy.run_path(str(REPOSITORY / "setup.py"))
    marked = dict(re.match(r"(\w+)\S+; (.*)", each).groups() for each in requirements if ";" in each)
    systems = {
        "linux x86_64": [True, True],
        "linux aarch64": [True, False],
        "darwin arm64": [True, True],
        "win32 AMD64": [False, True],
    }
    for system, installed in systems.items():
        environment = dict(zip(("sys_platform", "platform_machine"), system.split(), strict=True))
        assert [Marker(marked[name]).evaluate(environment) for name in ("array_record", "embreex")] == installed, system
