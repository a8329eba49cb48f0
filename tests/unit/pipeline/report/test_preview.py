"""The page of `dladiff preview`: self-contained, escaped, complete; which file it may replace."""

import base64
import io
import math
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pillow_heif
import pytest
from PIL import Image, ImageCms

from dladiff.core.codec import Codec
from dladiff.core.exchange import PhotoIn
from dladiff.errors import ConfigError
from dladiff.settings.presets import STRENGTHS
from pipeline.config import RunConfig
from pipeline.report import preview as command
from pipeline.report.preview import page_of, preview
from pipeline.report.preview_page import CHOSEN, MARK, MEANING, MIN_SIDE, SIDE, Picture, detail, render, words
from pipeline.report.preview_worker import Done
from pipeline.sources.decode import Decoded, decode
from tests.support.fakes import AddNoise
from tests.support.pages import Page
from tests.support.photo_bytes import smooth

NAME = "<script>alert('x')</script>\" & \x1b[2J\udcff.jpg"
HELD_OUT = {"encoder": "<b>other</b>", "optimised": False, "before": 0.93, "after": -0.004}


def results(pixels: np.ndarray, **changes: Any) -> dict[str, Done]:
    """Each strength adds one grey level more; the scores differ."""
    photos = {}
    for levels, name in enumerate(STRENGTHS, start=1):
        one = AddNoise._one(PhotoIn(key="k", pixels=pixels), 0)
        values: dict[str, Any] = {
            "pixels": np.clip(pixels.astype(int) + levels, 0, 255).astype(np.uint8),
            "ssimulacra2": 95.0 - 20 * levels,
            "ssimulacra2_face": 90.0 - 20 * levels,
            "psnr": 44.0 - levels,
            "similarity": [*one.similarity, HELD_OUT],
        }
        photos[name] = replace(one, **(values | changes))
    return {name: Done(photo=photo, seconds=12.34, note="") for name, photo in photos.items()}


def page_with(pixels: np.ndarray, **changes: Any) -> Page:
    return Page(render(Picture("a.jpg", Decoded(pixels=pixels)), results(pixels, **changes), "tiny", []))


def embedded(page: Page, kind: str = "whole") -> list[np.ndarray]:
    sources = [image["src"] or "" for image in page.all("img") if image.get("class") == kind]
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    files = [base64.b64decode(source.partition(",")[2]) for source in sources]
    return [np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in files]


def test_page_holds_all_four_pictures_without_loss() -> None:
    pixels = smooth()
    page = page_with(pixels)
    original, *versions = embedded(page)
    assert np.array_equal(original, pixels)
    assert len(versions) == len(STRENGTHS) == 3
    for levels, version in enumerate(versions, start=1):
        assert np.array_equal(version, np.clip(pixels.astype(int) + levels, 0, 255))
    assert embedded(page, "detail") == []
    buttons = [button for button in page.all("button") if button.get("class") == "choice"]
    assert [button["data-strength"] for button in buttons] == list(STRENGTHS) == list(MEANING)
    assert [b["data-strength"] for b in buttons if b["aria-pressed"] == "true"] == [CHOSEN]


