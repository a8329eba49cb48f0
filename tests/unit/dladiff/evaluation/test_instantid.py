"""InstantID on SDXL's layout with few channels and random weights: no published weights are small enough for a test."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel
from safetensors.torch import save_file
from skimage.data import astronaut
from torch import Tensor
from torch.nn import functional

from dladiff.core.arrays import Pixels
from dladiff.errors import ModelError
from dladiff.evaluation.attackers.adapter import input_faces
from dladiff.evaluation.attackers.base import Base, load_base, sample, settings_for
from dladiff.evaluation.attackers.instantid import COLOURS, identity_net, instantid_pipeline, landmark_image
from dladiff.evaluation.attacks import ATTACKS, TINY, AttackSettings
from dladiff.evaluation.crop import attacker_crop
from dladiff.faces.detect import CenterFaceDetector
from tests.support.model_layouts import write_layout

pytestmark = [pytest.mark.networks, pytest.mark.filterwarnings("ignore")]  # warnings of diffusers, at load

PROMPT = "a photo of sks person"
ENCODER = str(TINY / "encoders" / "residual.onnx")
WIDTH, TOKENS, HEADS, HEAD = 192, 16, 2, 64  # the recogniser's; the published resampler has 20 heads
LAYERS = [f"layers.{i}" for i in range(4)]
INNER = HEADS * HEAD


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    folder = write_layout(tmp_path_factory.mktemp("sdxl"), "sdxl")
    config = json.loads((folder / "unet" / "config.json").read_bytes())
    (folder / "unet" / "config.json").write_text(json.dumps(config | {"sample_size": 32}))  # a sixteenth of the work
    return load_base(folder)


@pytest.fixture(scope="module")
def weights(base: Base) -> dict[str, dict[str, Tensor]]:
    """A resampler, and keys and values beside every cross-attention, named as InstantID's file has them."""
    torch.manual_seed(1)
    text = base.pipe.unet.config.cross_attention_dim
    projection = {"latents": torch.randn(1, TOKENS, INNER)}
    for name, (inputs, outputs) in {"proj_in": (WIDTH, INNER), "proj_out": (INNER, text)}.items():
        projection |= {f"{name}.weight": torch.randn(outputs, inputs) * 0.1, f"{name}.bias": torch.randn(outputs)}
    projection |= norm("norm_out", text)
    for layer in LAYERS:
        projection |= norm(f"{layer}.0.norm1", INNER) | norm(f"{layer}.0.norm2", INNER) | norm(f"{layer}.1.0", INNER)
        shapes = {"0.to_q": (INNER, INNER), "0.to_kv": (2 * INNER, INNER), "0.to_out": (INNER, INNER)}
        shapes |= {"1.1": (4 * INNER, INNER), "1.3": (INNER, 4 * INNER)}
        projection |= {f"{layer}.{name}.weight": torch.randn(shape) * 0.1 for name, shape in shapes.items()}
    attention: dict[str, Tensor] = {}
    for i, name in enumerate(base.pipe.unet.attn_processors):
        if "attn2" in name:
            width = base.pipe.unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
            attention |= {f"{i}.to_{part}_ip.weight": torch.randn(width, text) * 0.3 for part in "kv"}
    return {"image_proj": projection, "ip_adapter": attention}


def norm(name: str, width: int) -> dict[str, Tensor]:
    return {f"{name}.weight": 1 + 0.1 * torch.randn(width), f"{name}.bias": 0.1 * torch.randn(width)}


@pytest.fixture(scope="module")
def settings(
    base: Base, weights: dict[str, dict[str, Tensor]], tmp_path_factory: pytest.TempPathFactory
) -> AttackSettings:
    folder = tmp_path_factory.mktemp("instantid")
    flat = {f"{part}.{name}": tensor for part, tensors in weights.items() for name, tensor in tensors.items()}
    save_file(flat, folder / "ip-adapter.safetensors")
    torch.manual_seed(2)
    control = ControlNetModel.from_unet(base.pipe.unet)
    for parameter in control.parameters():
        if not parameter.any():  # a fresh ControlNet says nothing
            torch.nn.init.normal_(parameter, std=0.05)
    control.save_pretrained(folder / "ControlNetModel")
    files: dict[str, Any] = {
        "adapter": str(folder / "ip-adapter.safetensors"),
        "control": str(folder / "ControlNetModel"),
        "encoder": ENCODER,
    }
    return settings_for("instantid", base).replaced(sampling_steps=2, **files)


@pytest.fixture(scope="module")
def squares(base: Base) -> list[Pixels]:
    """Two photos of the same face in other places."""
    detector = CenterFaceDetector()
    found = [attacker_crop(astronaut()[:, x : x + 400], "photo", base.resolution, detector) for x in (60, 0)]
    assert found[0] is not None and found[1] is not None
    return [found[0], found[1]]


def attack(base: Base, settings: AttackSettings, photos: list[Pixels], count: int) -> list[Pixels]:
    return ATTACKS["instantid"].load()(base, photos, settings, [PROMPT], count, 0)[PROMPT]


def apart(a: Pixels, b: Pixels) -> float:
    return float(np.abs(a.astype(int) - b).mean())


