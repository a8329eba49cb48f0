"""Released collections: VGGFace2 by its folders and lists, CelebA-HQ by the lists of CelebA."""

from pathlib import Path

import pytest

from dladiff.errors import ConfigError
from pipeline.sources.find import Identity, find_identities
from pipeline.storage.base import Storage
from pipeline.storage.open import open_storage

MAPPING = "CelebA-HQ-to-CelebA-mapping.txt"
PEOPLE = "identity_CelebA.txt"
# the first lines of the released file: columns are padded with blanks
MAPPING_TEXT = "idx     orig_idx    orig_file\n0       119613      119614.jpg\n1       99094       099095.jpg\n"
PEOPLE_TEXT = "099095.jpg 2880\n119614.jpg 5805\n000001.jpg 2880\n"


def photos(folder: Path, keys: str) -> Storage:
    storage = open_storage(folder, create=True)
    for key in keys.split():
        storage.put(key, b"x")
    return storage


def keys(found: list[Identity]) -> dict[str, str]:
    return {i.name: " ".join(p.key for p in i.photos) for i in found}


def vggface2(storage: Storage, lists: Storage | None = None, layout: str = "vggface2") -> dict[str, str]:
    return keys(list(find_identities(storage, layout=layout, lists=lists)))


def celeba_hq(storage: Storage, lists: Storage | None = None) -> dict[str, str]:
    return keys(list(find_identities(storage, layout="celeba_hq", lists=lists)))


