"""The protection service: a batch that does not fit on the GPU is halved, and the result reports it."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image

from dladiff import service
from dladiff.core.exchange import PhotoIn
from dladiff.diffusion.bundle import CHECKSUMS, make_pins
from dladiff.diffusion.catalogue import locate
from dladiff.diffusion.surrogate import EMBEDDED, Surrogate
from dladiff.diffusion.vae_catalogue import resolution_fault
from dladiff.errors import ConfigError, ModelError
from dladiff.protect import Protected
from dladiff.service import Protector
from dladiff.settings.schema import method_config
from pipeline.records.schema import PHOTOS as COLUMNS
from pipeline.records.schema import table
from tests.support.model_layouts import write_layout
from tests.support.vae_layouts import write_vae


@pytest.fixture
def protector(monkeypatch: pytest.MonkeyPatch) -> Protector:
    """A protector without models."""
    made = Protector.__new__(Protector)
    made.config = method_config("tiny", None, {})
    made.config = made.config.replaced(finetuning=made.config.finetuning.replaced(batch_photos=4))
    made.seed, made.trace = 0, False
    models = SimpleNamespace(
        device=torch.device("cpu"), detector=None, surrogate=SimpleNamespace(use_cuda_graphs=False, name="s")
    )
    made.models = models  # type: ignore[assignment]
    monkeypatch.setattr(made, "_described", list)
    return made


def fits_up_to(limit: int, batches: list[int]) -> Any:
    def protect(photos: Any, clean: Any, models: Any, config: Any, seed: int, trace: bool) -> Protected:
        batches.append(config.finetuning.batch_photos)
        if config.finetuning.batch_photos > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return Protected([], {})

    return protect


PHOTOS = [PhotoIn(key="a", pixels=np.zeros((64, 64, 3), np.uint8))]


@pytest.mark.parametrize(
    ("most", "batches", "note"),
    [(4, [4], ""), (1, [4, 2, 1], "GPU out of memory: batch_photos lowered from 4 to 1")],
)
def test_the_batch_is_halved_until_it_fits(
    protector: Protector, monkeypatch: pytest.MonkeyPatch, most: int, batches: list[int], note: str
) -> None:
    tried: list[int] = []
    monkeypatch.setattr(service, "protect", fits_up_to(most, tried))
    assert protector.protect_identity("a", PHOTOS, []).note == note
    assert tried == batches
    tried.clear()
    protector.protect_identity("b", PHOTOS, [])
    assert tried[0] == 4  # the next identity starts with the batch as configured


def test_before_that_cuda_graphs_are_switched_off(protector: Protector, monkeypatch: pytest.MonkeyPatch) -> None:
    surrogate, tried = protector.models.surrogate, list[bool]()

    def protect(*arguments: Any) -> Protected:
        tried.append(surrogate.use_cuda_graphs)
        if surrogate.use_cuda_graphs:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return Protected([], {})

    monkeypatch.setattr(service, "protect", protect)
    surrogate.use_cuda_graphs = True
    notes = [protector.protect_identity(name, PHOTOS, []).note for name in ("a", "b")]
    assert notes == ["GPU out of memory: steps are no longer recorded"] * 2
    assert tried == [True, False, False]


def test_a_single_photo_that_does_not_fit_fails(protector: Protector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "protect", fits_up_to(0, []))
    with pytest.raises(torch.OutOfMemoryError):
        protector.protect_identity("a", PHOTOS, [])


def test_class_images_are_squares_of_the_working_resolution(tmp_path: Path) -> None:
    Image.new("RGB", (90, 60), (10, 20, 30)).save(tmp_path / "a.png")
    Image.new("L", (40, 80), 200).save(tmp_path / "b.jpg")
    (tmp_path / "notes.txt").write_text("no photo")
    found = service.class_images(tmp_path, 32)
    assert found.shape == (2, 3, 32, 32)
    assert found[0, :, 5, 5].mul(255).round().tolist() == [10, 20, 30]
    with pytest.raises(ModelError, match="no photos in"):
        service.class_images(tmp_path / "absent", 32)
    (tmp_path / "c.png").write_bytes(b"damaged")
    with pytest.raises(ModelError, match=r"c\.png cannot be read"):
        service.class_images(tmp_path, 32)


@pytest.mark.parametrize(("there", "gpu", "found"), [(True, None, "cuda"), (True, False, "cpu"), (False, None, "cpu")])
def test_the_device_is_the_requested_one(
    there: bool, gpu: bool | None, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert service.chosen_device(gpu).type == found


def test_a_requested_gpu_that_is_missing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ModelError, match=r"a GPU is requested, but torch .* finds none: .* gpus_per_actor: 0"):
        Protector({"profile": "tiny", "gpu": True}, 0, 1)


def test_an_optimised_file_under_another_name_is_not_held_out() -> None:
    path = str(service.EMBEDDED_ENCODERS / "residual.onnx")
    with pytest.raises(
        ConfigError, match=r"held_out: residual \(residual\) is optimised: encoders names the same file"
    ):
        Protector({"profile": "tiny", "overrides": {"held_out": [path]}}, 0, 1)
    with pytest.raises(ConfigError, match="encoders: one file is listed twice"):
        Protector({"profile": "tiny", "overrides": {"encoders": ["embedded:residual", path]}}, 0, 1)


def test_a_wrong_attention_resolution_is_refused_before_any_photo() -> None:
    settings = {"profile": "tiny", "overrides": {"visibility": 0, "finetuning": {"attention_resolution": 32}}}
    with pytest.raises(ConfigError, match=r"attention_resolution: 32 is not a side .* at 128 px; choose one of 16, 8"):
        Protector(settings, 0, 1)


def test_source_and_revision_of_the_model_reach_the_manifest(protector: Protector, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(EMBEDDED, folder)
    pins = make_pins(folder, "owner/name", "0123abc", "a licence")
    (folder / CHECKSUMS).write_text(pins.text())
    held = SimpleNamespace(name="d", sha256="0", licence="none")
    protector.models = SimpleNamespace(  # type: ignore[assignment]
        surrogate=Surrogate(folder, torch.device("cpu")), encoders=[], held_out=[], detector=held, vaes=[]
    )
    rows = Protector._described(protector)
    assert rows[0] == {
        "name": "owner/name", "role": "surrogate", "sha256": pins.digest(), "licence": "a licence",
        "source": "owner/name", "revision": "0123abc",
    }  # fmt: skip
    stored = table([{"models": rows}], COLUMNS).to_pylist()[0]["models"]
    assert stored[0] == rows[0] and stored[1]["source"] is None


def test_a_gpu_memory_is_refused_if_no_setting_makes_the_model_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_card_fits(model: str, device: torch.device) -> Surrogate:
        made = Surrogate(locate(model), device)
        made.card_fault = "its weights take 41 GB"
        return made

    monkeypatch.setattr(service, "load_base_model", no_card_fits)
    with pytest.raises(ConfigError, match="gpu_memory: its weights take 41 GB; leave this setting out"):
        Protector({"profile": "tiny", "overrides": {"visibility": 0, "gpu_memory": "24GB"}}, 0, 1)


def test_a_full_size_profile_without_encoders_is_refused(tmp_path: Path) -> None:
    folder = str(write_layout(tmp_path / "sd15", "sd15"))
    with pytest.raises(
        ConfigError,
        match="sd15 has no identity encoders of its own; give --against faceid,instantid, --faces buffalo_l",
    ):
        Protector({"profile": "sd15", "overrides": {"model": folder}}, 0, 1)
    with pytest.raises(ConfigError, match="suit only the embedded model"):
        Protector({"profile": "tiny", "overrides": {"model": folder}}, 0, 1)
    made = Protector({"profile": "sd15", "overrides": {"model": folder, "layers": "finetuning"}}, 0, 1)
    assert (made.models.encoders, made.models.held_out) == ([], [])


def test_the_latent_push_loads_and_needs_only_the_vae(tmp_path: Path) -> None:
    shutil.copytree(EMBEDDED / "vae", tmp_path / "model" / "vae")
    model = str(tmp_path / "model")
    made = Protector({"profile": "tiny", "overrides": {"model": model}}, 0, 1)
    assert made.models.surrogate is None and [w.vae.name for w in made.models.vaes] == ["model"]
    assert [row["role"] for row in Protector._described(made)] == ["vae", "encoder", "encoder", "held_out", "detector"]
    with pytest.raises(ModelError, match="expected model_index"):
        Protector({"profile": "tiny", "overrides": {"model": model, "visibility": 0}}, 0, 1)
    assert Protector({"profile": "tiny", "overrides": {"layers": "zero_shot"}}, 0, 1).models.vaes == []


def test_several_vaes_with_their_weights_and_a_resolution_that_one_cannot_take(tmp_path: Path) -> None:
    other = str(write_vae(tmp_path / "other", "vae:flux2"))
    joint = {"vaes": ["embedded", other], "vae_weights": [3.0, 1.0]}
    made = Protector({"profile": "tiny", "overrides": {"joint": joint}}, 0, 1)
    assert [(w.vae.name, w.weight, w.vae.factor) for w in made.models.vaes] == [("tiny", 0.75, 8), ("other", 0.25, 16)]
    deep = {"block_out_channels": (8,) * 6, "down_block_types": ("DownEncoderBlock2D",) * 6}
    AutoencoderKL(**deep, up_block_types=("UpDecoderBlock2D",) * 6, norm_num_groups=4).save_pretrained(
        tmp_path / "deep"
    )
    config = {"resolution": 96, "joint": {"vaes": [str(tmp_path / "deep")]}}
    assert Protector({"profile": "tiny", "overrides": config}, 0, 1).models.vaes[0].vae.factor == 32
    assert resolution_fault("x", 64, 96) == "resolution: 96 px is no multiple of 64 px, a latent cell of x"
