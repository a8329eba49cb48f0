"""decode: formats of phones, scanners and hubs, made by other libraries; each is decoded, or refused by its name."""

import io
import struct
import sys
from typing import Any

import numpy as np
import pillow_heif
import pytest
import tifffile
from PIL import Image, ImageFile, ImageOps

from dladiff.errors import PhotoError
from pipeline.sources import heif
from pipeline.sources.decode import decode, dimensions
from pipeline.sources.decoders import Decoders
from tests.support.photo_bytes import png, rgb, saved, smooth


def heic(image: Image.Image, **options: Any) -> bytes:
    out = io.BytesIO()
    pillow_heif.register_heif_opener()
    image.save(out, "HEIF", **({"quality": 95} | options))
    return out.getvalue()


def noise(width: int = 160, height: int = 128) -> Image.Image:
    blocks = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    return Image.fromarray(np.kron(blocks, np.ones((8, 8, 1), np.uint8)))


class Limits:
    max_pixels, max_scans, max_photo_seconds = 50_000_000, 100, 60.0


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_heic_and_avif_are_decoded_within_the_limits_of_the_process(mode: str) -> None:
    image = rgb().convert(mode)
    if mode == "RGBA":
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    with Decoders(Limits(), 1) as decoders:
        for data in (heic(image), heic(image, chroma=444), saved(image, "AVIF", quality=95)):
            assert decoders.dimensions(data) == (96, 64)
            found = decoders.decode(data, 96 * 64)
            expected = np.asarray(rgb().convert("L").convert("RGB") if mode == "L" else rgb())
            assert np.abs(found.pixels.astype(int) - expected).mean() < 3
            assert (found.alpha is not None) == (mode == "RGBA")


