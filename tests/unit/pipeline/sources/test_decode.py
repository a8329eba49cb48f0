"""photos: every format people have becomes the same RGB pixels; the rest is refused by one line."""

import io
import struct
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageCms, ImageOps

from dladiff.core.codec import Codec
from dladiff.errors import PhotoError
from pipeline.records.output_format import encode_checked, encode_png
from pipeline.sources.decode import Decoded, decode
from tests.support.photo_bytes import animated, png, rgb, saved, smooth

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.mark.parametrize(
    ("kind", "options", "tolerance"),
    [
        ("PNG", {}, 0),
        ("BMP", {}, 0),
        ("TIFF", {}, 0),
        ("TIFF", {"compression": "tiff_lzw"}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("WEBP", {"quality": 95}, 12),
        ("JPEG", {"quality": 95}, 6),
        ("JPEG", {"quality": 95, "progressive": True}, 6),
    ],
)
def test_formats(kind: str, options: dict[str, Any], tolerance: int) -> None:
    decoded = decode(saved(rgb(), kind, **options))
    assert decoded.pixels.dtype == np.uint8 and decoded.pixels.shape == (64, 96, 3)
    assert np.abs(decoded.pixels.astype(int) - smooth()).max() <= tolerance
    assert decoded.alpha is None and decoded.icc is None and decoded.note == ""


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_as_pillow_applies_it(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    data = saved(rgb(), kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert expected.shape == ((64, 96, 3) if orientation < 5 else (96, 64, 3))
    np.testing.assert_array_equal(decode(data).pixels, expected)


def test_orientation_6_puts_the_first_row_at_the_right() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # EXIF 2.3: the 0th row is the visual right-hand side
    decoded = decode(saved(rgb(), "PNG", exif=exif))
    np.testing.assert_array_equal(decoded.pixels[:, -1], smooth()[0])


def test_a_broken_exif_block_is_no_reason_to_refuse() -> None:
    data = saved(rgb(), "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff broken")
    np.testing.assert_array_equal(decode(data).pixels, smooth())


@pytest.mark.parametrize("orientation", [1, 6])
def test_alpha_is_kept_aside_and_written_back(orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    alpha = smooth()[:, :, 1]
    image = Image.fromarray(np.dstack([smooth(), alpha]))
    decoded = decode(saved(image, "PNG", exif=exif))
    assert decoded.alpha is not None and decoded.alpha.shape == decoded.pixels.shape[:2]
    again = decode(encode_png(decoded.pixels, None, decoded.alpha))
    np.testing.assert_array_equal(again.pixels, decoded.pixels)
    np.testing.assert_array_equal(again.alpha, decoded.alpha)
    if orientation == 1:
        np.testing.assert_array_equal(decoded.pixels, smooth())  # also where alpha is 0
        np.testing.assert_array_equal(decoded.alpha, alpha)


def test_grey_grey_alpha_bilevel_and_palette() -> None:
    grey = smooth()[:, :, 0]
    expected = np.repeat(grey[:, :, None], 3, axis=2)
    np.testing.assert_array_equal(decode(saved(Image.fromarray(grey), "PNG")).pixels, expected)
    both = decode(saved(Image.merge("LA", [Image.fromarray(grey)] * 2), "PNG"))
    np.testing.assert_array_equal(both.pixels, expected)
    np.testing.assert_array_equal(both.alpha, grey)
    bilevel = Image.fromarray(grey > 128)
    assert set(np.unique(decode(saved(bilevel, "PNG")).pixels)) == {0, 255}
    palette = Image.fromarray(grey // 2)
    palette.putpalette([v for i in range(128) for v in (i, 255 - i, 7)])
    decoded = decode(saved(palette, "PNG"))
    np.testing.assert_array_equal(decoded.pixels, np.dstack([grey // 2, 255 - grey // 2, np.full_like(grey, 7)]))
    clear = decode(saved(palette, "PNG", transparency=0))
    np.testing.assert_array_equal(clear.alpha, np.where(grey // 2 == 0, 0, 255))
    still = decode(saved(palette, "GIF"))
    np.testing.assert_array_equal(still.pixels, decoded.pixels)


def test_16_bit_grey_is_divided_by_257() -> None:
    wide = (np.arange(64 * 1024, dtype=np.uint32).reshape(64, 1024)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in wide)
    expected = np.floor(wide.astype(np.float64) / 257 + 0.5)
    for data in (png(1024, 64, 16, 0, rows), saved(Image.fromarray(wide.astype("<u2")), "TIFF")):
        decoded = decode(data)
        np.testing.assert_array_equal(decoded.pixels[:, :, 0], expected)
        assert decoded.note == "16-bit grey scaled to 8 bits"


def test_sixteen_bit_colour_is_reported() -> None:
    deep = np.full((64, 64, 3), 0x05F0, np.uint16)
    for ending in (".png", ".tiff"):
        decoded = decode(cv2.imencode(ending, deep)[1].tobytes())
        assert (decoded.pixels[0, 0].tolist(), decoded.note) == ([5, 5, 5], "16-bit colour cut to 8 bits")
    assert decode(cv2.imencode(".png", deep.astype(np.uint8))[1].tobytes()).note == ""


def test_16_bit_rgb_png() -> None:
    wide = smooth().astype(np.uint16) * 257
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in wide)
    np.testing.assert_array_equal(decode(png(96, 64, 16, 2, rows)).pixels, smooth())


def test_32_bit_pixels_are_refused() -> None:
    for dtype in (np.int32, np.float32):
        with pytest.raises(PhotoError, match="32-bit pixels"):
            decode(saved(Image.fromarray(smooth()[:, :, 0].astype(dtype)), "TIFF"))


def test_encoding_is_deterministic_and_drops_metadata() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "camera"
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitudeRef] = "N"
    decoded = decode(saved(rgb(), "PNG", exif=exif, icc_profile=SRGB))
    first = encode_png(decoded.pixels, decoded.icc)
    assert first == encode_png(decoded.pixels.copy(order="F"), decoded.icc)
    names, at = [], 8
    while at < len(first):
        (length,) = struct.unpack(">I", first[at : at + 4])
        names.append(first[at + 4 : at + 8])
        at += 12 + length
    assert sorted(set(names)) == [b"IDAT", b"IEND", b"IHDR", b"iCCP"]


def test_encode_refuses_what_is_no_photo() -> None:
    wrong: list[Any] = [np.zeros((64, 64, 3), np.float32), np.zeros((64, 64), np.uint8)]
    for pixels in wrong:
        with pytest.raises(ValueError, match="must be uint8"):
            encode_png(pixels)


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (b"", "the file is empty"),
        (b"hello, this is text", "not an image"),
        (b"%PDF-1.7 ...", "not an image"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "truncated or damaged"),
        (saved(rgb(), "JPEG")[:500], "truncated"),
        (saved(rgb(), "JPEG")[:-60], "truncated"),
        (saved(rgb(), "JPEG")[:40], "truncated"),
        (saved(rgb(), "PNG")[:-60], "truncated|damaged"),
        (saved(rgb(), "WEBP")[:-60], "truncated|damaged"),
        (saved(rgb(), "BMP")[:-60], "truncated"),
        (saved(rgb(), "TIFF")[:2000], "truncated|damaged"),
        (b"\xff\xd8\xff", "truncated or damaged"),
        (animated("GIF"), "animated"),
        (animated("WEBP"), "animated"),
        (animated("PNG"), "animated"),
        (animated("TIFF"), "several pages"),
        (saved(rgb().resize((63, 640)), "PNG"), "too small: 63 x 640 px"),
        (saved(rgb().resize((640, 1)), "PNG"), "too small"),
        (png(10_000, 5_001, 8, 2, b""), "too large: 10000 x 5001 px is more than max_pixels = 50000000"),
        (
            png(60_000, 60_000, 8, 2, b""),
            "too large: 3600000000 pixels is more than max_pixels = 50000000; make it smaller",
        ),
    ],
)
def test_refusals_are_one_line(data: bytes, line: str) -> None:
    with pytest.raises(PhotoError, match=line) as caught:
        decode(data)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 160


def tifffile_of(pixels: np.ndarray, **options: Any) -> bytes:
    out = io.BytesIO()
    tifffile.imwrite(out, pixels, photometric="rgb", **options)
    return out.getvalue()


def test_a_tiff_of_another_kind_is_whole() -> None:
    levels = smooth() / 255
    for data, what in (
        (tifffile_of(levels.astype(np.float32)), r"3 x 32 bits \(floating-point\)"),
        (tifffile_of(levels.astype(np.float32), tile=(16, 16), byteorder=">"), r"3 x 32 bits \(floating-point\)"),
        (tifffile_of(levels.astype(np.float16), compression="zlib"), r"3 x 16 bits \(floating-point\)"),
        (tifffile_of(smooth().astype(np.uint32)), r"3 x 32 bits \(unsigned\)"),
    ):
        with pytest.raises(PhotoError, match=f"^a TIFF with {what} a pixel is not supported; save it as an 8-bit"):
            decode(data)
        with pytest.raises(PhotoError, match="truncated"):
            decode(data[: len(data) // 2])
    data = tifffile_of(smooth())
    at = data.index(struct.pack("<HHI", 259, 3, 1)) + 8  # TIFF 6.0: the tag Compression, one SHORT
    with pytest.raises(PhotoError, match="a TIFF with compression 34712 is not supported"):
        decode(data[:at] + struct.pack("<H", 34712) + data[at + 2 :])


def test_a_phones_multi_picture_jpeg_is_a_photo() -> None:
    decoded = decode(animated("MPO"))
    assert np.abs(decoded.pixels.astype(int) - smooth()).max() <= 12
    assert decoded.note == "first picture of a multi-picture JPEG"


def test_limits_count_exactly() -> None:
    assert decode(saved(rgb(), "PNG"), max_pixels=96 * 64).pixels.size == 96 * 64 * 3
    with pytest.raises(PhotoError, match="too large"):
        decode(saved(rgb(), "PNG"), max_pixels=96 * 64 - 1)
    with pytest.raises(
        PhotoError, match="3600000000 pixels is more than the 178956970 pixels that the decoder reads; make"
    ):  # Pillow's own limit is the lower one
        decode(png(60_000, 60_000, 8, 2, b""), max_pixels=200_000_000)
    assert decode(saved(rgb().resize((8, 9)), "PNG"), min_side=8).pixels.shape == (9, 8, 3)


def test_no_global_of_pillow_is_changed() -> None:
    limit = Image.MAX_IMAGE_PIXELS
    decode(saved(rgb(), "PNG"))
    assert limit == Image.MAX_IMAGE_PIXELS == 89_478_485


SEEDS = [saved(rgb(), k) for k in ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")]


@given(st.sampled_from(SEEDS), st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=8))
def test_damaged_bytes_give_pixels_or_one_clear_line(seed: bytes, edits: list[tuple[int, int]]) -> None:
    data = bytearray(seed)
    for at, value in edits:
        data[at % len(data)] = value
    try:
        decoded = decode(bytes(data), max_pixels=10_000_000)
    except PhotoError as exc:
        assert "\n" not in str(exc)
    else:
        assert isinstance(decoded, Decoded) and decoded.pixels.ndim == 3


@given(st.integers(64, 80), st.integers(64, 80), st.integers(0, 2**32 - 1), st.booleans())
def test_png_round_trip(height: int, width: int, seed: int, with_alpha: bool) -> None:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 4), dtype=np.uint8)
    alpha = noise[:, :, 3] if with_alpha else None
    decoded = decode(encode_png(noise[:, :, :3], None, alpha))
    np.testing.assert_array_equal(decoded.pixels, noise[:, :, :3])
    assert (decoded.alpha is None) == (alpha is None)
    if alpha is not None:
        np.testing.assert_array_equal(decoded.alpha, alpha)


class Wrong(Codec):
    """Stores other pixels than it says."""

    def encode(self, pixels, *others):
        return super().encode(pixels + 1, *others)

    def stored(self, pixels):
        return pixels


def test_what_is_encoded_is_decoded_and_compared() -> None:
    pixels = np.full((64, 64, 3), 100, np.uint8)
    assert np.array_equal(decode(encode_checked(pixels)).pixels, pixels)
    with pytest.raises(PhotoError, match="differs from the protected pixels"):
        encode_checked(pixels, codec=Wrong("png"))
