"""Lookup of models by name, and their checksums."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dladiff.diffusion import bundle
from dladiff.diffusion.bundle import CHECKSUMS, make_pins, needed, parse_pins, quick_digest, read_pins, verified_pins
from dladiff.diffusion.catalogue import EMBEDDED, HUB_ID, MODELS, locate, profile_faults
from dladiff.errors import ModelError
from dladiff.settings.presets import PROFILES

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLADIFF_MODELS", str(tmp_path / "models"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def hub_cache(root: Path, hub_id: str, large: bool = True) -> Path:
    """Write a model folder in the layout of huggingface_hub's cache: links to blobs, large ones named by SHA-256."""
    home = root / "hub" / f"models--{hub_id.replace('/', '--')}"
    snapshot = home / "snapshots" / COMMIT
    (home / "blobs").mkdir(parents=True)
    for file in EMBEDDED.rglob("*"):
        if file.is_file():
            data = file.read_bytes()
            name = hashlib.sha256(data).hexdigest() if file.suffix == ".safetensors" and large else file.name + "x"
            blob = home / "blobs" / (name if file.suffix == ".safetensors" else hashlib.sha1(data).hexdigest())
            blob.write_bytes(data)
            place = snapshot / file.relative_to(EMBEDDED)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(blob)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(COMMIT)
    return snapshot


def test_every_known_model_matches_its_profile() -> None:
    assert set(MODELS) == set(PROFILES) - {"tiny", "latent"}
    for name, known in MODELS.items():
        assert PROFILES[name]["model"] == name and PROFILES[name]["resolution"] == known.resolution
        assert all(HUB_ID.fullmatch(hub_id) for hub_id in (*known.ids, *known.withdrawn))
        assert known.ids and not set(known.ids) & set(known.withdrawn)


def test_a_missing_model_says_how_to_get_it() -> None:
    for name, message in (
        ("sd21", r"dladiff models fetch sd21 gets it .*dladiff models mirror"),
        ("owner/name@v2", r"dladiff models fetch owner/name@v2"),
        ("runwayml/stable-diffusion-v1-5", r"dladiff models fetch sd15 gets it; then set method.model to sd15"),
        ("/no/such/folder", r"dladiff models list"),
        ("s3://bucket/sd21", r"fetch PROFILE --from s3://bucket/sd21"),
    ):
        with pytest.raises(ModelError, match=message):
            locate(name)


def test_order_of_lookup(tmp_path: Path) -> None:
    assert locate("embedded") == EMBEDDED and locate(str(EMBEDDED)) == EMBEDDED
    withdrawn = hub_cache(tmp_path, MODELS["sd15"].withdrawn[0])
    assert locate("sd15") == withdrawn
    mirror = hub_cache(tmp_path, MODELS["sd15"].ids[1])
    assert locate("sd15") == mirror == locate(f"{MODELS['sd15'].ids[1]}@{COMMIT}") == locate(MODELS["sd15"].ids[1])
    with pytest.raises(ModelError):
        locate(f"{MODELS['sd15'].ids[1]}@{'f' * 40}")
    fetched = tmp_path / "models" / "sd15"
    shutil.copytree(EMBEDDED, fetched)
    assert locate("sd15") == fetched
    pins = make_pins(fetched, "owner/name", COMMIT, "a licence")
    (fetched / CHECKSUMS).write_text(pins.text())
    assert locate("owner/name") == locate("owner/name@0123456") == fetched
    with pytest.raises(ModelError):
        locate("owner/name@ffff")


def test_pins_equal_independent_checksums(tmp_path: Path) -> None:
    snapshot = hub_cache(tmp_path, "owner/name")
    pins = make_pins(snapshot)
    assert (pins.source, pins.revision) == ("owner/name", COMMIT)
    files = {path.relative_to(EMBEDDED).as_posix(): path for path in EMBEDDED.rglob("*") if path.is_file()}
    assert pins.sha256 == {path: hashlib.sha256(files[path].read_bytes()).hexdigest() for path in sorted(files)}
    assert parse_pins(pins.text(), "") == pins
    assert json.loads(pins.text())["files"]["unet/config.json"]["bytes"] == files["unet/config.json"].stat().st_size