@pytest.mark.networks  # no network, but minutes of encoding on a busy machine
def test_a_large_heic_and_a_grid_fit_the_memory_of_the_process() -> None:
    image = noise(4000, 3000)
    with Decoders(Limits(), 1) as decoders:
        for data in (heic(image, quality=30), heic(image, quality=30, tile_size=512)):
            assert decoders.dimensions(data) == (4000, 3000)
            assert decoders.decode(data, 12_000_000).pixels.shape == (3000, 4000, 3)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_the_orientation_of_heic_is_applied_once(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    with Image.open(io.BytesIO(saved(rgb(), "PNG", exif=exif))) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    for data in (heic(rgb(), exif=exif.tobytes()), saved(rgb(), "AVIF", quality=95, exif=exif)):
        found = decode(data)
        assert found.pixels.shape == expected.shape
        assert np.abs(found.pixels.astype(int) - expected).mean() < 3
        assert sorted(dimensions(data)) == [64, 96]


@pytest.mark.parametrize("kind", ["HEIC", "AVIF"])
def test_a_huge_heic_or_avif_is_refused_before_it_is_opened(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = heic(rgb()) if kind == "HEIC" else saved(rgb(), "AVIF")
    at = data.index(b"ispe") + 8
    huge = data[:at] + struct.pack(">II", 60_000, 50_000) + data[at + 8 :]
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("it was opened"))
    for read in (decode, dimensions):
        with pytest.raises(PhotoError, match="too large: 60000 x 50000 px is more than max_pixels = 50000000"):
            read(huge)


def test_a_truncated_heic_or_avif_is_damaged() -> None:
    for data in (heic(noise()), saved(noise(), "AVIF", quality=95)):
        for length in (len(data) - len(data) // 4, 200, 30):
            with pytest.raises(PhotoError, match=r"(truncated|damaged).*; copy it again"):
                decode(data[:length])


def test_heic_of_ten_bits_says_what_was_cut() -> None:
    deep = (np.asarray(rgb()).astype(np.uint16) * 257).tobytes()
    out = io.BytesIO()
    pillow_heif.encode("RGB;16", (96, 64), deep, out, quality=95)
    found = decode(out.getvalue())
    assert np.abs(found.pixels.astype(int) - smooth()).mean() < 3
    assert found.note == "10-bit colour cut to 8 bits"


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 30, "subsampling": 0}])
def test_a_jpeg_that_lacks_only_its_end_marker_is_whole(options: dict[str, Any]) -> None:
    data = saved(noise(), "JPEG", **options)
    whole = decode(data)
    for other in (data[:-2], data[:-1], data[:-2] + bytes(1000)):
        found = decode(other)
        np.testing.assert_array_equal(found.pixels, whole.pixels)
        assert found.note == "its end marker is missing"
    for trailing in (b"\0" * 4096, b"Samsung_Capture_Info", data[:2000]):
        found = decode(data + trailing)
        assert (found.note, np.array_equal(found.pixels, whole.pixels)) == ("", True)
    scans = [i for i in range(len(data)) if data[i : i + 2] == b"\xff\xda"]
    for length in (len(data) - 8, len(data) - 60, len(data) // 2, *scans[1:]):  # progressive: cut between scans
        with pytest.raises(PhotoError, match="truncated"):
            decode(data[:length])


def bitmap(masks: tuple[int, int, int, int], bits: int, pixels: np.ndarray) -> bytes:
    """A BMP with bitfields, by hand (BITMAPV4HEADER)."""
    height, width = pixels.shape[:2]
    packed = np.zeros((height, width), np.uint32)
    for channel, mask in enumerate(masks[:3]):
        shift = (mask & -mask).bit_length() - 1
        top = mask >> shift
        packed |= (pixels[:, :, channel].astype(np.uint32) * top // 255) << shift
    body = packed[::-1].astype("<u2" if bits == 16 else "<u4").tobytes()
    head = struct.pack("<IiiHHIIiiII", 108, width, height, 1, bits, 3, len(body), 2835, 2835, 0, 0)
    head = (head + struct.pack("<4I", *masks)).ljust(108, b"\0")
    return b"BM" + struct.pack("<IHHI", 122 + len(body), 0, 0, 122) + head + body


@pytest.mark.parametrize(
    ("masks", "bits", "tolerance"),
    [
        ((0xF800, 0x7E0, 0x1F, 0), 16, 9),
        ((0x7C00, 0x3E0, 0x1F, 0), 16, 9),
        ((0xFF0000, 0xFF00, 0xFF, 0), 32, 0),
        ((0xFF000000, 0xFF0000, 0xFF00, 0), 32, 0),
    ],
)
def test_a_bitmap_with_bitfields(masks: tuple[int, int, int, int], bits: int, tolerance: int) -> None:
    found = decode(bitmap(masks, bits, smooth()))
    assert np.abs(found.pixels.astype(int) - smooth()).max() <= tolerance


def twelve_bits() -> bytes:
    data = saved(rgb(), "JPEG")
    at = data.index(b"\xff\xc0") + 4
    return data[:at] + b"\x0c" + data[at + 1 :]


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (bitmap((0x3FF00000, 0xFFC00, 0x3FF, 0), 32, smooth()), "its pixel format is not supported .*bitfields"),
        (twelve_bits(), "a JPEG with 12 bits a channel is not supported"),
        (saved(rgb(), "JPEG").replace(b"\xff\xc0", b"\xff\xc3", 1), "a JPEG with lossless coding is not supported"),
        (saved(rgb(), "JPEG2000"), "JPEG 2000 is not supported"),
        (saved(rgb(), "JPEG2000", no_jp2=True), "JPEG 2000 is not supported"),
        (saved(rgb(), "PPM"), "Netpbm is not supported"),
        (b"\xff\x0a" + bytes(100), "JPEG XL is not supported"),
        (b"8BPS" + bytes(100), r"Photoshop \(PSD\) is not supported"),
        (b"FUJIFILMCCD-RAW " + bytes(100), "camera raw is not supported"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom" + bytes(100), "camera raw is not supported"),
    ],
)
def test_what_is_not_supported_is_not_called_damaged(data: bytes, line: str) -> None:
    for read in (decode, dimensions) if b"BM" != data[:2] else (decode,):
        with pytest.raises(PhotoError, match=line) as caught:
            read(data)
        assert "damaged" not in str(caught.value)


def pages(*kinds: tuple[np.ndarray, dict[str, Any]]) -> bytes:
    out = io.BytesIO()
    with tifffile.TiffWriter(out, bigtiff=False) as writer:
        for pixels, options in kinds:
            writer.write(pixels, photometric="rgb", metadata=None, **options)
    return out.getvalue()


def test_reduced_pages_of_a_tiff_are_no_pages() -> None:
    full, half = smooth(), np.ascontiguousarray(smooth(192, 128)[::2, ::2])
    small = np.ascontiguousarray(full[::2, ::2])
    reduced = {"subfiletype": 1}
    for data in (pages((full, {}), (small, reduced), (small[::2], reduced)), pages((small, reduced), (full, {}))):
        np.testing.assert_array_equal(decode(data).pixels, full)
        assert dimensions(data) == (96, 64)
    np.testing.assert_array_equal(decode(pages((full, {"subifds": 1}), (small, reduced))).pixels, full)
    with pytest.raises(PhotoError, match="several pages"):
        decode(pages((full, {}), (half, {})))
    with pytest.raises(PhotoError, match="camera raw"):
        decode(pages((full, {"subfiletype": 1, "subifds": 1}), (half, {})))
    dng = {"extratags": [(50706, 1, 4, b"\1\4\0\0", True)]}
    with pytest.raises(PhotoError, match=r"camera raw \(DNG\) is not supported"):
        decode(pages((full, dng)))


def test_too_large_names_the_setting_and_the_size() -> None:
    for data in (png(10_000, 10_000, 8, 2, b""), png(60_000, 60_000, 8, 2, b""), saved(rgb(), "JPEG")):
        with pytest.raises(PhotoError, match=r"too large: \d+( x \d+ px| pixels) is more than max_pixels = 6143"):
            decode(data, max_pixels=96 * 64 - 1)


# Colour outside of a profile


def test_the_primary_picture_of_a_heic_with_several_is_the_photo() -> None:
    several, out = pillow_heif.HeifFile(), io.BytesIO()
    for image in (noise(96, 64), rgb(), noise(64, 64)):
        several.add_from_pillow(image)
    several.save(out, quality=95, primary_index=1)
    found = decode(out.getvalue())
    assert np.abs(found.pixels.astype(int) - smooth()).mean() < 3
    assert found.note == "primary picture of a HEIC with several"


def test_no_pixel_is_decoded_to_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("it was decoded"))
    for data in (heic(rgb()), saved(rgb(), "AVIF"), saved(rgb(), "JPEG")[:-2]):
        assert dimensions(data) == (96, 64)


def test_without_its_package_heic_is_refused_and_the_rest_works(monkeypatch: pytest.MonkeyPatch) -> None:
    data = heic(rgb())
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    heif.register_heic.cache_clear()
    with pytest.raises(PhotoError, match="HEIC is not supported here: install pillow-heif"):
        decode(data)
    assert decode(saved(rgb(), "AVIF")).pixels.shape == (64, 96, 3)
