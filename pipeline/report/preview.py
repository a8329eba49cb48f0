"""`dladiff preview`: protect one local photo with each strength and write one HTML page that compares them."""

import os
import stat
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dladiff.core.exchange import PhotoIn
from dladiff.errors import ConfigError, ModelError, PhotoError, StorageError
from dladiff.settings.presets import STRENGTHS
from pipeline.config import RunConfig
from pipeline.models.fetch import on_this_machine
from pipeline.records.schema import finite, finite_similarity
from pipeline.report.preview_page import MARK, Picture, render
from pipeline.report.preview_worker import Done, Job, protected, workers
from pipeline.sources.decode import Decoded
from pipeline.sources.decoders import Decoders
from pipeline.storage.keys import escape, key_fault, shown
from pipeline.storage.open import local_path, open_storage

END = "-preview.html"
LONGEST = 200  # bytes of a photo's name that the page's name keeps: with END it stays below the 255 of a file name
LOOK = 4096  # bytes at the beginning of a page that hold MARK
WORKING_BYTES = 200  # bytes a pixel that one process takes at most: 190 were measured (pipeline/run/budget.py)


@dataclass(frozen=True)
class Previewed:
    """Path of the page, measurements by strength as plain JSON values, notes for the operator."""

    page: str
    strengths: dict[str, dict[str, Any]]
    notes: list[str] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        """Whether nothing protects the photo at some strength."""
        return any(one["status"] == "failed" for one in self.strengths.values())


def preview(photo: str, settings: RunConfig, html: Path | None = None) -> Previewed:
    """Protect the photo with every strength and write the page: to `html`, by default `page_of(photo)`.

    `settings` are those of a run; its input, output, preset and strength take no part. Raises ConfigError, PhotoError,
    ModelError, StorageError.
    """
    file = _local(photo)
    page = html or page_of(file)
    _check_page(page, file)
    settings, notes = _compared(settings)
    if faults := settings.missing_weights():
        raise ConfigError(faults)
    data = _read(file, settings)
    decoded = _decoded(file, data, settings)
    done = _protected(decoded, len(data), settings, shown(file.name))
    notes += [decoded.note] if decoded.note else []
    notes += list(dict.fromkeys(one.note for one in done.values() if one.note))
    text = render(Picture(file.name, decoded), done, settings.profile, notes)
    _check_page(page, file)  # again, since a minute has passed
    open_storage(page.absolute().parent, create=True).put(page.name, text.encode(), "text/html; charset=utf-8")
    if not any(one.photo.faces for one in done.values()):
        notes.append(next(iter(done.values())).photo.reason or "no face found")
    return Previewed(str(page), {name: _facts(one) for name, one in done.items()}, notes)


def page_of(photo: Path) -> Path:
    """Return the page's name in the current folder: the photo's, without its extension, and END."""
    name = photo.stem
    plain = key_fault(name) is None and name.isprintable() and len(name.encode()) <= LONGEST
    return Path(f"{name if plain else escape(name)}{END}")


def _local(photo: str) -> Path:
    try:
        path = local_path(photo)
    except StorageError as error:
        raise ConfigError([str(error)]) from error
    if path is None:
        raise ConfigError([f"{shown(photo)}: a preview reads a photo of this machine; copy it here first"])
    return path


def _check_page(page: Path, photo: Path) -> None:
    """Raise ConfigError if the page cannot be written, or would replace something other than an earlier preview."""
    try:
        fault = _page_fault(page.absolute(), photo)
    except OSError as error:
        fault = error.strerror or str(error)
    if fault:
        raise ConfigError([f"{shown(str(page))}: {fault}; name another file with --output"])


def _page_fault(page: Path, photo: Path) -> str | None:
    if key_fault(page.name):
        return "its name holds a backslash, or is not UTF-8"
    try:
        kind = page.lstat().st_mode
    except FileNotFoundError:
        folder = next(parent for parent in page.parents if parent.exists())
        writable = folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)
        return None if writable else f"{shown(str(folder))} is no folder that you can write"
    mine = stat.S_ISREG(kind) and _is_page(page) and not (photo.exists() and page.samefile(photo))
    return None if mine else "exists and is no preview page"


