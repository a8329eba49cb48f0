"""`dladiff models` with transformers: what is copied, what is refused, which sources ask for consent."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from dladiff.diffusion.bundle import CHECKSUMS, model_files, read_pins
from dladiff.diffusion.catalogue import MODELS
from dladiff.diffusion.vae_catalogue import VAES
from dladiff.errors import ModelError
from pipeline.cli.main import main
from pipeline.models.fetch import check, fetch, mirror
from tests.support.transformer_layouts import write_transformer


@pytest.fixture(autouse=True)
def own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLADIFF_MODELS", str(tmp_path / "models"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def test_a_transformer_is_copied_whole_and_checked(tmp_path: Path) -> None:
    origin = write_transformer(tmp_path / "origin", "sd35")
    (origin / "text_encoder_3" / "model.fp16.safetensors").write_bytes(b"not wanted")
    (origin / "transformer" / "diffusion_pytorch_model.bin").write_bytes(b"not wanted")
    folder = fetch("own/model", str(origin))
    pins = read_pins(folder)
    assert pins is not None and pins.sha256.keys() == model_files(origin).keys()
    for path in ("transformer/config.json", "text_encoder_3/model.safetensors", "tokenizer_3/tokenizer.json"):
        assert path in pins.sha256
    found = check(str(folder))
    assert found.faults == []
    assert mirror(str(folder), str(tmp_path / "mirror")).sha256 == pins.sha256
    assert (tmp_path / "mirror" / CHECKSUMS).is_file()
    (folder / "tokenizer_3" / "tokenizer.json").write_text("{}")
    assert any("tokenizer_3/tokenizer.json" in fault for fault in check(str(folder)).faults)


def test_another_size_is_not_the_profiles_model(tmp_path: Path) -> None:
    origin = write_transformer(tmp_path / "origin", "flux2-klein")
    with pytest.raises(ModelError, match=r"not the requested model.*number of blocks is 4, that of flux2-klein is 25"):
        fetch("flux2-klein", str(origin))
    assert [fault for fault in check(str(origin), "qwen-image").faults if "family is flux2" in fault]


def test_sources_that_ask_for_consent_are_named() -> None:
    lines = CliRunner().invoke(main, ["models", "list"]).stdout.splitlines()
    for name in ("sd35", "flux1", "flux1-schnell"):
        known = MODELS[name]
        assert known.gated == known.ids
        assert f"  {known.ids[0]} (asks for consent to its licence)" in lines
        assert any(
            line.startswith(f"{name}: 512 px, {known.licence}, not here: dladiff models fetch") for line in lines
        )
    assert "  Qwen/Qwen-Image" in lines and not MODELS["flux2-klein"].gated
    rows = json.loads(CliRunner().invoke(main, ["models", "list", "--json"]).stdout)
    assert {row["profile"]: row["gated"] for row in rows}["flux1"] == ["black-forest-labs/FLUX.1-dev"]


def test_the_vae_of_a_whole_model_serves_the_latent_push() -> None:
    held = {profile for vae in VAES.values() for profile in vae.profiles}
    assert held == set(MODELS)
    for vae in VAES.values():
        for profile in vae.profiles:
            known = MODELS[profile].architecture
            assert (known.latent_channels, known.scaling) == (vae.architecture.channels, vae.architecture.scaling)
