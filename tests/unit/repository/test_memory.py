from typing import Any

import pytest
import torch

from dladiff.settings.merge import merge
from dladiff.settings.presets import GPU_MEMORY
from dladiff.settings.schema import FinetuningConfig, method_config
from tests.bench.memory import ELSEWHERE, Counter, peaks, shortened

FREE = 2.0  # GiB of a card for CUDA, workspaces, the detector and identity encoders, and the allocator's gaps


def test_counts_what_is_held_at_once() -> None:
    counter = Counter()
    with counter:
        a = torch.zeros(1000)
        b = a.view(10, 100) + 1
        torch.zeros(5000, device=ELSEWHERE)
        del a
        assert counter.now == 4000
        c = b.double()
        del b, c
    assert (counter.now, counter.peak) == (0, 12000)


def test_fits_gives_way_to_settings_and_goes_over_a_preset() -> None:
    small = method_config("sd21", "paper", {"gpu_memory": "12GB"}).finetuning
    assert small.recompute and small.offload and small.batch_photos == 2
    assert (
        method_config("sd21", None, {"gpu_memory": "12GB", "finetuning": {"batch_photos": 3}}).finetuning.batch_photos
        == 3
    )
    assert not method_config("sd21", None, {}).finetuning.recompute


@pytest.mark.slow
@pytest.mark.parametrize("memory", GPU_MEMORY)
def test_full_size_layer_1_stays_within_the_card(memory: str) -> None:
    settings: dict[str, Any] = {}
    merge(settings, GPU_MEMORY[memory]["finetuning"])
    assert max(peaks(shortened(FinetuningConfig(**settings)), 4)) < int(memory.removesuffix("GB")) - FREE
