"""Whoever can write the output must not make the operator's commands read anything but the input."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from dladiff.errors import NotFoundError, StorageError
from pipeline.cli.main import main
from pipeline.config import run_config
from pipeline.evaluate.plan import make_plan as evaluation_plan
from pipeline.records import commit as records
from pipeline.records.manifest import write_manifest
from pipeline.report.explain import explain
from pipeline.report.write import write_report
from pipeline.run.plan import make_plan, write_plan
from pipeline.run.prefixes import Prefixes
from pipeline.run.status import status
from pipeline.run.verify import verify
from pipeline.sources.originals import OutsideError, named, originals
from pipeline.storage.base import Storage
from pipeline.storage.local import LocalStorage
from pipeline.storage.open import open_storage
from tests.support.evaluated import configured
from tests.support.outputs import portrait, protected_output


@pytest.fixture
def output(tmp_path: Path) -> Storage:
    return protected_output(tmp_path, {"ann": ["1.png", "2.png"]})


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A picture beside the input, whose bytes the forger of the output knows."""
    file = tmp_path / "secret" / "1.png"
    file.parent.mkdir()
    file.write_bytes(portrait(0))
    return file


@pytest.fixture
def touched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every path that storage reads or looks at."""
    seen: list[str] = []

    def spied(name: str) -> Callable[..., Any]:
        real = getattr(LocalStorage, name)

        def call(storage: LocalStorage, key: str = "", *more: Any, **named: Any) -> Any:
            seen.append(f"{storage.uri}/{key}")
            return real(storage, key, *more, **named)

        return call

    for name in ("get", "tag", "list"):
        monkeypatch.setattr(LocalStorage, name, spied(name))
    return seen


def forge(output: Storage, **changes: Any) -> None:
    """Let the record and the manifests say something else of the first photo."""
    record = records.load_record(output, "done/ann.json")
    record["photos"][0] |= changes
    output.put("done/ann.json", json.dumps(record).encode())
    write_manifest(output, force=True)


def spread(tmp_path: Path, output: Storage, inputs: tuple[str, ...] = ()) -> list[Any]:
    """Let every command that reads originals run."""
    settings = run_config(None, {"input": "-", "output": output.uri, "method": {"finetuning": {"iter_ft": 1}}})
    found: list[Any] = [verify(output, inputs), write_report(output, tmp_path / "page.html", inputs=inputs)]
    found.append(evaluation_plan(configured(tmp_path, inputs=inputs, identities=1)))
    found.append(explain(str(tmp_path / "in" / "0" / "2.png"), settings, tmp_path / "explained.html", inputs))
    return found


@pytest.mark.networks
def test_an_address_outside_of_the_input_is_never_read(
    tmp_path: Path, output: Storage, secret: Path, touched: list[str]
) -> None:
    forge(output, source_uri=str(secret))
    for inputs in ((), (str(tmp_path / "in"),)):
        touched.clear()
        checked, page, plan, explained = spread(tmp_path, output, inputs)
        assert touched and not [path for path in touched if "secret" in path]
        assert (checked.photos, checked.compared) == (2, 1)
        assert "originals that are not shown: outside of the input 1" in page.notes
        assert [photo["source_uri"] for photo in plan.rows[0]["photos"]] == [str(tmp_path / "in/0/2.png")]
        assert "other photos of the identity that are not used: outside of the input 1" in explained.notes


@pytest.mark.networks
def test_a_forged_input_is_believed_by_nobody_who_names_his_own(
    tmp_path: Path, output: Storage, secret: Path, touched: list[str]
) -> None:
    forge(output, source_uri=str(secret))
    latest = json.loads(output.get("plan/latest.json"))
    output.put("plan/latest.json", json.dumps(latest | {"inputs": ["/", "s3://bucket"]}).encode())
    assert originals(output).note.startswith("originals are read below /, s3://bucket, as the output records it")
    touched.clear()
    spread(tmp_path, output, (str(tmp_path / "in"),))
    assert not [path for path in touched if "secret" in path]


def test_the_page_says_the_same_of_files_that_are_there_and_that_are_not(
    tmp_path: Path, output: Storage, secret: Path
) -> None:
    said = set()
    shadow = str(tmp_path / "in" / "shadow")
    Path(shadow).write_bytes(b"x")
    for address in (str(secret), shadow, str(tmp_path / "in" / "no such file"), "/etc/shadow", "s3://bucket/key"):
        forge(output, source_uri=address)
        write_report(output, tmp_path / "page.html")
        page = (tmp_path / "page.html").read_text()
        said.add(page[page.index('class="missing"') :].partition("</p>")[0])
    assert said == {'class="missing">Original not reachable.'}


def test_what_is_no_regular_file_below_the_input_is_not_read(tmp_path: Path, output: Storage, secret: Path) -> None:
    os.mkfifo(tmp_path / "in" / "pipe.png")
    (tmp_path / "in" / "link.png").symlink_to(secret)
    (tmp_path / "in" / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "in" / "folder").symlink_to(secret.parent)
    source = tmp_path / "in"
    for name in ("pipe.png", "link.png", "zero.png", "folder/1.png", "0/../../secret/1.png", "", "0"):
        with pytest.raises(StorageError):
            originals(output).read(f"{source}/{name}")
        forge(output, source_uri=f"{source}/{name}" if name else str(source))
        assert verify(output).compared == 1, name


def test_originals_have_a_largest_size(output: Storage, tmp_path: Path) -> None:
    large = tmp_path / "in" / "large.png"
    with large.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(StorageError, match="more than 200000000 bytes"):
        originals(output).read(str(large))


def test_a_photo_of_another_person_or_a_record_is_no_photo_of_hers(tmp_path: Path) -> None:
    output = protected_output(tmp_path, {"ann": ["1.png"], "bob": ["1.png"]})
    (bobs,) = [entry.key for entry in output.list("photos/bob/")]
    sha = hashlib.sha256(output.get(bobs)).hexdigest()
    for key in (bobs, "lock.json", "photos/ann/../bob/1.png", "photos/ann/x/1.png", "../in/0/1.png", "photos/ann/"):
        output.put("lock.json", b"{}")
        record = records.load(output, "done/ann.json")
        record["photos"][0] |= {"output_key": key, "output_sha256": sha}
        output.put("done/ann.json", json.dumps(record).encode())
        (fault,) = [fault for fault in verify(output).faults if "done/ann.json" in fault]
        assert "names a file outside of its identity's folder" in fault


def test_commands_take_the_input_and_say_which_one_is_meant(tmp_path: Path, output: Storage) -> None:
    def said(*arguments: str) -> tuple[str, str]:
        found = CliRunner().invoke(main, [*arguments, "--output", output.uri])
        assert found.exit_code == 0, found.output
        return found.stdout, found.stderr

    recorded = (
        f"note: originals are read below {tmp_path / 'in'}, as the output records it; --input URI names the input"
    )
    for call in (["verify"], ["report"], ["evaluate", "--dry-run", "--results", str(tmp_path / "r")]):
        assert said(*call)[1].startswith(recorded)
        assert said(*call, "--input", str(tmp_path / "in"))[1] == ""
    assert "2 compared" in said("verify", "--input", str(tmp_path / "other" / ".." / "in"))[0]
    (tmp_path / "none").mkdir()
    out, _ = said("verify", "--input", str(tmp_path / "none"))
    assert "0 compared with their source (2 not: gone, changed, a link, outside of the input" in out
    assert "2 compared" in said("verify", "--input", str(tmp_path / "none"), "--input", str(tmp_path / "in"))[0]
    latest = json.loads(output.get("plan/latest.json"))
    del latest["inputs"]
    output.put("plan/latest.json", json.dumps(latest).encode())
    out, err = said("verify")
    assert "0 compared" in out
    assert err == "note: the output does not say what its input was: no original is read; --input URI names it\n"
    absent = CliRunner().invoke(main, ["verify", "--output", output.uri, "--input", str(tmp_path / "absent")])
    assert absent.exit_code == 3 and "no such folder" in absent.stderr
    wrong = CliRunner().invoke(main, ["verify", "--output", output.uri, "--input", "ftp://x"])
    assert wrong.exit_code == 2 and "unknown storage" in wrong.stderr


def test_roots_are_folders_not_the_beginnings_of_names(tmp_path: Path) -> None:
    for name in ("in", "in2", "real"):
        open_storage(tmp_path / name, create=True).put("1.png", b"x")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    found = named([str(tmp_path / "in"), str(tmp_path / "link")])
    assert found.read(f"{tmp_path}/in/1.png") == b"x"
    assert found.read(f"{tmp_path}/link/1.png") == found.read(f"{tmp_path}/real/1.png") == b"x"
    for uri in (f"{tmp_path}/in2/1.png", "1.png", "", "file:///etc/passwd", "s3://in/1.png", f"{tmp_path}/in"):
        assert not found.inside(uri)
        with pytest.raises(OutsideError, match="outside of the input; --input names it"):
            found.read(uri)
    with pytest.raises(NotFoundError):
        found.read(f"{tmp_path}/in/2.png")
    assert named([str(tmp_path / "in" / "list.csv")]).inside(f"{tmp_path}/in/1.png")


def test_a_plan_records_where_its_photos_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_storage(tmp_path / "in", create=True)
    source.put("ann/1.png", portrait(0))
    source.put("list.csv", b"identity,uri\nann,ann/1.png\n")
    target = open_storage(tmp_path / "out", create=True)
    monkeypatch.chdir(tmp_path / "in")
    for given in (str(tmp_path / "in"), ".", "list.csv", f"file://{tmp_path}/in/list.csv"):
        plan = make_plan(run_config(None, {"input": given, "output": target.uri}), folder=tmp_path)
        write_plan(target, plan, "r")
        assert json.loads(target.get("plan/latest.json"))["inputs"] == [str(tmp_path / "in")]
    prefixes = Prefixes()
    for key in ("a/b/c/1.png", "a/b/2.png", "a/bc/3.png"):
        prefixes.add(f"s3://one/{key}")
        prefixes.add("s3://two/1.png")
        prefixes.add(f"/elsewhere/{key}")
    assert prefixes.addresses() == ("s3://one/a", "s3://two")


@pytest.mark.parametrize("forged", ["no photos", "fewer photos", "photos without a file", "photos that were gone"])
def test_a_record_counts_as_done_only_if_it_accounts_for_every_photo(tmp_path: Path, forged: str) -> None:
    output = protected_output(tmp_path, {"ann": ["1.png", "2.png"]})
    config = run_config(None, {"input": str(tmp_path / "in"), "output": output.uri})
    plan = make_plan(config, folder=tmp_path)
    assert plan.todo_file is not None
    (work,) = [json.loads(row["work"]) for row in plan.todo_file.rows()]
    record = records.load_record(output, "done/ann.json") | {"identity": work["identity"], "key": work["key"]}
    rows = [row | {"identity": work["identity"]} for row in record["photos"]]
    for row in rows:
        row["output_key"] = row["output_key"].replace("photos/ann/", f"photos/{work['identity']}/")
    about = record["identity_row"] | {"identity": work["identity"]}
    place = f"done/{work['identity']}.json"

    def stored(photos: list[dict[str, Any]]) -> int:
        output.put(place, json.dumps(record | {"photos": photos, "identity_row": about}).encode())
        write_plan(output, make_plan(config, folder=tmp_path), "r")
        return make_plan(config, folder=tmp_path).todo

    assert stored(rows) == 0
    before = status(output)
    lost = {"output_key": None, "output_uri": None, "output_sha256": None}
    photos = {
        "no photos": [],
        "fewer photos": rows[:1],
        "photos without a file": [row | lost for row in rows],
        "photos that were gone": [rows[0], rows[1] | lost | {"status": "skipped", "reason": "gone"}],
    }[forged]
    assert stored(photos) == 1
    after = status(output)
    assert (after["done"], before["left"], after["left"]) == (before["done"] - 1, 0, 1)
    again = make_plan(config, folder=tmp_path)
    assert again.todo_file is not None
    (work,) = [json.loads(row["work"]) for row in again.todo_file.rows()]
    assert work["replaces"] == output.tag(place)
    whole = record | {"photos": rows, "identity_row": about}
    assert records.commit(output, whole), "a forged record of the same key wins"
    assert stored(rows) == 0
    if forged != "photos that were gone":
        stored(photos)
        assert [fault for fault in verify(output).faults if fault.startswith(place)]
    deleted = lost | {"reason": "the protected photo was deleted on 2026-01-01, as retention asks"}
    assert stored([row | deleted for row in rows]) == 0


def test_verify_says_how_many_planned_photos_have_no_record(tmp_path: Path) -> None:
    output = protected_output(tmp_path, {"ann": ["1.png", "2.png"], "bob": ["1.png"]})
    assert verify(output).left == 0
    output.delete("done/ann.json")
    write_manifest(output, force=True)
    found = verify(output)
    assert (found.left, found.faults, len(found.orphans)) == (2, [], 2)
    done = CliRunner().invoke(main, ["verify", "--output", output.uri])
    assert done.exit_code == 0
    assert "left: 2 photos of the latest plan have no record; the next protect does them" in done.stdout
    assert json.loads(CliRunner().invoke(main, ["verify", "--output", output.uri, "--json"]).stdout)["left"] == 2
