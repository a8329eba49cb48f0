"""Jobs on a running Ray cluster, through its Jobs API: submit, follow, status, logs, stop."""

import asyncio
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import yaml

from dladiff.errors import ConfigError, StorageError
from pipeline.cluster.job_file import Job
from pipeline.config import RunConfig
from pipeline.process.temporary import temporary_folder
from pipeline.storage.keys import short, shown

POLL_S = 2.0
PATIENCE_S = 120.0  # how long a waiting command bears a head that does not answer
MOST_ANSWER = 300  # characters of the head's own words in a message
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
Echo = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """A job on the cluster."""

    submission_id: str
    status: str
    """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
    exit_code: int | None
    """Of the command on the cluster; None while it runs."""
    is_new: bool
    """Whether this call started it."""

    def sentence(self) -> str:
        """Say what happened and what to do next."""
        if self.is_new and self.exit_code is None:
            return f"{self.submission_id} is submitted; `dladiff logs {self.submission_id}` shows its output"
        if self.exit_code is None:
            return f"{self.submission_id} runs already; `dladiff logs {self.submission_id}` shows its output"
        if self.is_new or self.status != "SUCCEEDED":
            return f"{self.submission_id} ended: {self.status.lower()}, exit code {self.exit_code}"
        return f"{self.submission_id} succeeded before; --again runs it again, which does only what is new"


def submission_id(job: Job) -> str:
    """Return the id of a job's first attempt: of its name and of what it does."""
    return f"dladiff-{job.name}-{job.digest()[:12]}"


def entrypoint(job: Job, folder: str = "") -> str:
    """Return the command that the cluster runs; `folder` is where `write_settings` wrote, with a slash at its end."""
    return f"dladiff nightly {folder}job.yaml" if job.is_nightly else f"dladiff protect --config {folder}run.yaml"


def environment(job: Job) -> dict[str, str]:
    """Return what the driver is told beside its settings: a price and whom to tell the end, which decide no byte."""
    told = {"DLADIFF_PRICE": job.cluster.price, "DLADIFF_PUSHGATEWAY": job.cluster.pushgateway}
    return {name: str(value) for name, value in told.items() if value}


def settings_file(job: Job) -> tuple[str, str]:
    """Return name and text of the file that the command reads. It holds no credentials: settings have no such field."""
    return "job.yaml" if job.is_nightly else "run.yaml", yaml.safe_dump(job.settings(), sort_keys=False)


def submit(
    job: Job, address: str, *, wait: bool = False, follow: bool = False, again: bool = False, echo: Echo = print
) -> Submitted:
    """Submit a job once: one that runs, or succeeded (unless `again`), is not submitted a second time.

    A failed or stopped one is, as the next attempt. `wait` returns at its end, `follow` also prints its output.
    Raises ConfigError for places that the cluster cannot see, StorageError.
    """
    _check_places(job)
    client, name = _client(address), submission_id(job)
    is_new, attempt = False, name
    for number in itertools.count(1):
        attempt = name if number == 1 else f"{name}-{number}"
        status = _statuses(client).get(attempt)
        if status is None:
            is_new = _start(client, job, attempt)
            break  # not new: another submitter was faster by a moment, and its job is this one
        if status not in ENDED or (status == "SUCCEEDED" and not again):
            break
    if follow:
        _follow(client, attempt, echo)
    return _ended(client, attempt, is_new) if wait or follow else _look(client, attempt, is_new)


def jobs(address: str) -> dict[str, str]:
    """Return the status of every job of this product on the cluster, by submission id."""
    statuses = _statuses(_client(address))
    return {name: status for name, status in sorted(statuses.items()) if name.startswith("dladiff-")}


def job_status(address: str, name: str) -> Submitted:
    """Return one job's status. Raises ConfigError for an unknown id."""
    return _look(_known(address, name), name, is_new=False)


def logs(address: str, name: str, *, follow: bool = False, echo: Echo = print) -> None:
    """Print a job's output so far, or with `follow` until it ends."""
    client = _known(address, name)
    if follow:
        _follow(client, name, echo)
    else:
        echo(_asked(lambda: client.get_job_logs(name)).rstrip("\n"))


def stop(address: str, name: str) -> Submitted:
    """End a job and wait for it: SIGTERM, then SIGKILL three seconds later. What is committed stays."""
    client = _known(address, name)
    _asked(lambda: client.stop_job(name))
    return _ended(client, name, is_new=False)


