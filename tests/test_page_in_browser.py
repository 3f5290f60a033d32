"""The pages in Chromium: from a file, without a network, with mouse, keys and touch, on a phone, in the dark."""

import html
import os
import shutil

import numpy as np
import pytest
from playwright import sync_api
from test_page import K, pictures
from test_report import results, strip  # noqa: F401

from threedim import cameras
from threedim.evaluation import report
from threedim.output import page

pytestmark = pytest.mark.slow

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
INSTALL = "no Chromium: install it (apt-get install chromium), or set CHROMIUM to the path of a Chrome"
QUIET = ("quic", "background-networking", "component-update", "sync", "gpu")
ARGUMENTS = ["--no-sandbox", "--no-first-run", *(f"--disable-{what}" for what in QUIET)]
RING = cameras.orbit(range(45, 360, 45), 20, 2.6, K)
SPHERE = cameras.orbit([30, 60, 90, 30, 60, 90], [0, 0, 0, 50, 50, 50], 2.6, K)
PHONE = {"viewport": {"width": 320, "height": 640}, "has_touch": True, "is_mobile": True}
STILL = {"reduced_motion": "reduce"}


@pytest.fixture(scope="module")
def browser():
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if not path:
        pytest.fail(INSTALL, pytrace=False)
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, tmp_path):
    """Opens HTML from a file, and checks afterwards that nothing was asked for and nothing complained."""
    contexts, complaints = [], []

    def open_page(text, **options):
        path = tmp_path / f"{len(contexts)}.html"
        path.write_text(text, encoding="utf-8")
        contexts.append(browser.new_context(offline=True, **options))
        shown = contexts[-1].new_page()
        shown.on("console", lambda message: complaints.append(message.text))
        shown.on("pageerror", lambda error: complaints.append(str(error)))
        shown.on("request", lambda request: complaints.append(request.url) if request.url[:5] == "http:" else None)
        shown.goto(path.as_uri())
        return shown

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def render(camera=RING, samples=1, **rest):
    given, views = cameras.orbit([0], 20 if camera is RING else 0, 2.6, K), len(camera)
    return page.render("car", pictures(1), given, pictures(samples, views), camera, truth=pictures(views)[::-1], **rest)


def label(shown):
    return shown.inner_text("#where")


def drag(shown, x, y):
    box = shown.locator(".turn").first.bounding_box()
    left, top = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    shown.mouse.move(left, top)
    shown.mouse.down()
    shown.mouse.move(left + x, top + y, steps=8)
    shown.mouse.up()
    return label(shown)


def test_every_view_is_shown_with_its_truth(open_page):
    shown = open_page(render(samples=2), **STILL)
    assert shown.evaluate("[...document.images].every((img) => img.complete && img.naturalWidth)")
    seen = []
    for place in range(8):
        shown.fill("#slider", str(place))
        sources = shown.evaluate("[...document.querySelectorAll('.turn img')].map((img) => img.src)")
        button = shown.locator(".views button[aria-current]")
        expected = button.locator("img").evaluate_all("(found) => found.map((img) => img.src)")
        assert sources == (expected if place else expected * 3)
        assert label(shown) in button.inner_text()
        assert f"view {place + 1} of 8: {label(shown)}" == shown.get_attribute("#slider", "aria-valuetext")
        assert shown.locator("#scene .now").count() == 1
        seen.append(tuple(sources))
    assert len(set(seen)) == 8
    assert shown.locator("#scene .camera.input").count() == 1


def test_keys_turn_the_object(open_page):
    shown = open_page(render(), **STILL)
    assert label(shown) == "input, 20° up"
    for key, expected in (("ArrowRight", "45° left"), ("ArrowLeft", "input"), ("ArrowLeft", "45° right")):
        shown.keyboard.press(key)
        assert label(shown).startswith(expected)
    reached = []
    for _ in range(6):
        shown.keyboard.press("Tab")
        reached.append(shown.evaluate("document.activeElement.id || document.activeElement.innerText"))
        if reached[-1] == "slider":
            shown.keyboard.press("ArrowRight")
            shown.keyboard.press("Home")
            assert label(shown).startswith("input")
    assert reached[:3] == ["stage", "play", "slider"]
    shown.keyboard.press("Enter")
    assert label(shown) in reached[-1]


