"""README and docs: the Python example runs, and the commands, files, flags and links that they name exist."""

import importlib.util
import pathlib
import re
import webbrowser
from unittest import mock

import ml_collections
import numpy as np
import pytest
from tiny import small_model

import threedim
from threedim.configs import base
from threedim.data.objects import read_object

ROOT = pathlib.Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG", "benchmarks/README")]
PAGES += [*sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "threedim" / "pretrained").glob("*.md"))]


@pytest.fixture(params=PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def page(request):
    return request.param


def test_readme_is_short():
    assert len(README.read_text().splitlines()) <= 120


def run_example(folder):
    """The README's Python block as it stands, in a folder that has ``docs``; returns the views that it writes."""
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(example.splitlines()) <= 10
    (folder / "docs").symlink_to(ROOT / "docs")
    with mock.patch.object(webbrowser, "open"):
        exec(compile(example, "README.md", "exec"), {})
    return read_object("car").decode()[0][1:].astype(np.float32)


def test_python_example_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(threedim, "load", small_model)
    monkeypatch.chdir(tmp_path)
    assert run_example(tmp_path).shape == (8, 64, 64, 3)


@pytest.mark.slow
def test_python_example_samples_an_object(tmp_path, monkeypatch):
    """An object of the input's color, in the middle of a white image."""
    monkeypatch.chdir(tmp_path)
    views = run_example(tmp_path)
    assert len(views) == 8
    for view in views:
        assert view[:4].mean() > 230
        middle = view[24:40, 24:40].mean((0, 1))
        assert middle.argmax() == 2, "the bus is blue"
        assert middle.mean() < 150


def test_modules_exist(page):
    for name in re.findall(r"python -m ([\w.]+)", page.read_text()):
        assert importlib.util.find_spec(name), f"{page.name}: python -m {name}"


def test_python_of_the_camera_page_runs():
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "cameras.md").read_text(), re.DOTALL)
    names = {}
    exec(compile(example, "cameras.md", "exec"), names)
    assert len(names["circle"]) == 8


def commands(page):
    """Lines of code blocks, those that end in a backslash joined with the next."""
    fence = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
    blocks = [text for language, text in fence.findall(page.read_text()) if not language]
    inline = re.findall(r"`([^`\n]+)`", fence.sub("", page.read_text()))
    return "".join(blocks).replace("\\\n", " ").splitlines() + inline


def test_flags_of_modules_exist(page):
    for command in commands(page):
        for name, arguments in re.findall(r"python -m ((?:threedim|scripts|benchmarks)[\w.]*)(.*)", command):
            file = pathlib.Path(importlib.util.find_spec(name).origin)
            source = file.read_text()
            if len(source.splitlines()) < 20:  # an entry point that only calls another module
                (module,) = re.findall(r"from (threedim\S+) import \w+", source)
                source = (ROOT / module.replace(".", "/")).with_suffix(".py").read_text()
            if name.startswith("benchmarks."):
                source += (ROOT / "benchmarks" / "record.py").read_text()  # --json of all of them
            if "add_fit_flags" in source:
                source += (ROOT / "threedim" / "consistency" / "flags.py").read_text()
            for flag in re.findall(r" --(\w+)(?![\w.])", arguments.split(" -- ")[0]):
                known = f'"{flag}"' in source or f'"--{flag}"' in source or flag == "help"
                assert known, f"{page.name}: python -m {name} --{flag}"


def test_options_of_launch_scripts_exist(page):
    for command in commands(page):
        for script, arguments in re.findall(r"launch/(\w+\.sh)(.*)", command):
            source = (ROOT / "launch" / script).read_text()
            for option in re.findall(r" --(\w+)", arguments.split(" -- ")[0]):
                assert re.search(rf"^# .*--{option}\b", source, re.MULTILINE), f"{page.name}: {script} --{option}"


def test_extras_exist(page):
    setup = (ROOT / "setup.py").read_text()
    for extra in re.findall(r"'\.\[(\w+)\]'", page.read_text()):
        assert f'"{extra}": [' in setup, f"{page.name}: .[{extra}]"


def test_files_exist(page):
    for name in re.findall(
        r"\b((?:configs|launch|threedim|tests|scripts|benchmarks)/[\w./]+\.(?:py|sh))", page.read_text()
    ):
        assert (ROOT / name).is_file(), f"{page.name}: {name}"


def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            titles = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles], target


def test_config_fields_exist(page):
    """Both ``--config.a.b`` and ``config.a.b``."""
    for name in re.findall(r"\bconfig((?:\.[a-z_]\w*)+)", page.read_text()):
        node, parts = base.get_config(), name.split(".")[1:]
        if parts in (["py"], ["json"]):  # files
            continue
        for part in parts:
            assert isinstance(node, ml_collections.ConfigDict), f"{page.name}: config{name}"
            assert part in node, f"{page.name}: config{name}"
            node = node[part]


def test_fields_of_a_table_exist():
    """Tables headed "field of `config.sample`" name its fields alone."""
    text = (ROOT / "docs" / "sampling.md").read_text()
    sample = base.get_config().sample
    tables = re.findall(r"\| field of `config\.sample` .*\n\| [- |]+\n((?:\|.*\n)+)", text)
    assert len(tables) == 2
    for row in "".join(tables).splitlines():
        for name in re.findall(r"`(\w+)`", row.split("|")[1]):
            assert name in sample, name
