"""Parts of a collection: disjoint, together all, the same for a name whatever else is there."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline.cli.main import main
from pipeline.sources.share import Shard, shard_fault
from tests.support.photo_bytes import flat_photo

NAMES = [f"person {number}" for number in range(400)] + ["\udcff", "ä", ""]


def test_each_identity_is_in_one_part() -> None:
    parts = [{name for name in NAMES if Shard(f"{part}/7").holds(name)} for part in range(1, 8)]
    assert sum(map(len, parts)) == len(NAMES) and set().union(*parts) == set(NAMES)
    assert all(30 < len(part) < 90 for part in parts)  # 57 expected, with a standard deviation of 7
    assert all(Shard(None).holds(name) for name in NAMES)


@pytest.mark.parametrize("text", ["", "0/4", "5/4", "1/0", "1", "1/2/3", "-1/4", "1/20000", "a/b", "1/4 "])
def test_what_is_no_part(text: str, tmp_path: Path) -> None:
    assert shard_fault(text)
    call = ["plan", "--input", str(tmp_path), "--output", str(tmp_path / "out"), "--shard", text]
    found = CliRunner().invoke(main, call)
    assert found.exit_code == 2 and "shard: expected a part of all parts, as 3/8" in found.output


def test_plans_of_all_parts_are_the_plan_and_an_empty_part_is_no_error(tmp_path: Path) -> None:
    for name in ("ann", "bob", "cleo"):
        (tmp_path / "in" / name).mkdir(parents=True)
        (tmp_path / "in" / name / "1.png").write_bytes(flat_photo(1))
    planned = []
    for part in range(1, 9):
        call = ["plan", "--input", str(tmp_path / "in"), "--output", str(tmp_path / f"out{part}"), "--json"]
        found = CliRunner().invoke(main, [*call, "--shard", f"{part}/8"])
        assert found.exit_code == 0, found.output
        planned.append(json.loads(found.stdout)["identities"])
    assert sum(planned) == 3 and 0 in planned
