import torch
from hypothesis import given
from hypothesis import strategies as st

from dladiff.core.ball import project

FLOATS = st.floats(-2, 2, width=32)


@given(st.lists(st.tuples(FLOATS, st.floats(0, 1, width=32)), min_size=1, max_size=32), st.floats(0, 0.5, width=32))
def test_projection_is_inside_nearest_and_idempotent(pairs: list[tuple[float, float]], eta: float) -> None:
    delta, x = (torch.tensor(column, dtype=torch.float64) for column in zip(*pairs, strict=True))
    out = project(delta, x, eta)
    low, high = torch.maximum(torch.tensor(-eta), -x), torch.minimum(torch.tensor(eta), 1 - x)
    assert torch.allclose(out, torch.minimum(torch.maximum(delta, low), high), atol=1e-12)
    assert torch.allclose(project(out, x, eta), out, atol=1e-12)
