"""The report: hostile names, missing files, samples of large outputs, and figures with a known answer."""

import base64
import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dladiff.errors import ConfigError, StorageError
from pipeline.records import commit as records
from pipeline.records.manifest import write_manifest
from pipeline.records.trace import trace_key, write_trace
from pipeline.report import pictures as report_pictures
from pipeline.report import write as report
from pipeline.report.write import cosine, number, write_report
from pipeline.storage.base import Storage
from pipeline.storage.open import open_storage
from tests.support.outputs import HOSTILE, HOSTILE_FILE, portrait, protected_output
from tests.support.pages import Page


def made(storage: Storage, photos: int = report.EMBEDDED) -> Page:
    written = write_report(storage, photos=photos)
    assert written.report == storage.uri_of("report/index.html")
    data = storage.get("report/index.html")
    assert written.bytes == len(data)
    return Page(data.decode())


def test_hostile_names_are_text(tmp_path: Path) -> None:
    page = made(protected_output(tmp_path, {HOSTILE: [HOSTILE_FILE], "lost <b>": ["broken.png"]}))
    visible = HOSTILE.replace("\u202e", "\\u202e")
    assert len(page.all("script")) == 1
    assert "alert" not in page.texts["script"]
    assert not [name for _, attrs in page.elements for name in attrs if name.startswith("on") or name == "style"]
    assert all(attrs["src"] and attrs["src"].startswith("data:image/webp;base64,") for attrs in page.all("img"))
    assert visible in page.text
    assert HOSTILE_FILE in page.text
    assert f"{visible} / {HOSTILE_FILE}" in [card["data-name"] for card in page.cards()]
    assert f"Protected photo of {visible}, {HOSTILE_FILE}" in [img["alt"] for img in page.all("img")]
    assert "lost <b>" in page.text


def test_page_allows_itself_and_nothing_else(tmp_path: Path) -> None:
    page = made(protected_output(tmp_path, {"ann": ["1.png"]}))
    (policy,) = [m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    rules = dict((policy or "").split(" ", 1) for policy in (policy or "").split("; "))
    for kind in ("style", "script"):
        digest = base64.b64encode(hashlib.sha256(page.texts[kind].encode()).digest()).decode()
        assert rules[f"{kind}-src"] == f"'sha256-{digest}'"
    assert (rules["default-src"], rules["img-src"], rules["form-action"]) == ("'none'", "data:", "'none'")
    links = [attrs.get(name) or "" for _, attrs in page.elements for name in ("src", "href", "action")]
    assert not [link for link in links if link and not link.startswith(("data:", "#"))]
    assert all(img["alt"] is not None for img in page.all("img"))


def test_card_says_what_the_manifest_says(tmp_path: Path) -> None:
    storage = protected_output(tmp_path, {"ann": ["1.png", "2.png"], "bob": ["broken.png"]})
    page = made(storage)
    assert [(c["data-status"], c["data-name"]) for c in page.cards()] == [
        ("protected", "ann / 1.png"),
        ("protected", "ann / 2.png"),
        ("failed", "bob / broken.png"),
    ]
    keys = ("name", "status", "worst", "held", "psnr", "seen", "lost")
    assert [tuple(str(p[f"data-{key}"])[:4] for key in keys) for p in page.people()] == [
        ("ann", "done", "0.1", "", "48.1", "80.0", "0"),
        ("bob", "fail", "", "", "", "", "1"),
    ]
    assert all("open" in p for p in page.people())
    for words in ("SSIMULACRA2, whole photo", "SSIMULACRA2, face", "90 not distinguishable", "Lowest SSIMULACRA2"):
        assert words in page.text
    assert "SSIMULACRA290.0" in page.text and "SSIMULACRA2, face80.0" in page.text
    for words in ("2 of 3 photos of 2 identities are protected.", "1.00 → 0.10", "1 / 255", "80", "Change \u00d7 7"):
        assert words in page.text
    assert "no photo can be used: not an image in a known format" in page.text
    for words in ("raises the cost of misuse", "Purification", "held-out", "licence", "numpy"):
        assert words.lower() in page.text.lower()
    sources = [img["src"] or "" for img in page.all("img")]
    first = Image.open(io.BytesIO(base64.b64decode(sources[0].split(",")[1])))
    assert first.size == (96, 80)


def test_originals_that_are_gone_or_changed(tmp_path: Path) -> None:
    storage = protected_output(tmp_path, {"ann": ["1.png", "2.png", "3.png"]})
    source = open_storage(tmp_path / "in")
    source.delete("0/1.png")
    source.put("0/2.png", portrait(99))
    (third,) = [e.key for e in storage.list("photos/ann/3.")]
    storage.put(third, portrait(5))
    written = write_report(storage)
    page = Page(storage.get("report/index.html").decode())
    # a forger of the manifest may read the page, which must not show which files exist
    assert page.text.count("Original not reachable.") == 2
    assert "Protected photo not readable: the file has changed since" in page.text
    recorded, unread = written.notes
    assert recorded.startswith(f"originals are read below {source.uri}, as the output records it")
    assert unread == "originals that are not shown: gone 1, changed since, or unreadable 1"
    assert len([i for i in page.all("input") if i["type"] == "range"]) == 0
    assert not [img for img in page.all("img") if "riginal" in (img["alt"] or "")]


def test_without_a_manifest_or_photos(tmp_path: Path) -> None:
    storage = open_storage(tmp_path / "out", create=True)
    with pytest.raises(ConfigError, match=r"identities.parquet: is missing; run `dladiff finalise --output"):
        write_report(storage)
    write_manifest(storage)
    page = made(storage)
    assert "holds no photo yet" in page.text
    assert page.cards() == []
    storage.put("manifest/photos.parquet", b"damaged")
    with pytest.raises(StorageError, match=r"photos\.parquet cannot be read; run `dladiff finalise"):
        write_report(storage)


def test_a_large_output_is_sampled_and_says_so(tmp_path: Path) -> None:
    storage = protected_output(tmp_path, {"ann": [f"{i}.png" for i in range(12)], "bob": ["broken.png"]})
    page = made(storage, photos=5)
    assert len(page.cards()) == 5
    assert "Showing 5 of 13 photos: the worst and the slowest" in page.text
    assert [c["data-status"] for c in page.cards()].count("failed") == 1


def test_curves_of_the_identities_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = protected_output(tmp_path, {"ann": ["1.png"], "<bob>": ["1.png"], "cy": ["1.png"]})
    assert "Steps:" not in made(storage).text
    write_trace(storage, "ann", 0, {"Layer 2, /secret/1.png": {"<b>": [1.0, 0.5, float("nan"), 0.0]}})
    storage.put(trace_key("<bob>", 0), b"[1]")
    page = made(storage)
    assert page.text.count("Steps: losses and similarities") == 2
    assert "Layer 2, 1.png, 4 steps, 0 to 1" in page.text and "/secret" not in page.text
    assert [p["points"] for p in page.all("polyline")] == ["0.0,0.0 106.7,60.0 320.0,120.0"]
    assert "is no trace; delete it" in page.text
    monkeypatch.setattr(report, "CHARTS", 1)
    write_trace(storage, "cy", 0, {f"Layer 1, {i}": {"loss": [1.0]} for i in range(3)})
    page = made(storage)
    assert len(page.all("polyline")) == 2 and "The first 1 charts; traces/ in the output holds all." in page.text
    monkeypatch.setattr(report, "TRACED", 1)
    assert len(made(storage).all("polyline")) == 0  # the worst of equals, by name: <bob>


def test_without_originals_nothing_of_them_is_read(tmp_path: Path) -> None:
    storage = protected_output(tmp_path, {"ann": ["1.png"]})
    open_storage(tmp_path / "in").delete("0/1.png")
    written = write_report(storage, tmp_path / "page.html", originals=False)
    page = Page(Path(written.report).read_text())
    assert [i["alt"] for i in page.all("img")] == [
        f"{what} of ann, 1.png" for what in ("Protected photo", "Face in the protected photo")
    ]
    assert "It holds no picture of an original" in page.text and "not reachable" not in page.text


def test_a_page_without_originals_leaves_none_of_an_earlier_page_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "EMBEDDED", 1)
    storage = protected_output(tmp_path, {"ann": ["1.png", "2.png"]})
    for originals in (True, False):
        write_report(storage, tmp_path / "page.html", photos=2, originals=originals)
        names = {file.stem.partition("-")[2] for file in (tmp_path / "page_files").iterdir()}
        assert names == {"after", "face_after", *(("before", "face_before", "change") if originals else ())}
    (tmp_path / "page_files" / "mine.txt").write_text("kept")
    write_report(storage, tmp_path / "page.html", photos=1)
    assert [file.name for file in (tmp_path / "page_files").iterdir()] == ["mine.txt"]


