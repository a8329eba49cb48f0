"""names: ids are key-safe, reversible when short, and distinct for distinct names."""

from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.storage.keys import MAX_ID, escape, key_fault, shown, stem

NAMES = st.text(min_size=1, max_size=60)
HOSTILE = st.text(alphabet="./\\~%\0 aä", max_size=200)


@given(NAMES | HOSTILE)
def test_an_id_is_one_safe_key_part(name: str) -> None:
    escaped = escape(name)
    assert "/" not in escaped
    assert not escaped.startswith(".")
    assert len(escaped) <= MAX_ID
    assert key_fault(escaped) is None


@given(NAMES | HOSTILE.filter(bool))
def test_a_short_name_comes_back_by_unquoting(name: str) -> None:
    escaped = escape(name)
    if "~" not in escaped:
        assert unquote(escaped) == name


@given(st.lists(NAMES | HOSTILE, unique=True, max_size=20))
def test_distinct_names_give_distinct_ids(names: list[str]) -> None:
    assert len({escape(name) for name in names}) == len(names)


def test_a_name_that_looks_like_a_shortened_id_does_not_collide_with_it() -> None:
    shortened = escape("x" * 200)
    assert escape(shortened) != shortened


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("n000050", "n000050"),
        ("a/b", "a%2Fb"),
        ("..", "%2E."),
        (".hidden", "%2Ehidden"),
        ("~me", "%7Eme"),
        ("Jürgen", "J%C3%BCrgen"),
        ("", "%"),
        ("%", "%25"),
    ],
)
def test_known_ids(name: str, expected: str) -> None:
    assert escape(name) == expected


def test_a_long_name_keeps_its_head_and_its_digest() -> None:
    # sha256 of 200 letters x, from coreutils: printf 'x%.0s' $(seq 200) | sha256sum
    assert escape("x" * 200) == "x" * 100 + "~aa20c23e3201"
    assert escape("x" * 120) == "x" * 120


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("s3://photos/ann/1.jpg", "1"),
        ("/data/ann/set_A_1.tar.png", "set_A_1.tar"),
        ("b ä.jpg", "b%20%C3%A4"),
        ("noextension", "noextension"),
    ],
)
def test_stem(uri: str, expected: str) -> None:
    assert stem(uri) == expected


@pytest.mark.parametrize("key", ["", "/etc/passwd", "..", "a/../b", "a/./b", "a//b", "a/", "a\0b", "a\\b", "a\udc80"])
def test_refused_keys(key: str) -> None:
    assert key_fault(key) is not None


@pytest.mark.parametrize("key", ["a", "a/b.jpg", "a..b", "...", "ä ö/😀.png", "a\nb"])
def test_accepted_keys(key: str) -> None:
    assert key_fault(key) is None


def test_shown_text_stays_on_one_line() -> None:
    assert shown("a\nb\x1b[31m Jürgen") == "a\\nb\\x1b[31m Jürgen"
