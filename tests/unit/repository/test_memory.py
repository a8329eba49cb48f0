from typing import Any

import pytest
import torch

from dladiff.settings.merge import merge
from dladiff.settings.presets import GPU_MEMORY
from dladiff.settings.schema import FinetuningConfig, method_config
from pipeline.models.memory import gpu_gib, host_gib, smaller
from tests.bench.memory import ELSEWHERE, Counter, peaks, shortened
from tests.bench.transformer_memory import transformer_peaks
from tests.support.full_size_transformers import WEIGHTS

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


def test_an_actor_of_a_transformer_holds_network_and_text_encoder() -> None:
    """Weights of the full-size configurations in bf16; the latent push needs the VAE alone."""
    for profile, count in WEIGHTS.items():
        whole = method_config(profile, None, {"visibility": 0.0})
        text = 4.76e9 if profile[:4] in ("sd35", "flux") and profile != "flux2-klein" else 4.02e9
        text = 8.29e9 if profile == "qwen-image" else text
        assert gpu_gib(whole) == pytest.approx(2 * (count + text) / 2**30 + 2, abs=0.2)
        assert host_gib(whole) == gpu_gib(whole) > gpu_gib(method_config(profile, None, {}))


@pytest.mark.slow
@pytest.mark.parametrize("profile", list(WEIGHTS))
def test_training_takes_no_more_than_the_prompt_did(profile: str) -> None:
    resident, first, second = transformer_peaks(profile, 2)
    assert (
        2 * WEIGHTS[profile] / 2**30
        < resident
        < max(first, second)
        < gpu_gib(method_config(profile, None, {"visibility": 0.0}))
    )


@pytest.mark.slow
@pytest.mark.parametrize("memory", GPU_MEMORY)
def test_full_size_layer_1_stays_within_the_card(memory: str) -> None:
    settings: dict[str, Any] = {}
    merge(settings, GPU_MEMORY[memory]["finetuning"])
    assert max(peaks(shortened(FinetuningConfig(**settings)), 4)) < int(memory.removesuffix("GB")) - FREE


@pytest.mark.parametrize(
    ("profile", "changes", "advice"),
    [
        ("sd21", {"visibility": 0.0}, "method.gpu_memory"),
        ("sd21", {}, "batch_photos"),
        ("sdxl", {}, "method.resolution"),
        ("flux1", {"visibility": 0.0}, "layer_1: latent"),
    ],
)
def test_advice_for_a_small_card_names_a_setting_that_helps(
    profile: str, changes: dict[str, float], advice: str
) -> None:
    assert advice in smaller(method_config(profile, None, changes))
