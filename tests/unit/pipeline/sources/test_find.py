"""sources: the layouts people have, no photo lost or taken twice, and nothing left on the disk."""

import contextlib
import errno
import os
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dladiff.errors import ConfigError, StorageError
from pipeline.sources import spool
from pipeline.sources.find import Identity, find_identities
from pipeline.sources.layouts import LAYOUTS
from pipeline.sources.left_out import LeftOut
from pipeline.storage.base import Entry, Storage
from pipeline.storage.open import open_storage


def find(tmp_path: Path, keys: str, layout: str = "auto", exclude: str | None = None) -> dict[str, str]:
    """Identities of the files `keys` as name -> "photo photo | clean clean"."""
    storage = open_storage(tmp_path / "in", create=True)
    for key in keys.split():
        storage.put(key, b"x")
    return {i.name: text(i) for i in find_identities(storage, layout=layout, exclude_prefix=exclude)}


def text(identity: Identity) -> str:
    clean = " ".join(p.key for p in identity.clean)
    return " ".join(p.key for p in identity.photos) + (f" | {clean}" if clean else "")


@pytest.mark.parametrize(
    ("layout", "keys", "expected"),
    [
        ("auto", "ann/1.jpg ann/2.PNG bob/1.webp", {"ann": "ann/1.jpg ann/2.PNG", "bob": "bob/1.webp"}),
        ("auto", "a/b/1.jpg a/2.jpg", {"a": "a/2.jpg", "a/b": "a/b/1.jpg"}),
        ("auto", "1.jpg 2.jpg", {"1": "1.jpg", "2": "2.jpg"}),
        ("auto", "1.jpg 1.png 2.jpg", {"1.jpg": "1.jpg", "1.png": "1.png", "2": "2.jpg"}),
        ("auto", "ann/1.jpg 2.jpg", {"ann": "ann/1.jpg", "2": "2.jpg"}),
        ("auto", "ann/1.jpg ann.jpg", {"ann": "ann/1.jpg", "ann.jpg": "ann.jpg"}),
        (
            "auto",
            "5/set_A/1.png 5/set_B/2.png 5/set_C/3.png bob/1.jpg",
            {"5": "5/set_B/2.png | 5/set_A/1.png", "bob": "bob/1.jpg"},
        ),
        ("auto", "103/set_A_1.jpg 103/set_B_2.jpg 103/set_C_3.jpg", {"103": "103/set_B_2.jpg | 103/set_A_1.jpg"}),
        ("auto", "set_A_1.jpg set_B_2.jpg", {"in": "set_B_2.jpg | set_A_1.jpg"}),
        ("auto", "set_A/1.jpg set_B/2.jpg in/3.jpg", {"in": "in/3.jpg", "in_": "set_B/2.jpg | set_A/1.jpg"}),
        ("auto", "5/set_A/1.png", {"5/set_A": "5/set_A/1.png"}),
        ("auto", "5/set_A/1.png 5/set_B/2.png 5/x.png", {"5": "5/set_B/2.png 5/x.png | 5/set_A/1.png"}),
        ("sets", "5/set_B/2.png bob/1.jpg 7/set_A/1.jpg", {"5": "5/set_B/2.png"}),
        ("folders", "ann/1.jpg 2.jpg", {"ann": "ann/1.jpg"}),
        ("folders", "5/set_A/1.png 5/set_B/2.png", {"5/set_A": "5/set_A/1.png", "5/set_B": "5/set_B/2.png"}),
        ("flat", "a/1.jpg 1.jpg", {"1": "1.jpg", "a/1": "a/1.jpg"}),
        ("flat", "a.jpg a.png a.jpg.png", {"a.jpg": "a.jpg", "a.png": "a.png", "a.jpg.png": "a.jpg.png"}),
        ("one", "a/1.jpg 1.jpg", {"in": "1.jpg a/1.jpg"}),
        ("auto", "n000001/1.jpg n000001/2.jpg", {"n000001": "n000001/1.jpg n000001/2.jpg"}),
        (
            "auto",
            "train/n000001/1.jpg test/n000001/2.jpg n000002/3.jpg",
            {"n000001": "test/n000001/2.jpg train/n000001/1.jpg", "n000002": "n000002/3.jpg"},
        ),
        (
            "auto",
            "train/n000001/1.jpg train/ann/2.jpg",
            {"train/n000001": "train/n000001/1.jpg", "train/ann": "train/ann/2.jpg"},
        ),
        ("auto", "train/n000001/1.jpg 2.jpg", {"train/n000001": "train/n000001/1.jpg", "2": "2.jpg"}),
        (
            "auto",
            "a/n000001/set_A_1.jpg a/n000001/set_B_2.jpg",
            {"a/n000001": "a/n000001/set_B_2.jpg | a/n000001/set_A_1.jpg"},
        ),
        ("auto", "", {}),
        ("one", "", {}),
    ],
)
def test_layouts(tmp_path: Path, layout: str, keys: str, expected: dict[str, str]) -> None:
    assert find(tmp_path, keys, layout) == expected