def _check_places(job: Job) -> None:
    runs: list[tuple[str, RunConfig]] = [(f"tenants.{t.name}", t.run) for t in job.tenants]
    if job.run is not None:
        runs.append(("run", job.run))
    places = [(f"{where}.{key}", getattr(run, key)) for where, run in runs for key in ("input", "output", "lists")]
    places += [(f"{where}.allow_roots", root) for where, run in runs for root in run.allow_roots]
    faults = [
        f"{where}: {place!r} is relative to no folder of the cluster; give s3://bucket/prefix, or a full path on a "
        "file system that every node mounts"
        for where, place in places
        if place and "://" not in place and not place.startswith("/")
    ]
    if faults:
        raise ConfigError(faults)


def _client(address: str) -> Any:
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise _out_of_reach(address, error) from error


def _start(client: Any, job: Job, name: str) -> bool:
    """Submit; False when the id was taken meanwhile. The settings travel as the job's working folder."""
    file, text = settings_file(job)
    with temporary_folder() as folder:
        (folder / file).write_text(text, encoding="utf-8")
        try:
            client.submit_job(
                entrypoint=entrypoint(job),
                submission_id=name,
                runtime_env={"working_dir": str(folder), "env_vars": environment(job)},
                metadata={"job_name": job.name},
                entrypoint_num_cpus=0,  # the driver waits most of the time; a GPU-less head has no CPU to give
            )
        except (ConnectionError, RuntimeError) as error:
            if name in _statuses(client):
                return False
            raise StorageError(f"the cluster refused {name}: {_line(error)}") from error
    return True


def _known(address: str, name: str) -> Any:
    client = _client(address)
    statuses = _statuses(client)
    if name not in statuses:
        ours = ", ".join(sorted(n for n in statuses if n.startswith("dladiff-"))) or "none"
        raise ConfigError([f"{name}: no such job on {shown(address)}; there are: {ours}"])
    return client


def _statuses(client: Any) -> dict[str, str]:
    found = _asked(client.list_jobs)
    return {entry.submission_id: str(entry.status.value) for entry in found if entry.submission_id}


def _look(client: Any, name: str, is_new: bool) -> Submitted:
    info = _asked(lambda: client.get_job_info(name))
    status = str(info.status.value)
    return Submitted(submission_id=name, status=status, exit_code=_exit_code(status, info), is_new=is_new)


def _exit_code(status: str, info: Any) -> int | None:
    """The command's own code; a job that died otherwise (killed, no environment) is a cluster's fault: 3."""
    if status not in ENDED:
        return None
    if status == "SUCCEEDED":
        return 0
    code = getattr(info, "driver_exit_code", None)
    return code if code in (1, 2, 3) else 1 if status == "STOPPED" else 3


def _ended(client: Any, name: str, is_new: bool) -> Submitted:
    heard = time.monotonic()
    while True:
        try:
            found = _look(client, name, is_new)
            heard = time.monotonic()
            if found.exit_code is not None:
                return found
        except StorageError:
            if time.monotonic() - heard > PATIENCE_S:
                raise
        time.sleep(POLL_S)


def _follow(client: Any, name: str, echo: Echo) -> None:
    """Print the output line by line until the job ends; a connection that breaks is taken up where it broke."""
    from aiohttp import ClientError

    printed = 0  # characters

    async def tail() -> None:
        nonlocal printed
        position, rest = 0, ""
        async for chunk in client.tail_job_logs(name):
            new = chunk[max(0, printed - position) :]
            position += len(chunk)
            *lines, rest = (rest + new).split("\n")
            for line in lines:
                echo(line)
            printed = max(printed, position - len(rest))
        if rest:
            echo(rest)
            printed = position

    heard = time.monotonic()
    while True:
        try:
            asyncio.run(tail())
            if _look(client, name, is_new=False).exit_code is not None:
                return
            heard = time.monotonic()
        except (ClientError, OSError, RuntimeError, StorageError) as error:
            if time.monotonic() - heard > PATIENCE_S:
                raise _out_of_reach(client.get_address(), error) from error
        time.sleep(POLL_S)


def _asked(question: Callable[[], Any]) -> Any:
    """Ask the head; what it or the network refuses is one line."""
    try:
        return question()
    except (OSError, RuntimeError) as error:
        raise StorageError(f"the cluster does not answer: {_line(error)}; the job, if it runs, goes on") from error


def _out_of_reach(address: str, error: Exception) -> StorageError:
    hint = "give the dashboard's address, for example http://head:8265"
    return StorageError(f"no Ray cluster answers at {shown(address)} ({_line(error)}); {hint}")


def _line(error: Exception) -> str:
    return short(" ".join(str(error).split()), MOST_ANSWER)
