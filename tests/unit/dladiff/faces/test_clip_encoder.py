"""A CLIP vision tower against transformers' own image processor and model, on crops aligned by InsightFace."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from insightface.utils import face_align
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from dladiff.core.pixels import to_float
from dladiff.errors import ModelError
from dladiff.faces.detect import Face
from dladiff.layers.stop_rule import FaceReader
from dladiff.layers.zero_shot import Box, pasted, perturb_face
from dladiff.service import named_encoder
from dladiff.settings.schema import ZeroShotConfig

SIDE = 224
LANDMARKS = np.array([[90.0, 100], [150, 98], [122, 135], [98, 165], [146, 163]])


def photo() -> np.ndarray:
    return np.ascontiguousarray(skimage.data.astronaut()[:256, 96:352])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=SIDE,
        patch_size=32, projection_dim=24,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("clip") / "tower"
    CLIPVisionModelWithProjection(config).save_pretrained(path)
    _processor().save_pretrained(path)
    return path


def _processor():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import CLIPImageProcessor

        means = {"image_mean": [0.5, 0.45, 0.4], "image_std": [0.25, 0.26, 0.27]}
        return CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}, **means)


def test_embedding_is_transformers_own(folder: Path) -> None:
    encoder = named_encoder(f"clip:{folder}")
    assert encoder.name == "clip:tower" and encoder.crop == SIDE and len(encoder.sha256) == 64
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # insightface calls a deprecated method of scikit-image
        crop = face_align.norm_crop(photo(), LANDMARKS, image_size=SIDE)
    pixels = _processor()(images=Image.fromarray(crop), return_tensors="pt").pixel_values
    model = CLIPVisionModelWithProjection.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = model(pixel_values=pixels).image_embeds[0]
    got = encoder(to_float(crop))[0]
    assert torch.allclose(got, expected / expected.norm(), atol=1e-5)

    face = Face(box=(60.0, 50.0, 180.0, 200.0), landmarks=LANDMARKS, score=1.0)
    read = FaceReader(to_float(photo()), face, [], [encoder]).targets[0][0]
    assert float(read @ got) == pytest.approx(1, abs=1e-4)


def test_gradient_against_finite_differences(folder: Path) -> None:
    encoder = named_encoder(f"clip:{folder}").double()
    generator = torch.Generator().manual_seed(1)
    crops, other, weights = (torch.rand(1, 3, SIDE, SIDE, generator=generator, dtype=torch.float64) for _ in range(3))
    target = encoder(other)
    crops.requires_grad_(True)
    (gradient,) = torch.autograd.grad((encoder(crops) * target).sum(), crops)
    step = 1e-5
    high, low = ((encoder(crops.detach() + s * step * weights) * target).sum() for s in (1, -1))
    assert float((gradient * weights).sum()) == pytest.approx(float(high - low) / (2 * step), rel=1e-4)
    assert not any(p.requires_grad for p in encoder.parameters())


def test_layer_2_lowers_it_together_with_an_encoder_of_another_size(folder: Path) -> None:
    encoders = [named_encoder(f"clip:{folder}"), named_encoder("embedded:residual")]
    x = to_float(photo())
    face = Face(box=(60.0, 50.0, 180.0, 200.0), landmarks=LANDMARKS, score=1.0)
    reader = FaceReader(x, face, [], encoders)
    box = Box.of(face, *x.shape[-2:])
    config = ZeroShotConfig(max_steps=12, step_size=4e-3, draws=2, threshold=-1)
    generator = torch.Generator().manual_seed(0)
    patch, _, _ = perturb_face(x, box, reader.bases, reader.targets, encoders, config, generator, lambda _: [1.0, 1.0])
    before, after = (reader.max_cosines_at(p, reader.bases, [0]) for p in (x, pasted(x, patch, box)))
    assert min(before) > 0.999
    noise = torch.randn(patch.shape, generator=generator).sign() * patch.square().mean().sqrt()
    random = reader.max_cosines_at(pasted(x, noise, box), reader.bases, [0])
    assert all(a < r for a, r in zip(after, random, strict=True)), (after, random)


def test_other_models_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no CLIP vision tower at"):
        named_encoder("clip:absent")
    with pytest.raises(ModelError, match=r"config\.json is missing"):
        named_encoder(f"clip:{tmp_path}")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ModelError, match="model_type 'bert'"):
        named_encoder(f"clip:{tmp_path}")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(ModelError, match="cannot be loaded"):
        named_encoder(f"clip:{tmp_path}")
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(ModelError, match="cannot be loaded"):
        named_encoder(f"clip:{tmp_path}")