def test_a_drag_turns_the_object(open_page):
    shown = open_page(render(), **STILL)
    assert drag(shown, 75, 0).startswith("45° left"), "the object follows the hand: the camera moves the other way"
    assert drag(shown, -150, 40).startswith("45° right")
    shown.mouse.move(5, 5)
    assert label(shown).startswith("45° right"), "let go"
    sphere = open_page(render(SPHERE), **STILL)
    assert drag(sphere, -100, 0) == "60° right, 0° up"
    assert drag(sphere, 0, 80) == "60° right, 50° up"
    sphere.locator("#scene .camera:not(.now)").last.dispatch_event("click")
    assert label(sphere) != "60° right, 50° up"


def test_touch_turns_the_object(open_page):
    shown = open_page(render(), **PHONE, **STILL)
    box = shown.locator(".turn").first.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    touch = shown.context.new_cdp_session(shown)
    touch.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [{"x": x, "y": y}]})
    for step in range(1, 9):
        touch.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": [{"x": x + 10 * step, "y": y}]})
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    assert label(shown).startswith("45° left")
    shown.locator(".views button").nth(3).tap()
    assert label(shown).startswith("135° left")


def test_it_plays_unless_motion_is_unwanted(open_page):
    shown = open_page(render())
    sync_api.expect(shown.locator("#where")).to_contain_text("90° left")
    shown.click("#play")
    stopped = label(shown)
    shown.wait_for_timeout(1500)
    assert (label(shown), shown.get_attribute("#play", "aria-label")) == (stopped, "Play")
    still = open_page(render(), **STILL)
    still.wait_for_timeout(1500)
    assert label(still).startswith("input")
    still.click("#play")
    sync_api.expect(still.locator("#where")).to_contain_text("90° left")


def test_it_works_inside_a_notebook(open_page):
    shown = open_page(f'<iframe style="width:700px;height:700px" srcdoc="{html.escape(render())}"></iframe>', **STILL)
    inside = shown.frame_locator("iframe")
    inside.locator(".views button").nth(2).click()
    assert inside.locator("#where").inner_text().startswith("90° left")


def pages(results):  # noqa: F811
    steps = {step: pictures(2) for step in range(8)}
    yield render(samples=8, steps=steps, settings={"weights": "0123456789abcdef" * 4}, links={"video": "turn.mp4"})
    yield page.overview("Many", {f"{'long_name_' * 6}{i}": ("index.html", pictures(3)) for i in range(5)})
    yield report.render(results, {"Best objects": [strip("long_name_" * 8)]})


def test_no_page_scrolls_sideways_on_a_phone(open_page, results):  # noqa: F811
    for text in pages(results):
        shown = open_page(text, **PHONE)
        assert shown.evaluate("document.documentElement.scrollWidth") == 320


def test_pages_are_dark_at_night_and_legible(open_page, results):  # noqa: F811
    for text in pages(results):
        for scheme in ("light", "dark"):
            shown = open_page(text, color_scheme=scheme, **STILL)
            colors = shown.evaluate(
                "[...document.querySelectorAll('body, .soft, a, .input')].map((one) => getComputedStyle(one).color)"
            )
            paper = luminance(shown.evaluate("getComputedStyle(document.body).backgroundColor"))
            assert (paper < 0.1) == (scheme == "dark")
            for color in set(colors):
                low, high = sorted((luminance(color), paper))
                assert (high + 0.05) / (low + 0.05) >= 4.5, f"{color} on {scheme} paper"


def luminance(color):
    """WCAG's relative luminance of "rgb(1, 2, 3)"."""
    channels = np.array(color.strip("rgba()").split(",")[:3], float) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]
