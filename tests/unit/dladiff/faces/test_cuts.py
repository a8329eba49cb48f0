"""Cuts of a photo against OpenCV, insightface, Pillow and transformers."""

import warnings

import cv2
import numpy as np
import pytest
import skimage.data
import torch
from insightface.utils import face_align
from PIL import Image

from dladiff.core.pixels import to_float
from dladiff.faces.cuts import FFHQ_TEMPLATE, FaceCut, PhotoCut, cut_of, resampling
from dladiff.faces.detect import alignment_matrix

LANDMARKS = np.array([[90.0, 100], [150, 98], [122, 135], [98, 165], [146, 163]])
LEVEL = 1 / 255


def photo(height: int = 256, width: int = 256) -> np.ndarray:
    return np.ascontiguousarray(skimage.data.astronaut()[:height, 96 : 96 + width])


@pytest.mark.parametrize("side", [112, 224])
def test_an_aligned_face_is_insightfaces(side: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        reference = face_align.norm_crop(photo(), LANDMARKS, image_size=side)
    got = cut_of(to_float(photo()), alignment_matrix(LANDMARKS)[None], FaceCut(side))[0].permute(1, 2, 0).numpy()
    assert np.abs(got - reference / 255).mean() < LEVEL  # OpenCV rounds positions to 1/32 px


def like_pillow(difference: np.ndarray) -> None:
    """Pillow rounds after each of two passes, and clips overshoots between them."""
    assert difference.mean() < 0.5 * LEVEL and np.quantile(difference, 0.999) < 2 * LEVEL
    assert difference.max() < 12 * LEVEL


def _facexlib(pixels: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """The reference: least median of squares, warp in BGR, grey outside; returned as RGB."""
    matrix = cv2.estimateAffinePartial2D(landmarks, FFHQ_TEMPLATE, method=cv2.LMEDS)[0]
    bgr = np.ascontiguousarray(pixels[:, :, ::-1])
    out = cv2.warpAffine(bgr, matrix, (512, 512), borderMode=cv2.BORDER_CONSTANT, borderValue=(135, 133, 132))
    return out[:, :, ::-1]


def test_facexlibs_alignment_with_its_border() -> None:
    """Landmarks like the template's: the alignment is exact. The crop reaches beyond the photo on two sides."""
    angle, scale = 0.2, 0.4
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    landmarks = (FFHQ_TEMPLATE - 256) @ turn.T + [110, 90]
    cut = FaceCut(512, ffhq=True)
    got = cut_of(to_float(photo()), alignment_matrix(landmarks)[None], cut)[0].permute(1, 2, 0).numpy()
    reference = _facexlib(photo(), landmarks) / 255
    assert np.abs(got - reference).mean() < 0.5 * LEVEL
    assert np.allclose(got[0, 0] * 255, [132, 133, 135], atol=0.01) and np.allclose(reference[0, 0], got[0, 0])


def test_facexlibs_alignment_of_a_real_face() -> None:
    """Landmarks unlike the template's: the crop's corners move by less than 5 % of its side."""
    carried = FaceCut(512, ffhq=True).matrices(alignment_matrix(LANDMARKS)[None])[0]
    direct = cv2.estimateAffinePartial2D(LANDMARKS, FFHQ_TEMPLATE, method=cv2.LMEDS)[0]
    inverse = cv2.invertAffineTransform(direct)
    corners = np.array([[0.0, 0, 1], [512, 0, 1], [512, 512, 1], [0, 512, 1]])
    back = np.concatenate([corners @ inverse.T, np.ones((4, 1))], axis=1) @ carried.T
    assert np.abs(back - corners[:, :2]).max() < 0.05 * 512


@pytest.mark.parametrize(("height", "width"), [(256, 400), (331, 200), (100, 90)])
def test_the_middle_of_the_photo_is_transformers(height: int, width: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import CLIPImageProcessor

        processor = CLIPImageProcessor(do_normalize=False)
        reference = processor(images=Image.fromarray(photo(height, width)), return_tensors="pt").pixel_values
    got = PhotoCut(224, middle=True).crop(to_float(photo(height, width)))
    assert reference.shape == got.shape
    like_pillow((got.clamp(0, 1) - reference).abs().numpy())


@pytest.mark.parametrize(("height", "width"), [(400, 300), (120, 250)])
def test_the_photo_as_a_square_is_pillows(height: int, width: int) -> None:
    reference = np.asarray(Image.fromarray(photo(height, width)).resize((384, 384), Image.Resampling.BICUBIC)) / 255
    got = PhotoCut(384, middle=False).crop(to_float(photo(height, width)))[0].permute(1, 2, 0).clamp(0, 1).numpy()
    like_pillow(np.abs(got - reference))


def test_a_part_adds_what_it_adds_to_the_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    image, part = torch.rand(1, 3, 90, 130, generator=generator), torch.rand(1, 3, 30, 40, generator=generator)
    changed = image.clone()
    changed[..., 20:50, 70:110] += part
    cut = PhotoCut(64, middle=True)
    assert torch.allclose(cut.crop(changed), cut.crop(image) + cut.part(part, (90, 130), (70, 20)), atol=1e-5)


def test_gradients_against_finite_differences() -> None:
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(1, 3, 11, 13, generator=generator, dtype=torch.float64, requires_grad=True)
    matrices = np.array([[[4.1, 0.3, 20.0], [-0.3, 4.1, 30.0]]])  # to a crop of 112 px
    for cut in (FaceCut(8), FaceCut(8, ffhq=True), PhotoCut(6, middle=True), PhotoCut(6, middle=False)):
        weights = torch.rand(1, 3, cut.side, cut.side, generator=generator, dtype=torch.float64)
        assert torch.autograd.gradcheck(lambda i, c=cut, w=weights: (cut_of(i, matrices, c) * w).sum(), (image,))


def test_rows_of_a_resampling_sum_to_one() -> None:
    assert torch.allclose(resampling(301, 97).sum(1), torch.ones(97), atol=1e-6)