def test_page_loads_nothing_and_escapes_names() -> None:
    pixels = smooth()
    done = results(pixels, reason="<i>reason</i>")
    text = render(Picture(NAME, Decoded(pixels=pixels)), done, "tiny", ["<u>note</u>"])
    text.encode()
    page = Page(text)
    assert "http" not in text.replace("http-equiv", "")
    (policy,) = (m["content"] or "" for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-") and "unsafe" not in policy
    assert len(page.all("script")) == 1 and len(page.all("style")) == 1
    assert page.all("b") and not page.all("i") and not page.all("u")
    assert not any("style" in attributes for _, attributes in page.elements)
    assert "<script>alert('x')</script>\" & \\x1b[2J\\udcff.jpg" in page.text and "\x1b" not in text
    for part in ("<i>reason</i>", "<u>note</u>", "<b>other</b>"):
        assert part in page.text and part not in text
    assert MARK in text[: command.LOOK]


def test_page_has_every_score_with_its_meaning() -> None:
    text = " ".join(page_with(smooth()).text.split())
    for part in ("75.0 high quality", "55.0 medium quality", "35.0 low quality", "70.0 high quality", "50.0 medium"):
        assert part in text
    for part in ("43.0 dB", "42.0 dB", "41.0 dB", "1.00 → 0.10", "0.93 → 0.00", "12.3", "docs/evaluation.md"):
        assert part in text
    assert [words(score) for score in (100, 90, 89.9, 70, 50, 30, 29.9, -300)] == [
        "not distinguishable side by side",
        "not distinguishable side by side",
        "high quality",
        "high quality",
        "medium quality",
        "low quality",
        "very low quality",
        "very low quality",
    ]


def test_a_photo_without_a_face_says_so() -> None:
    missing: dict[str, Any] = {"faces": [], "similarity": [], "ssimulacra2_face": math.nan, "psnr": math.inf}
    text = page_with(smooth(), **missing, status="layer1_only", reason="no face found: nothing").text
    assert "No face was found" in text and "What you see is layer 1" in text and "no face found: nothing" in text
    assert "not measured" in text and "unchanged" in text and "Optimised encoders" not in text
    assert "nan" not in text and "inf " not in text
    failed = page_with(smooth(), **missing, status="failed").text
    assert "Nothing protects this photo" in failed
    assert "No face was found" not in page_with(smooth()).text


@pytest.mark.parametrize("faces", [0, 1])
def test_a_large_photo_is_scaled_and_a_part_is_shown_at_full_size(faces: int) -> None:
    pixels = smooth(SIDE + 400, 500)
    found = [{"box": [1500.0, 100.0, 1700.0, 300.0]}, {"box": [10.0, 10.0, 30.0, 30.0]}] if faces else []
    page = page_with(pixels, faces=found)
    whole, parts = embedded(page), embedded(page, "detail")
    assert [picture.shape for picture in whole] == [(400, SIDE, 3)] * 4
    expected = pixels[0:400, 1400:1800] if faces else pixels[:, 200:1800]
    assert np.array_equal(parts[0], expected)
    assert np.array_equal(parts[2], np.clip(expected.astype(int) + 2, 0, 255))
    assert ("face, full size" if faces else "middle, full size") in page.text
    assert f"larger than {SIDE} px" in page.text and "scaled" in page.text


def test_the_detail_stays_inside_the_photo() -> None:
    for box in ([-50, -50, 40, 40], [1900, 900, 2100, 1100], [0, 0, 2000, 1000], [5, 5, 6, 6]):
        crop = detail(2000, 1000, [box])
        assert 0 <= crop.x <= 2000 - crop.width and 0 <= crop.y <= 1000 - crop.height
        assert MIN_SIDE <= crop.width <= SIDE and MIN_SIDE <= crop.height <= 1000
    small = detail(3000, 100, [])
    assert (small.width, small.height, small.y) == (SIDE, 100, 0)


def test_colour_profile_transparency_and_jpeg_are_as_a_reader_sees_them() -> None:
    pixels = smooth()
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    alpha = np.full(pixels.shape[:2], 255, np.uint8)
    alpha[:10] = 0
    codec = Codec("jpeg", 75)
    done = results(pixels, codec=codec)
    text = render(Picture("a.jpg", Decoded(pixels=pixels, alpha=alpha, icc=icc)), done, "tiny", [])
    page = Page(text)
    original, first, *_ = embedded(page)
    assert (original[:10] == 255).all() and np.array_equal(original[10:], pixels[10:])
    assert np.array_equal(first[10:], codec.stored(done["faint"].photo.pixels)[10:])
    assert not np.array_equal(first[10:], done["faint"].photo.pixels[10:])
    assert "Transparent parts are shown on white" in page.text
    source = next(image["src"] or "" for image in page.all("img"))
    assert Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))).info["icc_profile"] == icc


def test_the_page_is_named_after_the_photo() -> None:
    assert page_of(Path("/photos/Ann Müller.v2.jpg")) == Path("Ann Müller.v2-preview.html")
    hostile = ("a\\b.jpg", "\x1b.jpg", os.fsdecode(b"\xff.jpg"), f"{'ä' * 127}.jpg", f"{'a' * 250}.jpg")
    for name in hostile:
        page = str(page_of(Path(name)))
        assert re.fullmatch(r"[\w%~-]{1,150}-preview\.html", page, re.ASCII), name


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """Settings under which the photo is protected in this process, by the fake."""

    def done(decoded: Decoded, *_: object) -> dict[str, Done]:
        return results(decoded.pixels)

    monkeypatch.setattr(command, "_protected", done)
    return RunConfig(input=".", output=".")


@pytest.fixture
def photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(smooth()).save(tmp_path / "ann.png")
    return tmp_path / "ann.png"


