"""A storage full of what this program leaves of people, some of whom have left since; and a search for their traces."""

import io
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pyarrow.parquet as pq
import pytest

from pipeline.config import RunConfig, run_config
from pipeline.evaluate.config import EvaluateConfig
from pipeline.evaluate.driver import evaluate
from pipeline.evaluate.plan import make_plan as evaluation_rows
from pipeline.evaluate.ratings import COLUMNS, add_rating
from pipeline.process.temporary import temporary_folder
from pipeline.records import commit as records
from pipeline.records.manifest import write_manifest, write_rows
from pipeline.records.schema import PLAN
from pipeline.records.trace import write_trace
from pipeline.report import write as report
from pipeline.report.explain import explain
from pipeline.report.write import write_report
from pipeline.run.actor import ProtectIdentity
from pipeline.run.plan import make_plan, write_plan
from pipeline.storage.base import Storage
from pipeline.storage.keys import escape, task_name
from pipeline.storage.open import open_storage
from tests.support.evaluated import actor
from tests.support.kept import kept_decoders
from tests.support.outputs import portrait

STAYS = ("Ann Lee", "Cy/x")
LEFT = ("Bob Örtel", "Dee " + "d" * 150, "Eve~0001")
"""One with letters that are escaped, one whose name is shortened in keys, one whose name looks like that of a part."""
GHOSTS = ("Gus Ghost", "Hal Hollow")  # left too; attempts for them died before any record
PHOTO = 12  # shades of photos begin here: each person's differ


