"""Training of the small encoders: export, AUC against counted pairs, and augmentation near the alignment.

And of another base: its weights are diffusers', what is saved loads as a base model.
"""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from diffusers.training_utils import compute_snr
from torch.nn import functional

from dladiff.diffusion.surrogate import EMBEDDED, Batch, Noise, Posterior, Surrogate
from dladiff.evaluation.attackers.base import load_base, settings_for
from dladiff.faces.detect import ARCFACE_TEMPLATE, alignment_matrix
from dladiff.faces.encoder import load_encoder
from dladiff.training import base
from dladiff.training.architectures import ARCHITECTURES
from dladiff.training.data import align, augmented
from dladiff.training.distil import EMA_DECAY, attacked, check_export, follow, loss_of
from dladiff.training.graph import export
from dladiff.training.measure import separation


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_the_exported_file_is_the_network(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    net = ARCHITECTURES[name](64)
    crops = torch.rand(16, 3, 112, 112) * 2 - 1
    for _ in range(3):
        net(crops)  # batch statistics that are not the initial ones
    net.eval()
    export(net, tmp_path / "net.onnx", {"licence": "none"})
    assert (tmp_path / "net.onnx").stat().st_size < 2.5e6
    pixels = np.random.default_rng(0).integers(0, 255, (4, 112, 112, 3), dtype=np.uint8)
    assert check_export(net, tmp_path / "net.onnx", pixels) > 0.9999
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"), providers=["CPUExecutionProvider"])
    assert session.get_modelmeta().custom_metadata_map["licence"] == "none"
    encoder = load_encoder(tmp_path / "net.onnx")  # the importer checks parity with onnxruntime itself
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        ours, own = encoder(x), functional.normalize(net(x * 2 - 1), dim=1)
    assert float((ours * own).sum(1).min()) > 0.999


def test_auc_is_the_share_of_pairs_in_order() -> None:
    rng = np.random.default_rng(3)
    names = [str(i % 4) for i in range(20)]
    centres = rng.normal(size=(4, 8))
    points = np.array([centres[int(n)] + rng.normal(0, 1.5, 8) for n in names])
    points = (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)
    found = separation(points, names)
    pairs = [(i, j) for i in range(20) for j in range(i)]
    same = [float(points[i] @ points[j]) for i, j in pairs if names[i] == names[j]]
    other = [float(points[i] @ points[j]) for i, j in pairs if names[i] != names[j]]
    assert (found.same_pairs, found.different_pairs) == (len(same), len(other))
    assert found.same == pytest.approx(np.mean(same), abs=1e-6)
    assert found.auc == pytest.approx(np.mean([[a > b for b in other] for a in same]), abs=1e-6)
    with pytest.raises(ValueError, match="needs same-person pairs"):
        separation(points[:2], ["a", "b"])


def test_the_loss_is_0_for_the_teachers_embedding_and_2_for_its_opposite() -> None:
    target = functional.normalize(torch.randn(6, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    assert float(loss_of(3 * target, target, relation=5.0)) == pytest.approx(0, abs=1e-6)
    assert float(loss_of(-target, target, relation=5.0)) == pytest.approx(2, abs=1e-6)


def test_the_adversarial_step_raises_the_loss_within_its_bound() -> None:
    torch.manual_seed(0)
    net = ARCHITECTURES["vgg"](16).eval()
    x = torch.rand(4, 3, 112, 112) * 2 - 1
    with torch.no_grad():
        target = functional.normalize(net(x + 0.1 * torch.randn_like(x)), dim=1)

    def loss(student: torch.Tensor) -> torch.Tensor:
        return loss_of(student, target, relation=0.0)

    moved = attacked(net, x, loss, 1.5)
    assert float((moved - x).abs().max()) == pytest.approx(1.5 / 127.5, abs=1e-6)  # the input has 127.5 levels a unit
    assert float(moved.abs().max()) <= 1
    with torch.no_grad():
        assert float(loss(net(moved))) > float(loss(net(x)))


def test_averaged_weights_are_the_geometric_mean_of_the_steps() -> None:
    kept, new = (ARCHITECTURES["residual"](8) for _ in range(2))
    steps = 100_000  # long after the first steps, in which the average follows faster
    before = kept.head.weight.detach().clone()
    for _ in range(3):
        follow(kept, new, steps)
    expected = new.head.weight + (before - new.head.weight) * EMA_DECAY**3
    torch.testing.assert_close(kept.head.weight, expected)


def test_augmentations_differ_and_stay_near_the_alignment() -> None:
    matrix = alignment_matrix(ARCFACE_TEMPLATE.astype(np.float64))
    pixels = np.zeros((112, 112, 3), np.uint8)
    pixels[40:72, 40:72] = 200
    np.testing.assert_array_equal(align(pixels, matrix), pixels)
    rng = np.random.default_rng(0)
    crops = [augmented(pixels, matrix, rng) for _ in range(40)]
    assert len({crop.tobytes() for crop in crops}) == 40
    middle = [np.argwhere(crop.mean(2) > 120).mean(0) for crop in crops if (crop.mean(2) > 120).sum() > 100]
    assert np.abs(np.median(middle, axis=0) - 55.5).max() < 4


def test_the_loss_of_a_base_is_weighted_by_min_snr() -> None:
    scheduler = DDPMScheduler.from_pretrained(EMBEDDED / "scheduler")
    t = torch.tensor([1, 10, 200, 700, 999])
    ratio = compute_snr(scheduler, t)
    found = base.snr_weights(scheduler.alphas_cumprod, Noise(t, torch.empty(0), torch.empty(0)))
    torch.testing.assert_close(found, torch.minimum(ratio, torch.tensor(5.0)) / ratio)


@pytest.mark.networks
def test_another_base_learns_and_loads_beside_the_profile_s_own_parts(tmp_path: Path) -> None:
    surrogate = Surrogate("embedded", torch.device("cpu"))
    pool = surrogate.encode_fixed(torch.rand(8, 3, 128, 128, generator=torch.Generator().manual_seed(0)), 8)
    rng, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    unet = UNet2DConditionModel.from_config(surrogate.unet.config)
    said: list[dict[str, float]] = []

    def save(mean: UNet2DConditionModel, found: dict[str, float]) -> None:
        said.append(found)
        base.write(tmp_path / "base", mean)
        saved.update({k: v.half() for k, v in mean.state_dict().items()})

    def draw() -> Batch:
        return base.training_batch(surrogate, Posterior(pool.mean.half(), pool.std.half()), 4, rng, generator)

    saved: dict[str, torch.Tensor] = {}
    base.train(surrogate, unet, draw, 1e-3, 2.0, save)
    assert said[-1]["step"] > 1 and said[-1]["loss"] < 1
    base_model = load_base(tmp_path / "base")
    assert (base_model.region, base_model.resolution, base_model.name) == ("face", 128, "base")
    assert settings_for("dreambooth", base_model) == settings_for("dreambooth", load_base("embedded"))
    other = Surrogate(tmp_path / "base", torch.device("cpu"))
    assert all(torch.equal(v.half(), saved[k]) for k, v in other.unet.state_dict().items())
    assert not torch.equal(other.unet.conv_in.weight, surrogate.unet.conv_in.weight)
    for part in (path for path in EMBEDDED.rglob("*.safetensors") if path.parent.name != "unet"):
        assert (tmp_path / "base" / part.relative_to(EMBEDDED)).read_bytes() == part.read_bytes()
