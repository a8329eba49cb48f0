"""The column `faces` of an index: read from each format, checked, and passed to the method."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dladiff.core.exchange import IdentityOut
from dladiff.errors import ConfigError
from pipeline.config import RunConfig
from pipeline.run.actor import ProtectIdentity
from pipeline.run.plan import identities, make_plan
from pipeline.sources.given_faces import MAX_FACES, parsed_faces
from tests.support.fakes import AddNoise
from tests.support.kept import kept_decoders
from tests.support.photo_bytes import rgb, saved

MARKS = [[1, 2], [3, 4], [5, 6], [7, 8], [9, 10]]
FACES = [{"box": [1, 2, 30.5, 40], "landmarks": None}, {"box": [5, 5, 9, 9], "landmarks": MARKS}]
CELL = json.dumps([[1, 2, 30.5, 40], FACES[1]])


def index(folder: Path, cells: dict[str, Any], suffix: str = ".csv") -> RunConfig:
    """Write an index of one photo for each cell, and the photos."""
    for name in cells:
        if not (folder / f"{name}.png").exists():  # else it would count as changed
            (folder / f"{name}.png").write_bytes(saved(rgb(), "PNG"))
    file = folder / f"list{suffix}"
    rows = [{"identity": "ann", "uri": f"{name}.png", "faces": cell} for name, cell in cells.items()]
    if suffix == ".csv":
        with file.open("w", newline="") as handle:
            writer = csv.DictWriter(handle, ["identity", "uri", "faces"])
            writer.writeheader()
            writer.writerows(rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), file)
    return RunConfig(input=str(file), output=str(folder / "out"), protector=f"{__name__}:Keeps")


class Keeps(AddNoise):
    """Remembers the faces that it is given."""

    seen: dict[str, Any] = {}  # noqa: RUF012

    def protect_identity(self, identity: str, photos: Any, clean: Any) -> IdentityOut:
        self.seen |= {photo.key.rpartition("/")[2]: photo.faces for photo in photos}
        return super().protect_identity(identity, photos, clean)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_given_faces_reach_the_method(tmp_path: Path, suffix: str) -> None:
    config = index(tmp_path, {"a": CELL, "b": "", "c": "[]"}, suffix)
    (tmp_path / "plan").mkdir()
    (tmp_path / "out").mkdir()
    plan = make_plan(config, folder=tmp_path / "plan")
    assert plan.todo_file is not None
    (row,) = plan.todo_file.rows()
    with kept_decoders():
        done = json.loads(ProtectIdentity(config.to_dict(), "r", "d")(row)["result"])
    assert done["status"] == "done", done
    assert {name: list(faces) for name, faces in Keeps.seen.items()} == {"a.png": FACES, "b.png": [], "c.png": []}


def test_lists_of_a_parquet_file_are_read_as_they_are(tmp_path: Path) -> None:
    config = index(tmp_path, {"a": [[1.0, 2.0, 30.5, 40.0]], "b": None}, ".parquet")
    (ann,) = identities(config, None)
    assert [json.loads(photo.faces or "[]") for photo in ann.photos] == [[FACES[0]], []]


def test_changed_faces_are_new_work(tmp_path: Path) -> None:
    hashes = {make_plan(index(tmp_path, {"a": cell})).plan_hash for cell in (CELL, "", "[[0, 0, 5, 5]]", "[]")}
    assert len(hashes) == 3


@pytest.mark.parametrize(
    ("cell", "why"),
    [
        ("[1, 2, 3, 4]", "has the box 1"),
        ("[[1, 2, 3]]", "expected .x0, y0, x1, y1."),
        ("[[5, 2, 3, 4]]", "x0 < x1"),
        ("[[1, 2, NaN, 4]]", "has the box"),
        ("[[1, 2, Infinity, 4]]", "has the box"),
        ("[[1, 2, 1e300, 4]]", "has the box"),
        ("[[true, 2, 3, 4]]", "has the box"),
        ('[["1", 2, 3, 4]]', "has the box"),
        ("nonsense", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("7", "is no list"),
        ("{}", "is no list"),
        ('[{"bbox": [1, 2, 3, 4]}]', "has a face with 'bbox'; known are box and landmarks"),
        ('[{"box": [1, 2, 3, 4], "landmarks": [[1, 2]]}]', "five different points"),
        ('[{"box": [1, 2, 3, 4], "landmarks": [[1, 1], [1, 1], [1, 1], [1, 1], [1, 1]]}]', "five different points"),
        (json.dumps([[1, 2, 3, 4]] * (MAX_FACES + 1)), f"at most {MAX_FACES} are read"),
    ],
)
def test_cells_that_are_no_faces(tmp_path: Path, cell: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parsed_faces(cell)
    with pytest.raises(ConfigError, match=why) as caught:
        make_plan(index(tmp_path, {"a": cell, "b": CELL}))
    assert len(caught.value.faults) == 1 and "row 2: faces " in caught.value.faults[0]


def test_many_faults_are_counted(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        make_plan(index(tmp_path, {str(i): "x" for i in range(9)}))
    assert len(caught.value.faults) == 6 and caught.value.faults[-1] == "4 more faults"
