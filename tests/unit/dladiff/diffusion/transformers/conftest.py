"""Each layout, written once and loaded once for all tests of this folder."""

from pathlib import Path

import pytest
import torch

from dladiff.diffusion.loading import load_base_model
from dladiff.diffusion.transformers.surrogate import FlowSurrogate
from tests.support.transformer_layouts import TRANSFORMERS, write_transformer


@pytest.fixture(scope="session", params=list(TRANSFORMERS))
def layout(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    torch.set_num_threads(1)
    return request.param, write_transformer(tmp_path_factory.mktemp("transformers") / request.param, request.param)


@pytest.fixture(scope="session")
def flow(layout: tuple[str, Path]) -> FlowSurrogate:
    found = load_base_model(layout[1], torch.device("cpu"))
    assert isinstance(found, FlowSurrogate)
    return found
