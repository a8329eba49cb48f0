"""sources: the layouts people have, and no photo lost or taken twice."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dladiff.errors import ConfigError
from pipeline.sources import LAYOUTS, Identity, find_identities
from pipeline.storage import Entry, Storage, open_storage


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


def test_photos_carry_uri_tag_and_size(tmp_path: Path) -> None:
    storage = open_storage(tmp_path, create=True)
    storage.put("a/1.jpg", b"1234")
    (identity,) = find_identities(storage)
    (photo,) = identity.photos
    assert (photo.key, photo.uri, photo.size) == ("a/1.jpg", str(tmp_path / "a/1.jpg"), 4)
    assert photo.tag == storage.tag("a/1.jpg")


def test_an_unknown_layout_names_the_choices(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="folder' is unknown; choose one of auto, folders"):
        find_identities(open_storage(tmp_path), layout="folder")


def test_photos_left_out_by_a_layout_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    find(tmp_path, "ann/1.jpg 2.jpg", "folders")
    assert "1 photos are left out" in caplog.text


class Listing:
    """A storage that only lists, with keys a file system cannot hold together."""

    def __init__(self, keys: set[str]) -> None:
        self.keys = keys
        self.uri = "s3://bucket/in"

    def list(self, prefix: str = "") -> list[Entry]:
        return [Entry(key, 1, "t") for key in sorted(self.keys)]

    def uri_of(self, key: str) -> str:
        return f"{self.uri}/{key}"


PART = st.sampled_from(["a", "b", "in", "set_A", "set_B", "set_C", "a.jpg", "set_A_1", "set_B_a"])
KEY = st.builds(lambda parts, ext: "/".join(parts) + ext, st.lists(PART, min_size=1, max_size=3),
                st.sampled_from([".jpg", ".png", ".jpg.png"]))  # fmt: skip


@given(st.sets(KEY, max_size=12), st.sampled_from(LAYOUTS))
def test_no_photo_is_taken_twice_and_none_is_lost(keys: set[str], layout: str) -> None:
    storage: Storage = Listing(keys)  # type: ignore[assignment]
    found = find_identities(storage, layout=layout)
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
