"""Layer 2's objective and encoder weights against closed forms; its settings on a real face."""

from typing import Any, Literal

import numpy as np
import pytest
import torch

from dladiff.core.pixels import to_float
from dladiff.core.randomness import stream
from dladiff.faces.cuts import FaceCut
from dladiff.faces.detect import alignment_matrix
from dladiff.layers.stop_rule import FaceReader
from dladiff.layers.zero_shot import (
    Box,
    FaceView,
    ImageGrid,
    draw_augmentation,
    half_crop_pixel,
    objective,
    pasted,
    perturb_face,
)
from dladiff.service import named_detector, named_encoder
from dladiff.settings.schema import ZeroShotConfig
from tests.golden.make_tiny import photo


def test_objective_and_its_gradient() -> None:
    cosines = [torch.tensor(c, requires_grad=True) for c in (0.5, 0.2, -0.3)]
    loss = objective(cosines, [0.07, 0.07, 0.07], [0.5, 0.25, 0.25])
    assert float(loss.detach()) == pytest.approx(1 - 0.5 * 0.5 - 0.25 * 0.2 - 0.25 * 0.07)
    loss.backward()
    assert [float(c.grad) for c in cosines if c.grad is not None] == [-0.5, -0.25, 0]


def test_an_augmentation_without_a_transform_gives_the_plain_crops() -> None:
    x = to_float(photo())
    landmarks = np.array([[90.0, 100], [150, 98], [122, 135], [98, 165], [146, 163]])
    bases = alignment_matrix(landmarks)[None]
    box = Box(40, 30, 190, 200)
    view = FaceView(x, bases, box, grid := ImageGrid(box, half_crop_pixel(bases[0])))
    delta = (torch.rand(1, 3, *grid.shape, generator=torch.Generator().manual_seed(0)) - 0.5) * 0.1
    plain = view.plain(delta, bases, FaceCut())
    pasted = view.transformed(delta, lambda images: images, bases, FaceCut())
    assert float((plain - pasted).abs().mean()) < 2e-3
    assert torch.equal(view.plain(torch.zeros_like(delta), bases, FaceCut()), view.align(view.window, bases, FaceCut()))
    mirrored = {
        torch.allclose(
            draw_augmentation(True, torch.Generator().manual_seed(s))(view, delta, bases, FaceCut()), plain, atol=0.1
        )
        for s in range(6)
    }
    assert mirrored == {True, False}


@pytest.fixture(scope="module")
def reader() -> FaceReader:
    face = named_detector("centerface", 20, 0.5).detect(photo())[0]
    return FaceReader(to_float(photo()), face, [], [named_encoder("embedded:mobile")])


@pytest.mark.networks
@pytest.mark.parametrize("changes", [{}, {"eot": True}])
def test_each_setting_lowers_the_cosine_and_is_reproducible(changes: dict[str, Any], reader: FaceReader) -> None:
    x = to_float(photo())
    config = ZeroShotConfig(max_steps=5, step_size=6e-3, draws=1, threshold=-1, **changes)
    box = Box.of(reader.face, *x.shape[-2:])
    patches = [
        perturb_face(x, box, reader.bases, reader.targets, reader.encoders, config, stream(0), lambda _: [1.0])[0]
        for _ in range(2)
    ]
    assert torch.equal(*patches) and float(patches[0].abs().max()) <= config.eta
    assert reader.max_cosines_at(pasted(x, patches[0], box), reader.bases, [0])[0] < 0.9
    coins = torch.rand(patches[0].shape, generator=stream(1)) < 0.5
    noise = torch.where(coins, 1.0, -1.0) * patches[0].square().mean().sqrt()
    assert reader.max_cosines_at(pasted(x, noise, box), reader.bases, [0])[0] > 0.95


class Brightness(torch.nn.Module):
    """An encoder of one number: its embedding turns with the mean of the crop's middle."""

    cut = FaceCut()

    def __init__(self, turn: float) -> None:
        super().__init__()
        self.turn = turn

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        angle = 40 * crops[..., 40:72, 40:72].mean((1, 2, 3)) + self.turn
        return torch.stack([angle.cos(), angle.sin()], dim=1)


def board() -> torch.Tensor:
    """Random squares of 2 px, black or white."""
    squares = (torch.rand(80, 80, generator=stream(1)) < 0.5).float()
    return squares.repeat_interleave(2, 0).repeat_interleave(2, 1).expand(1, 3, 160, 160).contiguous()


@pytest.mark.parametrize("space", ["image", "aligned"])
@pytest.mark.parametrize("scale", [0.25, 0.7, 1.4])  # cells of several pixels, and of one
@pytest.mark.parametrize("face", ["white", "black", "grey", "contrast"])
def test_a_face_at_the_limits_of_the_pixel_range_is_perturbed_as_far_as_it_can_be(
    face: str, scale: float, space: Literal["image", "aligned"]
) -> None:
    """The loss that the loop sees is that of the stored pixels; every pixel that can move away does."""
    levels = {"white": 1.0, "black": 0.0, "grey": 0.5}
    x = board() if face == "contrast" else torch.full((1, 3, 160, 160), levels[face])
    base = np.array([[[scale, 0.0, 56 - 80 * scale], [0.0, scale, 56 - 80 * scale]]])
    box, eta = Box(5, 5, 155, 155), 11 / 255
    view = FaceView(x, base, box, ImageGrid(box, half_crop_pixel(base[0])))
    turned = Brightness(-0.3 if face == "black" else 0.3)  # away from the target is darker, for black brighter
    target, encoder = turned(view.align(view.window, base, FaceCut())), Brightness(0)
    config = ZeroShotConfig(max_steps=40, step_size=2e-3, draws=1, threshold=-1, margin=0, space=space,
                            linear_noise=0, shift_noise=0)  # fmt: skip
    encoders: list[Any] = [encoder]
    patch, _, history = perturb_face(x, box, base, [target], encoders, config, stream(0), lambda _: [1.0])
    after = pasted(x, patch, box)
    assert after.min() >= 0 and after.max() <= 1
    moved = float((after - x).abs()[..., 74:86, 74:86].mean())
    assert moved > 0.8 * (eta / 2 if face == "contrast" else eta)  # half of the board's pixels cannot get darker
    done = FaceView(after, base, box, ImageGrid(box, half_crop_pixel(base[0])))
    cosine = float((encoder(done.align(done.window, base, FaceCut())) * target).sum())
    assert history[0][0] > 0.9 and cosine < 0.5
    assert cosine == pytest.approx(history[-1][0], abs=0.06)
