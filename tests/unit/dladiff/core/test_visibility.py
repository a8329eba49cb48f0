"""Visibility against the package itself, Pillow's scaling, and programs that stand in for Butteraugli's."""

import io
import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from ssimulacra2 import compute_ssimulacra2

from dladiff.core import visibility
from dladiff.core.arrays import Pixels
from dladiff.core.visibility import around_face, butteraugli, cut, ssimulacra2, ssimulacra2_of_faces


def photo(height: int, width: int, seed: int = 0) -> Pixels:
    """A smooth colour picture."""
    cells = np.random.default_rng(seed).integers(30, 226, (5, 5, 3), dtype=np.uint8)
    return np.array(Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC))


def noisy(pixels: Pixels, levels: int) -> Pixels:
    signs = np.random.default_rng(1).choice([-levels, levels], pixels.shape)
    return np.clip(pixels.astype(int) + signs, 0, 255).astype(np.uint8)


def of_package(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """The package's own score, through PNG files."""
    files = []
    for pixels in (a, b):
        files.append(file := io.BytesIO())
        Image.fromarray(pixels).save(file, "PNG")
        file.seek(0)
    return float(compute_ssimulacra2(*files))


def test_identical_photos_have_exactly_100() -> None:
    a = photo(40, 30)
    assert ssimulacra2(a, a.copy()) == 100.0
    assert ssimulacra2_of_faces(a, a.copy(), [(1.0, 1.0, 9.0, 9.0)]) == 100.0


@pytest.mark.parametrize("size", [(64, 64), (97, 131), (9, 200), (8, 8)])
def test_the_score_is_the_package_s(size: tuple[int, int]) -> None:
    a = photo(*size)
    b = noisy(a, 6)
    assert ssimulacra2(a, b) == pytest.approx(of_package(a, b), abs=1e-6)
    assert ssimulacra2(a[::-1, ::-1], b[::-1, ::-1]) == pytest.approx(
        of_package(a[::-1, ::-1], b[::-1, ::-1]), abs=1e-6
    )


def test_more_noise_has_a_lower_score() -> None:
    a = photo(96, 96)
    scores = [ssimulacra2(a, noisy(a, levels)) for levels in (0, 1, 2, 4, 8, 16, 64)]
    assert scores == sorted(scores, reverse=True) and len(set(scores)) == len(scores)
    assert scores[1] > 80 > 30 > scores[-1]


@pytest.mark.parametrize("size", [(1300, 200), (150, 2000)])
def test_a_large_photo_is_compared_at_the_size_of_a_screen(size: tuple[int, int]) -> None:
    a = photo(*size)
    b = noisy(a, 8)
    scale = 1080 / max(size)
    screen = (round(size[1] * scale), round(size[0] * scale))
    reduced = [np.asarray(Image.fromarray(p).resize(screen, Image.Resampling.LANCZOS)) for p in (a, b)]
    assert max(reduced[0].shape) == 1080
    assert ssimulacra2(a, b) == pytest.approx(of_package(*reduced), abs=1e-6)
    assert abs(ssimulacra2(a, b) - of_package(a, b)) > 0.1


@pytest.mark.parametrize("size", [(1, 1), (3, 40), (7, 7), (2, 500)])
def test_below_8_px_edges_are_repeated(size: tuple[int, int]) -> None:
    """The package compares nothing there and gives 100 whatever the change."""
    a = photo(*size)
    b = 255 - a
    assert of_package(photo(7, 7), 255 - photo(7, 7)) == 100
    whole = [np.pad(p, [(0, max(0, 8 - size[0])), (0, max(0, 8 - size[1])), (0, 0)], mode="edge") for p in (a, b)]
    assert ssimulacra2(a, b) == pytest.approx(of_package(*whole), abs=1e-6)
    assert ssimulacra2(a, b) < 99
    assert ssimulacra2(a, a.copy()) == 100


def test_a_picture_that_was_scaled_can_be_written_to() -> None:
    """As torch demands of the memory that it shares."""
    assert visibility.shown(photo(40, 40), face=True).flags.writeable


def test_a_long_strip_scaled_below_8_px_can_be_compared() -> None:
    a = photo(2, 5000)
    assert ssimulacra2(a, 255 - a) < 99


def test_the_square_around_a_face_is_moved_into_the_photo_and_cut_to_it() -> None:
    assert around_face((440.0, 450.0, 840.0, 750.0), 900, 1300) == (390, 350, 890, 850)
    assert around_face((0.0, 0.0, 320.0, 310.0), 900, 1300) == (0, 0, 400, 400)
    assert around_face((1290.0, 800.0, 1320.0, 850.0), 900, 1300) == (1238, 794, 1300, 856)
    assert around_face((10.0, 10.0, 150.0, 850.0), 900, 1000) == (0, 0, 1000, 900)
    assert around_face((5.0, 5.0, 6.0, 6.0), 200, 300) == (2, 2, 10, 10)
    assert around_face((1.0, 1.0, 3.0, 3.0), 4, 6) == (0, 0, 6, 4)


def test_a_face_s_score_is_of_its_square_and_the_lowest_counts() -> None:
    a = photo(600, 600)
    b = a.copy()
    b[538:, 538:] = noisy(a, 4)[538:, 538:]
    corner, clean = (550.0, 550.0, 600.0, 600.0), (10.0, 10.0, 40.0, 40.0)
    squares = (Image.fromarray(np.ascontiguousarray(p[538:, 538:])) for p in (a, b))
    expected = of_package(*(np.asarray(square.resize((256, 256), Image.Resampling.BICUBIC)) for square in squares))
    assert ssimulacra2_of_faces(a, b, [corner]) == pytest.approx(expected, abs=1e-6)
    assert ssimulacra2_of_faces(a, b, [clean]) == 100
    assert ssimulacra2_of_faces(a, b, [clean, corner]) == pytest.approx(expected, abs=1e-6)
    assert math.isnan(ssimulacra2_of_faces(a, b, []))
    assert ssimulacra2(a, b) > expected


def test_a_large_face_is_compared_at_the_size_of_a_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visibility, "SCREEN", 108)
    monkeypatch.setattr(visibility, "FACE_SIDE", 100)
    a = photo(330, 325)
    b = noisy(a, 8)
    square = cut(a, around_face((10.0, 10.0, 250.0, 250.0), 330, 325)), cut(b, (0, 0, 300, 300))
    assert square[0].shape == (300, 300, 3)
    reduced = [np.asarray(Image.fromarray(p).resize((108, 108), Image.Resampling.LANCZOS)) for p in square]
    found = ssimulacra2_of_faces(a, b, [(10.0, 10.0, 250.0, 250.0), (9.9, 10.0, 249.9, 250.0)])
    assert found == pytest.approx(of_package(*reduced), abs=1e-6)


