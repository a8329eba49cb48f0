"""Selection of clean photos: large, sharp, single faces first; photos without a face last."""

import cv2
import numpy as np

from dladiff.core.arrays import Pixels
from dladiff.faces.clean_set import best_photos
from dladiff.faces.detect import Face

Boxes = list[tuple[float, float, float, float]]


class GivenFaces:
    """A detector with predefined faces, keyed by the value of a photo's first pixel."""

    def __init__(self, found: dict[int, Boxes]) -> None:
        self.found = found

    def detect(self, photo: Pixels) -> list[Face]:
        marks = np.zeros((5, 2))
        boxes = self.found[int(photo[0, 0, 0])]
        return [Face(box=box, landmarks=marks, score=0.9) for box in boxes]


def photo(number: int, blur: float = 0.0) -> Pixels:
    pixels = np.random.default_rng(7).integers(0, 255, (400, 400, 3), dtype=np.uint8)
    if blur:
        pixels = cv2.GaussianBlur(pixels, (0, 0), blur).astype(np.uint8)
    pixels[0, 0, 0] = number
    return pixels


def chosen(photos: list[Pixels], found: dict[int, Boxes], count: int) -> list[int]:
    best = best_photos(photos, count, GivenFaces(found))  # type: ignore[arg-type]
    return [int(p[0, 0, 0]) for p in best]


def test_size_sharpness_and_number_of_faces_decide() -> None:
    large, small = (50.0, 50.0, 350.0, 350.0), (50.0, 50.0, 90.0, 90.0)
    photos = [photo(0), photo(1), photo(2, blur=4), photo(3), photo(4)]
    found = {0: [small], 1: [large], 2: [large], 3: [], 4: [large, large]}
    assert chosen(photos, found, 1) == [1]
    assert chosen(photos, found, 2) == [1, 4]
    assert 3 not in chosen(photos, found, 4)


def test_few_photos_are_all_used_without_detection() -> None:
    photos = [photo(0), photo(1)]
    assert chosen(photos, {}, 2) == [0, 1]
    assert chosen([], {}, 2) == []


def test_ties_are_broken_by_content_and_not_by_order() -> None:
    bare = [photo(i) for i in range(5)]
    found: dict[int, Boxes] = {i: [] for i in range(5)}
    assert sorted(chosen(bare, found, 3)) == sorted(chosen(bare[::-1], found, 3))


def test_the_order_given_is_kept() -> None:
    boxes: Boxes = [(0.0, 0.0, 200.0, 200.0)]
    assert chosen([photo(5), photo(3), photo(4)], dict.fromkeys((3, 4, 5), boxes), 2) == [5, 3]
