"""What setup.py installs, and how configs are found by name."""

import pathlib
import runpy
from importlib import metadata
from unittest import mock

import setuptools

from threedim import config as config_lib

REPOSITORY = pathlib.Path(__file__).parents[1]


def test_configs_are_installed_as_a_part_of_the_package(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    with mock.patch.object(setuptools, "setup") as setup:
        runpy.run_path("setup.py")
    given = setup.call_args.kwargs
    build = setuptools.Distribution({**given, "script_name": "setup.py"}).get_command_obj("build_py")
    build.ensure_finalized()
    modules = {name: pathlib.Path(file) for *name, file in build.find_all_modules() for name in [".".join(name)]}
    assert {name.partition(".")[0] for name in modules} == {"threedim"}
    assert modules["threedim.configs.__init__"] == pathlib.Path("configs/__init__.py"), "not the stand-in"
    assert modules["threedim.configs.ablations.regression"] == pathlib.Path("configs/ablations/regression.py")
    data = {f"{package}/{name}" for package, _, _, names in build.data_files for name in names}
    assert {"threedim/py.typed", "threedim.pretrained/shapes64.safetensors"} <= data
    (command,) = given["entry_points"]["console_scripts"]
    name, _, target = command.partition(" = ")
    assert name == "threedim"
    assert callable(metadata.EntryPoint(name, target, "console_scripts").load())


def test_a_config_is_a_file_or_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = REPOSITORY / "configs"
    assert config_lib.find("srn_cars") == str(folder / "srn_cars.py")
    assert config_lib.find("own_objects:24gb") == f"{folder / 'own_objects.py'}:24gb"
    assert config_lib.find("ablations/regression:cars") == f"{folder / 'ablations/regression.py'}:cars"
    assert config_lib.find("configs/demo.py:x") == "configs/demo.py:x", "a file, there or not"
    assert {"demo", "ablations/regression"} <= set(config_lib.names())
    assert not any(name.rpartition("/")[2][0] == "_" for name in config_lib.names())
    (tmp_path / "srn_cars").touch()
    assert config_lib.find("srn_cars") == "srn_cars"
