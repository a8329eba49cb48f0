"""kinds: files made by other libraries are what their bytes say, and whatever is left out is counted."""

import io
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pillow_heif
import pytest
import tifffile
from click.testing import CliRunner
from PIL import Image

from pipeline.cli.main import main
from pipeline.config import run_config
from pipeline.run.driver import _summary
from pipeline.run.plan import make_plan
from pipeline.sources.find import find_identities
from pipeline.sources.kinds import LOOK, is_left_alone, is_photo_name, is_picture
from pipeline.sources.left_out import LeftOut
from pipeline.storage.base import Entry
from pipeline.storage.open import open_storage

PIXELS = np.random.default_rng(0).integers(0, 256, (64, 80, 3), np.uint8)


def made(kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    if kind == "HEIF":
        pillow_heif.from_pillow(Image.fromarray(PIXELS)).save(out)
    elif kind == "BIGTIFF":
        tifffile.imwrite(out, PIXELS, bigtiff=True)
    else:
        Image.fromarray(PIXELS).save(out, kind, **options)
    return out.getvalue()


KINDS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "TIFF", "BIGTIFF", "GIF", "AVIF", "HEIF", "JPEG2000", "PPM", "MPO")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "DIB"])
def test_pictures_of_every_format_are_pictures_by_their_first_bytes(kind: str) -> None:
    assert is_picture(made(kind)[:LOOK])


def test_other_files_are_no_pictures_by_their_first_bytes() -> None:
    video = b"\0\0\0\x20ftypisom\0\0\x02\0isomiso2avc1mp41" + bytes(40)
    others = [b"", b"x", b"BMW is a car, and its make is no bitmap", video, b"RIFF\x24\0\0\0WAVEfmt ", b"%PDF-1.7"]
    others += [b"<html><img src=a.jpg></html>", b"PK\x03\x04" + bytes(60), b"Photos of P1 and P2", bytes(64)]
    assert [head for head in others if is_picture(head[:LOOK])] == []


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("a.JPG", True), ("a.mpo", True), ("a.hif", True), ("a.heics", True), ("a.jpg_large", True), ("a.pjpeg", True),
        ("a.jpg?w=300", True), ("a.png?x=b.txt", True), ("a.jpg.1", True), ("a.jpg ", True), ("a.jpg\xa0", True),
        ("x.y/a.heic", True), ("a.dng", True), ("a.jxl", True),
        ("a.txt", False), ("who?.txt", False), ("a.AAE", False), ("a.log.1", False), ("a.mp4", False), ("a.tar", False),
        ("a", None), ("x.jpg/a", None), ("IMG_0001", None), ("a.", None), ("Dr. Who", None), ("a.jpg~", None),
    ],
)  # fmt: skip
def test_names(name: str, known: bool | None) -> None:
    assert is_photo_name(f"ann/{name}") is known


@pytest.mark.parametrize(
    "key",
    [
        *("@eaDir/a.jpg", "$RECYCLE.BIN/a.jpg", "a/__MACOSX/a.jpg", "a/.thumbnails/1.jpg", ".Trash-1000/a.jpg"),
        *("lost+found/a.jpg", "a/Thumbs.db", "a/.DS_Store", "a/._x.jpg", "#recycle/a.jpg", "@Recycle/a.png"),
        "System Volume Information/a.jpg",
    ],
)
def test_what_systems_write_is_left_alone(key: str) -> None:
    assert is_left_alone(key)
    assert not is_left_alone("recycle/System/a.jpg")


def test_files_are_what_their_bytes_say_and_all_others_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    storage = open_storage(tmp_path / "in", create=True)
    names = ["1.mpo", "2.hif", "3.jpg_large", "4.jpg?w=300", "5.jpg.1", "6.jpg ", "7", "8.unknown", "9.JPEG", "A.tmp_1"]
    for name in names:
        storage.put(f"ann/{name}", made("JPEG"))
    for name in ("note", "b.xyz", "_SUCCESS", "c.jpg~"):
        storage.put(f"ann/{name}", b"no picture")
    storage.put("ann/empty", b"")
    for name in ("a.txt", "b.MOV", "c.aae", "@eaDir/1.jpg/THUMB.jpg", "Thumbs.db", "._1.jpg"):
        storage.put(f"ann/{name}", made("JPEG"))
    left = LeftOut()
    (ann,) = find_identities(storage, left=left)
    assert [photo.key for photo in ann.photos] == [f"ann/{name}" for name in names]
    assert left.counts() == {"not_photos": 8, "hidden": 3, "unread": 0}
    assert dict(left.not_photos) == {".txt": 1, ".mov": 1, ".aae": 1}
    assert "5 files are no photos by their first bytes, for example ann/_SUCCESS, ann/b.xyz" in caplog.text


