"""`dladiff evaluate` on a real Ray: the bundled model is attacked in a few steps; a second run finds nothing to do."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from dladiff.errors import ModelError
from pipeline.cli import main as cli
from pipeline.evaluate.config import EvaluateConfig
from pipeline.evaluate.driver import evaluate
from pipeline.records.lease import Lease
from pipeline.run import engine
from pipeline.storage.open import open_storage
from tests.support.outputs import protected_output

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("collected"), pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def people(assets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two people's real faces, two photos each, protected by a fake that adds one level."""
    from tests.acceptance.evaluation_people import held_out

    folder = tmp_path_factory.mktemp("evaluate")
    protected_output(folder, {"ann": ["1.png"]})  # makes the folders; its plain photo holds no face
    photos = open_storage(folder / "in")
    import cv2

    names: dict[str, list[str]] = {}
    for name, crops in held_out(assets, 2).items():
        for i, crop in enumerate(crops[:4]):
            bgr = cv2.cvtColor(crop.pixels(), cv2.COLOR_RGB2BGR)
            photos.put(f"{name}/{i}.png", cv2.imencode(".png", bgr)[1].tobytes())
            names.setdefault(name, []).append(f"{name}/{i}.png")
    protect_all(folder, names)
    return folder


def protect_all(folder: Path, names: dict[str, list[str]]) -> None:
    from pipeline.config import RunConfig
    from pipeline.records.manifest import write_manifest
    from pipeline.run.actor import ProtectIdentity

    source, target = open_storage(folder / "in"), open_storage(folder / "out")
    config = RunConfig(input=source.uri, output=target.uri, protector="tests.support.fakes:AddNoise")
    worker = ProtectIdentity(config.to_dict(), "r", "d")
    for identity, keys in names.items():
        photos = [{"key": key, "uri": source.uri_of(key)} for key in keys]
        work = {"identity": identity, "part": 0, "parts": 1, "key": "k", "replaces": None, "photos": photos}
        worker({"work": json.dumps(work | {"clean": []})})
    for entry in list(target.list("done/ann")):
        target.delete(entry.key)
    write_manifest(target)


def configured(folder: Path, results: Path, **others: Any) -> EvaluateConfig:
    settings: dict[str, Any] = {
        "attacks": ("dreambooth",),
        "prompts": ("a photo of sks person",),
        "settings": {"dreambooth": {"steps": 1, "sampling_steps": 2}},
        "count": 2,
        "photos": 2,
    }
    return EvaluateConfig(output=str(folder / "out"), results=str(results), **(settings | others))


def test_the_life_of_an_evaluation(people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configured(people, tmp_path / "results")
    planned = evaluate(config, dry_run=True)
    assert (planned.people, planned.planned, planned.left) == (2, 12, 12)
    assert not (tmp_path / "results").exists()
    first = evaluate(config)
    assert (first.done, first.failed, first.left, first.exit_code) == (12, 0, 0, 0)
    results = open_storage(config.results)
    records = [json.loads(results.get(entry.key)) for entry in results.list("rows/")]
    assert {r["status"] for r in records} == {"done"}
    attacked = [r for r in records if r["attack"] == "dreambooth"]
    assert {r["reference_set"] for r in attacked} == {"other photos"}
    assert {r["references"] for r in attacked} == {2}
    assert {len(r["images"]["a photo of sks person"]) for r in attacked} == {2}
    alone = [r for r in records if r["attack"] == "encoder_only" and r["condition"] == "clean"]
    assert all(p["pro"]["mobile"] == pytest.approx(1) for r in alone for p in r["protected"])
    text = results.get("tables.md").decode()
    assert "## Table 1" in text
    assert "## Table 9" in text
    assert results.tag("lock.json") is None

    with monkeypatch.context() as patch:
        patch.setattr(engine, "started", lambda: pytest.fail("Ray was started for nothing"))
        patch.setattr("pipeline.evaluate.driver.started", lambda: pytest.fail("Ray was started for nothing"))
        assert evaluate(config).done == 12
        results.delete(f"rows/{records[0]['key']}.json")
        part = evaluate(config, tables_only=True)
    assert (part.done, part.left) == (11, 1)
    assert evaluate(config).done == 12
    with Lease(results), pytest.raises(Exception, match="another run"):
        evaluate(config)


@pytest.mark.usefixtures("cluster")
def test_an_unknown_setting_of_an_attack_stops_the_run(people: Path, tmp_path: Path) -> None:
    wrong = {"lora": {"step": 1}}
    config = configured(people, tmp_path / "results").replaced(attacks=("lora",), settings=wrong, identities=1)
    with pytest.raises(ModelError, match="did you mean steps"):
        evaluate(config)


def test_the_command(people: Path, tmp_path: Path) -> None:
    arguments = ["evaluate", "--output", str(people / "out"), "--results", str(tmp_path / "r"), "--attack", "lora"]
    arguments += ["--seed", "0", "--seed", "1", "--dry-run", "--json", "--set", "lora.steps=3"]
    found = CliRunner().invoke(cli.main, arguments)
    assert (found.exit_code, json.loads(found.stdout)["planned"]) == (0, 2 * (3 + 6))
    wrong = CliRunner().invoke(cli.main, [*arguments, "--compare", "aspl", "--share", "0"])
    assert wrong.exit_code == 2
    assert "--compare: 'aspl' is not NAME=VALUE" in wrong.output
