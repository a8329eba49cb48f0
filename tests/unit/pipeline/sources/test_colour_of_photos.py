"""photos: pixels go through their colour profile, keep it, or the row says that it was left out."""

import io

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms, ImageOps

from pipeline.records.output_format import encode_checked, encode_png
from pipeline.sources.decode import decode
from tests.support.photo_bytes import grey_profile, lightness_profile, padded, rgb, saved, smooth

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
