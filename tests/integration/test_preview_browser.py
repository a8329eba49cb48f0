"""The preview in a real Chromium: slider, strengths, zoom, keyboard; no console message, no request; screenshots."""

import base64
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dladiff.core.exchange import PhotoIn
from dladiff.settings.presets import STRENGTHS
from pipeline.report.preview_page import SIDE, Picture, render
from pipeline.report.preview_worker import Done
from pipeline.sources.decode import Decoded
from tests.integration.browsers import messages
from tests.support.fakes import AddNoise

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

HOSTILE = "<img src=x onerror=alert(1)>\"'&.jpg"
COLOURS = {"original": (90, 90, 90), "faint": (130, 90, 90), "balanced": (90, 160, 90), "strong": (90, 90, 200)}
LINE = "return parseFloat(document.getElementById('stage').style.getPropertyValue('--at'))"
SCALE = "return new DOMMatrix(getComputedStyle(document.getElementById('after')).transform)"


def written(file: Path, width: int, height: int) -> Path:
    """A page whose versions are plain colours, so that a screenshot says which one is seen."""
    versions = {name: np.full((height, width, 3), colour, np.uint8) for name, colour in COLOURS.items()}
    one = AddNoise._one(PhotoIn(key="k", pixels=versions["original"]), 0)
    faces = [{"box": [10.0, 10.0, 50.0, 50.0]}]
    done = {
        name: Done(photo=replace(one, pixels=versions[name], faces=faces), seconds=1.0, note="") for name in STRENGTHS
    }
    text = render(Picture(HOSTILE, Decoded(pixels=versions["original"])), done, "tiny", ["a note"])
    file.write_text(text, encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("preview") / "a page.html", 300, 200)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("preview") / "large.html", SIDE + 800, 1200)


def look(browser: Any, page: Path, *, width: int = 1280, scheme: str = "light") -> None:
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [
        {"name": "prefers-color-scheme", "value": scheme},
        {"name": "prefers-reduced-motion", "value": "reduce"},
    ]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get(page.as_uri())
    settle(browser)
    browser.execute_script("document.getElementById('stage').scrollIntoView({block: 'center'})")


def settle(browser: Any) -> None:
    """Wait until the pictures are decoded and the page has placed them."""
    wait = "Promise.all([...document.images].map(i => i.decode())).then(() => requestAnimationFrame(() => "
    browser.execute_async_script(f"{wait}requestAnimationFrame(arguments[0])))")


