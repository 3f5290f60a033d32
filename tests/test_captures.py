"""What captures of real objects have: lens distortion, and names of pictures that are not exact."""

import numpy as np
import pytest
from layouts import assert_dots_are_where_cameras_see_them, edit_json, make_scene, write_colmap, write_nerfstudio

from threedim.data.objects import read_object
from threedim.data.views import ReadSettings


def brown(k1, k2, p1, p2, k3=0.0):
    """OpenCV's formula."""

    def lens(points):
        x, y = points.T
        r2 = x**2 + y**2
        radial = 1 + k1 * r2 + k2 * r2**2 + k3 * r2**3
        bent_x = x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x**2)
        return np.stack([bent_x, y * radial + p1 * (r2 + 2 * y**2) + 2 * p2 * x * y], axis=-1)

    return lens


@pytest.mark.parametrize(
    ("model", "coefficients"),
    [
        ("SIMPLE_RADIAL", (-0.5, 0, 0, 0)),
        ("RADIAL", (-0.7, 0.6, 0, 0)),
        ("OPENCV", (0.3, 0.5, -0.03, 0.03)),
        ("FULL_OPENCV", (0.3, 0.5, 0.03, -0.03, 2.0)),
    ],
)
@pytest.mark.parametrize("size", [(160, 160), (240, 190)])
def test_lens_distortion_is_undone(tmp_path, model, coefficients, size):
    pictures, poses = make_scene(*size, views=3, dot=2, lens=brown(*coefficients))
    used = [value for value in coefficients if value]
    extra = " ".join(map(str, (*used, 0, 0, 0) if model == "FULL_OPENCV" else used))
    write_colmap(tmp_path / "one", pictures, poses, model=model, extra=extra)
    names = dict(zip(("k1", "k2", "p1", "p2", "k3"), coefficients, strict=False))
    write_nerfstudio(tmp_path / "two", pictures, poses, **names)
    for name in ("one", "two"):
        views = read_object(tmp_path / name, ReadSettings(fit="pad"))
        assert_dots_are_where_cameras_see_them(views)
        assert views.warnings == ()
    write_nerfstudio(tmp_path / "three", pictures, poses)
    with pytest.raises(AssertionError):  # the scene shows the difference
        assert_dots_are_where_cameras_see_them(read_object(tmp_path / "three", ReadSettings(fit="pad")))


def rename_pictures(change):
    def edit(folder):
        for path in (folder / "images").iterdir():
            path.rename(path.with_name(change(path.name)))

    return edit


def rename_frames(change):
    return edit_json(lambda content: [one.update(file_path=change(one["file_path"])) for one in content["frames"]])


@pytest.mark.parametrize(
    "edit",
    [
        rename_pictures(str.upper),
        rename_pictures(lambda name: name.replace(".png", ".jpg")),
        rename_frames(lambda name: name.removesuffix(".png")),
        rename_frames(lambda name: name.replace("/", "\\")),
        rename_frames(lambda name: f"/home/someone/capture/{name}"),
        rename_frames(lambda name: f"C:\\capture\\{name}"),
        rename_frames(lambda name: f"../../capture/{name}"),
        rename_frames(lambda name: name.removeprefix("images/")),
        edit_json(lambda content: content["frames"].append(content["frames"][0])),
        lambda folder: (folder / "transforms.json").write_text((folder / "transforms.json").read_text(), "utf-16"),
    ],
)
def test_names_of_pictures_need_not_be_exact(tmp_path, edit):
    pictures, poses = make_scene(views=3)
    write_nerfstudio(tmp_path / "one", pictures, poses)
    edit(tmp_path / "one")
    views = read_object(tmp_path / "one")
    assert (len(views.pngs), views.unread) == (3, ())
    assert_dots_are_where_cameras_see_them(views)
