"""People for the pairs of a remover: never those of the evaluation, as many photos each."""

from dladiff.training.data import Crop
from dladiff.training.people import chosen


def test_people_with_enough_photos_that_are_not_held_out():
    counts = {"a": 3, "b": 1, "c": 2, "d": 5, "e": 2}
    crops = [
        Crop(data=f"{name}{i}".encode(), person=name, held_out=name == "d")
        for name in counts
        for i in range(counts[name])
    ]
    found = chosen(crops, 2, 2)
    assert {name: [crop.data for crop in own] for name, own in found.items()} == {
        "a": [b"a0", b"a1"],
        "e": [b"e0", b"e1"],
    }
    assert list(chosen(crops, 10, 2)) == ["a", "c", "e"] and not chosen(crops, 3, 9)
