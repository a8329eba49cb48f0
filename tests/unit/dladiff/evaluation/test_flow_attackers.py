"""Attacks on transformers: invariants after a few steps, beside the protection's own code and the pipelines."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dladiff.core.arrays import Pixels
from dladiff.core.randomness import stream
from dladiff.diffusion.loading import load_base_model
from dladiff.errors import ModelError
from dladiff.evaluation.attackers import flow
from dladiff.evaluation.attackers.base import Base, load_base, load_unet_base, settings_for
from dladiff.evaluation.attacks import ATTACKS
from tests.support.transformer_layouts import TRANSFORMERS, write_transformer

pytestmark = pytest.mark.networks
PROMPTS = ("a photo of sks person", "a dslr portrait of sks person")


@pytest.fixture(scope="module", params=list(TRANSFORMERS))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_transformer(tmp_path_factory.mktemp("attacked") / request.param, request.param)


@pytest.fixture(scope="module")
def base(folder: Path) -> Iterator[Base]:
    found = load_base(folder)
    assert found.transformer and (found.resolution, found.region) == (512, "photo")
    yield replace(found, resolution=64)


def photo() -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)


def test_the_loss_is_of_the_same_quantities_as_the_protections(folder: Path, base: Base) -> None:
    """Both codes are of their own; latents, text and velocity agree."""
    surrogate = load_base_model(folder, torch.device("cpu"))
    x = torch.from_numpy(photo()).permute(2, 0, 1)[None].float() / 255
    ours = surrogate.encode(x)
    mean, std = flow.posterior(base, [photo()])
    assert torch.allclose(mean, ours.mean, atol=1e-4) and torch.allclose(std, ours.std, atol=1e-4)
    noise, prompt = surrogate.draw([stream(1)], 64), surrogate.prompt(PROMPTS[0])
    with torch.no_grad():
        text = flow.text_inputs(base.pipe, PROMPTS[0])
        time = noise.t.view(-1, 1, 1, 1)
        found = flow.velocity(base.pipe, (1 - time) * mean + time * noise.latent, noise.t, text)
        wanted = surrogate.predict(surrogate.network, mean, noise, prompt)  # type: ignore[attr-defined]
    assert torch.allclose(text["encoder_hidden_states"], prompt.embedding, atol=1e-5)
    assert torch.allclose(found, wanted, atol=1e-4)


def test_lora_trains_gives_images_and_leaves_the_base_alone(base: Base) -> None:
    before = {k: v.clone() for k, v in base.pipe.transformer.state_dict().items()}
    settings = settings_for("lora", base).replaced(steps=3, sampling_steps=2, lr=1e-2)
    found = ATTACKS["lora"].load()(base, [photo()], settings, PROMPTS, 2, 0)
    assert list(found) == list(PROMPTS)
    assert all(image.shape == (64, 64, 3) and image.dtype == np.uint8 for image in found[PROMPTS[0]])
    assert not np.array_equal(*found[PROMPTS[0]])
    after = base.pipe.transformer.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(v, after[k]) for k, v in before.items())
    untrained = ATTACKS["lora"].load()(base, [photo()], settings.replaced(steps=0), PROMPTS[:1], 1, 0)
    plain = flow.pictures(base, base.pipe, settings, PROMPTS[0], 1, 0)
    assert np.array_equal(untrained[PROMPTS[0]][0], plain[0])
    assert not np.array_equal(found[PROMPTS[0]][0], plain[0])


def test_textual_inversion_changes_the_word_alone(base: Base) -> None:
    encoders = [part for name, part in base.pipe.components.items() if name.startswith("text_encoder") and part]
    before = [{k: v.clone() for k, v in part.state_dict().items()} for part in encoders]
    settings = settings_for("textual_inversion", base).replaced(steps=2, sampling_steps=2, lr=0.5)
    with torch.no_grad():
        other = flow.text_inputs(base.pipe, "a photo of a cat")["encoder_hidden_states"]
    found = ATTACKS["textual_inversion"].load()(base, [photo()], settings, PROMPTS[:1], 1, 0)[PROMPTS[0]]
    plain = flow.pictures(base, base.pipe, settings, PROMPTS[0], 1, 0)
    assert found[0].shape == (64, 64, 3) and not np.array_equal(found[0], plain[0])
    for part, old in zip(encoders, before, strict=True):
        assert all(torch.equal(v, part.state_dict()[k]) for k, v in old.items())
        tables = [m for m in part.modules() if isinstance(m, torch.nn.Embedding)]
        assert tables and all(not m._forward_hooks and not m._forward_pre_hooks for m in tables)
    with torch.no_grad():
        assert torch.equal(flow.text_inputs(base.pipe, "a photo of a cat")["encoder_hidden_states"], other)


def test_purifiers_and_attacks_of_other_kinds_are_refused(folder: Path, base: Base) -> None:
    with pytest.raises(ModelError, match="is a transformer; purifiers take a Stable Diffusion model"):
        load_unet_base(folder)
    with pytest.raises(
        ModelError, match=r"dreambooth does not attack .* \(a transformer\); attacks that do: lora, text"
    ):
        settings_for("dreambooth", base)
    assert [name for name, record in ATTACKS.items() if record.transformer] == ["lora", "textual_inversion"]
