"""The faces that people rate, and the summary of the ratings."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from dladiff.errors import ConfigError
from pipeline.cli.main import main
from pipeline.evaluate.mos import Session, faces_of, summary
from pipeline.evaluate.results import write_results
from pipeline.storage.open import open_storage
from tests.support.evaluated import evaluated

PEOPLE = {"ann": ["1.png", "2.png"], "bob": ["1.png"]}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluated")
    config, plan, results = evaluated(folder, PEOPLE)
    write_results(results, config, plan)
    return folder / "results"


@pytest.fixture
def results(made: Path, tmp_path: Path) -> Any:
    return open_storage(shutil.copytree(made, tmp_path / "results"))


def test_faces_are_drawn_evenly_and_the_same_again(results: Any) -> None:
    few = faces_of(results, max_faces=3)
    assert {(f["attack"], f["condition"]) for f in few} == {("dreambooth", c) for c in ("clean", "noise", "dladiff")}
    assert len(few) == 9
    assert few == faces_of(results, max_faces=3)
    assert few != faces_of(results, max_faces=3, seed=1)
    assert len(faces_of(results)) == 3 * 8  # two people, four pictures


def test_missing_faces_are_reported(tmp_path: Path) -> None:
    config, plan, empty = evaluated(tmp_path / "none", PEOPLE, kept=0)
    with pytest.raises(ConfigError, match="dladiff evaluate"):
        faces_of(empty)
    write_results(empty, config, plan)
    with pytest.raises(ConfigError, match="--kept"):
        faces_of(empty)


def test_foreign_files_are_skipped(results: Any) -> None:
    results.put("rows/.DS_Store", b"\x00")
    assert len(faces_of(results)) == 24


def test_only_the_main_base_of_the_last_tables_is_shown(tmp_path: Path) -> None:
    config, plan, results = evaluated(tmp_path, PEOPLE, bases=("embedded", "other"))
    write_results(results, config, plan)
    assert len(faces_of(results)) == 24
    keys = {face["face"].split("/")[1] for face in faces_of(results)}
    assert {row["base"] for row in plan.rows if row["key"] in keys} == {"embedded"}


def test_the_summary(results: Any) -> None:
    assert summary(results) == []
    session = Session(results, faces_of(results))
    dladiff = [face_id for face_id, face in session.faces.items() if face["condition"] == "dladiff"]
    for rater in ("a", "b"):
        for i, face_id in enumerate(dladiff):
            session.rate(rater, face_id, 1 + i % 2)
    (row,) = summary(results)
    assert (row["condition"], row["ratings"], row["raters"], row["faces"], row["people"]) == ("dladiff", 16, 2, 8, 2)
    assert row["mos"] == pytest.approx(1.5)
    assert row["alpha"] == 1.0


def test_a_summary_without_ratings_says_so(tmp_path: Path) -> None:
    found = CliRunner().invoke(main, ["mos", "summary", "--results", str(tmp_path)])
    assert (found.exit_code, found.stdout) == (
        0,
        f"no rating in {tmp_path}/ratings.csv yet; `dladiff mos serve` collects them\n",
    )
