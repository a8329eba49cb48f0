"""Notes of pages and results, forged ones among them: what is deleted, what is printed, and what is left alone."""

import json
import os
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pipeline.cli.main import main
from pipeline.records import pages
from pipeline.records.lease import Lease
from pipeline.records.pages import announce, mark, mark_results, notes
from pipeline.retention import forget as module
from pipeline.retention.forget import Outside, People, forget
from pipeline.storage.base import Storage
from pipeline.storage.open import open_storage

HEAD = '<!doctype html>\n<meta name="generator" content="dladiff">\n<meta name="dladiff-output" content="{}">\n'


@pytest.fixture
def output(tmp_path: Path) -> Storage:
    return open_storage(tmp_path / "out", create=True)


def page(output: Storage, path: Path, *people: str) -> Path:
    """Write a page as a command does."""
    noted = announce(output, "explain", path, people)
    path.write_text(HEAD.format(mark(output.uri)) + " ".join(people))
    noted()
    return path


def forge(output: Storage, address: str, people: Iterable[str] = ("bob",), **more: Any) -> None:
    """Write a note of any address, as somebody could who can write the output."""
    values = {"kind": "explain", "address": address, "host": socket.gethostname(), "time": "x", "people": frozenset()}
    note = pages.Note(**values | more)
    pages.Note(**vars(note) | {"people": frozenset(map(note.sign, people))}).put(output)


def gone(output: Storage, *left: str, present: set[str] | None = None) -> Outside:
    return forget(output, People({"ann"} if present is None else present, set(left)), really=True)


def test_a_page_goes_with_the_people_it_shows(output: Storage, tmp_path: Path) -> None:
    bobs, anns = page(output, tmp_path / "bob.html", "bob"), page(output, tmp_path / "ann.html", "ann")
    both = page(output, tmp_path / "both.html", "ann", "bob")
    dry = forget(output, People({"ann"}, set()), really=False)
    assert sorted(dry.deleted) == [str(bobs), str(both)] and bobs.exists()
    assert sorted(gone(output).deleted) == [str(bobs), str(both)]
    assert (bobs.exists(), both.exists(), anns.exists()) == (False, False, True)
    assert len(list(notes(output))) == 1
    assert gone(output) == Outside()
    assert "ann" not in (tmp_path / "out").glob("pages/*").__next__().read_text().replace(str(anns), "")


def test_a_page_that_is_written_again_shows_who_it_shows_now(output: Storage, tmp_path: Path) -> None:
    path = page(output, tmp_path / "page.html", "bob")
    announce(output, "explain", path, ["ann"])  # and died before the page was there
    assert gone(output).deleted == [str(path)]
    page(output, path, "bob")
    page(output, path, "ann")
    assert gone(output) == Outside() and path.exists()


def test_forged_notes_delete_nothing(output: Storage, tmp_path: Path) -> None:
    good = HEAD.format(mark(output.uri))
    files = {
        "plain.html": "<p>not ours",
        "other.html": HEAD.format(mark("/another/output")),
        "ours.txt": good,
        "late.html": "x" * module.HEAD + good,
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        forge(output, str(tmp_path / name))
    (tmp_path / "target.html").write_text(good)
    (tmp_path / "link.html").symlink_to(tmp_path / "target.html")
    (tmp_path / "folder.html").mkdir()
    os.mkfifo(tmp_path / "pipe.html")
    for name in ("link.html", "folder.html", "pipe.html"):
        forge(output, str(tmp_path / name))
    forge(output, "relative.html")
    forge(output, "s3://bucket/page.html")
    results = open_storage(tmp_path / "results", create=True)
    results.put(f"rows/{'0' * 32}.json", json.dumps({"identity": "bob"}).encode())
    forge(output, results.uri, kind="evaluation")
    mark_results(results, ["/another/output"])
    forge(output, "out", kind="evaluation")
    output.put("pages/damaged.json", b"{")
    output.put(f"pages/{'0' * 32}.json", b'{"kind": 1, "address": 2, "host": 3, "time": 4, "people": [5]}')
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    found = gone(output)
    assert found.deleted == [] and len(found.missed) == 13
    assert all("delete" in line for line in found.missed), found.missed
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before
    assert gone(output).missed == found.missed  # they are told until somebody looks


def test_pictures_beside_a_page_go_and_nothing_else(output: Storage, tmp_path: Path) -> None:
    path = page(output, tmp_path / "page.html", "bob")
    folder = tmp_path / "page_files"
    folder.mkdir()
    for name in ("00000-before.webp", "00001-face_after.webp", f".tmp-{'0' * 32}", "mine.txt"):
        (folder / name).write_bytes(b"x")
    gone(output)
    assert not path.exists() and [file.name for file in folder.iterdir()] == ["mine.txt"]
    page(output, path, "bob")
    (folder / "mine.txt").unlink()
    folder.rmdir()
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "00000-before.webp").write_bytes(b"of another page")
    folder.symlink_to(foreign)
    gone(output)
    assert (foreign / "00000-before.webp").exists()


