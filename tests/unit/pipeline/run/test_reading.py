"""reading: the limits of one task's files and memory, at the level of the actor."""

import hashlib
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageCms

from dladiff.errors import BusyError
from pipeline.config import RunConfig
from pipeline.records import commit as records
from pipeline.run.budget import CLEAN, CLEAN_BYTES, FILES, HELD_BYTES, METHOD_BYTES
from pipeline.storage.base import Storage
from pipeline.storage.local import LocalStorage
from pipeline.storage.open import open_storage
from tests.support.actor_calls import Row, call, png
from tests.support.fakes import AddNoise
from tests.support.photo_bytes import padded, rgb, saved
from tests.support.processes import decoders_of
from tests.unit.pipeline.run.test_actor import config, output

__all__ = ["config", "output"]


def test_a_file_is_read_up_to_its_limit_and_not_at_all_where_its_listing_says_more(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[tuple[str, int | None]] = []
    real = LocalStorage.get

    def get(storage: LocalStorage, key: str, limit: int | None = None) -> bytes:
        read.append((key, limit))
        return real(storage, key, limit)

    monkeypatch.setattr(LocalStorage, "get", get)
    sizes = [len(open_storage(config.input).get(f"ann/{i}.png")) for i in range(3)]
    read.clear()
    with Path(f"{config.input}/ann/0.png").open("r+b") as file:
        file.truncate(2**40)  # a sparse file: a terabyte that takes no disk
    with Path(f"{config.input}/ann/1.png").open("ab") as more:
        more.write(b"more")
    photos = [{"key": f"ann/{i}.png", "uri": f"{config.input}/ann/{i}.png", "size": sizes[i]} for i in range(3)]
    photos[0]["size"] = 2**40
    limited = config.replaced(max_photo_bytes=1_000_000)
    result = call(limited, photos=photos)
    assert [row["status"] for row in result["rows"]] == ["failed", "skipped", "protected"]
    assert result["rows"][0]["reason"].startswith("too large: 1099511627776 bytes is more than max_photo_bytes")
    assert "changed while it was planned or read" in result["rows"][1]["reason"]
    assert sorted(call for call in read if call[0].startswith("ann/")) == [
        ("ann/1.png", sizes[1]),
        ("ann/2.png", sizes[2]),
    ]
    read.clear()
    result = call(limited)  # without sizes
    assert [row["status"] for row in result["rows"]] == ["failed", "protected", "protected"]
    assert "more than max_photo_bytes = 1000000 bytes" in result["rows"][0]["reason"]


def large(config: RunConfig, count: int, side: int = 400) -> list[Row]:
    """Photos of known size, each of its own grey; what they take together is count times 4.2 MB of METHOD_BYTES."""
    source = open_storage(config.input)
    for i in range(count):
        source.put(f"big/{i}.png", saved(Image.new("RGB", (side, side), (i, i, i)), "PNG"))
    return [{"key": f"big/{i}.png", "uri": f"{config.input}/big/{i}.png"} for i in range(count)]


def budget_for(photos: int, side: int = 400, clean: int = 0) -> dict[str, Any]:
    """Settings whose budget holds so many photos at once, and so many clean ones, and not one more."""
    pixels = side * side
    need = photos * HELD_BYTES * pixels + METHOD_BYTES * pixels + clean * CLEAN_BYTES * pixels
    return {"max_task_bytes": -(-need * FILES // (FILES - 1)), "max_photo_bytes": 10_000}


def test_photos_beyond_the_budget_are_protected_group_by_group(
    config: RunConfig, output: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    real = AddNoise.protect_identity

    def protect(self: Any, identity: str, photos: Any, clean: Any) -> Any:
        seen.append([Path(photo.key).stem for photo in photos])
        assert decoders_of() == set()  # no decoder stays while the method works
        return real(self, identity, photos, clean)

    monkeypatch.setattr(AddNoise, "protect_identity", protect)
    photos = large(config, 7)
    whole = call(config, photos=photos)
    kept = {entry.key: output.get(entry.key) for entry in output.list("photos/")}
    assert (whole["status"], seen) == ("done", [list("0123456")])
    seen.clear()
    result = call(config.replaced(**budget_for(3)), photos=photos, key="other")
    assert (result["status"], result["failed_photos"]) == ("done", 0)
    assert seen == [list("012"), list("345"), list("6")]
    assert {entry.key: output.get(entry.key) for entry in output.list("photos/")} == kept
    record = records.load_record(output, "done/ann.json")
    assert record["photos"][0]["seconds"]["zero_shot_layer"] == pytest.approx(0.3)  # the fake says 0.1 of each group
    assert {row["reason"] for row in record["photos"]} == {
        "worked on in 3 groups of photos that each fit max_task_bytes"
    }


def test_a_photo_that_alone_exceeds_the_budget_is_refused(config: RunConfig) -> None:
    photos = large(config, 2)
    open_storage(config.input).put("big/1.png", saved(Image.new("RGB", (900, 900)), "PNG"))
    result = call(config.replaced(**budget_for(1)), photos=photos)
    assert [row["status"] for row in result["rows"]] == ["protected", "failed"]
    assert re.match(
        r"too large: it takes 159570000 bytes and max_task_bytes leaves \d+; shrink", result["rows"][1]["reason"]
    )


def test_the_largest_clean_photos_are_left_out_beyond_the_budget(config: RunConfig) -> None:
    pixels = 400 * 400
    settings = {"max_task_bytes": CLEAN * CLEAN_BYTES * 3 * pixels, "max_photo_bytes": 10_000}
    result = call(config.replaced(**settings), clean=large(config, 4))
    assert result["status"] == "done"
    assert all("1 of 4 photos of the clean set" in row["reason"] for row in result["rows"])
    assert all("3 clean" in row["reason"] for row in result["rows"])


def test_files_that_are_not_kept_are_read_again(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    real = LocalStorage.get

    def get(storage: LocalStorage, key: str, limit: int | None = None) -> bytes:
        read.append(key)
        if read.count(key) == 2 and key == "big/2.png":
            return real(storage, "big/1.png", limit)  # it changed meanwhile
        return real(storage, key, limit)

    monkeypatch.setattr(LocalStorage, "get", get)
    monkeypatch.setattr("pipeline.run.budget.FILES", 10**9)
    result = call(config, photos=large(config, 3))
    assert [row["status"] for row in result["rows"]] == ["protected", "protected", "skipped"]
    assert sorted(key for key in read if key.startswith("big/")) == [f"big/{i}.png" for i in (0, 0, 1, 1, 2, 2)]


def test_no_process_stays_behind_a_task(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call(config)["status"] == "done"

    def busy(*_: Any) -> bytes:
        raise BusyError("S3 is overloaded")

    monkeypatch.setattr(LocalStorage, "get", busy)
    assert call(config.replaced(patience_s=0))["status"] == "storage"
    assert decoders_of() == set()


def test_a_colour_profile_of_two_megabytes_costs_no_photo(config: RunConfig, output: Storage) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for i, declared in ((0, True), (1, False)):
        data = saved(rgb(), "JPEG", icc_profile=padded(profile, 2_000_000, declared=declared))
        open_storage(config.input).put(f"ann/{i}.png", data)
    result = call(config)
    assert (result["status"], result["failed_photos"], len(list(output.list("photos/")))) == ("done", 0, 3)
    notes = [row["reason"] for row in records.load_record(output, "done/ann.json")["photos"]]
    assert notes == ["its colour profile has more than 1000000 bytes and was left out", "", ""]


def test_what_is_no_photo_leaves_no_hash(config: RunConfig, output: Storage) -> None:
    """An index file may name any file: a hash would tell whether its content is a guessed one."""
    secret = b"root:$6$abc:19000:0:99999:7:::"
    broken = png(2)[:-40]  # opens, and cannot be decoded
    open_storage(config.input).put("ann/1.png", secret)
    open_storage(config.input).put("ann/2.png", broken)
    assert call(config)["failed_photos"] == 2
    rows = records.load_record(output, "done/ann.json")["photos"]
    assert [bool(row.get("source_sha256")) for row in rows] == [True, False, False]
    stored = b"".join(output.get(entry.key) for entry in output.list() if not entry.key.startswith("photos/"))
    for data in (secret, broken):
        assert hashlib.sha256(data).hexdigest().encode() not in stored
    assert b"19000" not in stored
