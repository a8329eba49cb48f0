"""The report in a real Chromium: slider, sort, filter, keyboard; no console message, no request; screenshots.

DLADIFF_SCREENSHOTS names a folder that keeps the screenshots; DLADIFF_REPORT_OF an output to photograph instead of
the made one.
"""

import base64
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.report import write_report
from pipeline.storage import open_storage
from tests.unit.test_report import HOSTILE, HOSTILE_FILE, protected_output

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PEOPLE = {"zoe": ["1.png", "2.png"], HOSTILE: [HOSTILE_FILE], "ann": [f"{i}.png" for i in range(30)]}
PEOPLE |= {"lost": ["broken.png"]}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    protected_output(folder, PEOPLE)
    write_report(open_storage(folder / "out"))
    return folder / "out" / "report" / "index.html"


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    if not CHROMIUM or not DRIVER:
        pytest.skip("no chromium and chromedriver on PATH: apt-get install chromium chromium-driver")
    webdriver = pytest.importorskip("selenium.webdriver", reason="no selenium: pip install selenium")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


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


def shoot(browser: Any, folder: Path, name: str, *, top: int = 0, height: int = 0) -> bytes:
    size = browser.execute_cdp_cmd("Page.getLayoutMetrics", {})["cssContentSize"]
    clip = {"x": 0, "y": top, "width": size["width"], "height": height or min(size["height"], 6000), "scale": 1}
    shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
    data = base64.b64decode(shot["data"])
    (folder / f"{name}.png").write_bytes(data)
    return data


def visible(browser: Any) -> list[str]:
    script = "return [...document.querySelectorAll('.card')].filter(c => !c.hidden).map(c => c.dataset.name)"
    names: list[str] = browser.execute_script(script)
    return names


def choose(browser: Any, name: str, value: str) -> None:
    from selenium.webdriver.support.select import Select

    Select(browser.find_element("id", name)).select_by_value(value)


def messages(browser: Any) -> list[Any]:
    return [entry for entry in browser.get_log("browser") if "favicon" not in entry["message"]]


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
    slider = browser.find_element("css selector", ".card:not([hidden]) input[type=range]")
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
    button = browser.find_element("css selector", ".card:not([hidden]) .change")
    image = button.find_element("xpath", "./ancestor::article").find_element("css selector", ".compare .after")
    source = image.get_property("src")
    browser.execute_script("arguments[0].click()", button)
    assert image.get_property("src") == button.find_element("tag name", "img").get_property("src") != source
    browser.execute_script("arguments[0].click()", button)
    assert image.get_property("src") == source


def test_sort_filter_and_more(browser: Any, page: Path) -> None:
    look(browser, page)
    count = browser.find_element("id", "count")
    assert len(visible(browser)) == 24
    assert count.text == "24 of 34 photos"
    more = browser.find_element("id", "more")
    browser.execute_script("arguments[0].click()", more)
    assert len(visible(browser)) == 34
    assert not more.is_displayed()
    assert browser.execute_script("return document.activeElement.type") == "range"
    choose(browser, "sort", "name")
    plain = [name for name in visible(browser) if name.startswith("ann")]
    assert plain == [f"ann / {i}.png" for i in range(len(plain))]
    choose(browser, "sort", "slow")
    slow = "return [...document.querySelectorAll('.card:not([hidden])')].map(c => Number(c.dataset.slow))"
    times = browser.execute_script(slow)
    assert times == sorted(times, reverse=True)
    assert len(times) == 24
    choose(browser, "status", "failed")
    assert visible(browser) == ["lost / broken.png"]
    choose(browser, "status", "")
    text = browser.find_element("id", "text")
    text.send_keys("ZOE")
    assert sorted(visible(browser)) == ["zoe / 1.png", "zoe / 2.png"]
    assert count.text == "2 photos"
    text.send_keys(" nobody")
    assert browser.find_element("id", "none").is_displayed()
    text.clear()
    text.send_keys("<script>alert")
    assert len(visible(browser)) == 1
    assert messages(browser) == []


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_fits_and_is_photographed(browser: Any, page: Path, tmp_path: Path, width: int, scheme: str) -> None:
    folder = Path(os.environ.get("DLADIFF_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    if other := os.environ.get("DLADIFF_REPORT_OF"):
        page = folder / "report.html"
        write_report(open_storage(other), page)
    look(browser, page, width=width, scheme=scheme)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    dark = browser.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(20, 24, 27)"
    assert dark == (scheme == "dark")
    shot = shoot(browser, folder, f"report-{'phone' if width < 600 else 'desktop'}-{scheme}")
    assert len(shot) > 10_000


def test_pictures_beside_the_page_load(browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = protected_output(tmp_path, {"ann": ["1.png", "2.png"]})
    monkeypatch.setattr("pipeline.report.EMBEDDED", 1)
    write_report(storage, tmp_path / "a page.html", photos=2)
    look(browser, tmp_path / "a page.html")
    browser.execute_script("document.querySelectorAll('img').forEach(i => { i.loading = 'eager' })")
    browser.execute_async_script("Promise.all([...document.images].map(i => i.decode())).then(arguments[0])")
    assert browser.execute_script("return [...document.images].every(i => i.naturalWidth > 0)")
    assert messages(browser) == []
