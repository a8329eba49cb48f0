"""`dladiff models`: what comes from a hub (a small one on this machine), a folder or a bucket; what is refused."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from dladiff.diffusion.architecture import Architecture
from dladiff.diffusion.bundle import CHECKSUMS, read_pins
from dladiff.diffusion.catalogue import EMBEDDED, MODELS, KnownModel, fetched_folder, locate
from dladiff.diffusion.vae_catalogue import VAES
from dladiff.errors import ConfigError, ModelError, StorageError
from dladiff.faces.weights import WEIGHTS
from pipeline.cli.main import main
from pipeline.config import RunConfig
from pipeline.models import fetch as models
from pipeline.models.encoders import listed_encoders
from pipeline.models.fetch import check, fetch, listed, mirror, on_this_machine
from pipeline.models.vaes import listed_vaes
from pipeline.storage.base import Storage
from pipeline.storage.open import open_storage
from tests.support.hub_server import COMMIT, Hub, serving

TINY = KnownModel(
    profile="sd21",
    ids=("gone/tiny", "kept/tiny"),
    licence="of the test",
    resolution=128,
    architecture=Architecture(context=96, latent_channels=8, prediction="epsilon", scaling=1.0, text_encoders=1),
)


@pytest.fixture(autouse=True)
def own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fetched models and the hub's cache lie in this test's folder; `sd21` stands for the embedded bundle."""
    monkeypatch.setenv("DLADIFF_MODELS", str(tmp_path / "models"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setitem(MODELS, "sd21", TINY)


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    """A repository as published: pickles and variants beside what is needed."""
    folder = tmp_path / "published"
    shutil.copytree(EMBEDDED, folder)
    for name in ("unet/diffusion_pytorch_model.bin", "v2-1.ckpt", "unet/diffusion_pytorch_model.fp16.safetensors"):
        (folder / name).write_bytes(b"not wanted")
    return folder


@pytest.fixture
def hub(origin: Path) -> Iterator[Hub]:
    with serving({"kept/tiny": origin}) as running:
        yield running


def files(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def test_fetch_takes_the_first_mirror_that_answers_and_pins_it(hub: Hub) -> None:
    folder = fetch("sd21", endpoint=hub.url)
    assert (
        folder == fetched_folder("sd21") == locate("sd21") == locate("kept/tiny") == locate(f"kept/tiny@{COMMIT[:8]}")
    )
    assert files(folder) == files(EMBEDDED) | {CHECKSUMS}
    pins = read_pins(folder)
    assert pins is not None
    assert (pins.source, pins.revision, pins.licence) == ("kept/tiny", COMMIT, "openrail")
    assert any("gone/tiny" in path for path in hub.asked) and not any(path.endswith(".bin") for path in hub.asked)
    assert check("sd21").faults == []
    assert {p.name for p in folder.parent.iterdir() if not p.name.startswith(".lock")} == {"sd21"}
    hub.asked.clear()
    assert fetch("sd21", endpoint=hub.url) == folder and hub.asked == []


def test_fetch_by_hub_id_and_revision(hub: Hub) -> None:
    folder = fetch("kept/tiny@v2", endpoint=hub.url)
    assert folder.name == "kept--tiny" and "/api/models/kept/tiny/revision/v2" in hub.asked
    with pytest.raises(ModelError, match=f"holds kept/tiny@{COMMIT}; remove it"):
        fetch("kept/tiny@v3", endpoint=hub.url)


def test_a_download_that_breaks_off_leaves_no_model_and_goes_on(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)  # the hub's client waits between its own tries
    hub.broken = {"unet/diffusion_pytorch_model.safetensors"}
    with pytest.raises(ModelError, match=r"kept/tiny: the download broke off .*fetch again resumes it"):
        fetch("sd21", endpoint=hub.url)
    with pytest.raises(ModelError, match="models fetch sd21"):
        locate("sd21")
    hub.broken = set()
    hub.asked.clear()
    assert check(str(fetch("sd21", endpoint=hub.url))).faults == []
    gets = [path for path in hub.asked if "/resolve/" in path]
    assert any("unet/diffusion" in path for path in gets) and not any("vae/diffusion" in path for path in gets)


def test_a_file_that_is_not_as_published_is_refused(hub: Hub) -> None:
    hub.changed = {"vae/diffusion_pytorch_model.safetensors"}
    with pytest.raises(ModelError, match=r"vae/diffusion_pytorch_model.safetensors came from kept/tiny damaged"):
        fetch("sd21", endpoint=hub.url)
    assert not fetched_folder("sd21").exists()


def test_no_mirror_answers(hub: Hub) -> None:
    hub.models = {}
    with pytest.raises(ModelError, match=r"gone/tiny: .*kept/tiny: .*mirror it to a bucket or folder"):
        fetch("sd21", endpoint=hub.url)
    with pytest.raises(ModelError, match="no model came from the hub"):
        fetch("sd21", endpoint="http://127.0.0.1:9")


def test_another_model_is_refused_and_removed(hub: Hub, origin: Path) -> None:
    with pytest.raises(ModelError, match="width of cross-attention is 96, that of sd15 is 768"):
        fetch("sd15", "kept/tiny", endpoint=hub.url)
    (origin / "unet" / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    with pytest.raises(ModelError, match="unet is a UNet2DModel"):
        fetch("kept/tiny", endpoint=hub.url)
    with pytest.raises(ConfigError, match="did you mean sd21"):
        fetch("sd2")
    assert [p for p in fetched_folder("x").parent.iterdir() if not p.name.startswith(".lock")] == []


def test_from_a_folder_to_a_mirror_and_back(tmp_path: Path, origin: Path) -> None:
    folder = fetch("sd21", str(origin))
    pins = read_pins(folder)
    assert pins is not None and pins.licence == "of the test"
    mirrored = mirror("sd21", str(tmp_path / "mirror"))
    assert files(tmp_path / "mirror") == files(EMBEDDED) | {CHECKSUMS} and mirrored == pins
    shutil.rmtree(folder)
    again = fetch("sd21", f"file://{tmp_path / 'mirror'}")
    assert read_pins(again) == pins
    with pytest.raises(StorageError, match="give a folder"):
        fetch("sd15", str(tmp_path / "nowhere"))


def test_a_mirror_is_whole_or_none(tmp_path: Path, origin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "mirror"
    kind = type(open_storage(place, create=True))
    put = kind.put_file

    def fails(self: Storage, key: str, file: Path) -> None:
        if key.startswith("vae/"):
            raise StorageError("disk full")
        put(self, key, file)

    mirror(str(origin), str(place))
    (origin / "vae" / "config.json").write_text((origin / "vae" / "config.json").read_text() + "\n")
    monkeypatch.setattr(kind, "put_file", fails)
    with pytest.raises(StorageError):
        mirror(str(origin), str(place))
    assert not (place / CHECKSUMS).exists()


def settings(model: str) -> dict[str, Any]:
    return {"profile": "tiny", "preset": None, "overrides": {"model": model, "visibility": 0}}


def test_a_bucket_is_copied_once_and_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = tmp_path / "bucket"
    mirror("embedded", str(bucket))
    read: list[str] = []

    def opened(uri: str) -> Storage:
        storage = open_storage(bucket)
        get = storage.get_file
        storage.get_file = lambda key, file: read.append(key) or get(key, file)  # type: ignore[method-assign]
        return storage

    assert on_this_machine(settings("embedded"), opened) == settings("embedded")
    found = on_this_machine(settings("s3://bucket/tiny"), opened)
    folder = Path(found["overrides"]["model"])
    assert files(folder) == files(EMBEDDED) | {CHECKSUMS} and set(read) == files(EMBEDDED)
    assert on_this_machine(settings("s3://elsewhere/tiny"), opened) == found and len(read) == len(files(EMBEDDED))
    monkeypatch.setattr("pipeline.models.fingerprint.open_storage", lambda _: open_storage(bucket))
    digests = {
        RunConfig(input="a", output="b", method={"model": m, "visibility": 0}).config_digest()
        for m in ("s3://b/x", str(folder))
    }
    assert len(digests) == 1
    (bucket / CHECKSUMS).unlink()
    with pytest.raises(ModelError, match="dladiff models mirror MODEL"):
        on_this_machine(settings("s3://bucket/tiny"), opened)


def test_a_bucket_with_a_damaged_file(tmp_path: Path) -> None:
    bucket = tmp_path / "bucket"
    mirror("embedded", str(bucket))
    file = bucket / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(ModelError, match=r"unet/diffusion_pytorch_model.safetensors has .* mirror it again"):
        on_this_machine(settings("s3://bucket/tiny"), lambda _: open_storage(bucket))
    file.write_bytes((EMBEDDED / "unet" / file.name).read_bytes())
    assert on_this_machine(settings("s3://bucket/tiny"), lambda _: open_storage(bucket))


def test_check_says_what_is_wrong(origin: Path) -> None:
    runner = CliRunner()
    found = runner.invoke(main, ["models", "check", str(origin)])
    assert found.exit_code == 1 and "fault: unet/diffusion_pytorch_model.bin is a pickle" in found.output
    assert "fault: v2-1.ckpt is a pickle" in found.output
    folder = fetch("sd21", str(origin))
    found = runner.invoke(main, ["models", "check", "sd21"])
    assert (found.exit_code, found.output.splitlines()[-1]) == (0, f"ok: {folder}")
    file = folder / "text_encoder" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    found = runner.invoke(main, ["models", "check", "sd21", "--json"])
    faults = json.loads(found.output)["faults"]
    assert found.exit_code == 1 and len(faults) == 1 and faults[0].startswith("text_encoder/model.safetensors ")
    with pytest.raises(ModelError, match="is damaged"):
        fetch("sd21", str(origin))
    found = runner.invoke(main, ["models", "check", "sdxl"])
    assert found.exit_code == 1 and "dladiff models fetch sdxl" in found.output
    assert runner.invoke(main, ["models", "check", "sd21", "--profile", "sd3"]).exit_code == 2


def test_list_and_fetch_commands(origin: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    assert "dladiff models fetch sd21" in runner.invoke(main, ["models", "list"]).output
    assert runner.invoke(main, ["models", "fetch", "sd21", "--from", str(origin)]).exit_code == 0
    assert runner.invoke(main, ["models", "mirror", "sd21", str(tmp_path / "there")]).exit_code == 0
    rows = json.loads(runner.invoke(main, ["models", "list", "--json"]).output)
    assert {row["profile"]: bool(row["folder"]) for row in rows} == {
        name: name in ("sd21", "vae:sd") for name in (*MODELS, *VAES, *(f"encoder:{name}" for name in WEIGHTS))
    }
    assert rows == listed() + listed_vaes() + listed_encoders()
    assert runner.invoke(main, ["models", "fetch", "sd15", "--from", str(tmp_path / "no")]).exit_code == 3


def test_none_of_it_imports_torch() -> None:
    code = (
        "import sys; from pipeline.models.fetch import check, listed; listed(); check('embedded'); check('sd21');"
        "sys.exit(bool({'torch', 'diffusers', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], env=os.environ, check=False).returncode == 0


def test_a_folder_of_models_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, origin: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DLADIFF_MODELS", str(tmp_path / "file" / "models"))
    with pytest.raises(StorageError, match="set DLADIFF_MODELS"):
        fetch("sd21", str(origin))
    assert models.listed()
