"""Whatever dies: no photo lost, none done twice. `make faults` prints the table that docs/operations.md quotes."""

import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from pipeline.storage.open import open_storage
from tests.faults.harness import PEOPLE, Scene, check_storage, check_sums, note, until
from tests.faults.proxy import FaultyProxy
from tests.integration.tokens import ray_token

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def test_actor_killed_in_the_middle_of_an_identity(scene: Scene) -> None:
    scene.fill(*PEOPLE)
    process = scene.start()
    victim = until(scene.starts, "a start")[0]
    os.kill(victim["pid"], signal.SIGKILL)
    ended = scene.end(process)
    check_sums(ended.facts)
    assert (ended.code, ended.facts["done"]) == (0, 4)
    assert check_storage(scene.output) == {"protected": 8}
    note("actor killed in the middle of an identity", "restarted, identity done again, exit 0")


def test_actor_killed_on_the_same_identity_each_time(scene: Scene) -> None:
    scene.fill("ann", "bob", "dies", "zoe")
    ended = scene.run()
    check_sums(ended.facts)
    assert (ended.code, ended.facts["done"], ended.facts["quarantined"]) == (1, 3, 1)
    assert check_storage(scene.output) == {"protected": 6, "failed": 2}
    again = scene.run()
    assert (again.code, again.facts["results"], again.facts["skipped"]) == (1, [], 3)
    note("identity that kills its actor each time", "quarantined after max_starts, neighbours done, exit 1")


@pytest.mark.parametrize(
    ("name", "reason"), [("raises", "ValueError"), ("exits", "SystemExit"), ("swallows", "MemoryError")]
)
def test_method_that_fails(scene: Scene, name: str, reason: str) -> None:
    scene.fill("ann", name, "zoe")
    ended = scene.run()
    check_sums(ended.facts)
    assert (ended.code, ended.facts["done"], ended.facts["failed"]) == (1, 2, 1)
    (failed,) = (r for r in ended.facts["results"] if r["status"] == "failed")
    assert failed["reason"].startswith(reason)
    assert check_storage(scene.output) == {"protected": 4, "failed": 2}
    note(f"method ends in {reason}", "identity failed with reason and traceback, neighbours done, exit 1")


def test_driver_killed_and_resumed(scene: Scene) -> None:
    scene.fill(*PEOPLE)
    process = scene.start()
    until(lambda: scene.done() and scene.starts(), "one identity done and another begun")
    scene.kill_driver(process)
    before = scene.done()  # actors may commit what they have in hand before they notice
    ended = scene.run()
    check_sums(ended.facts)
    assert ended.facts["skipped"] >= len(before) > 0
    assert (ended.code, ended.facts["done"] + ended.facts["skipped"]) == (0, 4)
    assert check_storage(scene.output) == {"protected": 8}
    note(
        "driver killed, run again",
        "what was done is skipped, the rest done, lease of the dead driver taken over, exit 0",
    )


def test_driver_told_to_end(scene: Scene) -> None:
    scene.fill(*PEOPLE)
    process = scene.start()
    until(scene.starts, "a start")
    process.send_signal(signal.SIGINT)
    scene.end(process)
    assert scene.output.tag("lock.json") is None
    ended = scene.run()
    assert (ended.code, ended.facts["done"] + ended.facts["skipped"]) == (0, 4)
    assert check_storage(scene.output) == {"protected": 8}
    note("driver interrupted (SIGINT), run again", "lease released, the rest done, exit 0")


def test_two_drivers_on_one_run(scene: Scene) -> None:
    scene.fill(*PEOPLE)
    process = scene.start()
    until(scene.starts, "a start")
    second = scene.run()
    assert second.code == 3
    assert f"pid {process.pid}" in second.errors
    ended = scene.end(process)
    check_sums(ended.facts)
    assert (ended.code, ended.facts["done"]) == (0, 4)
    assert check_storage(scene.output) == {"protected": 8}
    note("second driver on the same run", "refused with host and pid of the first, exit 3; the first ends well")


def test_photo_deleted_between_plan_and_read(scene: Scene) -> None:
    scene.settings["max_actors"] = 1
    scene.fill(*PEOPLE)
    process = scene.start()
    first = until(scene.starts, "a start")[0]["identity"]
    victim = "dora" if first != "dora" else "ann"
    open_storage(scene.source).delete(f"{victim}/0.png")
    ended = scene.end(process)
    check_sums(ended.facts)
    assert (ended.code, ended.facts["done"]) == (0, 4)
    assert check_storage(scene.output) == {"protected": 7, "skipped": 1}
    note("photo deleted between plan and read", "photo skipped with the reason, its identity done, exit 0")