def test_both_scores_at_once_compare_nothing_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    a = photo(320, 290)
    b = noisy(a, 5)
    large, small, corner = (10.0, 10.0, 280.0, 310.0), (30.0, 30.0, 50.0, 60.0), (270.0, 290.0, 290.0, 320.0)
    assert around_face(large, 320, 290) == (0, 0, 290, 320)
    for boxes in ([], [large], [small], [large, small], [corner, small, small]):
        both = visibility.ssimulacra2_of_both(a, b, boxes)
        assert both == pytest.approx((ssimulacra2(a, b), ssimulacra2_of_faces(a, b, boxes)), abs=1e-9, nan_ok=True)
    shapes: list[tuple[int, ...]] = []
    monkeypatch.setattr(visibility, "ssimulacra2", lambda a, b, face=False: shapes.append(a.shape) or 50.0)
    visibility.ssimulacra2_of_both(a, b, [large, small, small])
    assert shapes == [(320, 290, 3), (38, 38, 3)]


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    program = folder / visibility.PROGRAM
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o700)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_without_the_program_there_is_no_butteraugli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert butteraugli(photo(16, 16), noisy(photo(16, 16), 9)) is None


def test_the_program_reads_both_photos_from_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a = photo(16, 24)
    b = noisy(a, 9)
    seen = tmp_path / "seen"
    seen.mkdir()
    stand_in(
        tmp_path, monkeypatch, f'cat "$1" >{seen}/a.ppm; cat "$2" >{seen}/b.ppm; echo 2.5; echo "3-norm: 1.250000"'
    )
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert butteraugli(a, b) == 1.25
    assert np.array_equal(np.asarray(Image.open(seen / "a.ppm")), a)
    assert np.array_equal(np.asarray(Image.open(seen / "b.ppm")), b)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    (seen / "a.ppm").unlink()
    assert butteraugli(a, a.copy()) == 0
    assert not (seen / "a.ppm").exists()


@pytest.mark.parametrize("script", ["exit 3", "echo 1.5", 'echo "3-norm: nan"', 'echo "3-norm: 1.0"; exit 1'])
def test_a_program_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    stand_in(tmp_path, monkeypatch, script)
    with pytest.raises(RuntimeError, match=r"butteraugli_main gives no 3-norm .* install libjxl"):
        butteraugli(photo(16, 16), noisy(photo(16, 16), 9))


def test_a_program_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch, "exec sleep 600")
    monkeypatch.setattr(visibility, "PROGRAM_S", 0.2)
    with pytest.raises(RuntimeError, match="timed out"):
        butteraugli(photo(16, 16), noisy(photo(16, 16), 9))


@pytest.mark.skipif(shutil.which(visibility.PROGRAM) is None, reason="no butteraugli_main: install libjxl-devtools")
def test_butteraugli_grows_with_noise_also_in_tiny_photos() -> None:
    for size in ((64, 64), (5, 30)):
        a = photo(*size)
        found = [butteraugli(a, noisy(a, levels)) or 0.0 for levels in (0, 2, 8, 32)]
        assert found[0] == 0 and found == sorted(found) and len(set(found)) == 4
