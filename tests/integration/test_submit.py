"""Jobs on a real head that the test starts: submitted once, followed, refused, resumed, stopped."""

import shutil
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from PIL import Image

from dladiff.errors import ConfigError, StorageError
from pipeline.cli.main import main
from pipeline.cluster import submit
from pipeline.cluster.job_file import Job, load_job
from pipeline.storage.open import open_storage
from tests.integration.heads import PATH, Head
from tests.integration.tokens import ray_token
from tests.support import shown

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]
PATIENCE_S = 240  # only a failure, or a very busy machine, waits as long


@pytest.fixture
def address(head: Head, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(submit, "POLL_S", 0.2)
    with ray_token(head.token):
        yield head.dashboard


def make_job(folder: Path, name: str, protector: str = "tests.support.fakes:AddNoise", **settings: object) -> Job:
    for person in ("ann", "bob"):
        (folder / "photos" / person).mkdir(parents=True, exist_ok=True)
        pixels = np.full((64, 72, 3), 40 + len(person), np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / person / "1.png")
    run = {"input": str(folder / "photos"), "output": str(folder / "out"), "protector": protector, "max_actors": 1}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump({"name": name, "run": run | settings}))
    return load_job(folder / f"{name}.yaml")


def test_job_runs_once_and_again_only_on_request(address: str, tmp_path: Path) -> None:
    job, lines = make_job(tmp_path, "once", faces=["/weights/of/the/workers"]), list[str]()
    first = submit.submit(job, address, follow=True, echo=lines.append)
    assert (first.status, first.exit_code, first.is_new) == ("SUCCEEDED", 0, True), "\n".join(lines)
    assert any("done 2" in line for line in lines)
    target = open_storage(str(tmp_path / "out"))
    assert [entry.key for entry in target.list("done/")] == ["done/ann.json", "done/bob.json"]

    second = submit.submit(job, address, wait=True)
    assert (second.submission_id, second.is_new, second.exit_code) == (first.submission_id, False, 0)
    assert "--again" in second.sentence()
    third = submit.submit(job, address, wait=True, again=True)
    assert (third.submission_id, third.status) == (f"{first.submission_id}-2", "SUCCEEDED")
    assert submit.jobs(address).keys() >= {first.submission_id, third.submission_id}

    printed: list[str] = []
    submit.logs(address, third.submission_id, echo=printed.append)
    assert "skipped 2" in printed[0]
    assert submit.job_status(address, first.submission_id).exit_code == 0


def test_a_cluster_needs_no_command_on_its_path_but_the_version_of_the_client(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shutil.which("dladiff", path=PATH) is None
    job = make_job(tmp_path, "versions")
    monkeypatch.setattr(submit, "version", lambda _: "9.9.9")
    found = CliRunner().invoke(main, ["submit", str(tmp_path / "versions.yaml"), "--address", address])
    assert found.exit_code == 2, found.output
    (line,) = found.output.splitlines()
    assert line.startswith(f"error: this cluster has dladiff {version('dladiff')} in the Python of its head (")
    assert "9.9.9" in line and "install" in line
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    again = submit.submit(job, address, wait=True)
    assert (again.exit_code, again.submission_id) == (0, f"{submit.submission_id(job)}-2")


def test_commands_of_the_operations_page(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    job = make_job(tmp_path, "shown")
    names = {"http://head:8265": address, "jobs/celeba_hq.yaml": "shown.yaml"}
    calls = [c for c in shown.lines("docs/operations.md", "dladiff") if {"http://head:8265", "render"} & set(c)]
    assert {"submit", "jobs", "logs", "stop", "render"} <= {call[0] for call in calls}
    for call in calls:
        words = [f"dladiff-shown-{job.digest()[:12]}" if w.startswith("dladiff-") else names.get(w, w) for w in call]
        found = CliRunner().invoke(main, words)
        assert found.exit_code == 0, f"{call}: {found.output}"
    assert list(Path("cluster/kuberay").iterdir())


def test_failed_job_is_the_next_attempt_and_tells_its_code(address: str, tmp_path: Path) -> None:
    job = make_job(tmp_path, "fails", protector="tests.support.fakes:NoModel")
    first = submit.submit(job, address, wait=True)
    assert (first.status, first.exit_code) == ("FAILED", 2)
    second = submit.submit(job, address, wait=True)
    assert second.submission_id == f"{first.submission_id}-2"
    assert second.is_new


def test_running_job_is_found_and_can_be_stopped(address: str, tmp_path: Path) -> None:
    job = make_job(tmp_path, "stopped", protector="tests.support.fakes:Slow")
    first = submit.submit(job, address)
    assert first.is_new
    deadline = time.monotonic() + PATIENCE_S
    while submit.job_status(address, first.submission_id).status == "PENDING" and time.monotonic() < deadline:
        time.sleep(0.5)
    again = submit.submit(job, address)
    assert (again.submission_id, again.is_new) == (first.submission_id, False)
    assert "runs already" in again.sentence()
    ended = submit.stop(address, first.submission_id)
    assert (ended.status, ended.exit_code) == ("STOPPED", 1)
    resumed = submit.submit(job, address)
    assert (resumed.submission_id, resumed.is_new) == (f"{first.submission_id}-2", True)
    submit.stop(address, resumed.submission_id)


def test_wrong_address_id_and_places_are_one_line(address: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such job"):
        submit.logs(address, "dladiff-nobody-000000000000")
    with pytest.raises(StorageError, match="give the dashboard's address"):
        submit.jobs("http://127.0.0.1:1")
    job = make_job(tmp_path, "relative", output="out")
    with pytest.raises(ConfigError, match="is a relative path"):
        submit.submit(job, address)


def test_a_password_in_an_address_is_not_shown(tmp_path: Path) -> None:
    make_job(tmp_path, "secret")
    address = "http://user:5ec4e7@127.0.0.1:1"
    for words in (["submit", str(tmp_path / "secret.yaml")], ["jobs"], ["doctor", "--output", str(tmp_path)]):
        found = CliRunner().invoke(main, [*words, "--address", address])
        assert found.exit_code != 0
        assert "http://***@127.0.0.1:1" in found.output
        assert "5ec4e7" not in found.output


def test_allowed_roots_are_places_of_the_cluster(address: str, tmp_path: Path) -> None:
    job = make_job(tmp_path, "roots", allow_roots=["photos"])
    with pytest.raises(ConfigError, match=r"run.allow_roots: 'photos' is a relative path"):
        submit.submit(job, address)
