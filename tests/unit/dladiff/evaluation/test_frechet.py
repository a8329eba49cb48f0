"""The Frechet distance: closed forms of Gaussians, and scipy's matrix root."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import linalg

from dladiff.evaluation.frechet import frechet_distance


def by_scipy(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """The formula as Heusel et al. wrote it."""
    first, second = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    root = linalg.sqrtm(first @ second)
    gap = one.mean(0) - other.mean(0)
    return float(gap @ gap + np.trace(first + second - 2 * np.real(root)))


@pytest.mark.parametrize(("n", "m", "d"), [(60, 90, 6), (40, 8, 7), (300, 200, 24)])
def test_agrees_with_scipy(n: int, m: int, d: int) -> None:
    rng = np.random.default_rng(n)
    one = rng.normal(size=(n, d)) @ rng.normal(size=(d, d))
    other = rng.normal(size=(m, d)) * rng.uniform(0.5, 2, d) + 0.3
    assert frechet_distance(one, other) == pytest.approx(by_scipy(one, other), rel=1e-8)
    assert frechet_distance(other, one) == pytest.approx(frechet_distance(one, other))


def exact(mean: NDArray[np.float64], scales: NDArray[np.float64]) -> NDArray[np.float64]:
    """2d points whose mean is `mean` and whose unbiased covariance is diag(scales^2), exactly."""
    d = len(mean)
    points = np.concatenate([np.eye(d), -np.eye(d)]) * np.sqrt((2 * d - 1) / 2)
    return mean + points * scales


def test_diagonal_gaussians() -> None:
    one = exact(np.array([1.0, 2.0, 0.0]), np.array([1.0, 3.0, 0.5]))
    other = exact(np.array([0.0, 0.0, 0.0]), np.array([2.0, 1.0, 0.5]))
    assert frechet_distance(one, other) == pytest.approx(1 + 4 + (1 - 2) ** 2 + (3 - 1) ** 2)


def test_fewer_images_than_features() -> None:
    """Both covariances singular: on a line each, at right angles, nothing is shared; on the same line it is 1-d."""
    rng = np.random.default_rng(0)
    line, across = np.zeros((5, 300)), np.zeros((4, 300))
    line[:, 0], across[:, 1] = rng.normal(size=5), rng.normal(size=4)
    apart = line.mean(0) @ line.mean(0) + across.mean(0) @ across.mean(0)
    assert frechet_distance(line, across) == pytest.approx(
        apart + line.var(0, ddof=1).sum() + across.var(0, ddof=1).sum()
    )
    wider = line * 3
    expected = (2 * line[:, 0].mean()) ** 2 + (2 * line[:, 0].std(ddof=1)) ** 2
    assert frechet_distance(line, wider) == pytest.approx(expected)


def test_same_set_and_single_images() -> None:
    x = np.random.default_rng(0).normal(size=(20, 50)).astype(np.float32)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(x[:1], x[1:2]) == pytest.approx(float(np.square(x[0] - x[1]).sum()), rel=1e-5)
