"""Checks of this machine, one line each: `ok`, or what to do. torch is not imported."""

import contextlib
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from dladiff.diffusion.catalogue import MODELS
from dladiff.errors import DladiffError, StorageError
from dladiff.layers.pushed import pushed_vaes, vaes_not_here
from dladiff.settings.schema import encoder_fault
from pipeline.config import RunConfig
from pipeline.models.fingerprint import missing
from pipeline.models.memory import TINY_GIB, gpu_gib, host_gib, smaller
from pipeline.process.temporary import temporary_folder
from pipeline.sources.index_file import is_index
from pipeline.storage.base import TEMP_PREFIX, Storage
from pipeline.storage.keys import shown
from pipeline.storage.open import local_path, open_storage

PYTHON = (3, 11)
SKEW_S = 60.0  # S3 refuses requests from 15 minutes on; times in records would mislead people long before
ANSWER_S = 10.0  # seconds: timeout of the storage and cluster checks


@dataclass(frozen=True)
class Check:
    """Result of one check: `ok` and the finding, or what to do; without secrets."""

    name: str
    ok: bool
    text: str

    def __post_init__(self) -> None:
        """Redact the text: endpoints, proxies and addresses may hold a password."""
        object.__setattr__(self, "text", shown(self.text))

    def line(self) -> str:
        """Return the line to print."""
        return f"{'ok  ' if self.ok else 'FAIL'}  {self.name}: {self.text}"


def machine_checks(config: RunConfig | None) -> Iterator[Check]:
    """Check Python, packages, memory and GPU; with a configuration against what an actor of it needs."""
    running = sys.version_info[:3]
    text = ".".join(map(str, running))
    yield Check("python", running >= PYTHON, text if running >= PYTHON else f"{text}; install Python 3.11 or newer")
    yield _packages()
    yield _memory(config)
    yield _gpu(config)


def _packages() -> Check:
    """Compare the installed versions with the package's requirements."""
    from packaging.requirements import Requirement

    faults, versions = [], []
    for text in requires("dladiff") or []:
        wanted = Requirement(text)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            have = version(wanted.name)
        except PackageNotFoundError:
            faults.append(f"{wanted.name} is missing")
            continue
        if not wanted.specifier.contains(have, prereleases=True):
            faults.append(f"{wanted.name} {have} is not {wanted.specifier}")
        if wanted.name in ("ray", "torch", "diffusers", "onnxruntime"):
            versions.append(f"{wanted.name} {have}")
    if faults:
        return Check("packages", False, f"{', '.join(faults)}; pip install -c constraints.txt dladiff")
    return Check("packages", True, ", ".join(versions))


def _memory(config: RunConfig | None) -> Check:
    have = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    limit = _read_number(Path("/sys/fs/cgroup/memory.max"))
    have = min(have, limit / 2**30) if limit else have
    need = host_gib(config.method_config()) if config else TINY_GIB
    text = f"{have:.1f} GiB, {os.cpu_count()} CPUs"
    return Check(
        "memory", have >= need, text if have >= need else f"{text}; this profile needs {need:.0f} GiB an actor"
    )


