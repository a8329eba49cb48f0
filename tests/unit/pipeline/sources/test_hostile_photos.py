"""photos: files that would cost gigabytes or minutes are refused before a pixel is decoded."""

import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms, ImageFile, TiffImagePlugin

from dladiff.errors import PhotoError
from pipeline.sources.decode import decode, dimensions
from tests.support.photo_bytes import animated, many_scans, one_tile, png, rgb, saved, smooth, tiff, with_chunk

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def test_a_bomb_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """100 megapixels of zeros: 300 MB as pixels, 0.3 MB as a file."""
    bomb = png(10_000, 10_000, 8, 2, bytes(30_001 * 10_000))
    assert len(bomb) < 400_000
    loads = []
    monkeypatch.setattr(Image.Image, "load", lambda self: loads.append(self))
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: loads.append(self))
    with pytest.raises(PhotoError, match="too large: 10000 x 10000 px"):
        decode(bomb)
    assert loads == []


def test_a_tiff_with_one_huge_tile_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """libtiff holds whole tiles: 144 MB for 64 x 64 pixels here, 2 GB for a tile of 46,000 squared."""
    bomb = one_tile(64, 12_000)
    assert len(bomb) < 700_000
    assert decode(one_tile(64, 256)).pixels.shape == (64, 64, 3)  # a common tile, and larger than the image
    assert decode(one_tile(1024, 1040)).pixels.shape == (1024, 1024, 3)
    monkeypatch.setattr(TiffImagePlugin.TiffImageFile, "load", lambda self: pytest.fail("it was decoded"))
    for read in (decode, dimensions):
        with pytest.raises(PhotoError, match="a TIFF with a tile of 144000000 pixels for 64 x 64 px"):
            read(bomb)


def test_a_tiff_strip_is_no_higher_than_its_image() -> None:
    """What a strip claims beyond the image is not decoded: libtiff's own rule."""
    body = zlib.compress(bytes(64 * 64), 9)
    for rows in (64, 46_000 * 46_000 // 64, 2**32 - 1):
        sizes = [(256, 4, 1, 64), (257, 4, 1, 64), (278, 4, 1, rows), (273, 4, 1, 8), (279, 4, 1, len(body))]
        decoded = decode(tiff([*sizes, (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1), (277, 3, 1, 1)], body))
        assert decoded.pixels.shape == (64, 64, 3)


def test_a_jpeg_of_many_scans_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of 2,000 scans is a pass over all pixels: 37 seconds at 12 megapixels, of a file of 100 KB."""
    bomb = many_scans(64, 2000)
    assert decode(many_scans(64, 90)).pixels.shape == (64, 64, 3)
    assert decode(bomb, max_scans=2010).pixels.shape == (64, 64, 3)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("it was decoded"))
    for read in (decode, dimensions):
        with pytest.raises(PhotoError, match="a JPEG of more than max_scans = 100 scans"):
            read(bomb)


def test_a_jpeg_of_many_scans_inside_a_tiff_is_refused_by_libtiff() -> None:
    body = many_scans(64, 2000)
    sizes = [(256, 4, 1, 64), (257, 4, 1, 64), (278, 4, 1, 64), (273, 4, 1, 8), (279, 4, 1, len(body))]
    kind = [(258, 3, 1, 8), (259, 3, 1, 7), (262, 3, 1, 6), (277, 3, 1, 3)]
    with pytest.raises(PhotoError, match="damaged"):
        decode(tiff([*sizes, *kind], body))


def test_a_webp_of_a_huge_canvas_is_refused_before_pillow_opens_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow allocates 8 bytes a pixel to open a WebP: 2 GB for 16,383 squared."""
    data = saved(rgb(), "WEBP", icc_profile=SRGB)
    assert data[12:16] == b"VP8X"
    huge = data[:24] + (16382).to_bytes(3, "little") * 2 + data[30:]
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("it was opened"))
    for read in (decode, dimensions):
        with pytest.raises(PhotoError, match="too large: 16383 x 16383 px"):
            read(huge)


def test_dimensions_without_decoding() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    for kind in ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"):
        found = dimensions(saved(rgb(), kind, **({} if kind in ("BMP", "GIF") else {"exif": exif})))
        assert sorted(found) == [64, 96]
    for data, line in ((b"", "empty"), (saved(rgb(), "PNG")[:30], "truncated|damaged"), (animated("GIF"), "animated")):
        with pytest.raises(PhotoError, match=line):
            dimensions(data)
    with pytest.raises(PhotoError, match="too small"):
        dimensions(saved(rgb().resize((8, 9)), "WEBP"))


def test_a_png_with_a_large_text_keeps_its_pixels_and_profile() -> None:
    """Pillow refuses a PNG with a text of more than 2**20 bytes, before the pixels and behind them."""
    data = saved(rgb(), "PNG", icc_profile=SRGB)
    text = b"a\0\0" + zlib.compress(bytes(2_000_000))
    before = with_chunk(data, b"zTXt", text)
    behind = data[:-12] + with_chunk(b"x" * 33, b"zTXt", text)[33:] + data[-12:]
    for found in map(decode, (before, behind)):
        np.testing.assert_array_equal(found.pixels, smooth())
        assert (found.icc, found.note) == (SRGB, "")
    assert dimensions(before) == (96, 64)
