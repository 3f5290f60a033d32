"""The page of an object: complete, safe, self-contained, and in the order of turning."""

import base64
import io
import json
import re
import types

import numpy as np
import pytest
from parsed_page import Page
from PIL import Image

from threedim import cameras
from threedim.data import srn
from threedim.errors import ExistsError
from threedim.output import object_folder, page

SIZE = 8
K = cameras.intrinsics(SIZE, SIZE)
RING = cameras.orbit([90, 180, 270], 20, 2.6, K)
LOADING = ("src", "href", "srcset", "data", "action", "poster")


def pictures(*axes, size=SIZE):
    return np.random.default_rng(0).integers(0, 256, (*axes, size, size, 3), np.uint8)


def render(name="car", samples=1, camera=RING, elevation=20, size=SIZE, **rest):
    given = cameras.orbit([0], elevation, 2.6, K)
    return page.render(name, pictures(1, size=size), given, pictures(samples, len(camera), size=size), camera, **rest)


def content(html):
    """What the script is given."""
    return json.loads(re.search(r"<script type=application/json id=data>(.*?)</script>", html)[1])


def images(html):
    """By description."""
    found = re.findall(r'<img alt="([^"]*)" [^>]*base64,([^"]*)"', html)
    return {alt: np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")) for alt, data in found}


def test_every_picture_is_there_exactly():
    truth, steps = pictures(3)[::-1], {1: pictures(2), 250: pictures(2)[::-1]}
    html = render(samples=2, truth=truth, steps=steps, settings={"seed": 3, "num_steps": 250, "out": ""})
    Page(html)
    found, sampled = images(html), pictures(2, 3)
    np.testing.assert_array_equal(found["input view"], pictures(1)[0])
    for index, where in enumerate(("90° right", "180° left", "90° left")):
        np.testing.assert_array_equal(found[f"sample 1, {where}, 20° up"], sampled[0, index])
        np.testing.assert_array_equal(found[f"sample 2, {where}, 20° up"], sampled[1, index])
        np.testing.assert_array_equal(found[f"true, {where}, 20° up"], truth[index])
    for step, (noisy, estimate) in steps.items():
        np.testing.assert_array_equal(found[f"noisy view, step {step}"], noisy)
        np.testing.assert_array_equal(found[f"estimate, step {step}"], estimate)
    said = " ".join(Page(html).text)
    assert "3 views of 8 px, sampled from 1 input view, 250 steps, seed 3" in said
    assert "<td>seed</td><td>3</td>" in html
    assert "<td>out</td>" not in html


def test_page_is_self_contained():
    for html in (render(links={"video": "turn.mp4"}), page.overview("Two", {"a": ("a/index.html", pictures(3))})):
        for tag, attributes in Page(html).tags:
            assert tag not in ("iframe", "object", "base", "form")
            for name in LOADING if tag != "a" else ():
                assert attributes.get(name, "data:").startswith("data:")
            assert not any(name.startswith("on") for name in attributes)
        assert not re.search(r"url\(|@import|https?://", html)
        assert "default-src 'none'" in html


def test_text_is_escaped():
    name = "</script><script>alert(1)//\"'&"
    html = render(name, settings={name: name}, links={name: name})
    Page(html)
    assert html.count("<script") == 2
    assert name not in html


def test_the_object_turns_to_the_right():
    views = content(render())["views"]
    assert [view["index"] for view in views] == [0, 3, 2, 1]
    assert [view["input"] for view in views] == [True, False, False, False]
    assert views[1]["said"] == "view 2 of 4: 90° left, 20° up"
    np.testing.assert_array_equal(page.turning_order(RING), [0, 2, 1])
    center, *corners = np.array(views[0]["corners"])
    np.testing.assert_allclose(center, [np.cos(np.deg2rad(20)), 0, np.sin(np.deg2rad(20))], atol=1e-3)
    forward = np.mean(corners, axis=0) - center
    np.testing.assert_allclose(forward, -0.22 * center, atol=2e-3)
    assert (corners[1] - corners[0])[1] > 0.1  # right in the picture is towards y


def test_an_input_that_is_not_on_the_ring_stands_aside():
    found = content(render(elevation=60))
    assert found["aside"] == 1
    assert [view["index"] for view in found["views"]] == [0, 3, 2, 1]
    assert found["views"][1]["said"] == "view 1 of 3: 90° left, 20° up"


def test_cameras_on_a_sphere_keep_their_order():
    spread = cameras.orbit([90, 180, 270], [0, 30, 60], 2.6, K)
    assert [view["index"] for view in content(render(camera=spread))["views"]] == [0, 1, 2, 3]
    np.testing.assert_array_equal(page.turning_order(spread), [0, 1, 2])


def test_large_pictures_are_small_files():
    large, small = render(size=128), render()
    assert "<body>" in large
    assert "<body class=pixels>" in small
    assert len(large) < 2 * sum(128 * 128 * 3 for _ in range(4))


@pytest.mark.parametrize(
    ("environment", "terminal", "opened"),
    [
        ({"DISPLAY": ":0"}, True, True),
        ({"WAYLAND_DISPLAY": "wayland-0"}, True, True),
        ({}, True, False),
        ({"DISPLAY": ":0"}, False, False),
        ({"DISPLAY": ":0", "CI": "true"}, True, False),
    ],
)
def test_a_page_is_opened_where_somebody_looks(monkeypatch, tmp_path, environment, terminal, opened):
    seen = []
    monkeypatch.setattr(page.webbrowser, "open", seen.append)
    monkeypatch.setattr(page.os, "environ", environment)
    monkeypatch.setattr(page, "sys", types.SimpleNamespace(platform="linux", stdout=io.StringIO()))
    monkeypatch.setattr(page.sys.stdout, "isatty", lambda: terminal)
    page.open_in_browser(tmp_path / "index.html")
    assert seen == ([(tmp_path / "index.html").as_uri()] if opened else [])
    page.open_in_browser("gs://bucket/index.html")
    assert len(seen) == opened


def test_object_folder_is_whole(tmp_path, monkeypatch):
    given = (pictures(1), cameras.orbit([0], 20, 2.6, K), pictures(3), RING)
    object_folder.write(tmp_path / "views" / "car", *given, truth=pictures(3))
    expected = {"rgb", "pose", "intrinsics.txt", *srn.BESIDE}
    assert {path.name for path in (tmp_path / "views" / "car").iterdir()} == expected
    links = [attributes["href"] for tag, attributes in Page((tmp_path / "views/car/index.html").read_text()).tags
             if tag == "a"]  # fmt: skip
    assert links
    assert all((tmp_path / "views/car" / link).exists() for link in links)
    assert (
        object_folder.page_of(tmp_path) == object_folder.write_overview(tmp_path) == tmp_path / "views/car/index.html"
    )
    with pytest.raises(ExistsError):
        object_folder.write(tmp_path / "views" / "car", *given)
    monkeypatch.setattr(object_folder.video, "save_mp4", lambda *args, **rest: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        object_folder.write(tmp_path / "views" / "chair", *given)
    assert [path.name for path in (tmp_path / "views").iterdir()] == ["car"]


def test_steps_are_kept_as_a_picture(tmp_path):
    steps = np.random.default_rng(0).integers(0, 256, (3, 2, SIZE, SIZE, 3)) / 127.5 - 1
    assert object_folder.load_steps(object_folder.epath.Path(tmp_path / "steps.png"), 3) is None
    object_folder.save_steps(tmp_path / "steps.png", steps)
    found = object_folder.load_steps(object_folder.epath.Path(tmp_path / "steps.png"), 3)
    assert list(found) == [1, 2, 3]
    np.testing.assert_allclose(np.stack(list(found.values())) / 127.5 - 1, steps, atol=1e-6)
