"""Pairs of a photo and a generated picture: drawing, the page, stored answers, the table, deletion."""

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from PIL import Image

from dladiff.errors import ConfigError, DamagedError
from pipeline.cli.main import main
from pipeline.evaluate.mos_server import make_server
from pipeline.evaluate.pair_answers import DIFFERENT, pair_summary, pair_table
from pipeline.evaluate.pairs import PHOTO_SIDE, PairSession, pairs_of
from pipeline.evaluate.ratings import PAIRS_SHEET, keep_ratings, read_ratings
from pipeline.evaluate.results import write_results
from pipeline.sources.decode import decode
from pipeline.storage.open import open_storage
from tests.support.evaluated import evaluated
from tests.unit.pipeline.evaluate.test_mos_server import Client, served

PEOPLE = {"ann": ["1.png", "2.png"], "bob": ["1.png"]}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """Results of two people, and a folder of clean photos: two of ann in a set, one large one of bob."""
    folder = tmp_path_factory.mktemp("evaluated")
    config, plan, results = evaluated(folder, PEOPLE)
    write_results(results, config, plan)
    photos = folder / "photos"
    for name, colour, size in (
        ("ann/set_A/1.png", "red", 64),
        ("ann/set_A/2.png", "red", 64),
        ("bob/1.jpg", "blue", 900),
    ):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (size, size // 2), colour).save(photos / name)
    Image.new("RGB", (64, 64), "lime").save(photos / "ann" / "set_A" / "3.png")
    (photos / "ann" / "set_B").mkdir()
    Image.new("RGB", (64, 64), "lime").save(photos / "ann" / "set_B" / "4.png")  # the attacker has it
    return (config, plan), photos


@pytest.fixture
def results(made: Any, tmp_path: Path) -> Any:
    return open_storage(shutil.copytree(Path(made[0][0].results), tmp_path / "results"))


@pytest.fixture
def references(made: Any) -> Any:
    return open_storage(str(made[1]))


def test_every_condition_and_both_controls_have_as_many_pairs(results: Any, references: Any) -> None:
    pairs = pairs_of(results, references, max_faces=6)
    assert Counter(p["condition"] for p in pairs) == dict.fromkeys(("clean", "noise", "dladiff", DIFFERENT), 6)
    for pair in pairs:
        assert (pair["shown"] != pair["identity"]) == (pair["condition"] == DIFFERENT)
        assert pair["photo"].startswith(f"{pair['shown']}/")
        assert "set_B" not in pair["photo"]
    assert pairs == pairs_of(results, references, max_faces=6)
    assert pairs != pairs_of(results, references, max_faces=6, seed=1)


def test_one_person_gives_no_pairs(results: Any, tmp_path: Path) -> None:
    (tmp_path / "few" / "ann").mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(tmp_path / "few" / "ann" / "1.png")
    with pytest.raises(ConfigError, match="photos of 1 people"):
        pairs_of(results, open_storage(str(tmp_path / "few")))


@pytest.fixture
def client(results: Any, references: Any) -> Iterator[Client]:
    with served(make_server(PairSession(results, pairs_of(results, references, 2), references), 0)) as found:
        yield found


def test_answering_all_pairs(client: Client, results: Any) -> None:
    status, page = client.ask("GET", "/")
    assert status == 200
    for word in (b"dladiff", b"clean", b"noise", b"ann", b"control"):
        assert word not in page.lower().replace(b"cannot", b"").replace(b"channel", b"")
    assert page.count(b"data-score") >= 3 and b'id="photo"' in page
    state, count = client.post("/next", rater="rita"), 0
    while state["face"] is not None:
        assert set(state) == {"face", "rated", "faces"}
        photo = decode(client.ask("GET", f"/photo/{state['face']}.png")[1], min_side=1).pixels
        assert photo.shape in ((32, 64, 3), (64, 64, 3), (PHOTO_SIDE // 2, PHOTO_SIDE, 3))
        assert decode(client.ask("GET", f"/face/{state['face']}.png")[1]).pixels.shape == (64, 64, 3)
        count += 1
        state = client.post("/rate", rater="rita", face=state["face"], score=count % 3 + 1)
    assert state == {"face": None, "rated": 8, "faces": 8}
    rows = read_ratings(results, PAIRS_SHEET)
    assert Counter(r["answer"] for r in rows) == {"different": 3, "cannot say": 3, "same": 2}
    assert len({r["pair"] for r in rows}) == 8
    assert read_ratings(results) == []


def test_what_is_no_answer_or_no_picture_is_refused(client: Client, results: Any) -> None:
    pair = client.post("/next", rater="x")["face"]
    for score in (0, 4, -1, True, "1", None):
        assert client.ask("POST", "/rate", {"rater": "x", "face": pair, "score": score})[0] == 400
    for path in (f"/photo/{'0' * 20}.png", "/photo/../ann.png", f"/other/{pair}.png", "/photo/ann/set_A/1.png"):
        assert client.ask("GET", path)[0] in (400, 404)
    assert client.open("GET", f"/photo/{pair}.png", Host=f"127.0.0.1:{client.port}").status == 403
    assert read_ratings(results, PAIRS_SHEET) == []


def answers(results: Any, references: Any) -> None:
    """Two raters: clean pairs are the same, those of different people are not, dladiff's divide them."""
    session = PairSession(results, pairs_of(results, references, 8), references)
    for rater in ("a", "b"):
        for pair_id, pair in session.faces.items():
            kinds = {"clean": 1, DIFFERENT: 2, "noise": 3, "dladiff": 1 if rater == "a" else 2}
            session.rate(rater, pair_id, kinds[pair["condition"]])


def test_the_summary_and_the_table(made: Any, results: Any, references: Any) -> None:
    assert pair_summary(results) == [] == pair_table(results, {"x"})
    answers(results, references)
    rows = {row["condition"]: row for row in pair_summary(results)}
    assert {name: row["same"] for name, row in rows.items()} == {"clean": 1, DIFFERENT: 0, "noise": 0, "dladiff": 0.5}
    assert (rows["noise"]["cannot_say"], rows["clean"]["cannot_say"]) == (1, 0)
    assert (rows["dladiff"]["low"], rows["dladiff"]["high"]) == (0, 1)  # two raters who disagree
    assert (rows["clean"]["raters"], rows["clean"]["people"], rows["clean"]["answers"]) == (2, 2, 16)
    found = CliRunner().invoke(main, ["mos", "summary", "--pairs", "--results", results.uri])
    assert "dreambooth, dladiff" in found.stdout and "same 0.50 (0.00 to 1.00), cannot say 0.00" in found.stdout
    found = CliRunner().invoke(main, ["mos", "summary", "--pairs", "--json", "--results", results.uri])
    assert {row["condition"] for row in json.loads(found.stdout)} == set(rows)
    config, plan = made[0]
    write_results(results, config, plan)
    text = results.get("tables.md").decode()
    assert "## The same person or not" in text
    assert "| different people | 0.00 (0.00 to 0.00) | 0.00 | 16 |" in text


def test_answers_about_a_person_go_with_them(results: Any, references: Any) -> None:
    answers(results, references)
    keep_ratings(results, lambda name: name != "bob")
    rows = read_ratings(results, PAIRS_SHEET)
    assert rows and not [r for r in rows if "bob" in (r["identity"], r["shown"])]
    assert b"bob" not in results.get("pairs.csv")


def test_a_damaged_file_costs_its_table(made: Any, results: Any, caplog: pytest.LogCaptureFixture) -> None:
    results.put("pairs.csv", b"\xff\xfe")
    with pytest.raises(DamagedError, match=r"pairs\.csv is not UTF-8"):
        pair_summary(results)
    config, plan = made[0]
    write_results(results, config, plan)
    assert "pairs.csv is not UTF-8" in caplog.text


@pytest.mark.parametrize("arguments", [["--pairs"], ["--references", "."]])
def test_pairs_and_references_belong_together(results: Any, arguments: list[str]) -> None:
    found = CliRunner().invoke(main, ["mos", "serve", "--results", results.uri, *arguments])
    assert (found.exit_code, "--references" in found.stderr) == (2, True)
