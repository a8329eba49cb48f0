"""Attackers: invariants after a few steps. Their strength is measured in docs/evaluation.md."""

import copy
import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from skimage.data import astronaut

from dladiff.core.arrays import Pixels
from dladiff.core.pixels import to_float
from dladiff.errors import ModelError
from dladiff.evaluation.attackers.adapter import adapter_weights, input_faces, load_adapter
from dladiff.evaluation.attackers.base import Base, customize, load_base, sample, sampling_pipeline, settings_for
from dladiff.evaluation.attacks import ATTACKS, TINY, ZERO_SHOT, AttackSettings
from dladiff.evaluation.crop import attacker_crop
from dladiff.evaluation.train_adapter import export_adapter, initial_adapter
from dladiff.faces.detect import CenterFaceDetector, alignment_matrix, warp
from dladiff.faces.encoder import load_encoder

# numpy's, from the sigmas of diffusers' DPM-Solver++
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PROMPTS = ("a photo of sks person", "a dslr portrait of sks person")
FACEID = "IP-Adapter FaceID"
ENCODER = str(TINY / "encoders" / "residual.onnx")


@pytest.fixture(scope="module")
def base() -> Base:
    return load_base("embedded")


@pytest.fixture(scope="module")
def square() -> Pixels:
    found = attacker_crop(astronaut(), "face", 128, CenterFaceDetector())
    assert found is not None
    return found