def test_digest_is_the_same_from_every_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = make_pins(EMBEDDED).digest()
    snapshot = hub_cache(tmp_path, "owner/name")
    copy = tmp_path / "copy"
    shutil.copytree(EMBEDDED, copy)
    assert quick_digest(copy) is None
    (copy / CHECKSUMS).write_text(make_pins(copy, "here", COMMIT).text())
    read: list[Path] = []
    before = bundle.file_sha256
    monkeypatch.setattr(bundle, "file_sha256", lambda file: read.append(file) or before(file))
    assert quick_digest(copy) == quick_digest(snapshot) == digest
    assert sum(file.stat().st_size for file in read) < 100_000  # no weights
    (copy / "README.md").write_text("about")
    assert verified_pins(copy).digest() == digest
    (copy / "unet" / "config.json").write_text("{}")
    assert make_pins(copy).digest() != digest
    assert quick_digest(hub_cache(tmp_path, "owner/other", large=False)) is None


def test_a_changed_or_incomplete_file_is_named(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(EMBEDDED, copy)
    (copy / CHECKSUMS).write_text(make_pins(copy).text())
    assert read_pins(copy) == verified_pins(copy)
    file = copy / "vae" / "diffusion_pytorch_model.safetensors"
    data = file.read_bytes()
    cases = (
        (data[:-1], f"has {len(data) - 1} of {len(data)} bytes"),
        (data[:-1] + bytes([data[-1] ^ 1]), "is not the file"),
    )
    for changed, message in cases:
        file.write_bytes(changed)
        with pytest.raises(ModelError, match=f"vae/diffusion_pytorch_model.safetensors {message}.*fetch it again"):
            verified_pins(copy)
    file.unlink()
    with pytest.raises(ModelError, match="is missing"):
        verified_pins(copy)
    file.write_bytes(data)
    unnamed = "unet/diffusion_pytorch_model.safetensors"
    pins = make_pins(copy)
    fewer = replace(pins, sha256={name: sha for name, sha in pins.sha256.items() if name != unnamed})
    (copy / CHECKSUMS).write_text(fewer.text())
    with pytest.raises(ModelError, match=f"{unnamed} is not named in {CHECKSUMS}"):
        verified_pins(copy)


def test_invalid_checksums_are_refused() -> None:
    entry = {"sha256": "0", "bytes": 1}
    about = {"source": "", "revision": "", "licence": ""}
    wrong: list[Any] = [{"../../etc/passwd": entry}, {"/etc/passwd": entry}, {"unet/evil.bin": entry}, {}, {"a": 1}, []]
    for files in wrong:
        with pytest.raises(ModelError):
            parse_pins(json.dumps(about | {"files": files}), "there")
    for text in ("", "[]", "{}", "\x00"):
        with pytest.raises(ModelError, match="there"):
            parse_pins(text, "there")


def test_needed_files() -> None:
    shards = [f"unet/diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for path in (
        "model_index.json",
        "vae/config.json",
        "text_encoder_2/model.safetensors",
        "tokenizer/merges.txt",
        *shards,
    ):
        assert needed(path)
    for path in (
        "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.non_ema.safetensors",
        "v2-1_512-ema-pruned.safetensors",
        "safety_checker/model.safetensors",
        "text_encoder/openvino_model.xml",
        "unet/../config.json",
    ):
        assert not needed(path)


def test_differences_from_the_profiles_model_are_listed() -> None:
    assert profile_faults(EMBEDDED, "sdxl") == [
        "width of cross-attention is 96, that of sdxl is 2048",
        "latent channels is 8, that of sdxl is 4",
        "VAE scaling factor is 1.0, that of sdxl is 0.13025",
        "number of text encoders is 1, that of sdxl is 2",
    ]
