"""What the benchmarks of tests/bench would only show on a GPU."""

import contextlib

import pytest
import torch

from dladiff.core.randomness import stream
from dladiff.diffusion.surrogate import Surrogate
from dladiff.layers import finetuning as finetuning_layer
from dladiff.settings.schema import FinetuningConfig
from tests.bench import gpu, speed
from tests.bench.straight import Straight

pytestmark = pytest.mark.networks

SHORT = FinetuningConfig(iter_ft=2, iter_opt=2, iter_1=1, iter_2=1, iter_3=1, batch_photos=1)


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """A device whose tensors have no values: mixing it up with the host's memory is an error, as on a GPU."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    known = torch.optim.AdamW
    monkeypatch.setattr(torch.optim, "AdamW", lambda weights, **how: known(weights, **how | {"fused": False}))
    return torch.device("meta")


@pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter")
@pytest.mark.parametrize("implementation", ["straight", "ours"])
def test_all_that_a_step_reads_is_on_its_device(elsewhere: torch.device, implementation: str) -> None:
    x = torch.rand(2, 3, 128, 128).to(elsewhere)
    streams = [stream(2), stream(3)]
    if implementation == "straight":
        delta = Straight("embedded", elsewhere, SHORT).protect(x, x, stream(1), streams)
    else:
        surrogate = Surrogate("embedded", elsewhere)
        static = finetuning_layer.static_surrogate(surrogate, x, SHORT, stream(1))
        delta = finetuning_layer.perturb(surrogate, static, x, SHORT, streams)
    assert (delta.device, delta.shape) == (elsewhere, x.shape)


def test_what_is_measured_on_a_gpu_is_printed_line_by_line(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"iter_ft": 3, "iter_opt": 3, "iter_1": 2, "iter_2": 1, "iter_3": 1}
    paper = FinetuningConfig(**settings)  # type: ignore[arg-type]
    monkeypatch.setattr(gpu, "PAPER", paper)
    monkeypatch.setattr(gpu, "FORMATS", dict(list(gpu.FORMATS.items())[:1]))
    case = speed.Case("tiny", "embedded", 64, 8, 1, config=paper)
    said: list[str] = []
    gpu.on_gpu(case, 1e11, straight=True, say=said.append)
    assert [line.partition(":")[0] for line in said] == [
        "tiny, 1 photos of 64 px",
        "ours, not recorded",
        "ours",
        "straight",
    ]
    assert all("TFLOP" in line and "of the peak" in line for line in said[1:])
    gpu.formats(case, said.append)
    assert said[-1].startswith("VAE in bf16 by autocast: static surrogate ")
