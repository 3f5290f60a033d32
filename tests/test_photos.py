"""A picture without a camera: the object is cut out, framed, and given a camera."""

import numpy as np
import pytest
from PIL import Image
from synthetic import box

from threedim import cameras, photos
from threedim.data.views import BadObjectError
from threedim.errors import UserError
from threedim.rendering.meshes import from_trimesh
from threedim.rendering.raycast import render_views
from threedim.rendering.viewpoints import default_intrinsics

SIZE = 320


@pytest.fixture(scope="module")
def shot():
    """A rendered red box, (SIZE, SIZE, 4) uint8, transparent around it."""
    camera = cameras.orbit([30], 20, 4.0, default_intrinsics(SIZE))
    mesh = from_trimesh(box([0, 0, 0], [1.2, 0.8, 0.6]))
    picture = render_views(mesh, camera, SIZE, 4)[0]
    picture[..., :3] = np.where(picture[..., 3:] > 0, [200, 40, 30], 0)
    return picture


def before(shot, background):
    """The box on a background, (SIZE, 480, 3) floats; the box is 60 pixels to the right of the middle."""
    picture = np.broadcast_to(background, (SIZE, 480, 3)).astype(np.float64)
    part = picture[:, 140 : 140 + SIZE]
    part[:] = np.where(shot[..., 3:] > 127, shot[..., :3], part)
    return Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))


def expected(shot, path):
    Image.fromarray(shot).save(path)
    return photos.photo(path).resized(64).image


def gradient_and_shadow():
    y, x = np.mgrid[:SIZE, :480]
    gradient = np.stack([150 + x / 8, 170 + y / 8, 190 - x / 10], axis=-1)
    shadow = np.exp(-(((x - 300) / 130) ** 2) - ((y - 215) / 40) ** 2)
    return gradient * (1 - 0.4 * shadow[..., None]) + np.random.default_rng(0).normal(0, 2, gradient.shape)


@pytest.mark.parametrize("background", [255.0, 90.0, gradient_and_shadow()], ids=["white", "gray", "gradient, shadow"])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_objects_before_plain_backgrounds_are_cut_out(shot, tmp_path, background, suffix):
    before(shot, background).save(tmp_path / f"photo.{suffix}")
    view = photos.photo(tmp_path / f"photo.{suffix}").resized(64)
    error = np.abs(view.image.astype(int) - expected(shot, tmp_path / "alpha.png")).max(-1)
    assert np.mean(error > 40) < 0.04, "but for pixels at the outline"
    shown = np.argwhere((view.image < 200).any(-1))
    assert np.ptp(shown, axis=0).max() + 1 == pytest.approx(photos.FILL * 64, abs=2)
    np.testing.assert_allclose(shown.min(0) + shown.max(0), 63, atol=2)


def test_the_camera_is_as_given(shot, tmp_path):
    Image.fromarray(shot).save(tmp_path / "photo.png")
    view = photos.photo(tmp_path / "photo.png", azimuth=10, elevation=35, radius=1.5, fov=40).resized(32)
    same = cameras.orbit([10], 35, 1.5, cameras.intrinsics(16 / np.tan(np.deg2rad(20)), 32))[0]
    for leaf in ("R", "t", "K"):
        np.testing.assert_allclose(getattr(view.camera, leaf), getattr(same, leaf), rtol=1e-4, atol=1e-6)
    assert pytest.approx(51.98, abs=0.01) == photos.FIELD_OF_VIEW


def test_holes_are_cut_out_and_a_mask_decides(shot, tmp_path):
    frame = shot.copy()
    frame[130:190, 120:200] = 0
    before(frame, 90.0).save(tmp_path / "photo.png")
    center = photos.photo(tmp_path / "photo.png").resized(64).image[32, 32]
    assert center.min() > 250
    mask = np.pad(shot[..., 3], ((0, 0), (140, 20)))
    Image.fromarray(mask).save(tmp_path / "mask.png")
    noise = np.random.default_rng(0).uniform(0, 255, (SIZE, 480, 3))
    before(shot, noise).save(tmp_path / "noise.png")
    with pytest.raises(UserError, match=r"noise\.png: the background is not plain, .*sample\.mask=FILE"):
        photos.photo(tmp_path / "noise.png")
    masked = photos.photo(tmp_path / "noise.png", mask=tmp_path / "mask.png").resized(64).image
    assert np.abs(masked.astype(int) - expected(shot, tmp_path / "alpha.png")).max() < 60


def test_pictures_that_hold_no_object(tmp_path, capsys):
    Image.new("RGB", (99, 80), "gray").save(tmp_path / "a.png")
    with pytest.raises(UserError, match="there is no object before the background"):
        photos.photo(tmp_path / "a.png")
    Image.new("RGBA", (99, 80)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="the whole picture is transparent"):
        photos.photo(tmp_path / "a.png")
    with pytest.raises(BadObjectError, match=r"b\.png: file is missing"):
        photos.photo(tmp_path / "b.png")
    half = Image.new("RGBA", (99, 80))
    half.paste("red", (0, 20, 60, 60))
    half.save(tmp_path / "a.png")
    photos.photo(tmp_path / "a.png")
    assert "the object reaches the edge of the picture" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "value"), [("elevation", 91), ("fov", 0), ("fill", 2), ("radius", 0)])
def test_numbers_out_of_range(tmp_path, name, value):
    with pytest.raises(UserError, match=f"{name} must be"):
        photos.photo(tmp_path / "none.png", **{name: value})
