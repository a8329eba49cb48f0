"""Commands as the pages show them, run on a local Ray and a real S3 server with a fake protector."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pipeline import config
from pipeline.cli.main import main
from pipeline.config import RunConfig
from pipeline.storage.base import Storage
from pipeline.storage.open import open_storage
from tests.support import shown
from tests.support.photo_bytes import rgb, saved

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    real = config.run_config

    def faked(file: Path | None, overrides: Mapping[str, Any]) -> RunConfig:
        return real(file, overrides).replaced(protector="tests.support.fakes:AddNoise", max_actors=1)

    monkeypatch.setattr(config, "run_config", faked)


def fill(storage: Storage, *places: str) -> None:
    for shade, place in enumerate(places):
        storage.put(place, saved(rgb().resize((96, 80)).point(lambda value, by=shade: max(value - by, 0)), "PNG"))


def run(calls: list[list[str]]) -> None:
    for call in calls:
        found = CliRunner().invoke(main, call)
        assert found.exit_code == 0, f"{call}: {found.output}"


def test_start_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fill(open_storage("photos", create=True), "ann/1.png", "ann/2.png", "bob/holiday.png")
    run(shown.lines("docs/index.md", "dladiff"))
    assert sorted(p.name for p in Path("protected/done").iterdir()) == ["ann.json", "bob.json"]
    assert Path("protected/report/index.html").is_file()


@pytest.mark.usefixtures("cluster")
def test_whole_collections(s3_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text("seed: 1\n")
    fill(open_storage(f"{s3_uri}/photos", create=True), "n000001/0001_01.png", "n000002/0001_01.png")
    places = {"s3://photos/vggface2": f"{s3_uri}/photos", "s3://protected/vggface2": f"{s3_uri}/protected"}
    shown_calls = [call for call in shown.lines("docs/operations.md", "dladiff") if set(places) & set(call)]
    assert [call[0] for call in shown_calls[:3]] == ["plan", "protect", "status"]
    run([[places.get(word, word) for word in call] for call in shown_calls[:3]])
    assert len(list(open_storage(f"{s3_uri}/protected").list("done/"))) == 2
