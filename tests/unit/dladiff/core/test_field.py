"""A field's views equal those cut from the enlarged perturbation; its gradient is the transposed map."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dladiff.core.field import MAX_CELLS, Field, Photos, Squares
from dladiff.core.tiles import retained
from dladiff.core.views import View, attacker_views
from pipeline.run import budget

ETA = 7 / 255


def random_field(height: int, width: int, resolution: int, boxes: list[tuple[float, float, float, float]]) -> Field:
    generator = torch.Generator().manual_seed(0)
    photo = torch.rand(1, 3, height, width, generator=generator)
    field = Field(photo, attacker_views(height, width, boxes, 16), resolution, ETA)
    field.cells = (torch.rand(field.cells.shape, generator=generator) - 0.5).sign() * ETA
    return field


@pytest.mark.parametrize(
    ("height", "width", "resolution", "boxes"),
    [
        (96, 96, 32, []),
        (128, 96, 64, [(30, 20, 60, 60)]),
        (75, 131, 32, [(100, 3, 128, 40), (5, 5, 30, 30)]),
        (40, 200, 64, []),
        (600, 450, 32, [(200, 200, 400, 420)]),
    ],
)
def test_views_are_those_of_the_full_size_perturbation(
    height: int, width: int, resolution: int, boxes: list[tuple[float, float, float, float]]
) -> None:
    field = random_field(height, width, resolution, boxes)
    views = attacker_views(height, width, boxes, 16)
    full = field.at_full_size()
    assert full.shape == (1, 3, height, width) and full.abs().max() <= ETA + 1e-7
    expected = torch.cat([view.read(full, resolution) for view in views])
    torch.testing.assert_close(field.views(), expected, atol=2e-6, rtol=0)


def test_views_are_those_of_pillow() -> None:
    """Pillow's bilinear filter, which data loaders use, on a photo and its perturbed version."""
    generator = torch.Generator().manual_seed(1)
    photo = torch.rand(1, 3, 120, 90, generator=generator)
    views = attacker_views(120, 90, [(20, 30, 50, 70)], 16)
    field = Field(photo, views, 48, ETA)
    field.cells = (torch.rand(field.cells.shape, generator=generator) - 0.5) * 2 * ETA
    channel = (photo + field.at_full_size())[0, 0].numpy(), photo[0, 0].numpy()
    for view, found in zip(views, field.views(), strict=True):
        box = (view.x, view.y, view.x + view.width, view.y + view.height)
        after, before = (
            np.asarray(Image.fromarray(c).crop(box).resize((48, 48), Image.Resampling.BILINEAR)) for c in channel
        )
        np.testing.assert_allclose(found[0].numpy(), after - before, atol=1e-5)


def test_ascent_follows_the_transposed_map() -> None:
    """The step is the sign of the sum over views of autograd's gradient, each over its L1 mean."""
    photo = torch.full((1, 3, 60, 44), 0.5)
    views = attacker_views(60, 44, [(10, 10, 26, 30)], 16)
    field = Field(photo, views, 32, ETA)
    gradient = torch.randn(len(views), 3, 32, 32, generator=torch.Generator().manual_seed(0))
    cells = torch.zeros_like(field.cells, requires_grad=True)
    full = torch.nn.functional.interpolate(cells, (60, 44), mode="bilinear") if cells.shape != photo.shape else cells
    total = torch.zeros_like(cells)
    for view, own in zip(views, torch.split(gradient, 1), strict=True):
        (back,) = torch.autograd.grad((view.read(full, 32) * own).sum(), cells, retain_graph=True)
        rows, columns = back.abs().sum((0, 1, 3)).nonzero(), back.abs().sum((0, 1, 2)).nonzero()
        support = back[..., int(rows.min()) : int(rows.max()) + 1, int(columns.min()) : int(columns.max()) + 1]
        total += back / support.abs().mean()
    field.ascend(gradient, 2e-3)
    assert (field.cells.sign() == total.sign()).double().mean() > 0.999
    assert field.cells.abs().max() == pytest.approx(2e-3, abs=1e-7)


@given(st.integers(8, 400), st.integers(8, 400), st.integers(1, 16))
def test_views_lie_inside_the_photo_and_differ(height: int, width: int, most: int) -> None:
    boxes = [(width * 0.1, height * 0.1, width * 0.4, height * 0.3), (0.0, 0.0, 9.0, 9.0), (-5.0, 0.0, 3.0, 8.0)]
    views = attacker_views(height, width, boxes, most)
    assert 1 <= len(views) <= most and len(set(views)) == len(views) == len({view.name for view in views})
    for view in views:
        assert view.x >= 0 and view.y >= 0 and view.x + view.width <= width and view.y + view.height <= height
    assert views[0] == View("middle", (width - min(height, width)) // 2, (height - min(height, width)) // 2,
                            min(height, width), min(height, width))  # fmt: skip


def test_the_pixel_range_and_the_bound_hold_and_large_photos_have_few_cells() -> None:
    photo = (torch.rand(1, 3, 3000, 2000, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    field = Field(photo, attacker_views(3000, 2000, [(900, 900, 1000, 1000)], 16), 64, ETA)
    assert field.cells[0, 0].numel() <= 1.01 * MAX_CELLS
    small = Field(photo[..., :90, :80], attacker_views(90, 80, [], 16), 64, ETA)
    for _ in range(8):
        small.ascend(torch.randn(len(small.maps), 3, 64, 64), 1.0)
    after = photo[..., :90, :80] + small.at_full_size()
    assert after.min() >= 0 and after.max() <= 1


def test_several_photos_take_the_steps_that_each_takes_alone() -> None:
    def parts() -> list[Squares | Field]:
        photo = torch.rand(1, 3, 50, 70, generator=torch.Generator().manual_seed(0))
        return [Squares(photo[..., :32, :64].unfold(3, 32, 32)[..., 0, :], ETA),
                Field(photo, attacker_views(50, 70, [], 16), 32, ETA)]  # fmt: skip

    alone, together = parts(), parts()
    counts = [len(part.views()) for part in alone]
    both = Photos(together, counts)
    gradient = torch.randn(sum(counts), 3, 32, 32, generator=torch.Generator().manual_seed(2))
    both.ascend(gradient, 1e-3)
    for part, own in zip(alone, torch.split(gradient, counts), strict=True):
        part.ascend(own, 1e-3)
    assert torch.equal(both.views(), torch.cat([part.views() for part in alone]))
    assert retained(both.views(), both.views()) == pytest.approx(1)


def test_the_budget_of_a_task_counts_what_a_field_holds() -> None:
    photo = torch.rand(1, 3, 300, 200)
    field = Field(photo, attacker_views(300, 200, [], 16), 64, ETA)
    held = sum(t.numel() * t.element_size() for t in (field.cells, field.photo))
    assert held <= budget.FIELD_BYTES * 300 * 200
