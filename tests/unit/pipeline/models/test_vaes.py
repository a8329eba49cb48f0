"""`dladiff models` for VAEs alone: fetched from a hub on this machine, mirrored, listed, checked, used by a run."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from dladiff.diffusion.bundle import CHECKSUMS, read_pins
from dladiff.diffusion.catalogue import fetched_folder, locate
from dladiff.diffusion.vae_catalogue import VAES, locate_vae
from dladiff.errors import ConfigError, ModelError
from dladiff.settings.schema import method_config
from pipeline.cli.main import main
from pipeline.config import RunConfig
from pipeline.models.fetch import check, fetch, mirror, on_this_machine
from pipeline.models.fingerprint import missing
from pipeline.storage.base import Storage
from pipeline.storage.open import open_storage
from tests.support.hub_server import COMMIT, Hub, serving
from tests.support.model_layouts import change_json, write_layout
from tests.support.vae_layouts import LAYOUTS, write_vae

CONFIG, WEIGHTS = "vae/config.json", "vae/diffusion_pytorch_model.safetensors"


@pytest.fixture(autouse=True)
def own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLADIFF_MODELS", str(tmp_path / "models"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def published(folder: Path, name: str) -> Path:
    """A repository: a VAE's folder beside much else."""
    write_vae(folder / "vae", name)
    for other in ("transformer/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.fp16.safetensors"):
        (folder / other).parent.mkdir(parents=True, exist_ok=True)
        (folder / other).write_bytes(b"not wanted")
    (folder / "model_index.json").write_text("{}")
    return folder


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """Each known VAE under the last of its ids: the first ones are gone."""
    repositories = {VAES[name].ids[-1]: published(tmp_path / f"on-{name[4:]}", name) for name in LAYOUTS}
    with serving(repositories) as running:
        yield running


