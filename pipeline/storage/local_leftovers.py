"""Leftovers of dead writers in a local folder: hidden files and empty folders."""

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from pipeline.storage.base import TEMP_PREFIX, Leftover, is_temporary

LOCK = f"{TEMP_PREFIX}lock"  # kept: conditional writes lock it where folders cannot be locked


def leftovers(root: Path, top: Path, prefix: str) -> Iterator[Leftover]:
    """Yield the hidden files and empty folders in `top` whose key, relative to `root`, begins with `prefix`."""
    now: float | None = None  # by the file system's clock; read only when a file is found
    for folder, inner, files in os.walk(top, onerror=_not_gone):
        below = Path(folder).relative_to(root).as_posix()
        base = "" if below == "." else f"{below}/"
        inner[:] = [n for n in inner if f"{base}{n}/".startswith(prefix) or prefix.startswith(f"{base}{n}/")]
        if base and base.startswith(prefix) and not inner and not files:
            yield Leftover(base, float("inf"))
        for name in files:
            if (base + name).startswith(prefix) and is_temporary(base + name) and name != LOCK:
                with contextlib.suppress(FileNotFoundError):
                    written = Path(folder, name).lstat().st_mtime
                    now = clock(root) if now is None else now
                    yield Leftover(base + name, now - written)


def remove(root: Path, left: Leftover) -> None:
    """Remove a file or an empty folder, and the parent folders that become empty."""
    if not left.key.endswith("/"):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            (root / left.key).unlink()
    with contextlib.suppress(OSError):  # not empty: another process writes there
        for folder in (Path(left.key), *Path(left.key).parents[:-1]):
            if (root / folder).is_dir():
                (root / folder).rmdir()


def _not_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


def clock(root: Path) -> float:
    """Return the file system's time, in seconds since the epoch."""
    probe = root / f"{TEMP_PREFIX}{uuid.uuid4().hex}"
    try:
        probe.touch(exist_ok=False)
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)
