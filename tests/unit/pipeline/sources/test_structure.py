"""structure: counts and sizes that files declare, against files whose counts and sizes are known."""

import io
import zlib

import pytest
from PIL import Image, ImageCms

from pipeline.sources.structure import PNG_MAGIC, jpeg_scans, webp_size, without_texts
from tests.support.photo_bytes import animated, many_scans, padded, rgb, saved, with_chunk

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def test_scans_of_a_jpeg() -> None:
    assert jpeg_scans(saved(rgb(), "JPEG"), 100) == 1
    assert jpeg_scans(saved(rgb(), "JPEG", restart_marker_blocks=1), 100) == 1
    assert jpeg_scans(saved(rgb(), "JPEG", progressive=True), 100) == 10  # libjpeg's script for three components
    assert jpeg_scans(saved(rgb(), "JPEG", progressive=True, restart_marker_rows=1, quality=100), 100) == 10
    assert jpeg_scans(many_scans(64, 50), 100) == 60
    assert jpeg_scans(many_scans(64, 500), 100) == 101
    assert jpeg_scans(animated("MPO"), 100) == 1  # of the first picture


def test_markers_inside_segments_and_fill_bytes_are_no_scans() -> None:
    data = saved(rgb(), "JPEG")
    comment = b"\xff\xfe\x00\x0a" + b"\xff\xda" * 4
    assert jpeg_scans(data[:2] + comment + data[2:], 100) == 1
    at = data.index(b"\xff\xda")
    assert jpeg_scans(data[:at] + b"\xff\xff\xff" + data[at:], 100) == 1
    for cut in (3, 4, at, at + 3, at + 40):
        assert jpeg_scans(data[:cut], 100) <= 1


@pytest.mark.parametrize(
    "options",
    [{"quality": 80}, {"lossless": True}, {"quality": 80, "icc_profile": SRGB}, {"lossless": True, "exif": b"E"}],
)
def test_the_size_of_a_webp(options: dict[str, object]) -> None:
    for size in ((64, 300), (301, 77)):
        assert webp_size(saved(rgb().resize(size), "WEBP", **options)) == size
    assert webp_size(saved(rgb(), "PNG")) is None
    assert webp_size(saved(rgb(), "WEBP")[:29]) is None


def test_texts_and_large_profiles_of_a_png_are_cut_out() -> None:
    data = saved(rgb(), "PNG", icc_profile=SRGB)
    texts = with_chunk(with_chunk(data, b"tEXt", b"a\0b"), b"zTXt", b"a\0\0" + zlib.compress(b"b"))
    assert without_texts(texts) == (data, False)
    large = b"p\0\0" + zlib.compress(padded(SRGB, 1_000_001, declared=True))
    bare, lost = without_texts(with_chunk(saved(rgb(), "PNG"), b"iCCP", large))
    assert (bare, lost) == (saved(rgb(), "PNG"), True)
    assert without_texts(PNG_MAGIC + b"\xff\xff\xff\xffIDAT") == (PNG_MAGIC, False)
    with Image.open(io.BytesIO(bare)) as image:
        assert "icc_profile" not in image.info
