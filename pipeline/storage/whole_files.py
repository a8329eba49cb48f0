"""Files that appear whole or not at all: written beside their place, synced, renamed."""

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
    """Write bytes or an open file to a hidden file beside `path`, synced; it is gone afterwards whatever happens."""
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
    """Create a hidden file and its folders, which a `delete` beside us may take away in between."""
    for _ in range(100):
        with contextlib.suppress(FileNotFoundError, FileExistsError):
            temp.parent.mkdir(parents=True, exist_ok=True)
            return temp.open("xb")
    temp.parent.mkdir(parents=True, exist_ok=True)
    return temp.open("xb")


def publish(temp: Path, path: Path) -> None:
    """Rename `temp` to `path` with a newer mtime: the kernel's clock ticks in ms, and tags must differ."""
    now = time.time_ns()
    with contextlib.suppress(FileNotFoundError):
        now = max(now, path.stat().st_mtime_ns + 1)
    os.utime(temp, ns=(now, now))
    temp.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut; some network folders refuse it, and then nothing can be done."""
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
        place = shown(where)
        if exc.errno in FULL:
            line = f"disk full: cannot {action} {place}; free some space and run again, finished work is kept"
        elif exc.errno in DENIED:
            line = f"no permission to {action} {place}; check the owner and mode of the folder"
        elif exc.errno == errno.ENAMETOOLONG:
            raise RefusedError(f"cannot {action} {place}: the name is too long for this disk; shorten it") from exc
        elif exc.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
            line = f"cannot {action} {place}: a file and a folder are in each other's place; choose another folder"
        else:
            line = f"cannot {action} {place}: {exc.strerror or type(exc).__name__}; check the disk or the mount"
        raise StorageError(line) from exc
