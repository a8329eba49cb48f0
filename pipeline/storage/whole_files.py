"""Atomic file writes: a temporary file in the same folder, fsync, rename."""

import contextlib
import errno
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from dladiff.errors import RefusedError, StorageError
from pipeline.storage.base import TEMP_PREFIX
from pipeline.storage.keys import shown

CHUNK = 1 << 20  # bytes copied at a time
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}


@contextlib.contextmanager
def written_beside(path: Path, data: bytes | BinaryIO) -> Iterator[Path]:
    """Write bytes or an open file to a hidden file beside `path`, fsync it and yield its path; remove it at the end."""
    temp = path.parent / f"{TEMP_PREFIX}{uuid.uuid4().hex}"
    try:
        with _opened_beside(temp) as handle:
            if isinstance(data, bytes):
                handle.write(data)
            else:
                shutil.copyfileobj(data, handle, CHUNK)
            handle.flush()
            os.fsync(handle.fileno())
        yield temp
    finally:
        temp.unlink(missing_ok=True)


def _opened_beside(temp: Path) -> BinaryIO:
    """Create a hidden file and its folders; a concurrent `delete` may remove the folders in between."""
    for _ in range(100):
        with contextlib.suppress(FileNotFoundError, FileExistsError):
            temp.parent.mkdir(parents=True, exist_ok=True)
            return temp.open("xb")
    temp.parent.mkdir(parents=True, exist_ok=True)
    return temp.open("xb")


def publish(temp: Path, path: Path) -> None:
    """Rename `temp` to `path` with a newer mtime: tags must differ, and the kernel's clock ticks in ms."""
    now = time.time_ns()
    with contextlib.suppress(FileNotFoundError):
        now = max(now, path.stat().st_mtime_ns + 1)
    os.utime(temp, ns=(now, now))
    temp.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut; network folders that refuse fsync are ignored."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def file_errors(action: str, where: str) -> Iterator[None]:
    """Turn an OSError into a StorageError of one line that says what to do."""
    try:
        yield
    except OSError as exc:
        path = shown(where)
        if exc.errno in FULL:
            line = f"disk full: cannot {action} {path}; free some space and run again, finished work is kept"
        elif exc.errno in DENIED:
            line = f"no permission to {action} {path}; check the owner and mode of the folder"
        elif exc.errno == errno.ENAMETOOLONG:
            raise RefusedError(f"cannot {action} {path}: the name is too long for this disk; shorten it") from exc
        elif exc.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
            line = f"cannot {action} {path}: a file is where a folder must be, or the reverse; choose another folder"
        else:
            line = f"cannot {action} {path}: {exc.strerror or type(exc).__name__}; check the disk or the mount"
        raise StorageError(line) from exc
