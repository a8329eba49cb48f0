"""The rating page in a real Chromium: name, keyboard, mouse, end; no console message; ratings on storage."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline.evaluate.mos import Session, faces_of
from pipeline.evaluate.mos_server import make_server
from pipeline.evaluate.pairs import PairSession, pairs_of
from pipeline.evaluate.ratings import PAIRS_SHEET, read_ratings
from pipeline.evaluate.results import write_results
from pipeline.storage.open import open_storage
from tests.integration.browsers import CHROMIUM, messages
from tests.support.evaluated import evaluated
from tests.unit.pipeline.evaluate.test_mos_server import served

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def page(tmp_path: Path) -> Iterator[tuple[str, Any]]:
    if not CHROMIUM:
        pytest.skip("no chromium on PATH: apt-get install chromium chromium-driver")
    config, plan, results = evaluated(tmp_path, {"ann": ["1.png"]}, kept=2)
    write_results(results, config, plan)
    with served(make_server(Session(results, faces_of(results)), 0)) as client:
        yield client.server.address, results


@pytest.fixture
def pairs(tmp_path: Path) -> Iterator[tuple[str, Any]]:
    """The page of pairs: two people of one picture and one photo each, with controls: eight pairs."""
    if not CHROMIUM:
        pytest.skip("no chromium on PATH: apt-get install chromium chromium-driver")
    config, plan, results = evaluated(tmp_path, {"ann": ["1.png"], "bob": ["1.png"]}, kept=1)
    write_results(results, config, plan)
    for name in ("ann", "bob"):
        (tmp_path / "clean" / name).mkdir(parents=True)
        Image.new("RGB", (800, 600), "teal").save(tmp_path / "clean" / name / "1.jpg")
    references = open_storage(str(tmp_path / "clean"))
    session = PairSession(results, pairs_of(results, references), references)
    with served(make_server(session, 0)) as client:
        yield client.server.address, results


def ready(browser: Any, rated: int) -> None:
    from selenium.webdriver.support.wait import WebDriverWait

    def shown(_: Any) -> bool:
        done = browser.execute_script("return document.getElementById('count').textContent")
        idle = browser.execute_script("return !busy && document.getElementById('face').naturalWidth > 0")
        return bool(done.startswith(f"{rated} of 6") and idle)

    WebDriverWait(browser, 20).until(shown)


def press(browser: Any, key: str) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    ActionChains(browser).send_keys(key).perform()


def test_six_faces_by_keyboard_and_mouse(browser: Any, page: tuple[str, Any]) -> None:
    from selenium.webdriver.common.keys import Keys

    address, results = page
    browser.get(address)
    site = address.partition("?")[0]
    assert browser.current_url == site  # no token in the address bar and the history
    assert browser.execute_script("return document.cookie") == ""
    assert not browser.find_element("id", "rate").is_displayed()
    browser.find_element("id", "rater").send_keys("rita 5", Keys.ENTER)
    ready(browser, 0)
    assert not browser.find_element("id", "who").is_displayed()
    for i, key in enumerate("135"):
        press(browser, key)
        ready(browser, i + 1)
    press(browser, "7")  # no score
    buttons = {b.get_attribute("data-score"): b for b in browser.find_elements("css selector", "#scale button")}
    assert list(buttons) == ["5", "4", "3", "2", "1"]
    for i, score in enumerate("42"):
        buttons[score].click()
        ready(browser, i + 4)
    press(browser, "1")
    from selenium.webdriver.support.wait import WebDriverWait

    WebDriverWait(browser, 20).until(lambda b: b.find_element("id", "done").is_displayed())
    assert sorted(r["score"] for r in read_ratings(results)) == sorted("135421")
    assert {r["rater"] for r in read_ratings(results)} == {"rita 5"}
    assert messages(browser) == []
    sent = []
    for entry in browser.get_log("performance"):
        event = json.loads(entry["message"])["message"]
        if event["method"] == "Network.requestWillBeSent" and event["params"]["documentURL"].startswith(site):
            sent.append(event["params"]["request"]["url"])
    assert sent
    assert all(url.startswith(site) for url in sent)
    assert [url for url in sent if "token" in url] == [address]
    browser.get(site)  # the cookie is enough
    browser.find_element("id", "rater").send_keys("rita 5", Keys.ENTER)
    WebDriverWait(browser, 20).until(lambda b: b.find_element("id", "done").is_displayed())


def test_pairs_by_keyboard_and_mouse(browser: Any, pairs: tuple[str, Any]) -> None:
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.wait import WebDriverWait

    address, results = pairs
    browser.get(address)
    browser.find_element("id", "rater").send_keys("rita", Keys.ENTER)

    def answered(count: int) -> None:
        def shown(_: Any) -> bool:
            done = browser.execute_script("return document.getElementById('count').textContent")
            photo = "const own = document.getElementById('photo'); return !busy && own.naturalWidth === 512"
            return bool(done.startswith(f"{count} of 8") and browser.execute_script(photo))

        WebDriverWait(browser, 20).until(shown)

    answered(0)
    press(browser, "4")  # no answer
    for i, key in enumerate("12"):
        press(browser, key)
        answered(i + 1)
    for i in range(5):
        browser.find_elements("css selector", "#scale button")[2].click()
        answered(i + 3)
    press(browser, "1")
    WebDriverWait(browser, 20).until(lambda b: b.find_element("id", "done").is_displayed())
    found = sorted(r["answer"] for r in read_ratings(results, PAIRS_SHEET))
    assert found == [*["cannot say"] * 5, "different", "same", "same"]
    assert messages(browser) == []


def test_the_page_of_pairs_fits_a_phone(browser: Any, pairs: tuple[str, Any]) -> None:
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    )
    browser.get(pairs[0])
    browser.find_element("id", "rater").send_keys("rita\n")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390


def test_the_page_fits_a_phone(browser: Any, page: tuple[str, Any]) -> None:
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    )
    browser.get(page[0])
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390


def test_a_browser_without_the_token_sees_nothing(browser: Any, page: tuple[str, Any]) -> None:
    browser.delete_all_cookies()
    browser.get(page[0].partition("?")[0])
    assert not browser.find_elements("id", "rater")
    assert "forbidden" in browser.page_source