def files(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def test_only_the_vae_of_each_known_model_comes(hub: Hub) -> None:
    for name in LAYOUTS:
        folder = fetch(name, endpoint=hub.url)
        assert files(folder) == {CONFIG, WEIGHTS, CHECKSUMS} and folder == fetched_folder(name)
        pins = read_pins(folder)
        assert pins is not None and (pins.source, pins.revision) == (VAES[name].ids[-1], COMMIT)
        assert locate_vae(name) == folder / "vae" and check(name).faults == []
    assert not any("transformer" in path or "fp16" in path for path in hub.asked if "/resolve/" in path)
    hub.asked.clear()
    assert fetch("vae:sd", endpoint=hub.url) and hub.asked == []
    with pytest.raises(ModelError, match="fetch sd21 gets it"):  # a VAE is no whole model
        locate("sd21")
    assert locate_vae("sd21") == fetched_folder("vae:sd") / "vae" == locate_vae("sd15")


def test_one_that_asks_for_consent_gives_its_place_to_the_next(hub: Hub, tmp_path: Path) -> None:
    first, second = VAES["vae:sd3"].ids
    hub.models = {first: tmp_path / "on-sd3", second: tmp_path / "on-sd3"}
    hub.gated = {first}
    pins = read_pins(fetch("vae:sd3", endpoint=hub.url))
    assert pins is not None and pins.source == second
    shutil.rmtree(fetched_folder("vae:sd3"))
    hub.gated = {first, second}
    with pytest.raises(ModelError, match=f"{second}: asks for consent to its licence, on its page, and then for HF_TO"):
        fetch("vae:sd3", endpoint=hub.url)


def test_another_vae_and_a_damaged_one_are_refused(hub: Hub, tmp_path: Path) -> None:
    hub.models = dict.fromkeys(VAES["vae:flux1"].ids, tmp_path / "on-sd3")
    with pytest.raises(ModelError, match=r"scaling factor is 1.5305, that of vae:flux1 is 0.3611"):
        fetch("vae:flux1", endpoint=hub.url)
    hub.models = dict.fromkeys(VAES["vae:sd3"].ids, tmp_path / "on-sd3")
    hub.changed = {WEIGHTS}
    with pytest.raises(ModelError, match=f"{WEIGHTS} came from .* damaged; fetch again"):
        fetch("vae:sd3", endpoint=hub.url)
    (tmp_path / "on-sd3" / WEIGHTS).write_bytes(b"\xff" * 100)
    with pytest.raises(ModelError, match="not a safetensors file"):
        fetch("vae:sd3", endpoint=hub.url)
    assert not fetched_folder("vae:sd3").exists() and not fetched_folder("vae:flux1").exists()
    with pytest.raises(ConfigError, match=r"vae:sdx: no known model \(did you mean vae:sdxl\?\)"):
        fetch("vae:sdx")


def test_a_whole_model_lends_its_vae_and_nothing_is_fetched_twice(tmp_path: Path, hub: Hub) -> None:
    change_json(write_layout(tmp_path / "sd15", "sd15") / CONFIG, scaling_factor=0.18215)
    shutil.copytree(tmp_path / "sd15", fetched_folder("sd15"))
    assert fetch("vae:sd", endpoint=hub.url) == fetched_folder("sd15") and hub.asked == []
    assert locate_vae("vae:sd") == fetched_folder("sd15") / "vae" == locate_vae("sd15")


def test_a_mirror_of_a_vae_and_of_a_whole_model(tmp_path: Path, hub: Hub) -> None:
    folder = fetch("vae:qwen", endpoint=hub.url)
    pins = mirror("vae:qwen", str(tmp_path / "mirror"))
    assert files(tmp_path / "mirror") == {CONFIG, WEIGHTS, CHECKSUMS} and read_pins(folder) == pins
    shutil.rmtree(folder)
    assert read_pins(fetch("vae:qwen", str(tmp_path / "mirror"))) == pins
    write_layout(tmp_path / "sd15", "sd15")
    mirror(str(tmp_path / "sd15"), str(tmp_path / "whole"))
    found = read_pins(fetch("vae:sd", str(tmp_path / "whole")))
    assert found is not None and set(found.sha256) == {CONFIG, WEIGHTS}


def test_a_run_copies_only_the_vae_of_a_model_in_a_bucket(tmp_path: Path) -> None:
    mirror("embedded", str(tmp_path / "bucket"))

    def opened(_: str) -> Storage:
        return open_storage(tmp_path / "bucket")

    settings: dict[str, Any] = {"profile": "tiny", "overrides": {"model": "s3://b/tiny"}}
    folder = Path(on_this_machine(settings, opened)["overrides"]["model"])
    assert files(folder) == {CONFIG, WEIGHTS, CHECKSUMS}
    settings = {"profile": "tiny", "overrides": {"joint": {"vaes": ["s3://b/tiny", "embedded"], "steps": 3}}}
    found = on_this_machine(settings, opened)["overrides"]["joint"]
    assert found == {"vaes": [str(folder), "embedded"], "steps": 3}


def test_check_of_a_folder_of_a_vae(tmp_path: Path) -> None:
    folder, runner = write_vae(tmp_path / "own", "vae:flux2"), CliRunner()
    assert runner.invoke(main, ["models", "check", str(folder)]).output.splitlines()[-1] == f"ok: {folder}"
    (folder / "more.bin").write_bytes(b"x")
    change_json(folder / "config.json", in_channels=4)
    found = runner.invoke(main, ["models", "check", str(folder)])
    assert found.exit_code == 1 and "fault: more.bin is a pickle" in found.output and "takes 4 channels" in found.output
    found = runner.invoke(main, ["models", "check", "vae:flux2"])
    assert found.exit_code == 1 and "dladiff models fetch vae:flux2" in found.output


def test_list_shows_licences_and_which_ask_for_consent(hub: Hub) -> None:
    fetch("vae:flux2", endpoint=hub.url)
    lines = CliRunner().invoke(main, ["models", "list"]).output.splitlines()
    assert any(line.startswith("vae:flux2: VAE of FLUX.2, Apache-2.0, in ") for line in lines)
    assert "vae:qwen: VAE of Qwen-Image, Apache-2.0, not here: dladiff models fetch vae:qwen" in lines
    assert "  black-forest-labs/FLUX.1-dev (asks for consent to its licence)" in lines
    assert "  Qwen/Qwen-Image" in lines
    found = CliRunner().invoke(main, ["models", "fetch", "vae:sd", "vae:qwen", "--from", "x"])
    assert found.exit_code == 2 and "fetch them in turn" in found.output


def photos(folder: Path) -> Path:
    (folder / "ann").mkdir(parents=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(folder / "ann" / "1.png")
    return folder


def test_profile_latent_uses_those_that_are_here_and_names_the_others(hub: Hub, tmp_path: Path) -> None:
    given = ["plan", "--input", str(photos(tmp_path / "in")), "--output", str(tmp_path / "out"), "--profile", "latent"]
    (tmp_path / "run.yaml").write_text("method: {layers: finetuning}")
    given += ["--config", str(tmp_path / "run.yaml")]
    found = CliRunner().invoke(main, given)
    every = " ".join(VAES)
    assert f"joint.vaes: none of the known VAEs is on this machine: dladiff models fetch {every}" in found.output
    empty = RunConfig(input="a", output="b", profile="latent").config_digest()
    for name in ("vae:sd", "vae:flux2"):
        fetch(name, endpoint=hub.url)
    config = method_config("latent", None, {"layers": "finetuning"})
    assert missing(config) == [] and not config.trains_surrogate
    found = CliRunner().invoke(main, given)
    lacking = "vae:sdxl, vae:sd3, vae:flux1, vae:qwen"
    assert found.exit_code == 0 and f"note: not pushed, because not on this machine: {lacking} (" in found.output
    assert RunConfig(input="a", output="b", profile="latent").config_digest() != empty
    file = fetched_folder("vae:flux2") / WEIGHTS
    file.write_bytes(file.read_bytes()[:-8])
    assert "incomplete" in missing(config)[0]


def test_a_vae_counts_by_its_content_wherever_it_is(hub: Hub, tmp_path: Path) -> None:
    def digest(*names: str) -> str:
        return RunConfig(input="a", output="b", method={"joint": {"vaes": list(names)}}).config_digest()

    fetch("vae:sd", endpoint=hub.url)
    moved = shutil.copytree(fetched_folder("vae:sd"), tmp_path / "moved")
    assert digest("vae:sd") == digest(str(moved)) != digest("embedded")
    assert json.loads((moved / CHECKSUMS).read_text())["files"].keys() == {CONFIG, WEIGHTS}
