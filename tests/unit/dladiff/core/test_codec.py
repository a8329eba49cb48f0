"""Files of protected photos: what readers decode, grey, size, the opt-out."""

import io
from xml.etree import ElementTree

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image, ImageCms

from dladiff.core.arrays import Pixels
from dladiff.core.codec import MIN_QUALITY, SIZE_LIMIT, Codec, fitting_quality, is_grey
from dladiff.core.formats import OPT_OUT
from dladiff.core.pixels import to_float, to_uint8
from dladiff.core.transforms import through_file


@pytest.fixture(scope="module")
def photo() -> Pixels:
    return np.ascontiguousarray(skimage.data.astronaut()[:200, 60:300])


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


@pytest.mark.parametrize("codec", [Codec("png"), Codec("jpeg", 95), Codec("jpeg", 80)])
def test_stored_pixels_are_those_of_the_file(codec: Codec, photo: Pixels) -> None:
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for metadata in ((None, None, False), (icc, None, True)):
        data = codec.encode(photo, *metadata)
        np.testing.assert_array_equal(np.asarray(opened(data)), codec.stored(photo))
        assert data == codec.encode(photo.copy(order="F"), *metadata)
        assert opened(data).info.get("icc_profile") == metadata[0] and not opened(data).getexif()
    assert codec.lossy != np.array_equal(codec.stored(photo), photo)


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_grey_stays_grey(kind: str, photo: Pixels) -> None:
    grey = np.repeat(photo.mean(2).astype(np.uint8)[:, :, None], 3, axis=2)
    assert is_grey(grey) and not is_grey(photo)
    codec = Codec(kind, 95, grey=True)
    data = codec.encode(grey)
    assert opened(data).mode == "L" and opened(data).format == kind.upper()
    assert is_grey(codec.stored(grey)) and np.abs(codec.stored(grey).astype(int) - grey).max() < 30
    if kind == "png":
        alpha = np.arange(grey[:, :, 0].size, dtype=np.uint64).astype(np.uint8).reshape(grey.shape[:2])
        again = opened(codec.encode(grey, None, alpha))
        assert again.mode == "LA"
        np.testing.assert_array_equal(np.asarray(again)[:, :, 1], alpha)


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_the_opt_out_is_the_only_metadata(kind: str, photo: Pixels) -> None:
    codec = Codec(kind, 95)
    image = opened(codec.encode(photo, opt_out=True))
    xmp = image.info.get("xmp") or image.info["XML:com.adobe.xmp"]
    text = xmp.decode() if isinstance(xmp, bytes) else xmp
    assert text.strip("\0") == OPT_OUT and "DMI-PROHIBITED" in text and not image.getexif()
    element = ElementTree.fromstring(OPT_OUT).find(".//{http://ns.useplus.org/ldf/xmp/1.0/}DataMining")
    assert element is not None and element.text == "http://ns.useplus.org/ldf/vocab/DMI-PROHIBITED"
    assert b"DMI-PROHIBITED" not in codec.encode(photo)


def test_a_jpeg_of_a_window_at_a_block_is_that_part_of_the_photo_s_jpeg(photo: Pixels) -> None:
    """What layer 2 sees of the face's window is what the stored photo shows."""
    codec = Codec("jpeg", 90)
    whole = codec.stored(photo)
    part = codec.stored(np.ascontiguousarray(photo[16:144, 8:200]))
    np.testing.assert_array_equal(part[:120, :184], whole[16:136, 8:192])


def test_the_gradient_goes_straight_through(photo: Pixels) -> None:
    images = to_float(photo).requires_grad_(True)
    out = through_file(images, Codec("jpeg", 85))
    np.testing.assert_array_equal(to_uint8(out.detach()), Codec("jpeg", 85).stored(photo))
    (gradient,) = torch.autograd.grad((out * 3).sum(), images)
    assert torch.equal(gradient, torch.full_like(images, 3))


def test_quality_falls_until_a_perturbed_photo_keeps_the_size(photo: Pixels) -> None:
    sizes = {quality: len(Codec("jpeg", quality).encode(photo)) for quality in (75, 85, 95)}
    assert fitting_quality(photo, 95, 100 * sizes[95], 7 / 255, False) == 95
    assert fitting_quality(photo, 95, 10, 7 / 255, False) == MIN_QUALITY
    chosen = fitting_quality(photo, 95, sizes[95], 7 / 255, False)
    assert MIN_QUALITY <= chosen < 95
    signs = np.random.default_rng(5).choice([-3, 3], photo.shape)
    noisy = np.clip(photo.astype(int) + signs, 0, 255).astype(np.uint8)
    assert chosen == MIN_QUALITY or len(Codec("jpeg", chosen).encode(noisy)) < 1.05 * SIZE_LIMIT * sizes[95]


def test_other_arrays_are_refused(photo: Pixels) -> None:
    with pytest.raises(ValueError, match="uint8"):
        Codec("png").encode(photo[:, :, :2])