def test_disk_full_and_freed(scene: Scene, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(small)], capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        scene.target = str(small / "out")
        scene.fill(*PEOPLE)
        (small / "ballast").write_bytes(b"x" * 60_000)
        ended = scene.run()
        assert ended.code == 3
        assert "disk full" in ended.errors
        (small / "ballast").unlink()
        subprocess.run(["mount", "-o", "remount,size=4m", str(small)], check=True)
        ended = scene.run()
        check_sums(ended.facts)
        assert (ended.code, ended.facts["done"] + ended.facts["skipped"]) == (0, 4)
        assert check_storage(scene.output) == {"protected": 8}
    finally:
        subprocess.run(["umount", "-l", str(small)], check=False)
    note("disk full on local output, freed, run again", "run stops with one line, exit 3; then done, exit 0")


@pytest.mark.parametrize(("mode", "seconds"), [("busy", 10.0), ("cut", 3.0)])
def test_s3_fails_for_a_while(bucket: tuple[Scene, FaultyProxy], mode: str, seconds: float) -> None:
    scene, proxy = bucket
    process = scene.start()
    until(scene.starts, "a start")
    proxy.mode = mode  # type: ignore[assignment]
    timer = threading.Timer(seconds, lambda: setattr(proxy, "mode", "pass"))
    timer.start()
    ended = scene.end(process)
    timer.join()
    assert proxy.faults > 0
    check_sums(ended.facts)
    assert (ended.code, ended.facts["done"], ended.facts["lost_photos"]) == (0, 4, 0)
    assert check_storage(scene.output) == {"protected": 8}
    what = {"busy": f"S3 answers 503 for {seconds:.0f} s", "cut": f"S3 cuts connections for {seconds:.0f} s"}[mode]
    note(what, "operations tried again, nothing lost, exit 0")


def test_s3_refuses_writes_and_is_fixed(bucket: tuple[Scene, FaultyProxy]) -> None:
    scene, proxy = bucket
    process = scene.start()
    until(scene.starts, "a start")
    proxy.mode = "read_only"
    ended = scene.end(process)
    assert ended.code == 3, ended.errors
    assert "access denied" in ended.errors
    proxy.mode = "pass"
    scene.output.delete("lock.json")  # the lease could not be given back; it would expire by itself
    ended = scene.run()
    check_sums(ended.facts)
    assert (ended.code, ended.facts["done"] + ended.facts["skipped"]) == (0, 4)
    assert check_storage(scene.output) == {"protected": 8}
    note("S3 refuses writes, fixed, run again", "run stops with one line, exit 3; then done, exit 0")


def test_node_removed(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("DLADIFF_FAKE_SECONDS", "4")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    with ray_token():
        _node_removed(scene, Cluster)


def _node_removed(scene: Scene, kind: type) -> None:
    cluster = kind(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        nodes = [cluster.add_node(num_cpus=1, object_store_memory=100_000_000) for _ in range(2)]
        scene.seconds = 4
        scene.environment = {"RAY_ADDRESS": cluster.address}
        scene.settings["min_actors"] = 2
        scene.fill(*PEOPLE)
        process = scene.start()
        until(lambda: len(scene.starts()) == 2, "two starts")
        cluster.remove_node(nodes[1], allow_graceful=False)
        ended = scene.end(process)
    finally:
        cluster.shutdown()
    assert ended.facts, ended.errors
    check_sums(ended.facts)
    assert (ended.code, ended.facts["done"]) == (0, 4)
    assert check_storage(scene.output) == {"protected": 8}
    note("node removed in the middle of an identity", "its identity done again on another node, exit 0")


def test_lease_of_a_driver_whose_machine_is_gone(bucket: tuple[Scene, FaultyProxy]) -> None:
    scene, _ = bucket
    scene.output.put("lock.json", b'{"owner": "x", "host": "gone", "pid": 1, "time": "t"}')
    first = time.monotonic()
    refused = scene.run()
    assert (refused.code, "host gone" in refused.errors) == (3, True)
    until(lambda: (scene.output.age("lock.json") or 0) > 121, "the lease to expire by the server's clock")
    ended = scene.run()
    assert (ended.code, ended.facts["done"]) == (0, 4)
    assert time.monotonic() - first > 100
    note("lease of a machine that is gone", "refused until the server's clock says 120 s, then taken over")