def test_what_is_no_photo_is_left_out(tmp_path: Path) -> None:
    keys = "a/1.jpg a/notes.txt a/.thumbs/2.jpg a/._1.jpg __MACOSX/a/1.jpg a/x a/.jpg a/3.HEIC a/4.TiFf"
    assert find(tmp_path, keys) == {"a": "a/1.jpg a/3.HEIC a/4.TiFf"}


def test_an_output_inside_the_input_is_left_out(tmp_path: Path) -> None:
    keys = "a/1.jpg out/photos/a/1.png outer/1.jpg"
    assert find(tmp_path, keys, exclude="out/") == {"a": "a/1.jpg", "outer": "outer/1.jpg"}


def test_photos_where_the_output_goes_are_not_left_out_unsaid(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"output: holds photos of the input \(.*/b/1.jpg\); give another output"):
        find(tmp_path, "a/1.jpg b/1.jpg b/photos/a/1.png", exclude="b")


def test_photos_carry_uri_tag_and_size(tmp_path: Path) -> None:
    storage = open_storage(tmp_path, create=True)
    storage.put("a/1.jpg", b"1234")
    (identity,) = list(find_identities(storage))
    (photo,) = identity.photos
    assert (photo.key, photo.uri, photo.size) == ("a/1.jpg", str(tmp_path / "a/1.jpg"), 4)
    assert photo.tag == storage.tag("a/1.jpg")


def test_an_unknown_layout_names_the_choices(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="folder' is unknown; choose one of auto, celeba_hq, flat, folders"):
        find_identities(open_storage(tmp_path), layout="folder")


def test_photos_left_out_by_a_layout_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    find(tmp_path, "ann/1.jpg 2.jpg", "folders")
    assert "1 photos are left out" in caplog.text


class Listing:
    """A storage that only lists, with keys a file system cannot hold together, in an order of its own."""

    def __init__(self, keys: set[str], fails_after: int | None = None) -> None:
        self.keys = keys
        self.fails_after = fails_after
        self.uri = "s3://bucket/in"

    def list(self, prefix: str = "", **_: Any) -> Iterator[Entry]:
        keys = sorted(self.keys)
        random.Random(len(keys)).shuffle(keys)  # some servers list folder by folder
        for number, key in enumerate(keys):
            if number == self.fails_after:
                raise StorageError("the network is gone")
            yield Entry(key, 1, f"tag of {key}")

    def tag(self, key: str) -> str | None:
        return None

    def uri_of(self, key: str) -> str:
        return f"{self.uri}/{key}"


def listing(keys: set[str], fails_after: int | None = None) -> Storage:
    fake: Storage = Listing(keys, fails_after)  # type: ignore[assignment]
    return fake


def test_names_that_are_not_utf8_survive_and_sort_by_code_point() -> None:
    keys = {
        f"{name}/1.jpg" for name in ("a", "\udce9t\udce9", "\ud800\udc00", "\uffee", "\U0001f600", "\ud7ff", "\0 \x7f")
    }
    found = list(find_identities(listing(keys), layout="folders"))
    assert [i.name for i in found] == sorted(key.removesuffix("/1.jpg") for key in keys)
    assert {i.photos[0].key for i in found} == keys
    assert all(i.photos[0].tag == f"tag of {i.photos[0].key}" for i in found)
    assert all(i.photos[0].uri == f"s3://bucket/in/{i.photos[0].key}" for i in found)


def test_a_photo_named_as_a_folder_yields_to_it_and_to_every_other_photo() -> None:
    found = find_identities(listing({"a.jpg", "a.jpg/1.png", "a.jpg_.png", "a.png"}))
    assert {i.name: text(i) for i in found} == {
        "a.jpg": "a.jpg/1.png",
        "a.jpg_": "a.jpg_.png",
        "a.jpg__": "a.jpg",
        "a.png": "a.png",
    }


def open_files() -> list[str]:
    """Temporary files that SQLite has open in this process, those without a name too."""
    links = []
    for handle in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the handle of this very loop
            links.append(str(handle.readlink()))
    return [link for link in links if "/etilqs_" in link]


