"""Faults of a whole cluster: a wrong token, no GPU anywhere, a lost head; and a lease that cannot be renewed."""

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import yaml

from dladiff.errors import StorageError
from pipeline.cluster import submit
from pipeline.cluster.job_file import load_job
from tests.faults.harness import PATIENT_S, Ended, Scene, check_storage, check_sums, note, until
from tests.faults.proxy import FaultyProxy
from tests.integration import heads as served_head
from tests.integration.patience import patient
from tests.integration.tokens import ray_token

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(1200)]
PEOPLE = tuple(f"p{number}" for number in range(8))


@dataclass(frozen=True)
class Head:
    """A head with four CPUs, the only node of its cluster."""

    address: str
    token: str
    gcs: int
    """Process id of its GCS, without which a head is lost for every other node."""


@contextmanager
def started() -> Iterator[Head]:
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch, ray_token() as token, patient():
        patch.setenv("DLADIFF_FAKE_SECONDS", "3")
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
        arguments = {"num_cpus": 4, "include_dashboard": False, "object_store_memory": 100_000_000}
        cluster = Cluster(initialize_head=True, head_node_args=arguments)
        try:
            yield Head(cluster.address, token, cluster.head_node.all_processes["gcs_server"][0].process.pid)
        finally:
            cluster.shutdown()


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with started() as found:
        yield found


def joined(scene: Scene, head: Head, token: str | None = None) -> None:
    """Let the next runs join the cluster."""
    scene.environment = {"RAY_ADDRESS": head.address, "RAY_AUTH_MODE": "token"}
    scene.environment |= {"RAY_AUTH_TOKEN": token or head.token}
    scene.settings |= {"max_actors": None}


def error_of(ended: Ended) -> str:
    (line,) = [line for line in ended.errors.splitlines() if line.startswith("error:")]
    assert "Traceback" not in ended.errors
    return line


def test_wrong_token(scene: Scene, head: Head) -> None:
    scene.fill("ann")
    joined(scene, head, "0" * 64)
    ended = scene.run()
    assert (ended.code, "RAY_AUTH_TOKEN" in error_of(ended)) == (3, True), ended.errors
    assert scene.output.tag("lock.json") is None
    note("token of another cluster", "one line that names RAY_AUTH_TOKEN, exit 3")


def test_no_node_has_what_an_actor_asks_for(scene: Scene, head: Head) -> None:
    scene.fill("ann")
    joined(scene, head)
    scene.settings |= {"gpus_per_actor": 4, "max_photos_per_task": 1}
    scene.constants = {"pipeline.run.fitness:SAID_EVERY_S": 3, "pipeline.run.engine:NO_PROGRESS_S": 20}
    scene.constants |= {"pipeline.run.estimate:GPU_LEAST_S": 0.1}
    ended = scene.run()
    assert (ended.code, "no task ended for" in error_of(ended)) == (3, True), ended.errors
    waiting = [line for line in ended.errors.splitlines() if "waiting for a worker" in line]
    assert len(waiting) >= 2, ended.errors
    assert all("an actor needs 1 CPUs and 4 GPUs; there: 4 CPUs, 0 GPUs" in line for line in waiting)
    note("no node has the GPUs that an actor asks for", "said each minute; without progress one line, exit 3")


def test_head_lost_and_a_new_cluster(scene: Scene, head: Head) -> None:
    scene.fill(*PEOPLE, photos=1)
    joined(scene, head)
    scene.seconds = 3
    process = scene.start()
    until(lambda: len(scene.done()) >= 2, "two identities")
    os.kill(head.gcs, signal.SIGKILL)
    ended = scene.end(process)  # within the harness's patience
    assert (ended.code, "the head of the Ray cluster is gone" in error_of(ended)) == (3, True), ended.errors
    before = scene.done()
    assert len(before) >= 2
    with ExitStack() as stack:
        joined(scene, stack.enter_context(started()))
        again = scene.run()
    check_sums(again.facts)
    assert (again.code, again.facts["done"] + again.facts["skipped"]) == (0, 8), again.errors
    assert again.facts["skipped"] >= len(before)
    assert check_storage(scene.output) == {"protected": 8}
    note("head lost, run again on a new cluster", "one line within a minute, exit 3; then the rest is done, exit 0")


def test_head_lost_while_a_job_is_followed(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "PATIENCE_S", 10)
    scene.fill(*PEOPLE, photos=1)
    run = {"input": scene.source, "output": scene.target, "protector": "tests.support.fakes:Slow", "max_actors": 1}
    (scene.folder / "job.yaml").write_text(yaml.safe_dump({"name": "followed", "run": run}))
    job = load_job(scene.folder / "job.yaml")
    with ThreadPoolExecutor(1) as pool, _served(scene.folder) as served:
        followed = pool.submit(submit.submit, job, served.dashboard, follow=True)
        until(lambda: len(scene.done()) >= 2, "two identities")
        os.killpg(served.group, signal.SIGKILL)
        with pytest.raises(StorageError, match=r"no longer answers \(.*what the job finished is kept; submit it again"):
            followed.result(timeout=PATIENT_S)
    before = scene.done()
    with _served(scene.folder) as served:  # refused while the lease of the lost driver may still be held
        until(lambda: submit.submit(job, served.dashboard, wait=True).exit_code == 0, "the rest on a new cluster")
    assert len(before) >= 2
    assert check_storage(scene.output) == {"protected": 8}
    note("head lost while `submit --follow` prints", "one line, exit 3; on a new cluster the rest is done")


@contextmanager
def _served(folder: Path) -> Iterator[served_head.Head]:
    """A head with a dashboard, which takes jobs."""
    with TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as sockets, ray_token():
        with served_head.started_head(sockets, folder / "head.log", {"DLADIFF_FAKE_SECONDS": "3"}) as found:
            yield found


def test_lease_that_cannot_be_renewed(bucket: tuple[Scene, FaultyProxy]) -> None:
    scene, proxy = bucket
    scene.settings |= {"limit": 1, "max_actors": 1}
    scene.seconds = 12
    scene.constants = {"pipeline.records.lease:LEASE_S": 8, "pipeline.records.lease:RENEW_S": 1}
    process = scene.start()
    until(scene.starts, "a start")
    proxy.mode = "no_lease"
    scene.output.put("photos/ann/another-driver.png", b"a photo whose record comes next")
    ended = scene.end(process)
    assert (ended.code, "another one took it over, or may have" in error_of(ended)) == (3, True), ended.errors
    assert proxy.faults > 0
    assert scene.output.get("photos/ann/another-driver.png"), "a run without a lease swept"
    assert scene.output.tag("manifest/photos.parquet") is None
    proxy.mode = "pass"
    scene.constants, scene.seconds, scene.settings["limit"] = {}, 1, 4
    again = scene.run()
    check_sums(again.facts)
    assert (again.code, again.facts["done"] + again.facts["skipped"]) == (0, 4), again.errors
    note("lease that cannot be renewed for its length", "the run ends before it sweeps, exit 3; then done, exit 0")
