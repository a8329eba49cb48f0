"""What one task holds in memory at its peak, and what hostile photos cost a run: real processes, measured."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from pipeline.config import RunConfig
from pipeline.records.commit import load
from pipeline.run.driver import protect
from pipeline.storage.open import open_storage
from tests.support.photo_bytes import flat_photo, many_scans, one_tile, saved
from tests.support.processes import decodes

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("collected"), pytest.mark.filterwarnings("ignore")]

COUNT, SIDE = 24, 2000  # photos of 4 megapixels
BUDGET = 1_000_000_000  # bytes: such photos in groups of four
SLACK = 100_000_000  # bytes: what decoder processes, threads and the allocator take beside it
TASK = """
import json, os, sys, threading, time
from pathlib import Path
from pipeline.run.actor import ProtectIdentity
from tests.support.processes import decodes  # a child that has not begun its program yet shows our own memory
run, photos, one = json.loads(sys.argv[1])
actor = ProtectIdentity(run, "r", "d")
most = 0

def resident(pid):
    try:
        return 4096 * int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0

def children_of(task):
    try:
        return task.joinpath("children").read_text().split()
    except OSError:  # the thread has ended since the listing
        return []

def watch():
    global most
    while True:
        children = [child for task in Path("/proc/self/task").glob("*") for child in children_of(task)]
        most = max(most, resident("self") + sum(resident(c) for c in children if decodes(c)))
        time.sleep(0.01)

def peak(photos, key):
    global most
    work = {"identity": key, "part": 0, "parts": 1, "key": key, "replaces": None, "photos": photos, "clean": []}
    result = json.loads(actor({"work": json.dumps(work)})["result"])
    print(json.dumps([result["status"], result["failed_photos"], most]), flush=True)

threading.Thread(target=watch, daemon=True).start()
peak(one, "small")
peak(photos, "large")
os._exit(0)  # the watching thread may be anywhere
"""


def test_a_task_of_many_large_photos_stays_within_its_budget(tmp_path: Path) -> None:
    """All 24 at once take 0.67 GB, the one that the method works on 0.72 GB more, and the budget is 1 GB."""
    source = open_storage(str(tmp_path / "in"), create=True)
    open_storage(str(tmp_path / "out"), create=True)
    for i in range(COUNT):
        source.put(f"ann/{i:02d}.png", saved(Image.new("RGB", (SIDE, SIDE), (i, 2 * i, 3 * i)), "PNG"))
    source.put("small.png", flat_photo(3))
    config = RunConfig(input=source.uri, output=str(tmp_path / "out"), max_task_bytes=BUDGET)
    config = config.replaced(protector="tests.support.fakes:Hungry", cpus_per_actor=2)
    keys = [f"ann/{i:02d}.png" for i in range(COUNT)]
    photos, one = ([{"key": k, "uri": source.uri_of(k)} for k in some] for some in (keys, ["small.png"]))
    asked = json.dumps([config.to_dict(), photos, one])
    done = subprocess.run([sys.executable, "-c", TASK, asked], stdout=subprocess.PIPE, check=True, text=True)
    small, large = map(json.loads, done.stdout.splitlines())
    assert (small[:2], large[:2]) == (["done", 0], ["done", 0])
    assert 0.5 * BUDGET < large[2] - small[2] < BUDGET + SLACK
    notes = {row["reason"] for row in load(open_storage(config.output), "done/large.json")["photos"]}
    assert notes == {"worked on in 6 groups of photos that each fit max_task_bytes"}


def test_hostile_photos_cost_a_run_seconds_and_leave_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_storage(str(tmp_path / "in"), create=True)
    source.put("ann/good.png", flat_photo(3))
    source.put("ann/scans.jpg", many_scans(3500, 2000))
    source.put("ann/slow.jpg", many_scans(6000, 90))
    source.put("ann/tile.tif", one_tile(64, 12_000))
    source.put("bob/good.png", flat_photo(30))
    monkeypatch.setenv("PYTHONPATH", f"{Path.cwd()}:{tmp_path}")  # goes to the decoders, and tells ours from others
    config = RunConfig(input=source.uri, output=str(tmp_path / "out"), protector="tests.support.fakes:AddNoise")
    summary = protect(config.replaced(max_photo_seconds=1, max_pixels=100_000_000))
    assert (summary.done, summary.lost_photos, summary.exit_code) == (2, 3, 1)
    rows = load(open_storage(config.output), "done/ann.json")["photos"]
    reasons = {Path(row["source_uri"]).name: row["reason"] for row in rows}
    assert "more than max_scans" in reasons["scans.jpg"]
    assert "more than max_photo_seconds = 1" in reasons["slow.jpg"]
    assert "a TIFF with a tile" in reasons["tile.tif"]
    assert [pid for pid in Path("/proc").glob("[0-9]*") if _ours(pid, str(tmp_path))] == []


def _ours(process: Path, mark: str) -> bool:
    try:
        return decodes(process.name) and mark.encode() in (process / "environ").read_bytes()
    except OSError:
        return False