def test_what_is_not_there_is_told(output: Storage, tmp_path: Path) -> None:
    page(output, tmp_path / "moved.html", "bob").unlink()
    forge(output, "/nowhere/page.html", host="another-machine")
    forge(output, str(tmp_path / "here.html"), host="another-machine")
    forge(output, str(tmp_path / "unmounted"), kind="evaluation")
    lines = sorted(gone(output).missed)
    assert len(lines) == 4
    assert any("moved.html" in line and "if it was moved, delete it there" in line for line in lines)
    assert sum("on another-machine" in line for line in lines) == 2
    assert len(gone(output).missed) == 3  # the page that was deleted is no news any more


def test_no_permission_is_told(output: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = page(output, tmp_path / "page.html", "bob")

    def refused(name: str, folder: int) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(module, "_unlink", refused)
        (line,) = gone(output).missed
    assert "Permission denied; delete it by hand" in line and path.exists()
    assert gone(output).deleted == [str(path)]


def test_results_in_use_are_told_and_other_outputs_people_stay(output: Storage, tmp_path: Path) -> None:
    results = open_storage(tmp_path / "results", create=True)
    for i, name in enumerate(("ann", "bob", "zoe")):
        results.put(f"rows/{str(i) * 32}.json", json.dumps({"identity": name}).encode())
        results.put(f"faces/{str(i) * 32}/0-00.png", b"a face")
    results.put("mine.txt", b"")
    mark_results(results, ["/another/output", output.uri])
    announce(output, "evaluation", results.uri, ["ann", "bob"])  # zoe is of the other output
    with Lease(results):
        (line,) = gone(output).missed
        assert "another run writes to" in line
    assert gone(output).deleted == [results.uri]
    left = {entry.key for entry in results.list()}
    assert left == {"evaluation.json", "mine.txt", *(f"rows/{c * 32}.json" for c in "02")} | {
        f"faces/{c * 32}/0-00.png" for c in "02"
    }
    assert gone(output) == Outside()
    assert gone(output, present=set()).deleted == [results.uri]
    assert list(notes(output)) == [] and {"rows/" + "2" * 32 + ".json"} < {entry.key for entry in results.list()}


def test_an_output_that_cannot_be_written_gets_a_warning(
    output: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from dladiff.errors import StorageError

    def refused(*_: object) -> None:
        raise StorageError("no permission to write it; check the owner")

    monkeypatch.setattr(type(output), "put", refused)
    announce(output, "report", tmp_path / "page.html", ["bob"])()
    assert "`dladiff retention` will not reach" in caplog.text


def test_the_command_says_what_it_did_not_reach(tmp_path: Path, output: Storage) -> None:
    (tmp_path / "in" / "ann").mkdir(parents=True)
    (tmp_path / "in" / "ann" / "1.png").write_bytes(b"")
    output.put("starts/ann/1.json", b"{}")
    there = page(output, tmp_path / "there.html", "bob")
    forge(output, "/nowhere/page.html", host="laptop")
    asked = ["retention", "--output", output.uri, "--input", str(tmp_path / "in"), "--gone"]
    dry = CliRunner().invoke(main, asked)
    assert dry.exit_code == 0 and f"would delete: what shows them in {there}" in dry.output
    assert "not reached: explain /nowhere/page.html on laptop: is not there" in dry.output
    done = CliRunner().invoke(main, [*asked, "--yes", "--json"])
    facts = json.loads(done.stdout)
    assert (done.exit_code, facts["outside"], len(facts["missed"])) == (1, [str(there)], 1)
