"""Colour profiles made by hand, against the closed forms of their curves."""

from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from dladiff.core.colour import grey_to_srgb, profile_fault, profile_of, to_srgb
from tests.support.photo_bytes import grey_profile, lightness_profile, padded

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
LAB = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("gamma", [1, 1.75, 2.25, 3])  # whole 256ths, as the profile holds them
def test_every_grey_level_follows_the_curve_of_its_profile(dtype: type, gamma: float) -> None:
    most = np.iinfo(dtype).max
    levels: Any = np.arange(most + 1).astype(dtype).reshape(-1, 256)
    light = (levels / most) ** gamma
    expected = 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)  # IEC 61966-2-1
    found = grey_to_srgb(levels, grey_profile(gamma))
    assert found.dtype == np.uint8 and found.shape == (*levels.shape, 3)
    assert (
        np.abs(found - expected[:, :, None]).max() < 0.51
    )  # half a level of rounding, plus the 16-bit nodes of the curve


def test_srgb_stays_unchanged() -> None:
    ramp = Image.fromarray(np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2))
    np.testing.assert_array_equal(np.asarray(to_srgb(ramp, SRGB)), np.asarray(ramp))


@pytest.mark.parametrize(
    ("mode", "profile"), [("RGB", SRGB), ("L", grey_profile(2.2)), ("CMYK", lightness_profile()), ("LAB", LAB)]
)
def test_a_profile_fits_only_the_colour_space_that_it_names(mode: str, profile: bytes) -> None:
    for other in ("RGB", "L", "CMYK", "LAB"):
        assert profile_fault(profile, other) == ("" if other == mode else "does not fit its pixels")
    for damaged in (None, b"", profile[:128], profile[:36] + b"????" + profile[40:]):
        assert profile_fault(damaged, mode) == "is damaged"
    if mode != "LAB":  # Lab pixels are converted without any tag of the profile
        assert profile_fault(profile[:160], mode) == "is damaged"


def test_a_profile_is_cut_to_its_declared_size_and_refused_above_max_bytes() -> None:
    image = Image.new("RGB", (1, 1))
    for profile, found in (
        (SRGB, (SRGB, "")),
        (padded(SRGB, 3_000_000, declared=False), (SRGB, "")),
        (padded(SRGB, 1_000_001, declared=True), (None, "has more than 1000000 bytes")),
        (SRGB[:200], (None, "is damaged")),
    ):
        image.info["icc_profile"] = profile
        icc, fault = profile_of(image)
        assert icc == found[0] and found[1] in fault
