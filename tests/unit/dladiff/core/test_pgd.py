import pytest
import torch

from dladiff.core.ball import around
from dladiff.core.pgd import gradient_of, pgd


def test_linear_model_equals_its_closed_form() -> None:
    """For loss = <w, x>, k sign steps give clip(k * step * sign(w), eta), then the pixel range."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, 8, 8, generator=generator, dtype=torch.float64)
    w = torch.randn(2, 3, 8, 8, generator=generator, dtype=torch.float64)
    for steps in (1, 5, 40):
        delta = pgd(
            x,
            torch.zeros_like(x),
            gradient_of(lambda p: (w * p).sum()),
            projection=around(x, 0.03),
            step_size=0.0025,
            steps=steps,
        )
        expected = (x + (steps * 0.0025 * w.sign()).clamp(-0.03, 0.03)).clamp(0, 1) - x
        assert torch.allclose(delta, expected, atol=1e-12)


def test_a_minimum_psnr_bounds_the_ascent_of_a_linear_model() -> None:
    """With a wide box, k sign steps of size s leave a perturbation of RMS min(k s, the PSNR's)."""
    x = torch.full((2, 3, 8, 8), 0.5, dtype=torch.float64)
    w = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    projection = around(x, 0.25, 30)
    for steps, rms in ((2, 0.02), (20, 10 ** (-30 / 20))):
        start = torch.zeros_like(x)
        delta = pgd(x, start, gradient_of(lambda p: (w * p).sum()), projection=projection, step_size=0.01, steps=steps)
        assert delta.flatten(1).square().mean(1).sqrt().tolist() == pytest.approx([rms, rms])
