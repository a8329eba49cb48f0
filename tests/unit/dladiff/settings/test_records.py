"""Records are read without running their files, and say what those files say."""

import importlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from dladiff.evaluation.attacks import ATTACKS, Attack
from dladiff.evaluation.preprocessing_records import PREPROCESSINGS, Preprocessing
from dladiff.settings.records import Record, read_records
from dladiff.settings.schedules import METHODS, Method

RECORDS: list[Record] = [*METHODS.values(), *ATTACKS.values(), *PREPROCESSINGS.values()]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.name)
def test_a_record_is_the_one_in_its_file_and_has_its_functions(record: Record) -> None:
    values = vars(importlib.import_module(record.module)).values()
    there = [one for value in values for one in (value if isinstance(value, tuple) else (value,))]
    assert replace(record, module="") in [one for one in there if isinstance(one, Record)]
    assert callable(record.load())
    if isinstance(record, Attack) and record.check:
        assert callable(record.load(record.check))


def test_names_are_unique() -> None:
    read = {
        "dladiff.baselines": (Method, METHODS),
        "dladiff.evaluation.attackers": (Attack, ATTACKS),
        "dladiff.evaluation": (Preprocessing, PREPROCESSINGS),
    }
    for package, (kind, found) in read.items():
        names = {"BaselineConfig": dict, "PX": 1, "AttackSettings": dict, "shipped": str}
        assert len(read_records(package, kind, names)) == len(found) > 6  # type: ignore[type-var, arg-type]


def test_listing_imports_no_torch() -> None:
    code = "import sys, dladiff.settings.schema, pipeline.evaluate.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_values_are_literals_and_known_names_and_nothing_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "some_records").mkdir()
    (tmp_path / "some_records" / "__init__.py").write_text("raise SystemExit")
    (tmp_path / "some_records" / "one.py").write_text(
        "import nothing_of_this_name\nA = Record(name='a' 'b', function=f('x'))\n"
        "B = (Record(name='c', function='d'),)\n"
    )
    known = {"f": str.upper}
    found = read_records("some_records", Record, known)
    assert [(r.name, r.function, r.module) for r in found] == [
        ("ab", "X", "some_records.one"),
        ("c", "d", "some_records.one"),
    ]
    (tmp_path / "some_records" / "two.py").write_text("A = Record(name=open('x'), function='d')\n")
    with pytest.raises(KeyError):
        read_records("some_records", Record, known)