def test_images_show_the_photos_in_turn_and_the_base_stays(base, settings, squares):
    before = {k: v.clone() for k, v in base.pipe.unet.state_dict().items()}
    found = attack(base, settings, squares, 3)
    side = base.resolution
    assert [image.shape for image in found] == [(side, side, 3)] * 3 and found[0].dtype == np.uint8
    first, second, third = attack(base, settings, squares[:1], 3)
    assert apart(first, found[0]) < 0.1 and apart(third, found[2]) < 0.1 and apart(second, found[1]) > 0.5
    after = base.pipe.unet.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(v, after[k]) for k, v in before.items())
    assert attack(base, settings, [np.full((side, side, 3), 90, np.uint8)], 2) == []


def test_without_weight_it_is_plain_sdxl(base, settings, squares):
    silent = attack(base, settings.replaced(scale=0.0, control_scale=0.0), squares[:1], 1)[0]
    plain = copy.copy(base.pipe)
    plain.scheduler = instantid_pipeline(base, settings).scheduler
    assert apart(silent, sample(plain, settings, PROMPT, [0], 0)[0]) < 0.01
    for one in ({"scale": 0.0}, {"control_scale": 0.0}):
        assert apart(attack(base, settings.replaced(**one), squares[:1], 1)[0], silent) > 2


def test_identity_net_receives_the_face_and_not_the_prompt(base, settings, squares, weights, monkeypatch):
    received: list[dict[str, Any]] = []
    forward: Callable[..., Any] = ControlNetModel.forward

    def recording(self: ControlNetModel, *args: Any, **keywords: Any) -> Any:
        received.append(keywords)
        return forward(self, *args, **keywords)

    monkeypatch.setattr(ControlNetModel, "forward", recording)
    attack(base, settings, squares[:1], 1)
    (face,) = input_faces(squares[:1], ENCODER)
    embedding = torch.from_numpy(face.embedding)[None]
    expected = torch.cat([resampled(x, weights["image_proj"]) for x in (torch.zeros_like(embedding), embedding)])
    torch.testing.assert_close(received[0]["encoder_hidden_states"], expected, rtol=1e-4, atol=1e-5)
    drawing = np.asarray(landmark_image(face.landmarks, base.resolution), np.float32) / 255
    shown = received[0]["controlnet_cond"][-1].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(shown, drawing, atol=1e-6)


def resampled(embedding: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """The perceiver resampler as Flamingo and IP-Adapter Plus describe it: `b d` to `b n c`."""

    def linear(x: Tensor, name: str) -> Tensor:
        return functional.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    def normed(x: Tensor, name: str) -> Tensor:
        return functional.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])

    def heads(x: Tensor) -> Tensor:
        return x.unflatten(-1, (HEADS, HEAD)).transpose(1, 2)

    x, tokens = linear(embedding[:, None], "proj_in"), weights["latents"].expand(len(embedding), -1, -1)
    for layer in LAYERS:
        seen, asking = normed(x, f"{layer}.0.norm1"), normed(tokens, f"{layer}.0.norm2")
        query = heads(linear(asking, f"{layer}.0.to_q"))
        key, value = map(heads, linear(torch.cat([seen, asking], 1), f"{layer}.0.to_kv").chunk(2, -1))
        mixed = (query @ key.mT / HEAD**0.5).softmax(-1) @ value
        tokens = tokens + linear(mixed.transpose(1, 2).flatten(2), f"{layer}.0.to_out")
        wide = functional.gelu(linear(normed(tokens, f"{layer}.1.0"), f"{layer}.1.1"))
        tokens = tokens + linear(wide, f"{layer}.1.3")
    return normed(linear(tokens, "proj_out"), "norm_out")


def test_the_drawing_has_a_disc_of_its_colour_at_each_landmark():
    points = np.array([[40.0, 40.0], [90.0, 42.0], [64.0, 70.0], [45.0, 95.0], [85.0, 97.0]])
    drawn = np.asarray(landmark_image(points, 128))
    for (x, y), colour in zip(points.astype(int), COLOURS, strict=True):
        assert tuple(drawn[y, x]) == tuple(drawn[y + 9, x]) == colour
    assert tuple(drawn[56, 53]) == (153, 0, 0)  # half way from the first eye to the nose, dim
    assert not drawn[:25].any() and not drawn[:, 120:].any()


def test_wrong_weights_are_refused(base, settings, tmp_path):
    with pytest.raises(ModelError, match="no IdentityNet at"):
        identity_net(str(tmp_path))
    with pytest.raises(ModelError, match="no InstantID weights"):
        instantid_pipeline(base, settings.replaced(adapter=""))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="cannot be loaded"):
        identity_net(str(tmp_path))
    save_file({"image_proj.norm.weight": torch.ones(3)}, tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match="is no InstantID"):
        instantid_pipeline(base, settings.replaced(adapter=str(tmp_path / "other.safetensors")))
    with pytest.raises(ModelError, match="dreambooth does not attack"):
        settings_for("dreambooth", base)


def test_the_evaluation_checks_its_weights_first(settings, base, tmp_path: Path):
    from pipeline.evaluate.config import EvaluateConfig
    from pipeline.evaluate.networks import EvaluationModels

    folder = write_layout(tmp_path / "model", "sdxl")
    config = EvaluateConfig(output="o", results="r", attacks=("instantid",), bases=(str(folder),))
    with pytest.raises(ModelError, match="no InstantID weights"):
        EvaluationModels(config).check()
