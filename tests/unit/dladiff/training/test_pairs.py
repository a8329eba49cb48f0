"""Pairs of photos: which clean photo a protected one belongs to, what is left out, and who is held out."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dladiff.training import pairs as module
from dladiff.training.pairs import Pair, PairsError, load_pairs, split


def save(path: Path, level: int, size: tuple[int, int] = (8, 6)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (level, level, level)).save(path)


def test_a_protected_photo_finds_its_clean_one_by_person_and_name(tmp_path):
    clean, protected = tmp_path / "clean", tmp_path / "out" / "photos"
    save(clean / "ann" / "1.jpg", 10)
    save(clean / "bob" / "1.png", 20)
    save(clean / "cid" / "set_A" / "1.png", 30)
    save(clean / "cid" / "set_B" / "1.png", 40)
    save(clean / "dan" / "a" / "1.png", 50)
    save(clean / "dan" / "b" / "1.png", 60)
    save(clean / "eve" / "2.png", 70, (9, 9))
    for number, person in enumerate(("ann", "bob", "cid", "dan", "fay")):
        save(protected / person / f"1.{number:012x}.png", 100 + number)
    save(protected / "bob" / "1.png", 110)  # as another program names it
    save(clean / "J\u00fcrgen M" / "1.png", 80)
    save(protected / "J%C3%BCrgen%20M" / "1.0123456789ab.png", 130)
    save(clean / "team" / "gil" / "1.png", 90)
    save(protected / "team%2Fgil" / "1.0123456789ab.png", 140)
    save(clean / "3.0123456789ab.png", 95)
    save(protected / "3.0123456789ab.png", 150)
    save(protected / "eve" / "2.0123456789ab.png", 120)
    save(protected / "ann" / ".hidden.png", 1)
    (protected / "ann" / "1.ffffffffffff.png").write_bytes(b"no picture")
    found, left_out = load_pairs(clean, protected)
    levels = sorted((p.person, int(p.clean[0, 0, 0]), int(p.protected[0, 0, 0])) for p in found)
    assert levels == [
        ("3", 95, 150),
        ("J\u00fcrgen M", 80, 130),
        ("ann", 10, 100),
        ("bob", 20, 101),
        ("bob", 20, 110),
        ("cid", 40, 102),
        ("team/gil", 90, 140),
    ]
    assert left_out == {"no clean photo": 1, "several clean photos": 1, "another size": 1, "unreadable": 1}


def test_an_orientation_in_exif_is_applied_as_the_protection_applies_it(tmp_path):
    photo = Image.fromarray(np.arange(72, dtype=np.uint8).reshape(4, 6, 3))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    (tmp_path / "clean" / "ann").mkdir(parents=True)
    photo.save(tmp_path / "clean" / "ann" / "1.png", exif=exif)
    (tmp_path / "out" / "ann").mkdir(parents=True)
    photo.transpose(Image.Transpose.ROTATE_270).save(tmp_path / "out" / "ann" / "1.png")
    ((pair,), left_out) = load_pairs(tmp_path / "clean", tmp_path / "out")
    assert np.array_equal(pair.clean, pair.protected) and pair.clean.shape == (6, 4, 3) and not left_out


def test_folders_without_pairs_say_what_is_needed(tmp_path, monkeypatch):
    with pytest.raises(PairsError, match="no folder"):
        load_pairs(tmp_path / "absent", tmp_path)
    save(tmp_path / "clean" / "ann" / "1.png", 1)
    save(tmp_path / "out" / "ann" / "2.png", 1)
    with pytest.raises(PairsError, match="no clean photo"):
        load_pairs(tmp_path / "clean", tmp_path / "out")
    save(tmp_path / "out" / "ann" / "1.png", 1)
    monkeypatch.setattr(module, "MAX_BYTES", 100)
    with pytest.raises(PairsError, match="memory"):
        load_pairs(tmp_path / "clean", tmp_path / "out")


def test_people_are_held_out_whole_by_name_whatever_the_order():
    photo = np.zeros((1, 1, 3), np.uint8)
    all_pairs = [Pair(f"person {i % 20}", photo, photo) for i in range(60)]
    learnt, held_out = split(all_pairs, 0.1)
    people = [{p.person for p in part} for part in (learnt, held_out)]
    assert len(people[1]) == 2 and not people[0] & people[1] and len(learnt) + len(held_out) == 60
    assert {p.person for p in split(all_pairs[::-1], 0.1)[1]} == people[1]
    assert [len({p.person for p in part}) for part in split(all_pairs[:2], 0.9)] == [1, 1]
    with pytest.raises(PairsError, match="two"):
        split(all_pairs[:1], 0.5)
