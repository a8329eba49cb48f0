"""Layer 2's objective and encoder weights against closed forms; its settings on a real face."""

from typing import Any

import numpy as np
import pytest
import torch

from dladiff.core.pixels import to_float
from dladiff.core.randomness import stream
from dladiff.faces.detect import alignment_matrix
from dladiff.layers.stop_rule import FaceReader
from dladiff.layers.zero_shot import (
    Box,
    FaceView,
    ImageGrid,
    _draw_augmentation,
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
    view = FaceView(x, bases, box, grid := ImageGrid(box, bases[0]))
    delta = (torch.rand(1, 3, *grid.shape, generator=torch.Generator().manual_seed(0)) - 0.5) * 0.1
    plain = view.plain(delta, bases, 112)
    pasted = view.transformed(delta, lambda images: images, bases, 112)
    assert float((plain - pasted).abs().mean()) < 2e-3
    assert torch.equal(view.plain(torch.zeros_like(delta), bases, 112), view.align(view.window, bases, 112))
    mirrored = {
        torch.allclose(
            _draw_augmentation(True, torch.Generator().manual_seed(s))(view, delta, bases, 112), plain, atol=0.1
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
