"""Jobs on a running Ray cluster, through its Jobs API: submit, follow, status, logs, stop."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import yaml

from dladiff.errors import ConfigError, StorageError
from pipeline.cluster import sent
from pipeline.cluster.checks import relative_paths
from pipeline.cluster.job_file import Job
from pipeline.cluster.same_version import REFUSED, STARTED
from pipeline.process.temporary import temporary_folder
from pipeline.run.session import NO_TOKEN
from pipeline.storage.keys import short, shown
from pipeline.telemetry.metrics import JOB_VARIABLE

POLL_S = 2.0  # seconds between two status requests
CHECK_POLL_S = 0.5  # the same while the version check of a new job is waited for: its process starts within seconds
PATIENCE_S = 120.0  # seconds that a waiting command tolerates a silent head
CHECKED_S = 60.0  # seconds that a submission waits for the version check; later the job's own log has its result
REFUSED_CLIENT = f"the Ray cluster refuses this client: {NO_TOKEN}"
MAX_ANSWER = 300  # characters of the head's message in ours
METRICS_PORTS = "9109-9112"  # of the driver, on the head's 127.0.0.1: four jobs at a time
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
Echo = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """A job on the cluster."""

    submission_id: str
    status: str
    """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
    exit_code: int | None
    """Exit code of the command on the cluster; None while it runs."""
    is_new: bool
    """Whether this call started it."""

    def sentence(self) -> str:
        """Return a sentence on what happened and what to do next."""
        if self.is_new and self.exit_code is None:
            return f"{self.submission_id} is submitted; `dladiff logs {self.submission_id}` shows its output"
        if self.exit_code is None:
            return f"{self.submission_id} runs already; `dladiff logs {self.submission_id}` shows its output"
        if self.is_new or self.status != "SUCCEEDED":
            return f"{self.submission_id} ended: {self.status.lower()}, exit code {self.exit_code}"
        return f"{self.submission_id} succeeded before; --again runs it again, which does only what is new"


def submission_id(job: Job) -> str:
    """Return the id of a job's first attempt, from its name and digest."""
    return f"dladiff-{job.name}-{job.digest()[:12]}"


def arguments(job: Job, folder: str = "") -> tuple[str, ...]:
    """Return the arguments of `dladiff` on the cluster; `folder` holds the settings file and ends in a slash."""
    return ("nightly", f"{folder}job.yaml") if job.is_nightly else ("protect", "--config", f"{folder}run.yaml")


def entrypoint(job: Job) -> str:
    """Return the command of a submitted job: it ends with code 2 where dladiff has another version than here."""
    return sent.command(sent.SAME_VERSION, version("dladiff"), *arguments(job))


def environment(job: Job) -> dict[str, str]:
    """Return environment variables of the driver, which do not affect output: price, Pushgateway, the job's name."""
    variables = {"DLADIFF_PRICE": job.cluster.price, "DLADIFF_PUSHGATEWAY": job.cluster.pushgateway}
    found = {name: str(value) for name, value in variables.items() if value}
    return found | {JOB_VARIABLE: job.name}


def settings_file(job: Job) -> tuple[str, str]:
    """Return name and text of the command's settings file. Settings have no field for credentials."""
    return "job.yaml" if job.is_nightly else "run.yaml", yaml.safe_dump(job.settings(), sort_keys=False)


def submit(
    job: Job, address: str, *, wait: bool = False, follow: bool = False, again: bool = False, echo: Echo = print
) -> Submitted:
    """Submit a job unless it is running or has succeeded (with `again`, also then).

    A failed or stopped job is submitted as the next attempt. `wait` returns at its end, `follow` also prints its
    output. Raises ConfigError for relative paths in the job and for a cluster with another version of dladiff,
    StorageError.
    """
    if faults := relative_paths(job.runs()):
        raise ConfigError(faults)
    client, name = connected(address), submission_id(job)
    is_new, attempt = False, name
    for number in itertools.count(1):
        attempt = name if number == 1 else f"{name}-{number}"
        status = _statuses(client).get(attempt)
        if status is None:
            if is_new := _start(client, job, attempt):
                _check_version(client, attempt)
            break  # not new: another submitter was faster with the same job
        if status not in ENDED or (status == "SUCCEEDED" and not again):
            break
    if follow:
        _follow(client, attempt, echo)
    return _ended(client, attempt, is_new) if wait or follow else _status(client, attempt, is_new)


def jobs(address: str) -> dict[str, str]:
    """Return the status of every dladiff job on the cluster by submission id."""
    statuses = _statuses(connected(address))
    return {name: status for name, status in sorted(statuses.items()) if name.startswith("dladiff-")}


def job_status(address: str, name: str) -> Submitted:
    """Return one job's status. Raises ConfigError for an unknown id."""
    return _status(_known(address, name), name, is_new=False)


def logs(address: str, name: str, *, follow: bool = False, echo: Echo = print) -> None:
    """Print a job's output so far; with `follow` until it ends."""
    client = _known(address, name)
    if follow:
        _follow(client, name, echo)
    else:
        echo(answered(lambda: client.get_job_logs(name)).rstrip("\n"))


def stop(address: str, name: str) -> Submitted:
    """Stop a job and wait for its end: SIGTERM, SIGKILL three seconds later. Committed work stays."""
    client = _known(address, name)
    answered(lambda: client.stop_job(name))
    return _ended(client, name, is_new=False)


