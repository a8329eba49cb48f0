"""One pass of each transformer at full size, on tensors without values (torch's meta device)."""

import pytest
import torch

from dladiff.diffusion.catalogue import MODELS
from dladiff.diffusion.text import Prompt
from dladiff.diffusion.transformers.families import FAMILIES
from dladiff.diffusion.transformers.joint_attention import Recorder
from tests.support.full_size_transformers import FAMILY, FULL_SIZE, TEXT, VAES, WEIGHTS, network_of

pytestmark = pytest.mark.networks


@pytest.mark.parametrize("profile", list(FULL_SIZE))
def test_a_pass_at_full_size(profile: str) -> None:
    family, recorder, known = FAMILIES[FAMILY[profile]], Recorder(), MODELS[profile]
    (length, width, pooled), (_, _, channels, cell) = TEXT[profile], VAES[profile]
    with torch.device("meta"), torch.no_grad():
        network = network_of(profile).requires_grad_(False)
        family.install(network, recorder)
        side = known.resolution // cell
        noisy, t = torch.zeros(2, channels, side, side), torch.zeros(2)
        prompt = Prompt(torch.zeros(2, length, width), 4, torch.zeros(2, pooled) if pooled else None)
        recorder.text, out = length, []
        maps = recorder.maps(lambda: out.append(family.velocity(network, noisy, t, prompt)))
        assert out[0].shape == noisy.shape
        assert maps.cross[0].attention_map().shape == (2, 32 * 32, length)
        assert maps.own[0].attention_map().shape == (2, 32 * 32, 32 * 32)
    alone = 13 if profile == "sd35" else 0
    assert (len(maps.cross), len(maps.own)) == (known.architecture.layers, known.architecture.layers + alone)
    assert sum(p.numel() for p in network.parameters()) == WEIGHTS[profile]
    assert known.architecture.context == width and known.architecture.guidance == (profile == "flux1")
    names = {name for name, _ in network.named_modules()}
    for end in family.low_rank_layers(network):
        assert any(f".{name}".endswith(f".{end}") for name in names), end