def test_a_preview_replaces_only_an_earlier_preview(photo: Path, settings: RunConfig) -> None:
    folder = photo.parent
    before = photo.read_bytes()
    for _ in range(2):
        assert preview(str(photo), settings).page == "ann-preview.html"
    assert (folder / "ann-preview.html").read_text().startswith("<!doctype html>")
    (folder / "notes.html").write_text("<html>mine</html>")
    (folder / "link.html").symlink_to(folder / "ann-preview.html")
    (folder / "dangling.html").symlink_to(folder / "nothing")
    (folder / "folder.html").mkdir()
    os.mkfifo(folder / "pipe.html")
    for name in ("ann.png", "notes.html", "link.html", "dangling.html", "folder.html", "pipe.html"):
        with pytest.raises(ConfigError, match=f"{name}: exists and is no preview page; name another file"):
            preview(str(photo), settings, folder / name)
    with pytest.raises(ConfigError, match="too long"):
        preview(str(photo), settings, folder / f"{'a' * 300}.html")
    with pytest.raises(ConfigError, match="backslash"):
        preview(str(photo), settings, folder / "a\\b.html")
    with pytest.raises(ConfigError, match="Not a directory"):
        preview(str(photo), settings, photo / "page.html")
    assert (folder / "notes.html").read_text() == "<html>mine</html>"
    assert photo.read_bytes() == before
    assert preview(str(photo), settings, folder / "new" / "page.html").page.endswith("new/page.html")


def test_a_photo_that_holds_the_mark_is_not_replaced(photo: Path, settings: RunConfig) -> None:
    Image.fromarray(smooth()).save(photo.parent / "b.jpg", comment=MARK.encode())
    os.link(photo.parent / "b.jpg", photo.parent / "same.html")
    assert MARK.encode() in (photo.parent / "b.jpg").read_bytes()[: command.LOOK]
    for name in ("b.jpg", "same.html"):
        with pytest.raises(ConfigError, match="exists and is no preview page"):
            preview("b.jpg", settings, photo.parent / name)


def test_what_a_strength_sets_is_left_out_with_a_note(photo: Path, settings: RunConfig) -> None:
    found = preview(str(photo), settings.replaced(preset="paper", method={"visibility": 50.0, "resolution": 64}))
    assert found.notes == [
        "method.visibility is left out: the page compares the three strengths",
        "preset: paper is left out: the page compares the three strengths",
    ]
    assert "preset: paper is left out" in Path(found.page).read_text()
    kept, _ = command._compared(settings.replaced(method={"visibility": 50.0, "resolution": 64}, strength="faint"))
    visible = {kept.replaced(strength=name).method_config().visibility for name in STRENGTHS}
    assert visible == {values["visibility"] for values in STRENGTHS.values()}
    assert kept.method == {"resolution": 64}
    with pytest.raises(ConfigError, match="a compared method has no strengths"):
        preview(str(photo), settings.replaced(method={"protection": "mist"}))


def test_facts_are_plain_values(photo: Path, settings: RunConfig) -> None:
    found = preview(str(photo), settings)
    assert list(found.strengths) == list(STRENGTHS) and not found.failed
    assert found.strengths["faint"]["similarity"][1] == HELD_OUT
    assert found.strengths["strong"]["ssimulacra2"] == 35.0


def test_memory_and_cores_limit_how_many_run_at_a_time(monkeypatch: pytest.MonkeyPatch, settings: RunConfig) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert command._count(settings, 512 * 512) == 3
    assert command._count(settings, 50_000_000) == 1
    assert command._count(settings.replaced(method={"model": "/models/sd15"}), 512 * 512) == 1
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    assert command._count(settings, 512 * 512) == 1


@pytest.mark.parametrize("kind", ["HEIF", "AVIF", "JPEG", "WEBP"])
def test_photos_are_read_as_by_a_run(photo: Path, settings: RunConfig, kind: str) -> None:
    if kind == "HEIF":
        pillow_heif.register_heif_opener()
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    image = Image.fromarray(smooth(96, 70))
    image.save(photo, kind, exif=exif, quality=95)
    found = preview(str(photo), settings)
    page = Page(Path(found.page).read_text())
    original, *versions = embedded(page)
    assert len(versions) == 3 and np.array_equal(original, decode(photo.read_bytes()).pixels)
    assert original.shape == (96, 70, 3) or kind == "HEIF"  # whose writer turns the pixels itself
