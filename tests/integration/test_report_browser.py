"""The report in a real Chromium: slider, sort, filter, keyboard; no console message, no request; screenshots.

DLADIFF_SCREENSHOTS=docs/figures makes the screenshots of docs/report.md again: NASA's portrait of an astronaut, which
is in the public domain and comes with scikit-image, and a generated picture, protected by the tiny profile (minutes).
"""

import base64
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data

from pipeline.config import RunConfig
from pipeline.records.manifest import write_manifest
from pipeline.records.output_format import encode_png
from pipeline.report.write import write_report
from pipeline.run.actor import ProtectIdentity
from pipeline.storage.base import Storage
from pipeline.storage.open import open_storage
from tests.integration.browsers import messages
from tests.support.outputs import HOSTILE, HOSTILE_FILE, protected_output

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

PEOPLE = {"zoe": ["1.png", "2.png"], HOSTILE: [HOSTILE_FILE], "ann": [f"{i}.png" for i in range(30)]}
PEOPLE |= {"lost": ["broken.png"]} | {f"p{i}": ["1.png"] for i in range(25)}
FIRST = ".person[open]:not([hidden]) .card:not([hidden])"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    protected_output(folder, PEOPLE)
    write_report(open_storage(folder / "out"))
    return folder / "out" / "report" / "index.html"


def look(browser: Any, page: Path, *, width: int = 1280, scheme: str = "light") -> None:
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600},
    )
    features = [
        {"name": "prefers-color-scheme", "value": scheme},
        {"name": "prefers-reduced-motion", "value": "reduce"},
    ]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get(page.as_uri())


def shoot(browser: Any, file: Path, part: str, most: int = 6000) -> bytes:
    """Photograph an element of the page, WebP, at most `most` px high."""
    box = "const r = document.querySelector(arguments[0]).getBoundingClientRect(); return [r.top, r.height]"
    browser.execute_script("scrollTo(0, 0)")
    top, height = browser.execute_script(box, part)
    width = browser.execute_script("return document.documentElement.clientWidth")
    clip = {"x": 0, "y": top, "width": width, "height": min(height, most), "scale": 1}
    asked = {"captureBeyondViewport": True, "clip": clip, "format": "webp", "quality": 70}
    data = base64.b64decode(browser.execute_cdp_cmd("Page.captureScreenshot", asked)["data"])
    file.write_bytes(data)
    return data


def visible(browser: Any, part: str = ".card") -> list[str]:
    """Names of the photos, or of the identities, that the sort and filter leave."""
    script = "return [...document.querySelectorAll(arguments[0])].filter(c => !c.closest('[hidden]'))"
    names: list[str] = browser.execute_script(f"{script}.map(c => c.dataset.name)", part)
    return names


def press(browser: Any, selector: str) -> None:
    browser.execute_script("document.querySelector(arguments[0]).click()", selector)


def choose(browser: Any, name: str, value: str) -> None:
    from selenium.webdriver.support.select import Select

    Select(browser.find_element("id", name)).select_by_value(value)


def requests(browser: Any, page: Path) -> list[str]:
    """Addresses the page asked for, itself first; Chromium's own pages ask for more."""
    sent = []
    for entry in browser.get_log("performance"):
        event = json.loads(entry["message"])["message"]
        if event["method"] == "Network.requestWillBeSent" and event["params"]["documentURL"] == page.as_uri():
            sent.append(event["params"]["request"]["url"])
    return [url for url in sent if not url.startswith("data:")]


def test_the_page_is_quiet(browser: Any, page: Path) -> None:
    look(browser, page)
    assert browser.execute_script("return [...document.images].every(i => i.naturalWidth > 0 || i.closest('[hidden]'))")
    assert messages(browser) == []
    assert requests(browser, page) == [page.as_uri()]
    blocked = "return fetch('https://example.org').then(() => 'sent', () => 'blocked')"
    assert browser.execute_script(blocked) == "blocked"


def test_slider_by_mouse_and_keyboard(browser: Any, page: Path) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    look(browser, page)
    slider = browser.find_element("css selector", f"{FIRST} input[type=range]")
    cut = "return getComputedStyle(arguments[0].parentNode).getPropertyValue('--cut').trim()"
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", slider)
    assert browser.execute_script(cut, slider) == "50%"
    quarter = -round(slider.size["width"] / 4)
    ActionChains(browser).move_to_element_with_offset(slider, quarter, 0).click().perform()
    assert 20 <= int(slider.get_property("value")) <= 30
    before = int(slider.get_property("value"))
    slider.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_LEFT)
    assert browser.execute_script(cut, slider) == f"{before + 1}%"
    assert slider.get_attribute("aria-valuetext") == f"{before + 1} % original"
    outline = "return getComputedStyle(arguments[0].parentNode).outlineStyle"
    assert browser.execute_script(outline, slider) == "solid"


def test_change_shown_large_and_back(browser: Any, page: Path) -> None:
    look(browser, page)
    button = browser.find_element("css selector", f"{FIRST} .change")
    image = button.find_element("xpath", "./ancestor::article").find_element("css selector", ".compare .after")
    source = image.get_property("src")
    browser.execute_script("arguments[0].click()", button)
    assert image.get_property("src") == button.find_element("tag name", "img").get_property("src") != source
    browser.execute_script("arguments[0].click()", button)
    assert image.get_property("src") == source


