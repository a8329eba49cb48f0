import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dladiff.core.tiles import (
    TEMPLATE,
    Square,
    add_square,
    covering_squares,
    cut,
    face_square,
    retained,
    shrink,
    spread,
)


@given(st.integers(64, 5000), st.integers(64, 5000))
def test_squares_cover_every_pixel_of_ordinary_photos(height: int, width: int) -> None:
    squares = covering_squares(height, width, 200)
    long = max(height, width)
    reached = 0
    for square in squares:
        start = square.x if width >= height else square.y
        assert start <= reached
        reached = start + square.side
    assert reached == long


def test_face_square_inverts_the_template() -> None:
    square = face_square(TEMPLATE * 200 + np.array([30.0, 50.0]))
    assert (square.x, square.y, square.side) == (30, 50, 200)


@pytest.mark.parametrize("side", [64, 128, 200, 337, 700])
def test_a_spread_perturbation_survives_the_attackers_resize(side: int) -> None:
    delta = (torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0)) - 0.5).sign() * 0.02
    smooth = torch.nn.functional.avg_pool2d(delta, 3, 1, 1)
    full = spread(smooth, Square(0, 0, side), 7 / 255)
    assert full.abs().max() <= 7 / 255
    plain = torch.nn.functional.interpolate(smooth, (side, side), mode="bilinear", antialias=True)
    share = retained(smooth, shrink(full, 128))
    assert share >= retained(smooth, shrink(plain, 128))
    if side >= 128:
        assert share > 0.9


def test_squares_beyond_the_edge_repeat_pixels_and_write_only_inside() -> None:
    image = torch.arange(64.0).view(1, 1, 8, 8).expand(1, 3, 8, 8) / 64
    square = Square(-4, -4, 8)
    assert torch.equal(cut(image, square, 8)[0, 0, 0], image[0, 0, 0, [0, 0, 0, 0, 0, 1, 2, 3]])
    total = torch.zeros(1, 3, 8, 8)
    add_square(total, torch.ones(1, 3, 8, 8), square)
    assert total.sum() == 3 * 16
    assert total[..., :4, :4].min() == 1