def test_vggface2_people_are_found_wherever_their_folders_lie(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    given = "n000001/0001_01.jpg train/n000001/0002_01.jpg data/test/n000009/1.jpg n000009/aligned/2.jpg n1/3.jpg 4.jpg"
    assert vggface2(photos(tmp_path, given)) == {
        "n000001": "n000001/0001_01.jpg train/n000001/0002_01.jpg",
        "n000009": "data/test/n000009/1.jpg n000009/aligned/2.jpg",
    }
    assert "2 photos are left out: they are in no nNNNNNN folder" in caplog.text


@pytest.mark.parametrize("layout", ["vggface2", "auto"])
def test_vggface2_takes_what_the_official_lists_name(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, layout: str
) -> None:
    storage = photos(tmp_path, "train/n000002/0001_01.jpg train/n000002/0002_01.jpg test/n000001/0001_01.jpg")
    storage.put("train_list.txt", b"\xef\xbb\xbfn000002/0001_01.jpg\r\n\r\nn000002/0009_01.jpg\r\nn000003/1.jpg\r\n\n")
    storage.put("test_list.txt", b"n000001/0001_01.jpg")
    assert vggface2(storage, layout=layout) == {
        "n000001": "test/n000001/0001_01.jpg",
        "n000002": "train/n000002/0001_01.jpg",
    }
    assert "2 photos of train_list.txt and test_list.txt are not in the input" in caplog.text
    assert "for example n000002/0009_01.jpg" in caplog.text
    assert "1 photos are left out: they are not in train_list.txt and test_list.txt" in caplog.text


def test_vggface2_lists_of_another_folder_come_first(tmp_path: Path) -> None:
    storage = photos(tmp_path / "in", "n000001/1.jpg n000001/2.jpg")
    storage.put("train_list.txt", b"n000001/1.jpg")
    lists = photos(tmp_path / "lists", "")
    lists.put("train_list.txt", b"n000001/2.jpg")
    assert vggface2(storage, lists) == {"n000001": "n000001/2.jpg"}


def test_vggface2_without_lists_where_lists_were_promised(tmp_path: Path) -> None:
    storage, lists = photos(tmp_path / "in", "n000001/1.jpg"), photos(tmp_path / "lists", "")
    with pytest.raises(ConfigError, match=r"no train_list.txt or test_list.txt in .*lists or .*in; they come with"):
        vggface2(storage, lists)


def test_a_malformed_vggface2_list_names_its_line(tmp_path: Path) -> None:
    storage = photos(tmp_path, "n000001/1.jpg")
    storage.put("test_list.txt", b"n000001/1.jpg\n\nn000001\\2.jpg\n")
    with pytest.raises(ConfigError, match=r"test_list.txt, line 3: expected n000002/0001_01.jpg, not 'n000001"):
        vggface2(storage)


@pytest.mark.parametrize("place", ["", "Anno/", "CelebA-HQ/", "raw/CelebA/Anno/"])
def test_celeba_hq_people_come_from_both_lists(tmp_path: Path, place: str, caplog: pytest.LogCaptureFixture) -> None:
    storage = photos(tmp_path, "CelebA-HQ-img/0.jpg CelebA-HQ-img/1.jpg png/00001.png")
    storage.put(place + MAPPING, MAPPING_TEXT.encode())
    storage.put(place + PEOPLE, PEOPLE_TEXT.replace("\n", "\r\n").encode())
    assert celeba_hq(storage) == {"2880": "CelebA-HQ-img/1.jpg png/00001.png", "5805": "CelebA-HQ-img/0.jpg"}
    assert caplog.text == ""


def test_a_photo_in_no_celeba_list_is_a_person_of_its_own(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    storage, lists = photos(tmp_path / "in", "1.jpg 00007.jpg 7.png 2.jpg 00001_hair.png"), photos(tmp_path / "l", "")
    lists.put(MAPPING, (MAPPING_TEXT + "2 5 000006.jpg\n").encode())
    lists.put(PEOPLE, PEOPLE_TEXT.encode())
    assert celeba_hq(storage, lists) == {"2880": "1.jpg", "unknown-2": "2.jpg", "unknown-7": "00007.jpg 7.png"}
    assert "3 photos are in no CelebA-HQ list" in caplog.text
    assert "1 photos are left out: they are not named by a CelebA-HQ index" in caplog.text


def test_celeba_hq_numbers_of_the_release(tmp_path: Path) -> None:
    """30,000 photos of 6,217 people, as the release states; here by made lists of the same shape."""
    mapping = "".join(f"{n} {n + 7} {n + 8:06d}.jpg\n" for n in range(30_000))
    people = "".join(f"{n:06d}.jpg {n % 6217 + 1}\n" for n in range(1, 202_600))
    lists = photos(tmp_path / "lists", "")
    lists.put(MAPPING, f"idx orig_idx orig_file\n{mapping}".encode())
    lists.put(PEOPLE, people.encode())
    storage = photos(tmp_path / "in", "0.jpg 6217.jpg 29999.jpg")
    found = celeba_hq(storage, lists)
    assert found == {"9": "0.jpg 6217.jpg", str(30_007 % 6217 + 1): "29999.jpg"}


def test_auto_knows_celeba_hq_by_both_lists_at_the_top(tmp_path: Path) -> None:
    storage = photos(tmp_path, "img/0.jpg img/1.jpg")
    storage.put(MAPPING, MAPPING_TEXT.encode())
    assert keys(list(find_identities(storage))) == {"img": "img/0.jpg img/1.jpg"}
    storage.put(PEOPLE, PEOPLE_TEXT.encode())
    assert keys(list(find_identities(storage))) == {"2880": "img/1.jpg", "5805": "img/0.jpg"}


def test_missing_celeba_lists_are_both_named(tmp_path: Path) -> None:
    storage, lists = photos(tmp_path / "in", "0.jpg"), photos(tmp_path / "lists", "")
    with pytest.raises(ConfigError) as caught:
        celeba_hq(storage, lists)
    assert len(caught.value.faults) == 2
    for fault, name in zip(caught.value.faults, (MAPPING, PEOPLE), strict=True):
        assert fault.startswith(f"layout celeba_hq needs {name}: looked at the top")
        assert f"{tmp_path / 'lists'} and {tmp_path / 'in'}; it comes with the CelebA" in fault
        assert "\n" not in fault


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        (MAPPING, b"", "line 1: expected the header idx orig_idx orig_file, not ''"),
        (MAPPING, b"0 119613 119614.jpg\n", "line 1: expected the header idx orig_idx orig_file"),
        (
            MAPPING,
            b"idx orig_idx orig_file\n0 1 2.jpg\n1 99094\n",
            "line 3: expected 0 119613 119614.jpg, not '1 99094'",
        ),
        (MAPPING, b"idx orig_idx orig_file\nx 1 2.jpg\n", "line 2: expected 0 119613 119614.jpg, not 'x 1 2.jpg'"),
        (MAPPING, b"\x89PNG\r\n\x1a\n", "line 1: expected the header"),
        (PEOPLE, b"000001.jpg 2880\n\n000002.jpg\n", "line 3: expected 000001.jpg 2880, not '000002.jpg'"),
        (PEOPLE, b"000001.jpg Ann\n", "line 1: expected 000001.jpg 2880, not '000001.jpg Ann'"),
    ],
)
def test_a_malformed_celeba_list_names_its_line(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    storage = photos(tmp_path, "0.jpg")
    storage.put(MAPPING, MAPPING_TEXT.encode())
    storage.put(PEOPLE, PEOPLE_TEXT.encode())
    storage.put(name, content)
    with pytest.raises(ConfigError) as caught:
        celeba_hq(storage)
    assert f"{name}, {expected}" in str(caught.value)
    assert "\n" not in str(caught.value)