class Scene:
    """An input, its output, results of an evaluation and pages, each where it would be."""

    def __init__(self, folder: Path, source: str, output: str, results: str) -> None:
        self.folder = folder
        self.source, self.output = open_storage(source, create=True), open_storage(output, create=True)
        self.evaluation = EvaluateConfig(
            output=output,
            results=results,
            inputs=(source,),
            attacks=("dreambooth",),
            prompts=("a photo of sks person",),
            count=4,
        )
        self.config = RunConfig(
            input=source, output=output, protector="tests.support.fakes:AddNoise", max_photos_per_task=2
        )
        self.results = open_storage(results, create=True)
        self.photos: dict[str, list[bytes]] = {}

    def fill(self, monkeypatch: pytest.MonkeyPatch, *, explained: bool = False) -> None:
        """Protect, evaluate, rate, report and explain everybody, and leave what dead processes leave."""
        for place, name in enumerate((*STAYS, *LEFT)):
            for i in range(3):
                self.source.put(f"{name}/{i}.png", portrait(PHOTO + 10 * place + i))
        with temporary_folder() as folder:
            plan = make_plan(self.config, folder=folder)
            assert plan.todo_file is not None
            worker = ProtectIdentity(self.config.to_dict(), "run", "digest")
            with kept_decoders():
                assert {json.loads(worker(row)["result"])["status"] for row in plan.todo_file.rows()} == {"done"}
            write_plan(self.output, plan, "run")
        write_manifest(self.output)
        for name in (*STAYS, *LEFT):
            write_trace(self.output, name, 1, {f"Layer 2, {name}": {"residual": [0.9, 0.1]}})
            self.photos[name] = [self.source.get(f"{name}/{i}.png") for i in range(3)]
            self.photos[name] += [
                self.output.get(e.key) for e in self.output.list(f"photos/{escape(name)}/") if e.key.endswith(".png")
            ]
        self._evaluate()
        write_report(self.output)
        write_report(self.output, self.folder / "all.html", photos=9)
        with monkeypatch.context() as patch:
            patch.setattr(report, "EMBEDDED", 1)
            write_report(self.output, self.folder / "linked.html", photos=20)
        if explained:
            method = {"finetuning": {"iter_ft": 1}}
            places = {"input": self.source.uri, "output": self.output.uri, "method": method}
            for name in (STAYS[0], LEFT[0]):
                page = self.folder / f"{name}.html"
                explain(self.source.uri_of(f"{name}/0.png"), run_config(None, places), page)
        self._die()

    def leave(self) -> None:
        """Take people out of the input."""
        for name in LEFT:
            for entry in list(self.source.list(f"{name}/")):
                self.source.delete(entry.key)

    def _evaluate(self) -> None:
        plan = evaluation_rows(self.evaluation)
        worker = actor(self.evaluation.replaced(inputs=plan.inputs))  # as the driver does
        for row in plan.rows:
            worker({"work": json.dumps(row)})
        evaluate(self.evaluation, tables_only=True)
        faces = [entry.key for entry in self.results.list("faces/")]
        names = {row["key"]: row["identity"] for row in evaluation_rows(self.evaluation).rows}
        for face in faces[:: max(1, len(faces) // 20)]:
            about = {"face": face, "identity": names[face.split("/")[1]], "rater": "r", "score": "3"}
            add_rating(self.results, dict.fromkeys(COLUMNS, "x") | about)

    def _die(self) -> None:
        """Leave what processes leave that are killed in the middle."""
        for name in (*LEFT, *GHOSTS):
            records.write_start(self.output, (name, 2), "key", "run")
            self.output.put(f"photos/{escape(name)}/9.0123456789ab.png", portrait(200))
            failure = {
                "identity": name,
                "part": 7,
                "parts": 9,
                "key": "new",
                "status": "failed",
                "reason": name,
                "photos": [],
            }
            if name in LEFT:
                records.fail(self.output, failure)
            write_trace(self.output, name, 9, {name: {"loss": [1.0]}})
            self.output.put(f"done/._{task_name(name, 1)}.json", b"of a file manager")
        plan = [{"identity": name, "part": 0, "key": "k", "uris": [name], "plan_hash": "h"} for name in (*LEFT, *STAYS)]
        write_rows(self.output, "plan/plan-old.parquet", plan, PLAN)
        self.output.put("plan/todo-dead.parquet", LEFT[0].encode())
        key = "0" * 32
        self.results.put(f"faces/{key}/0-00.png", self.photos[LEFT[0]][0])
        self.results.put(f"features/{key}.npz", b"of nobody knows whom")
        self.results.put(f"failed/{'1' * 32}.json", json.dumps({"identity": LEFT[1], "status": "failed"}).encode())

    def die_in_folders(self) -> None:
        """Leave hidden files and empty folders, as a killed process does on a local disk."""
        out, results = Path(self.output.uri), Path(self.results.uri)
        name = escape(LEFT[0])
        hidden = [out / "photos" / name, out / "done", out / "manifest", out / "photos" / escape(STAYS[0]), results]
        hidden += [results / "faces" / ("2" * 32), self.folder / "linked_files"]
        for folder in hidden:
            folder.mkdir(exist_ok=True)
            self._hide(folder, self.photos[LEFT[0]][0])
        self._hide(self.folder, (self.folder / "all.html").read_bytes())
        (out / "photos" / escape("Ike Idle")).mkdir()
        (out / "starts" / escape("Ike Idle") / "deep").mkdir(parents=True)

    @staticmethod
    def _hide(folder: Path, data: bytes) -> None:
        file = folder / f".tmp-{'a' * 32}"
        file.write_bytes(data)
        old = time.time() - 3600
        os.utime(file, (old, old))

    def traces(self, contents: dict[str, bytes]) -> list[str]:
        """Return where names or photos of people who left are, among files by name."""
        names = {spelled for name in (*LEFT, *GHOSTS, "Ike Idle") for spelled in _spellings(name)}
        photos = [photo for name in LEFT for photo in self.photos[name]]
        found = []
        for key, data in contents.items():
            texts = [data, *_cells(key, data)]
            found += [f"{key}: its name" for name in names if name in key.encode()]
            found += [f"{key}: {name!r}" for name in names for text in texts if name in text]
            found += [f"{key}: a photo" for photo in photos if photo in data]
        return found


def _spellings(name: str) -> Iterator[bytes]:
    yield name.encode()
    yield escape(name).encode()
    yield quote(name).encode()
    yield json.dumps(name)[1:-1].encode()
    yield name[:60].encode()


def _cells(key: str, data: bytes) -> list[bytes]:
    """What a Parquet file says: its columns are compressed."""
    if not key.endswith(".parquet") or not data.startswith(b"PAR1"):
        return []
    return [repr(pq.read_table(io.BytesIO(data)).to_pylist()).encode()]


def files(folder: Path) -> dict[str, bytes]:
    """Return the bytes of everything in a folder by its path; of folders, and of links, none."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


def objects(storage: Storage) -> dict[str, bytes]:
    """Return the bytes of every object that a storage lists."""
    return {entry.key: storage.get(entry.key) for entry in storage.list()}