class Bucket:
    """A storage that counts how much is read of its objects."""

    uri = "s3://bucket/in"

    def __init__(self, keys: list[str]) -> None:
        self.keys, self.read = keys, 0

    def list(self, prefix: str = "", **_: Any) -> Iterator[Entry]:
        yield from (Entry(key, 5_000_000, "tag") for key in self.keys)

    def part(self, key: str, start: int, length: int) -> bytes:
        assert (start, length) == (0, LOOK)
        self.read += 1
        return made("PNG")[:length] if "photo" in key else b"text"

    def tag(self, key: str) -> None:
        return None

    def uri_of(self, key: str) -> str:
        return f"{self.uri}/{key}"


def test_only_files_of_unknown_extensions_are_looked_at() -> None:
    known = [f"ann/{n}.{('jpg', 'txt', 'mp4', 'HEIC')[n % 4]}" for n in range(2000)]
    unknown = [f"ann/{'photo' if n % 2 else 'note'}{n}" for n in range(1500)]
    bucket, left = Bucket(known + unknown), LeftOut()
    (ann,) = find_identities(bucket, left=left)  # type: ignore[arg-type]
    assert bucket.read == 1500
    assert (len(ann.photos), left.unknown, left.not_photos.total()) == (1000 + 750, 750, 1000)


def test_a_fourth_set_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    storage = open_storage(tmp_path / "in", create=True)
    for key in ("5/set_A/1.png", "5/set_B/2.png", "5/set_C/3.png", "5/set_D/4.png", "7/set_A_1.png", "7/set_B_2.png"):
        storage.put(key, b"x")
    storage.put("7/set_E_3.png", b"x")
    storage.put("bob/set_D/1.png", b"x")  # no set A and B beside it: a folder of that name
    found = {one.name: [p.key for p in (*one.photos, *one.clean)] for one in find_identities(storage)}
    assert found == {
        "5": ["5/set_B/2.png", "5/set_A/1.png"],
        "7": ["7/set_B_2.png", "7/set_A_1.png"],
        "bob/set_D": ["bob/set_D/1.png"],
    }
    assert "2 photos of sets beside set_A, set_B and set_C are left alone, for example 5/set_D/4.png" in caplog.text


@pytest.mark.skipif(sys.platform != "linux", reason="needs names that are not UTF-8")
@pytest.mark.parametrize("odd", ["backslash", "not UTF-8", "link to a folder", "link to nothing"])
def test_what_is_not_read_gives_exit_code_1(tmp_path: Path, odd: str, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "in" / "ann"
    folder.mkdir(parents=True)
    (folder / "1.png").write_bytes(made("PNG"))
    (tmp_path / "in" / "lost+found").mkdir()
    if odd == "backslash":
        (folder / "a\\b.png").write_bytes(made("PNG"))
    elif odd == "not UTF-8":
        (Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png"))).write_bytes(made("PNG"))
    else:
        (tmp_path / "elsewhere").mkdir()
        (folder / "more").symlink_to(tmp_path / ("elsewhere" if "folder" in odd else "nothing"))
    options = {"input": str(tmp_path / "in"), "output": str(tmp_path / "out")}
    config = run_config(None, options)
    plan = make_plan(config)
    plan.todo = 0  # as if all were done
    assert (plan.photos, plan.left_out.unread) == (1, 1)
    assert "skipped ann/" in caplog.text
    summary = _summary(plan, config)
    assert (summary.exit_code, summary.failed) == (1, 0)
    assert "1 names or folders of the input were not read" in summary.advice("out")[0]
    done = CliRunner().invoke(main, ["plan", "--input", options["input"], "--output", options["output"], "--json"])
    assert json.loads(done.stdout)["unread"] == 1
