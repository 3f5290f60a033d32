"""Data never reaches outside of its folder, and a pipe in it stops nobody."""

import os

import pytest
from layouts import make_scene

from threedim.data import srn
from threedim.data.objects import read_object
from threedim.data.views import BadObjectError, ReadSettings


@pytest.fixture
def scene(tmp_path):
    """The folder of one object of a data set, and its cameras."""
    pictures, poses = make_scene()
    srn.write_object(tmp_path / "set/one", pictures, poses)
    return tmp_path / "set/one"


def test_pipes_are_refused(scene):
    path = scene / "rgb/000001.png"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(BadObjectError, match=r"000001.png: is a pipe or a device"):
        read_object(scene)


@pytest.mark.parametrize("linked", ["rgb/000001.png", "pose", "."])
def test_links_out_of_the_data_set_are_read_only_if_allowed(scene, tmp_path, linked):
    expected = read_object(scene).pngs
    (scene / linked).rename(tmp_path / "elsewhere")
    (scene / linked).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BadObjectError, match=rf"{scene / linked}: leads out of .*set, to .*elsewhere; set"):
        read_object(scene, inside=scene.parent)
    assert read_object(scene, ReadSettings(allow_outside=True), inside=scene.parent).pngs == expected


def test_a_link_that_the_user_names_is_followed(scene, tmp_path):
    (tmp_path / "link").symlink_to(scene)
    assert read_object(tmp_path / "link").pngs == read_object(scene).pngs


def test_an_object_has_the_name_of_its_folder(scene, monkeypatch):
    monkeypatch.chdir(scene / "rgb")
    assert read_object("..").name == "one"
    monkeypatch.chdir(scene)
    assert read_object(".").name == "one"


@pytest.mark.parametrize("name", ["rgb/000001.png", "pose/000001.txt", "intrinsics.txt"])
@pytest.mark.parametrize("damage", [lambda path: path.mkdir(), lambda path: path.symlink_to(path.name)])
def test_what_is_no_file_is_named(scene, name, damage):
    (scene / name).unlink()
    damage(scene / name)
    with pytest.raises(BadObjectError, match=rf"^{scene}"):
        read_object(scene)