def test_change_is_amplified_about_grey() -> None:
    before = np.full((64, 64, 3), 100, np.uint8)
    after = before.copy()
    after[0, 0], after[0, 1] = (101, 100, 98), 255
    change = report_pictures._change(before, after, 64)
    assert change[0, 0].tolist() == [135, 128, 114]
    assert change[0, 1].tolist() == [255] * 3
    assert report_pictures._change(before, after, 20).shape == (16, 16, 3)


@pytest.mark.parametrize("box", [(0, 0, 9, 9), (80, 60, 96, 80), (-5, -5, 200, 200), (10, 10, 11, 11)])
def test_face_crop_is_a_square_inside_the_photo(box: tuple[float, ...]) -> None:
    crop = report_pictures._face(np.zeros((80, 96, 3), np.uint8), box)
    assert crop.shape[0] == crop.shape[1] >= 8


def test_numbers_are_typeset() -> None:
    assert (number(None), number(-1234.56), number(30000, 0)) == ("\u2013", "\u22121,234.6", "30,000")
    assert (cosine(-0.001), cosine(-0.4)) == ("0.00", "\u22120.40")


def test_pictures_beside_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = protected_output(tmp_path, {"ann": ["1.png", "2.png"]})
    monkeypatch.setattr(report, "EMBEDDED", 1)
    with pytest.raises(ConfigError, match="more than 1 pictures are stored beside the page; give --html FILE"):
        write_report(storage, photos=2)
    file = tmp_path / "new" / "a page.html"
    write_report(storage, file, photos=2)
    page = Page(file.read_text())
    names = {(img["src"] or "").replace("%20", " ") for img in page.all("img")}
    assert len(names) == 10
    assert {str(p.relative_to(file.parent)) for p in (file.parent / "a page_files").iterdir()} == names
    assert "img-src 'self';" in (page.all("meta")[1]["content"] or "")


def test_an_old_page_stays_when_the_new_one_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = protected_output(tmp_path, {"ann": ["1.png"]})
    file = tmp_path / "page.html"
    file.write_text("old")
    monkeypatch.setattr(report, "render", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_report(storage, file)
    assert file.read_text() == "old"


def test_failures_of_whole_identities_are_reported_once(tmp_path: Path) -> None:
    storage = protected_output(tmp_path, {"ann": ["1.png", "broken.png"], "raises": ["1.png", "2.png"]})
    page = made(storage)
    assert records.read_index(storage).failed
    assert page.text.count("ValueError: a bug in the method") == 4  # the identity, two cards, and one line of failures
    assert "all" in page.texts["td"]