def _gpu(config: RunConfig | None) -> Check:
    needed = config is not None and config.gpus_per_actor > 0
    hint = "; install the NVIDIA driver, or set gpus_per_actor: 0" if needed else ""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return Check("gpu", not needed, f"none found (no nvidia-smi){hint}")
    fields = "--query-gpu=name,memory.total,memory.used,driver_version"
    command = [tool, fields, "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Check("gpu", not needed, f"nvidia-smi does not answer ({error}){hint}")
    if done.returncode != 0:
        return Check("gpu", not needed, f"nvidia-smi fails: {' '.join((done.stderr or done.stdout).split())}{hint}")
    cards = [[part.strip() for part in line.split(",")] for line in done.stdout.splitlines() if line.strip()]
    if any(len(card) != len(fields.split(",")) or not card[1].isdigit() for card in cards):
        return Check("gpu", True, f"{'; '.join(card[0] for card in cards)}; nvidia-smi does not report its memory")
    text = "; ".join(f"{name}, {int(total) / 1024:.0f} GiB, {used} MiB in use" for name, total, used, _ in cards)
    wanted = gpu_gib(config.method_config()) if needed and config else 0.0
    how = smaller(config.method_config()) if config else ""
    if small := [name for name, total, *_ in cards if int(total) / 1024 < wanted]:
        return Check("gpu", False, f"{text}; {small[0]} has less than {wanted:g} GiB: {how}")
    if "+cpu" in _version("torch"):
        return Check("gpu", not needed, f"{text}; torch is built for the CPU: pip install torch with CUDA")
    return Check("gpu", True, text)


def model_check(config: RunConfig) -> Check:
    """Check that the weights named in the configuration exist; none is loaded."""
    try:
        method = config.method_config()
        unnamed, lacking = encoder_fault(method), missing(method)
    except DladiffError as error:
        return Check("models", False, str(error))
    if unnamed:
        return Check("models", False, "; ".join([unnamed, *lacking]))
    if lacking:
        return Check("models", False, f"{'; '.join(lacking)}; mount the weights here or set method to where they are")
    names = [*method.encoders, *method.held_out, method.detector]
    networks = [method.model] if method.trains_surrogate else []
    networks += [f"VAE of {vae}" if vae in (*MODELS, "embedded") else vae for vae in pushed_vaes(method)]
    text = ", ".join([*networks, f"{len(names)} encoders and detectors"])
    return Check("models", True, "; ".join(filter(None, (f"{config.profile}: {text}", vaes_not_here(method)))))


def input_check(config: RunConfig) -> Check:
    """Check that the input can be listed, or that an index file exists."""
    try:
        if is_index(config.input):
            folder, _, name = config.input.rpartition("/")
            exists = open_storage(folder or ".").tag(name) is not None
            return Check("input", exists, config.input if exists else f"{config.input} is not there; check its address")
        first = next(iter(open_storage(config.input).list()), None)
    except DladiffError as error:
        return Check("input", False, str(error))
    if first is None:
        return Check("input", False, f"{config.input} holds nothing; check the prefix")
    return Check("input", True, config.input)


def storage_checks(uri: str) -> list[Check]:
    """Check put, conditional put, get, list and delete with a probe object, and compare clocks; clean up."""
    try:
        path = local_path(uri)
    except StorageError as error:
        return [Check("storage", False, str(error))]
    if path is None:
        return _probed(uri, uri)
    folder = path.absolute()
    while not folder.exists():  # a run creates it
        folder = folder.parent
    try:
        with temporary_folder(prefix=TEMP_PREFIX, parent=folder) as own:
            return _probed(str(own), uri)
    except OSError as error:
        return [Check("storage", False, f"{folder}: {error.strerror}; give a folder that this user may write to")]


def _probed(address: str, name: str) -> list[Check]:
    try:
        storage, key = open_storage(address), f"probe-{uuid.uuid4().hex}"
    except DladiffError as error:
        return [Check("storage", False, str(error))]
    try:
        fault = _probe(storage, key)
    except DladiffError as error:
        fault = str(error)
    finally:
        with contextlib.suppress(DladiffError):  # the check reports the error
            storage.delete(key)
    done = Check("storage", fault is None, fault or f"{name}: put, conditional put, get, list and delete")
    return [done, _clock(address)]


def _probe(storage: Storage, key: str) -> str | None:
    sent = time.monotonic()
    if not storage.put_if_absent(key, b"one"):
        return f"{storage.uri_of(key)} existed before; is a second doctor running?"
    if storage.put_if_absent(key, b"two"):
        return f"{storage.uri} ignores If-None-Match: two runs could overwrite each other; use a server that honours it"
    tag = storage.tag(key)
    if tag is None or not storage.put_if_match(key, b"three", tag) or storage.put_if_match(key, b"four", tag):
        return f"{storage.uri} ignores If-Match: the lease of a run would not hold; use a server that honours it"
    storage.put(key, b"five")
    if storage.get(key) != b"five":
        return f"{storage.uri} returned other bytes than were put; do not use it"
    if [entry.key for entry in storage.list("probe-") if entry.key == key] != [key]:
        return f"{storage.uri} does not list what was put; a run would not find its records"
    storage.delete(key)
    if storage.tag(key) is not None:
        return f"{storage.uri} does not delete; allow s3:DeleteObject on the output"
    if time.monotonic() - sent > ANSWER_S:
        return f"{storage.uri} took {time.monotonic() - sent:.0f} s for ten requests; look for a nearer server"
    return None


def _clock(uri: str) -> Check:
    """Compare this machine's clock with the storage server's Date header, or the file system's clock."""
    try:
        skew = _server_skew(uri) if uri.startswith("s3://") else _file_skew(Path(uri))
    except (OSError, ValueError, TypeError) as error:
        return Check("clock", False, f"the storage's clock cannot be read ({' '.join(str(error).split())})")
    if abs(skew) > SKEW_S:
        return Check("clock", False, f"{skew:+.0f} s from the storage's; set up NTP on this machine")
    return Check("clock", True, f"{skew:+.1f} s from the storage's")


def _server_skew(uri: str) -> float:
    from pipeline.storage.s3_errors import custom_endpoint  # imports botocore

    url = custom_endpoint() or f"https://{uri.removeprefix('s3://').partition('/')[0]}.s3.amazonaws.com"
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"AWS_ENDPOINT_URL {url} is no http address")
    request = urllib.request.Request(url, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_S) as reply:
            date = reply.headers["Date"]
    except urllib.error.HTTPError as error:  # an error reply also carries the time
        with error:
            date = error.headers["Date"]
    return time.time() - parsedate_to_datetime(date).timestamp()


def _file_skew(folder: Path) -> float:
    probe = folder / uuid.uuid4().hex
    probe.touch()
    return time.time() - probe.stat().st_mtime


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _read_number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # no cgroup, or "max"
        return None
