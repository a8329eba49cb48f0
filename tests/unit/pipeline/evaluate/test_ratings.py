"""ratings.csv: no formulas for spreadsheets, and the same names when read."""

import csv
import io
from pathlib import Path

import pytest

from dladiff.errors import StorageError
from pipeline.evaluate.ratings import add_rating, read_ratings
from pipeline.storage.base import Storage
from pipeline.storage.open import open_storage


@pytest.fixture
def results(tmp_path: Path) -> Storage:
    return open_storage(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["=HYPERLINK(1)", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\uff1d1", "'=1", "''+1", "'quoted'", "a;=1", "Ann"],
)
def test_a_name_is_no_formula_in_the_file_and_the_same_when_read(name: str, results: Storage) -> None:
    rating = {column: "x" for column in ("identity", "attack", "condition", "prompt", "time")} | {"score": "3"}
    for face in ("1", "2"):
        add_rating(results, rating | {"rater": name, "face": face})
    add_rating(results, rating | {"rater": name, "face": "2"})  # the same rater
    assert [(row["rater"], row["face"]) for row in read_ratings(results)] == [(name, "1"), (name, "2")]
    text = results.get("ratings.csv").decode()
    cells = [cell for row in csv.reader(io.StringIO(text, newline="")) for cell in row]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d"))]
    assert all(line.startswith('"') for line in text.splitlines() if line and name != "\r=1")


def test_a_file_of_formulas_is_read_and_made_harmless_with_the_next_rating(results: Storage) -> None:
    head = "rater,face,identity,attack,condition,prompt,score,time"
    results.put("ratings.csv", f"{head}\n=1+1,a,i,x,y,p,3,t\n".encode())
    add_rating(results, read_ratings(results)[0] | {"face": "b"})
    assert [row["rater"] for row in read_ratings(results)] == ["=1+1", "=1+1"]
    assert b'"\'=1+1"' in results.get("ratings.csv")
    for damaged in (f"{head}\n1,2\n", f"{head}\n1,2,3,4,5,6,3,8,9\n"):  # rows that are no rating cost themselves
        results.put("ratings.csv", damaged.encode())
        assert read_ratings(results) == []
    results.put("ratings.csv", f'{head}\n"{"x" * 200_000}"\n'.encode())
    with pytest.raises(StorageError, match="repair or delete it"):
        read_ratings(results)
