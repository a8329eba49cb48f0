"""photos: pixels go through their colour profile, keep it, or the row says that it was left out."""

import io
import struct
from typing import Any

import numpy as np
import pillow_heif
import pytest
from PIL import ExifTags, Image, ImageCms, ImageOps

from pipeline.records.output_format import encode_checked, encode_png
from pipeline.sources.decode import decode
from tests.support.photo_bytes import grey_profile, lightness_profile, padded, rgb, saved, smooth, with_chunk

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def cmyk() -> Image.Image:
    """The ramp as ink: C, M, Y are 255 minus R, G, B, and there is no black."""
    inks = [ImageOps.invert(band) for band in rgb().split()]
    return Image.merge("CMYK", [*inks, Image.new("L", (96, 64), 0)])


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_without_a_profile(kind: str) -> None:
    """With no black ink RGB is 255 - CMY. Pillow's JPEG writer inverts and marks as Adobe programs do."""
    data = saved(cmyk(), kind, **({"quality": 97} if kind == "JPEG" else {}))
    assert kind != "JPEG" or b"Adobe" in data[:700]
    decoded = decode(data)
    assert np.abs(decoded.pixels.astype(int) - smooth()).max() <= 6
    assert decoded.note == "CMYK converted" and decoded.icc is None


def test_cmyk_goes_through_its_profile() -> None:
    image = Image.new("CMYK", (64, 64), (255, 0, 0, 0))
    decoded = decode(saved(image, "TIFF", icc_profile=lightness_profile()))
    # L* = 66.67 -> Y = ((L* + 16) / 116)^3 = 0.3620 -> sRGB 1.055 Y^(1/2.4) - 0.055 = 0.636 -> 162
    assert np.abs(decoded.pixels.astype(int) - 162).max() <= 2
    assert decoded.icc is None and decoded.note == "CMYK converted through its profile"
    broken = decode(saved(image, "TIFF", icc_profile=b"broken"))
    np.testing.assert_array_equal(broken.pixels[0, 0], [0, 255, 255])
    assert "damaged" in broken.note


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_an_rgb_profile_is_kept_and_written(kind: str) -> None:
    decoded = decode(saved(rgb(), kind, icc_profile=SRGB))
    assert decoded.icc == SRGB
    with Image.open(io.BytesIO(encode_png(decoded.pixels, decoded.icc))) as image:
        assert image.info["icc_profile"] == SRGB


def test_grey_goes_through_its_profile_with_orientation_and_alpha() -> None:
    """A linear grey is brighter as sRGB: IEC 61966-2-1 makes 255 (1.055 (v / 255)^(1/2.4) - 0.055) of a level v."""
    grey, exif, profile = smooth()[:, :, 0], Image.Exif(), grey_profile(1)
    exif[ExifTags.Base.Orientation] = 6
    light = grey / 255
    level = 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    expected = np.rot90(np.repeat(level[:, :, None], 3, axis=2), -1)
    both = Image.merge("LA", [Image.fromarray(grey)] * 2)
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    for image, kind, note in (
        (Image.fromarray(grey), "PNG", "grey"),
        (Image.fromarray(grey), "TIFF", "grey"),
        (both, "PNG", "grey"),
        (deep, "PNG", "16-bit grey"),
        (deep, "TIFF", "16-bit grey"),
    ):
        decoded = decode(saved(image, kind, exif=exif, icc_profile=profile))
        assert np.abs(decoded.pixels - expected).max() < 0.51
        assert (decoded.icc, decoded.note) == (None, f"{note} converted to sRGB through its profile")
        assert decoded.alpha is None or np.array_equal(decoded.alpha, np.rot90(grey, -1))
    flat = decode(saved(Image.new("L", (64, 64), 55), "JPEG", quality=95, icc_profile=profile))
    assert flat.pixels[9, 9].tolist() == [128, 128, 128]


def test_a_profile_that_cannot_be_kept_is_reported() -> None:
    damaged, other = (f"its colour profile {why} and was left out" for why in ("is damaged", "does not fit its pixels"))
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    grey, ink = rgb().convert("L"), cmyk()
    for image, kind, profile, note in (
        (rgb(), "PNG", b"RGB nonsense", damaged),
        (rgb(), "JPEG", SRGB[:300], damaged),  # the table of tags is whole, the tags are not
        (rgb(), "PNG", lightness_profile(), other),
        (rgb(), "PNG", lab, other),
        (rgb(), "WEBP", grey_profile(1), other),
        (grey, "PNG", SRGB, f"grey; {other}"),
        (grey, "TIFF", grey_profile(1)[:150], f"grey; {damaged}"),
        (ink, "TIFF", SRGB, f"CMYK converted; {other}"),
    ):
        with_it, without = (decode(saved(image, kind, **options)) for options in ({"icc_profile": profile}, {}))
        np.testing.assert_array_equal(with_it.pixels, without.pixels)
        assert (with_it.icc, with_it.note) == (None, note)