def test_sort_filter_and_more(browser: Any, page: Path) -> None:
    look(browser, page)
    count = browser.find_element("id", "count")
    assert len(visible(browser, ".person")) == 24
    assert count.text == "24 of 29 identities, 59 photos"
    press(browser, "#more")
    assert len(visible(browser, ".person")) == 29
    assert not browser.find_element("id", "more").is_displayed()
    assert browser.execute_script("return document.activeElement.tagName") == "SUMMARY"
    choose(browser, "sort", "name")
    assert visible(browser, ".person")[1:4] == ["ann", "lost", "p0"]  # the hostile name begins with a sign
    choose(browser, "sort", "lost")
    assert visible(browser, ".person")[0] == "lost"
    choose(browser, "sort", "slow")
    slow = "return [...document.querySelectorAll('.person:not([hidden])')].map(p => Number(p.dataset.slow))"
    times = browser.execute_script(slow)
    assert times == sorted(times, reverse=True)
    assert len(times) == 24
    choose(browser, "status", "failed")
    assert visible(browser) == ["lost / broken.png"]
    choose(browser, "status", "")
    text = browser.find_element("id", "text")
    text.send_keys("ZOE")
    assert sorted(visible(browser)) == ["zoe / 1.png", "zoe / 2.png"]
    assert count.text == "1 identity, 2 photos"
    text.send_keys(" / 2")
    assert visible(browser) == ["zoe / 2.png"]
    assert browser.execute_script("return document.querySelector('.person:not([hidden])').open")
    text.send_keys(" nobody")
    assert browser.find_element("id", "none").is_displayed()
    text.clear()
    text.send_keys("<script>alert")
    assert len(visible(browser)) == 1
    assert messages(browser) == []


def test_identities_open_and_show_more_photos(browser: Any, page: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    look(browser, page)
    opened = "return [...document.querySelectorAll('.person:not([hidden])')].filter(p => p.open).length"
    assert 1 <= browser.execute_script(opened) < 24
    press(browser, "#all")
    assert browser.execute_script(opened) == 24
    press(browser, "#all")
    assert browser.execute_script(opened) == 0
    browser.find_element("id", "text").send_keys("ann")
    (summary,) = [s for s in browser.find_elements("css selector", ".person > summary") if s.is_displayed()]
    assert len(visible(browser)) == 12
    more = summary.find_element("xpath", "./parent::details").find_element("css selector", ".more button")
    for shown in (24, 30):
        browser.execute_script("arguments[0].click()", more)
        assert len(visible(browser)) == shown
        assert browser.execute_script("return document.activeElement.type") == "range"
    assert not more.is_displayed()
    summary.send_keys(Keys.ENTER)
    assert browser.execute_script(opened) == 0


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_fits_and_is_photographed(browser: Any, page: Path, tmp_path: Path, width: int, scheme: str) -> None:
    look(browser, page, width=width, scheme=scheme)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    dark = browser.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(20, 24, 27)"
    assert dark == (scheme == "dark")
    assert len(shoot(browser, tmp_path / "page.webp", "body")) > 10_000


def protected_astronaut(folder: Path) -> Storage:
    source, target = open_storage(folder / "in", create=True), open_storage(folder / "out", create=True)
    portrait = skimage.data.astronaut()
    y, x = np.mgrid[-1:1:256j, -1:1:256j]
    rings = np.stack([127.5 + 100 * np.sin(20 * np.hypot(x, y) + colour) for colour in range(3)], axis=-1)
    photos = {"astronaut/portrait": portrait, "astronaut/closer": portrait[:320, 64:384], "generated/rings": rings}
    for key, pixels in photos.items():
        source.put(f"{key}.png", encode_png(np.ascontiguousarray(pixels, np.uint8)))
    source.put("torn/photo.png", b"torn")
    actor = ProtectIdentity(RunConfig(input=source.uri, output=target.uri, trace=True).to_dict(), "r", "d")
    for identity in ("astronaut", "generated", "torn"):
        named = [{"key": entry.key, "uri": source.uri_of(entry.key)} for entry in source.list(f"{identity}/")]
        work = {"identity": identity, "part": 0, "parts": 1, "key": "k", "replaces": None, "photos": named, "clean": []}
        actor({"work": json.dumps(work)})
    write_manifest(target)
    return target


@pytest.mark.skipif(not os.environ.get("DLADIFF_SCREENSHOTS"), reason="names the folder for the screenshots")
def test_screenshots_of_the_docs(browser: Any, tmp_path: Path) -> None:
    folder, file = Path(os.environ["DLADIFF_SCREENSHOTS"]), tmp_path / "report.html"
    folder.mkdir(parents=True, exist_ok=True)
    write_report(protected_astronaut(tmp_path), file)
    look(browser, file, width=1100)
    press(browser, ".trace > summary")
    wide = shoot(browser, folder / "report.webp", "section[aria-labelledby=photos]", 1500)
    look(browser, file, width=390, scheme="dark")
    phone = shoot(browser, folder / "report-phone.webp", ".person", 1100)
    assert max(len(wide), len(phone)) < 150_000
    assert messages(browser) == []


def test_pictures_beside_the_page_load(browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = protected_output(tmp_path, {"ann": ["1.png", "2.png"]})
    monkeypatch.setattr("pipeline.report.write.EMBEDDED", 1)
    write_report(storage, tmp_path / "a page.html", photos=2)
    look(browser, tmp_path / "a page.html")
    browser.execute_script("document.querySelectorAll('img').forEach(i => { i.loading = 'eager' })")
    browser.execute_async_script("Promise.all([...document.images].map(i => i.decode())).then(arguments[0])")
    assert browser.execute_script("return [...document.images].every(i => i.naturalWidth > 0)")
    assert messages(browser) == []