MANY = {f"train/n{n % 97:06d}/{n:06d}.jpg" for n in range(20_000)}
linux = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs Linux to see open files")


@linux
def test_a_plan_given_up_early_leaves_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "CACHE_KIB", 64)
    found = find_identities(listing(MANY))
    assert next(found).name == "n000000"
    assert open_files()  # it did need the disk,
    assert all(link.endswith(" (deleted)") for link in open_files())  # in files that go with the process
    found.close()  # type: ignore[attr-defined]
    assert open_files() == []


@linux
def test_a_listing_that_breaks_off_leaves_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "CACHE_KIB", 64)
    with pytest.raises(StorageError, match="the network is gone"):
        list(find_identities(listing(MANY, fails_after=15_000)))
    assert open_files() == []


@linux
def test_a_small_listing_needs_no_file() -> None:
    found = find_identities(listing(MANY))
    assert next(found).name == "n000000"
    assert open_files() == []
    found.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("layout", ["folders", "flat", "sets", "auto", "vggface2"])
def test_what_goes_through_the_disk_is_the_same(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {f"{n % 50}/set_{'ABC'[n % 3]}/{n}.jpg" for n in range(3000)} | {
        f"n00000{n % 7}/{n}.jpg" for n in range(999)
    }
    keys |= {f"{n // 2}.{('jpg', 'png')[n % 2]}" for n in range(2000)}
    in_memory = list(find_identities(listing(keys), layout=layout))
    monkeypatch.setattr(spool, "CACHE_KIB", 64)
    assert list(find_identities(listing(keys), layout=layout)) == in_memory
    assert sum(len(i.photos) for i in in_memory) >= 999


def test_a_full_temporary_folder_says_what_to_do() -> None:
    with pytest.raises(StorageError, match=r"temporary folder .* SQLITE_TMPDIR"), spool.Spool() as full:
        full.execute("PRAGMA max_page_count = 8")
        full.add(spool.Listed("a", "", f"{n}.jpg", 1, "t") for n in range(10_000))


PART = st.sampled_from(["a", "b", "in", "set_A", "set_B", "set_C", "a.jpg", "set_A_1", "set_B_a"])
KEY = st.builds(lambda parts, ext: "/".join(parts) + ext, st.lists(PART, min_size=1, max_size=3),
                st.sampled_from([".jpg", ".png", ".jpg.png"]))  # fmt: skip


@given(st.sets(KEY, max_size=12), st.sampled_from([name for name in LAYOUTS if name != "celeba_hq"]))
def test_no_photo_is_taken_twice_and_none_is_lost(keys: set[str], layout: str) -> None:
    found = list(find_identities(listing(keys), layout=layout))
    names = [identity.name for identity in found]
    assert names == sorted(set(names))
    assert all(identity.photos for identity in found)
    taken = Counter(p.key for identity in found for p in (*identity.photos, *identity.clean))
    assert all(count == 1 for count in taken.values())
    assert taken.keys() <= keys
    if layout in ("flat", "one"):
        assert taken.keys() == keys
    if layout == "flat":
        assert all(len(identity.photos) == 1 for identity in found)
    if layout == "auto":  # only set_C of a complete set stays out
        assert all("set_C" in key for key in keys - taken.keys())


def test_pictures_that_cannot_be_decoded_are_planned_and_the_rest_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys = "ann/1.jfif ann/2.jpe ann/3.jp2 ann/4 ann/5.DNG ann/list.csv ann/.hidden.avif out/photos/6.avif"
    left = LeftOut()
    storage = open_storage(tmp_path / "in", create=True)
    for key in keys.split():
        storage.put(key, b"x")
    (ann,) = list(find_identities(storage, exclude_prefix="out", left=left))
    assert text(ann) == "ann/1.jfif ann/2.jpe ann/3.jp2 ann/5.DNG"
    assert left.counts() == {"not_photos": 2, "hidden": 1, "unread": 0}
    assert "1 files are no photos by their first bytes, for example ann/4" in caplog.text


def test_a_folder_that_cannot_be_read_costs_only_its_people(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("ann", "bob", "cy"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.jpg").write_bytes(b"x")
    real = os.scandir

    def scandir(path: Any) -> Any:
        if Path(path).name == "bob":
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert [i.name for i in find_identities(open_storage(tmp_path))] == ["ann", "cy"]
    assert caplog.messages == ["skipped bob/: it cannot be read (Permission denied); check its owner and mode"]
    with pytest.raises(StorageError, match="no permission to list"):
        list(find_identities(open_storage(tmp_path), whole=True))