@pytest.fixture(scope="module")
def adapter(base: Base, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An untrained adapter, stored as `train_adapter` stores one."""
    from safetensors.torch import save_file

    unet = copy.deepcopy(base.pipe.unet)
    unet._load_ip_adapter_weights(
        [initial_adapter(unet, 192, torch.Generator().manual_seed(0))], low_cpu_mem_usage=False
    )
    path = tmp_path_factory.mktemp("adapter") / "weights.safetensors"
    save_file(export_adapter(unet), path)
    return str(path)


def quick(attack: str, base: Base, adapter: str) -> AttackSettings:
    zero_shot: dict[str, Any] = {"adapter": adapter, "encoder": ENCODER} if attack.startswith("ip_adapter") else {}
    return settings_for(attack, base).replaced(steps=1, batch=1, sampling_steps=2, **zero_shot)


@pytest.mark.networks
@pytest.mark.parametrize("attack", [name for name, record in ATTACKS.items() if record.tiny])
def test_an_attack_gives_images_and_leaves_the_base_alone(base, square, adapter, attack):
    parts = (base.pipe.unet, base.pipe.text_encoder)
    before = [{k: v.clone() for k, v in part.state_dict().items()} for part in parts]
    settings = quick(attack, base, adapter)
    found = ATTACKS[attack].load()(base, [square], settings, PROMPTS, 2, 0)
    assert list(found) == list(PROMPTS)
    assert all(image.shape == (128, 128, 3) and image.dtype == np.uint8 for image in found[PROMPTS[0]])
    one, other = found[PROMPTS[0]]
    assert not np.array_equal(one, other)
    fewer = ATTACKS[attack].load()(base, [square], settings, PROMPTS[:1], 1, 0)[PROMPTS[0]]
    assert np.abs(fewer[0].astype(int) - found[PROMPTS[0]][0]).max() <= 1  # a batch of one may round otherwise
    for part, old in zip(parts, before, strict=True):
        new = part.state_dict()
        assert new.keys() == old.keys() and all(torch.equal(v, new[k]) for k, v in old.items())


def test_attacks_have_names_and_settings(base):
    assert all(record.settings() for record in ATTACKS.values())
    assert [name for name, record in ATTACKS.items() if record.sdxl] == ["instantid"]
    assert ZERO_SHOT == ("ip_adapter_faceid", "ip_adapter_faceid_held_out", "instantid")
    with pytest.raises(ModelError, match="magic does not attack tiny"):
        settings_for("magic", base)


def test_a_missing_base_model_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"expected model_index\.json"):
        load_base(tmp_path)


def test_the_first_step_of_dreambooth_is_adamw_s(base, square):
    unet = copy.deepcopy(base.pipe.unet)
    settings = AttackSettings(steps=1, lr=1e-3, batch=1)
    customize(base, [square], settings, unet, base.pipe.text_encoder, 0, unet.parameters())
    old = base.pipe.unet.conv_in.weight
    step = unet.conv_in.weight - old * (1 - 1e-3 * 1e-2)  # without decay: lr times the gradient's sign
    assert step.abs().max() < 1.001e-3
    assert (step.abs() > 0.95e-3).float().mean() > 0.99  # all but gradients as small as AdamW's epsilon


def test_an_untrained_lora_changes_nothing(base, square):
    settings = settings_for("lora", base).replaced(steps=0, sampling_steps=2)
    found = ATTACKS["lora"].load()(base, [square], settings, PROMPTS[:1], 1, 3)[PROMPTS[0]]
    plain = sample(sampling_pipeline(base, base.pipe.unet, base.pipe.text_encoder), settings, PROMPTS[0], [0], 3)
    assert np.abs(found[0].astype(int) - plain[0]).max() <= 1


def test_textual_inversion_changes_one_word(base, square, monkeypatch):
    module = importlib.import_module(ATTACKS["textual_inversion"].module)
    seen = []
    monkeypatch.setattr(module, "sampling_pipeline", lambda base, unet, text: seen.append((unet, text)))
    monkeypatch.setattr(module, "sample", lambda *_: [])
    settings = settings_for("textual_inversion", base).replaced(steps=2, batch=1)
    ATTACKS["textual_inversion"].load()(base, [square], settings, PROMPTS[:1], 1, 0)
    (unet, text), tokenizer = seen[0], base.pipe.tokenizer
    new, old = (part.get_input_embeddings().weight for part in (text, base.pipe.text_encoder))
    place, person = (tokenizer(word, add_special_tokens=False).input_ids[0] for word in ("sks", "person"))
    others = [i for i in range(len(new)) if i != place]
    assert unet is base.pipe.unet and torch.equal(new[others], old[others])
    assert 0 < (new[place] - old[person]).abs().max() <= 2.1 * settings.lr
    with pytest.raises(ModelError, match="not one token"):
        ATTACKS["textual_inversion"].load()(base, [square], settings.replaced(initializer="a man"), PROMPTS, 1, 0)


@pytest.mark.networks
def test_the_attacker_s_embedding_is_the_encoder_s(square):
    face = CenterFaceDetector().detect(square)[0]
    crop = warp(to_float(square), torch.from_numpy(alignment_matrix(face.landmarks)).float()[None])
    expected = load_encoder(ENCODER)(crop)[0].numpy()
    (found,) = input_faces([square], ENCODER)
    assert found.embedding @ expected / np.linalg.norm(found.embedding) > 0.999
    assert np.array_equal(found.landmarks, face.landmarks)


@pytest.mark.networks
def test_each_image_shows_one_photo_in_turn(base, adapter):
    photo = astronaut()
    cut: list[Any] = [attacker_crop(p, "face", 128, CenterFaceDetector()) for p in (photo, photo[:, ::-1])]
    settings = quick("ip_adapter_faceid", base, adapter)
    found, alone = (
        ATTACKS["ip_adapter_faceid"].load()(base, p, settings, PROMPTS[:1], 3, 0)[PROMPTS[0]] for p in (cut, cut[:1])
    )
    apart = [np.abs(a.astype(int) - b).max() for a, b in zip(found, alone, strict=True)]
    assert apart[0] <= 1 and apart[2] <= 1 and apart[1] > 1


def test_photos_without_a_face_give_no_image(base, adapter):
    settings = quick("ip_adapter_faceid", base, adapter)
    blank = np.full((128, 128, 3), 90, np.uint8)
    assert ATTACKS["ip_adapter_faceid"].load()(base, [blank], settings, PROMPTS[:1], 2, 0) == {PROMPTS[0]: []}


def test_an_adapter_file_goes_through_diffusers_own_loader(base, adapter):
    parts = adapter_weights(adapter, FACEID)
    by_us, by_file, silent = (
        sampling_pipeline(base, copy.deepcopy(base.pipe.unet), base.pipe.text_encoder) for _ in range(3)
    )
    load_adapter(by_us, parts, 1.0)
    load_adapter(silent, parts, 0.0)
    path = Path(adapter)
    by_file.load_ip_adapter(path.parent, subfolder="", weight_name=path.name, image_encoder_folder=None)
    z, t, text = torch.randn(1, 8, 16, 16), torch.tensor([500]), torch.randn(1, 77, 96)
    added = {"image_embeds": [torch.nn.functional.normalize(torch.randn(1, 1, 192), dim=-1)]}
    with torch.no_grad():
        ours, theirs, none = (s.unet(z, t, text, added_cond_kwargs=added).sample for s in (by_us, by_file, silent))
        plain = base.pipe.unet(z, t, text).sample
    assert torch.equal(ours, theirs) and not torch.allclose(ours, plain)
    torch.testing.assert_close(none, plain)


def test_wrong_weights_are_refused(base, adapter, tmp_path):
    from safetensors.torch import save_file

    with pytest.raises(ModelError, match="no IP-Adapter FaceID weights"):
        adapter_weights("", FACEID)
    with pytest.raises(ModelError, match="holds 0 weight files"):
        adapter_weights(str(tmp_path), FACEID)
    save_file({"image_proj.norm.weight": torch.ones(3)}, tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match="is no IP-Adapter FaceID"):
        adapter_weights(str(tmp_path), FACEID)
    parts = adapter_weights(adapter, FACEID)
    parts["ip_adapter"]["1.to_k_ip.weight"] = torch.zeros(320, 768)
    with pytest.raises(ModelError, match="does not fit the base model"):
        load_adapter(sampling_pipeline(base, copy.deepcopy(base.pipe.unet), base.pipe.text_encoder), parts, 1.0)
    with pytest.raises(ModelError, match="no recognition model"):
        input_faces([], "")


def test_a_pickled_adapter_is_converted_and_read_by_no_run(adapter, tmp_path):
    from dladiff.evaluation.convert_adapter import convert

    file = tmp_path / "weights.bin"
    torch.save(adapter_weights(adapter, FACEID), file)
    with pytest.raises(ModelError, match=r"weights\.bin is a pickle.*convert_adapter"):
        adapter_weights(str(tmp_path), FACEID)
    assert convert(file, tmp_path / "weights.safetensors") > 0
    made = adapter_weights(str(tmp_path / "weights.safetensors"), FACEID)
    for part, tensors in adapter_weights(adapter, FACEID).items():
        assert tensors.keys() == made[part].keys()
        assert all(torch.equal(tensor, made[part][name]) for name, tensor in tensors.items())
    torch.save({"other": torch.ones(1)}, file)
    with pytest.raises(ValueError, match="neither image_proj nor ip_adapter"):
        convert(file, tmp_path / "none.safetensors")