def seen(browser: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Colours of the stage 60 px left and right of the line, near its top, as the screen shows them."""
    settle(browser)
    box = "const r = document.getElementById('stage').getBoundingClientRect(); return [r.left, r.top, r.height]"
    left, top, height = browser.execute_script(box)
    shot = Image.open(io.BytesIO(base64.b64decode(browser.get_screenshot_as_base64()))).convert("RGB")
    at = left + browser.execute_script(LINE)
    y = round(top + height / 2 + 50)
    found = [shot.getpixel((round(at + shift), y)) for shift in (-60, 60)]
    return tuple(found)  # type: ignore[return-value]


def zoomed(browser: Any) -> tuple[float, float, float]:
    """Scale and corner of the picture."""
    return tuple(browser.execute_script(f"const m = (() => {{ {SCALE} }})(); return [m.a, m.e, m.f]"))


def press(browser: Any, selector: str) -> None:
    browser.execute_script("document.querySelector(arguments[0]).click()", selector)


def requests(browser: Any, page: Path) -> list[str]:
    sent = []
    for entry in browser.get_log("performance"):
        event = json.loads(entry["message"])["message"]
        if event["method"] == "Network.requestWillBeSent" and event["params"]["documentURL"] == page.as_uri():
            sent.append(event["params"]["request"]["url"])
    return [url for url in sent if not url.startswith("data:")]


def test_the_page_is_quiet_and_every_strength_is_shown(browser: Any, page: Path) -> None:
    look(browser, page)
    for name in ("balanced", "faint", "strong"):
        press(browser, f"[data-strength={name}]")
        assert seen(browser) == (COLOURS["original"], COLOURS[name])
        assert browser.find_element("id", "shown").text == name.capitalize()
        (pressed,) = browser.find_elements("css selector", ".choice[aria-pressed=true]")
        assert pressed.get_attribute("data-strength") == name
        marked = browser.find_elements("css selector", ".scores .chosen")
        assert {cell.get_attribute("data-strength") for cell in marked} == {name} and len(marked) > 4
    assert browser.execute_script("return [...document.images].every(i => i.naturalWidth > 0)")
    assert browser.find_element("css selector", ".where code").text == HOSTILE
    assert messages(browser) == []
    assert requests(browser, page) == [page.as_uri()]
    blocked = "return fetch('https://example.org').then(() => 'sent', () => 'blocked')"
    assert browser.execute_script(blocked) == "blocked"


def test_slider_by_keyboard_and_line_by_mouse(browser: Any, page: Path) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    look(browser, page)
    stage, slider = browser.find_element("id", "stage"), browser.find_element("id", "cut")
    middle = browser.execute_script(LINE)
    assert middle == pytest.approx(stage.size["width"] / 2, abs=2)
    slider.send_keys(Keys.ARROW_LEFT, Keys.ARROW_LEFT, Keys.ARROW_RIGHT)
    assert slider.get_attribute("aria-valuetext") == "49 % original"
    assert browser.execute_script(LINE) < middle
    ActionChains(browser).move_to_element(stage).click_and_hold().move_by_offset(200, 30).release().perform()
    assert browser.execute_script(LINE) == pytest.approx(middle + 200, abs=6)
    assert seen(browser) == (COLOURS["original"], COLOURS["balanced"])
    slider.send_keys(Keys.HOME)
    assert slider.get_attribute("aria-valuetext") == "0 % original"
    settle(browser)
    assert browser.execute_script("return getComputedStyle(document.getElementById('before')).clipPath") == (
        "inset(0px 300px 0px 0px)"
    )
    assert messages(browser) == []


def test_zoom_by_button_wheel_keyboard_and_drag(browser: Any, page: Path) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.actions.wheel_input import ScrollOrigin
    from selenium.webdriver.common.keys import Keys

    look(browser, page)
    stage, output = browser.find_element("id", "stage"), browser.find_element("id", "zoomed")
    fitting = min(stage.size["width"] / 300, stage.size["height"] / 200)
    assert zoomed(browser)[0] == pytest.approx(fitting, rel=0.01)
    for wanted, times in (("1", 1), ("2", 2)):
        press(browser, f"[data-zoom='{wanted}']")
        assert zoomed(browser)[0] == times and output.text == f"{100 * times} %"
        (pressed,) = browser.find_elements("css selector", "[data-zoom][aria-pressed=true]")
        assert pressed.get_attribute("data-zoom") == wanted
    assert browser.execute_script("return getComputedStyle(document.getElementById('after')).imageRendering") == (
        "pixelated"
    )
    press(browser, "[data-zoom=fit]")
    origin = ScrollOrigin.from_element(stage, 100, 50)
    scrolled = browser.execute_script("return scrollY")
    for _ in range(2):
        ActionChains(browser).scroll_from_origin(origin, 0, -100).perform()
    assert browser.execute_script("return scrollY") == scrolled
    scale, x, y = zoomed(browser)
    assert scale == pytest.approx(fitting * 1.25**2, rel=0.01)
    ActionChains(browser).move_to_element_with_offset(stage, 200, 0).click_and_hold().move_by_offset(
        40, -30
    ).release().perform()
    _, moved_x, moved_y = zoomed(browser)
    assert (moved_x - x, moved_y - y) == (40, -30)
    stage.send_keys(Keys.ARROW_RIGHT)
    assert zoomed(browser)[1] == moved_x - 60
    stage.send_keys("+")
    assert zoomed(browser)[0] == pytest.approx(scale * 1.25, rel=0.01)
    for key, expected in (("2", 2), ("1", 1), ("0", fitting)):
        stage.send_keys(key)
        assert zoomed(browser)[0] == pytest.approx(expected, rel=0.01)
    for _ in range(30):
        stage.send_keys("+")
    assert zoomed(browser)[0] == 8
    assert seen(browser) == (COLOURS["original"], COLOURS["balanced"])
    outline = "return getComputedStyle(document.activeElement).outlineStyle"
    assert browser.execute_script(outline) == "solid"
    assert messages(browser) == []


def test_at_fit_the_wheel_scrolls_the_page(browser: Any, page: Path) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.actions.wheel_input import ScrollOrigin

    look(browser, page)
    scrolled, before = browser.execute_script("return scrollY"), zoomed(browser)
    origin = ScrollOrigin.from_element(browser.find_element("id", "stage"), 0, 0)
    ActionChains(browser).scroll_from_origin(origin, 0, 100).perform()
    browser.execute_async_script("setTimeout(arguments[0], 300)")
    assert browser.execute_script("return scrollY") > scrolled
    assert zoomed(browser) == before


def test_a_large_photo_has_its_face_at_full_size(browser: Any, large: Path) -> None:
    from selenium.webdriver.support.select import Select

    look(browser, large)
    size = "const i = document.getElementById(arguments[0]); return [i.naturalWidth, i.naturalHeight]"
    assert browser.execute_script(size, "after") == browser.execute_script(size, "before") == [SIDE, SIDE // 2]
    Select(browser.find_element("id", "view")).select_by_value("detail")
    settle(browser)
    assert browser.execute_script(size, "after") == browser.execute_script(size, "before") == [256, 256]
    press(browser, "[data-strength=strong]")
    assert seen(browser) == (COLOURS["original"], COLOURS["strong"])
    Select(browser.find_element("id", "view")).select_by_value("whole")
    settle(browser)
    assert browser.execute_script(size, "after") == [SIDE, SIDE // 2]
    assert seen(browser) == (COLOURS["original"], COLOURS["strong"])
    assert messages(browser) == []


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_fits_in_every_scheme(browser: Any, large: Path, width: int, scheme: str) -> None:
    look(browser, large, width=width, scheme=scheme)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    dark = browser.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(20, 24, 27)"
    assert dark == (scheme == "dark")
    inside = "const t = document.querySelector('.scores'); return t.scrollWidth <= t.parentNode.clientWidth"
    assert browser.execute_script(inside)
    assert messages(browser) == []