def connected(address: str) -> Any:
    """Return the client of a cluster's Jobs API. Raises StorageError."""
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(address)
    except AuthenticationError as error:
        raise StorageError(REFUSED_CLIENT) from error
    except (OSError, RuntimeError, ValueError) as error:
        raise _out_of_reach(address, error) from error


def _start(client: Any, job: Job, name: str) -> bool:
    """Submit with the settings in the working folder; return False if the id has been taken meanwhile."""
    file, text = settings_file(job)
    variables = environment(job) | {"DLADIFF_JOB_METRICS": METRICS_PORTS}  # workers get them too: the label `job`
    with temporary_folder() as folder:
        (folder / file).write_text(text, encoding="utf-8")
        sent.put(folder, [sent.SAME_VERSION])
        try:
            client.submit_job(
                entrypoint=entrypoint(job),
                submission_id=name,
                runtime_env={"working_dir": str(folder), "env_vars": variables},
                metadata={"job_name": job.name},
                entrypoint_num_cpus=0,  # the driver mostly waits, and the head offers no CPUs
            )
        except (ConnectionError, RuntimeError) as error:
            if name in _statuses(client):
                return False
            raise StorageError(f"the cluster refused {name}: {_line(error)}") from error
    return True


def _check_version(client: Any, name: str) -> None:
    """Wait for the first line of the job, which compares versions. Raises ConfigError if they differ."""
    until = time.monotonic() + CHECKED_S
    while time.monotonic() < until:
        ended, lines = False, list[str]()
        with contextlib.suppress(StorageError):  # of an agent that is busy with the start
            ended = _status(client, name, is_new=True).exit_code is not None  # before the log, which is then whole
            lines = answered(lambda: client.get_job_logs(name)).splitlines()
        for line in lines:
            if line.startswith(REFUSED):
                if not ended:  # it ends at once; until Ray says so, the next submission would find it running
                    _ended(client, name, is_new=True)
                raise ConfigError([line.removeprefix("error: ")])
            if line.startswith(STARTED):
                return
        if ended and lines:  # before the check: its environment could not be set up
            return
        time.sleep(min(POLL_S, CHECK_POLL_S))


def _known(address: str, name: str) -> Any:
    client = connected(address)
    statuses = _statuses(client)
    if name not in statuses:
        ours = ", ".join(sorted(n for n in statuses if n.startswith("dladiff-"))) or "none"
        raise ConfigError([f"{name}: no such job on {shown(address)}; there are: {ours}"])
    return client


def _statuses(client: Any) -> dict[str, str]:
    found = answered(client.list_jobs)
    return {entry.submission_id: str(entry.status.value) for entry in found if entry.submission_id}


def _status(client: Any, name: str, is_new: bool) -> Submitted:
    info = answered(lambda: client.get_job_info(name))
    status = str(info.status.value)
    return Submitted(submission_id=name, status=status, exit_code=_exit_code(status, info), is_new=is_new)


def _exit_code(status: str, info: Any) -> int | None:
    """Return the command's exit code; 3 for a job that was killed or had no environment."""
    if status not in ENDED:
        return None
    if status == "SUCCEEDED":
        return 0
    code = getattr(info, "driver_exit_code", None)
    return code if code in (1, 2, 3) else 1 if status == "STOPPED" else 3


def _ended(client: Any, name: str, is_new: bool) -> Submitted:
    answered = time.monotonic()
    while True:
        try:
            found = _status(client, name, is_new)
            answered = time.monotonic()
            if found.exit_code is not None:
                return found
        except StorageError as error:
            if time.monotonic() - answered > PATIENCE_S:
                raise _silent(client, error) from error
        time.sleep(POLL_S)


def _follow(client: Any, name: str, echo: Echo) -> None:
    """Print the output line by line until the job ends; after a broken connection continue at the same line."""
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

    answered = time.monotonic()
    while True:
        try:
            asyncio.run(tail())
            if _status(client, name, is_new=False).exit_code is not None:
                return
            answered = time.monotonic()
        except (ClientError, OSError, RuntimeError, StorageError) as error:
            if time.monotonic() - answered > PATIENCE_S:
                raise _silent(client, error) from error
        time.sleep(POLL_S)


def answered(call: Callable[[], Any]) -> Any:
    """Call the head's API. Raises StorageError with one line for errors of head or network, and for a wrong token."""
    from ray.exceptions import AuthenticationError

    try:
        return call()
    except AuthenticationError as error:
        raise StorageError(REFUSED_CLIENT) from error
    except (OSError, RuntimeError) as error:
        raise StorageError(f"the cluster does not answer: {_line(error)}; if the job runs, it continues") from error


def _out_of_reach(address: str, error: Exception) -> StorageError:
    hint = "give the dashboard's address, for example http://head:8265"
    return StorageError(f"no Ray cluster answers at {shown(address)} ({_line(error)}); {hint}")


def _silent(client: Any, error: Exception) -> StorageError:
    """Return the error for a head that answered before."""
    hint = "what the job finished is kept; submit it again when a cluster is there"
    place = shown(client.get_address())
    return StorageError(f"the Ray cluster at {place} no longer answers ({_line(error)}): {hint}")


def _line(error: Exception) -> str:
    return short(" ".join(str(error).split()), MAX_ANSWER)