def _is_page(file: Path) -> bool:
    with file.open("rb") as handle:
        return MARK.encode() in handle.read(LOOK)


def _compared(settings: RunConfig) -> tuple[RunConfig, list[str]]:
    """Return the settings without what a strength sets, and a note on each that is left out. Raises ConfigError."""
    method, notes = dict(settings.method), []
    if method.get("protection", "dladiff") != "dladiff":
        raise ConfigError(["method.protection: a compared method has no strengths; leave it out for a preview"])
    if method.pop("visibility", None) is not None:
        notes.append("method.visibility is left out: the page compares the three strengths")
    if settings.preset is not None:
        notes.append(f"preset: {shown(settings.preset)} is left out: the page compares the three strengths")
    return settings.replaced(preset=None, strength=None, method=method, trace=False), notes


def _read(file: Path, settings: RunConfig) -> bytes:
    """Return the photo's bytes. Raises ConfigError: no such file; PhotoError: more than `max_photo_bytes`."""
    most = settings.max_photo_bytes
    try:
        handle = os.open(file, os.O_RDONLY | os.O_NONBLOCK)  # a named pipe must not block
        with os.fdopen(handle, "rb") as opened:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise ConfigError([f"{shown(str(file))}: is not a file; give one photo"])
            data = opened.read(most + 1)
    except OSError as error:
        raise ConfigError([f"{shown(str(file))}: {error.strerror or error}; give one photo"]) from error
    if len(data) > most:
        raise PhotoError(f"{shown(str(file))}: too large: it has more than max_photo_bytes = {most} bytes")
    return data


def _decoded(file: Path, data: bytes, settings: RunConfig) -> Decoded:
    """Decode the photo in a process with a run's limits. Raises PhotoError, which names the photo."""
    try:
        with Decoders(settings, 1) as decoders:
            width, height = decoders.dimensions(data)
            return decoders.decode(data, width * height)
    except PhotoError as error:
        raise PhotoError(f"{shown(str(file))}: {error}") from error


def _protected(decoded: Decoded, size: int, settings: RunConfig, name: str) -> dict[str, Done]:
    """Return the results by strength."""
    photo = PhotoIn(key=name, pixels=decoded.pixels, file_bytes=size, transparent=decoded.alpha is not None)
    jobs = []
    for strength in STRENGTHS:
        chosen = on_this_machine(settings.replaced(strength=strength).method_settings(), open_storage)
        chosen["gpu"] = None if chosen["gpu"] else False  # one photo: without a GPU, a full-size model runs on the CPU
        threads = settings.cpus_per_actor
        job = Job(photo=photo, protector=settings.protector, settings=chosen, seed=settings.seed, threads=threads)
        jobs.append(job)
    try:
        with workers(_count(settings, decoded.pixels.size // 3)) as pool:
            return dict(zip(STRENGTHS, pool.map(protected, jobs), strict=True))
    except BrokenProcessPool as error:
        why = (
            "a process that protected it was ended, probably for lack of memory; free memory or make the photo smaller"
        )
        raise ModelError(f"{name}: {why}") from error


def _count(settings: RunConfig, pixels: int) -> int:
    """Return how many strengths are protected at a time: one with a full-size model or on one core."""
    if settings.method_config().model != "embedded" or (os.cpu_count() or 1) < 2:
        return 1
    return max(1, min(len(STRENGTHS), settings.max_task_bytes // (WORKING_BYTES * pixels)))


def _facts(done: Done) -> dict[str, Any]:
    photo = done.photo
    numbers = {name: finite(getattr(photo, name)) for name in ("ssimulacra2", "ssimulacra2_face", "psnr", "psnr_face")}
    about = {"status": photo.status, "reason": photo.reason, "faces": len(photo.faces)}
    return about | numbers | {"similarity": finite_similarity(photo.similarity), "seconds": round(done.seconds, 1)}