def test_a_jpeg_that_lost_a_piece_of_its_profile_is_reported() -> None:
    data = saved(rgb(), "JPEG", icc_profile=SRGB)
    at = data.index(b"ICC_PROFILE\0") + 12
    assert data[at : at + 2] == b"\x01\x01"  # ICC.1, B.4: the number of this piece, and of how many
    assert decode(data[: at + 1] + b"\x02" + data[at + 2 :]).note == "its colour profile is damaged and was left out"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_a_profile_is_cut_to_the_size_it_declares(kind: str) -> None:
    """Else a photo with two megabytes behind its profile is protected, and then cannot be opened again."""
    long = padded(SRGB, 2_000_000 if kind != "PNG" else 900_000, declared=False)
    decoded = decode(saved(rgb(), kind, icc_profile=long))
    assert (decoded.icc, decoded.note) == (SRGB, "")
    np.testing.assert_array_equal(decode(encode_checked(decoded.pixels, decoded.icc)).pixels, decoded.pixels)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_a_profile_of_more_than_a_megabyte_is_left_out(kind: str) -> None:
    for size, kept in ((1_000_000, True), (1_000_001, False), (2_000_000, False)):
        whole = padded(SRGB, size, declared=True)
        decoded = decode(saved(rgb(), kind, icc_profile=whole))
        note = "" if kept else "its colour profile has more than 1000000 bytes and was left out"
        assert (decoded.icc, decoded.note) == (whole if kept else None, note)
        np.testing.assert_array_equal(decode(encode_checked(decoded.pixels, decoded.icc)).pixels, decoded.pixels)


def test_a_profile_that_serves_one_conversion_may_be_larger() -> None:
    image = Image.new("CMYK", (64, 64), (255, 0, 0, 0))
    for size, note in ((3_000_000, "CMYK converted through its profile"), (9_000_000, "has more than 8000000 bytes")):
        large = padded(lightness_profile(), size, declared=True)
        assert note in decode(saved(image, "TIFF", icc_profile=large)).note


def heic(image: Image.Image, **options: Any) -> bytes:
    out = io.BytesIO()
    pillow_heif.register_heif_opener()
    image.save(out, "HEIF", **({"quality": 95} | options))
    return out.getvalue()


def gama(value: int) -> bytes:
    return struct.pack(">I", value)


SRGB_CHRM = struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)


P3_CHRM = struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)


def test_chunks_that_say_srgb_change_nothing() -> None:
    data = saved(rgb(), "PNG")
    for chunks in (
        [(b"sRGB", b"\0")],
        [(b"gAMA", gama(45455))],
        [(b"cHRM", SRGB_CHRM), (b"gAMA", gama(45455))],
        [(b"cICP", bytes([1, 13, 0, 1]))],
        [(b"gAMA", gama(100_000)), (b"sRGB", b"\0")],  # sRGB comes first
    ):
        found = data
        for kind, body in chunks:
            found = with_chunk(found, kind, body)
        np.testing.assert_array_equal(decode(found).pixels, smooth())
        assert decode(found).note == ""


def test_a_linear_png_is_converted() -> None:
    found = decode(with_chunk(saved(rgb(), "PNG"), b"gAMA", gama(100_000)))
    light = smooth() / 255
    expected = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055) * 255
    assert np.abs(found.pixels - expected).max() <= 0.51
    assert found.note == "colour converted to sRGB from the values in the file"


@pytest.mark.parametrize(("kind", "body"), [(b"cICP", bytes([12, 13, 0, 1])), (b"cHRM", P3_CHRM)])
def test_display_p3_becomes_srgb(kind: bytes, body: bytes) -> None:
    """Published: sRGB (255, 0, 0) is Display P3 (234, 51, 35), and grey stays grey."""
    pixels = np.full((64, 64, 3), 128, np.uint8)
    pixels[:32] = 234, 51, 35
    found = decode(with_chunk(saved(Image.fromarray(pixels), "PNG"), kind, body))
    assert np.abs(found.pixels[0, 0].astype(int) - (255, 0, 0)).max() <= 8
    assert np.abs(found.pixels[63, 0].astype(int) - 128).max() <= 1
    assert "converted to sRGB" in found.note


def test_adobe_rgb_of_a_camera_becomes_srgb() -> None:
    """Published: sRGB (255, 0, 0) is Adobe RGB (219, 0, 0)."""
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA005] = {1: "R03"}
    image = Image.new("RGB", (64, 64), (219, 0, 0))
    data = saved(image, "JPEG", quality=100, subsampling=0, exif=exif)
    with Image.open(io.BytesIO(data)) as opened:
        assert opened.getexif().get_ifd(0xA005)[1].strip("\0") == "R03"
    found = decode(data)
    assert np.abs(found.pixels[32, 32].astype(int) - (255, 0, 0)).max() <= 3
    assert found.note == "colour converted to sRGB from the values in the file"
    exif.get_ifd(0x8769)[0xA005] = {1: "R98"}  # sRGB
    assert decode(saved(image, "JPEG", exif=exif)).note == ""


def test_hdr_colour_and_gain_maps_are_noted() -> None:
    found = decode(with_chunk(saved(rgb(), "PNG"), b"cICP", bytes([9, 16, 0, 1])))
    np.testing.assert_array_equal(found.pixels, smooth())
    assert found.note == "HDR colour (PQ) of its cICP chunk was read as sRGB"
    found = decode(heic(rgb(), color_primaries=9, transfer_characteristics=18, matrix_coefficients=9))
    assert "HDR colour (HLG) of its colr box was read as sRGB" in found.note
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description hdrgm:Version="1.0"/></x:xmpmeta>'
    assert decode(saved(rgb(), "JPEG", xmp=xmp)).note == "its HDR gain map was left out"


def test_heic_of_display_p3_becomes_srgb() -> None:
    pixels = np.full((64, 64, 3), (234, 51, 35), np.uint8)
    data = heic(Image.fromarray(pixels), color_primaries=12, transfer_characteristics=13, matrix_coefficients=6)
    found = decode(data)
    assert np.abs(found.pixels[32, 32].astype(int) - (255, 0, 0)).max() <= 10
    assert "converted to sRGB" in found.note and found.icc is None
