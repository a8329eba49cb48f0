"""Private temporary folders; each call removes the folders of killed processes."""

import contextlib
import fcntl
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

PREFIX = "dladiff-"
SHORT_PREFIX, SHORT_PARENT = "dl-", Path("/tmp")  # for sockets, whose paths have at most 107 characters
LOCK = ".tmp-lock"  # hidden if the folder is used as storage
STALE_S = 86_400.0  # seconds: without /proc, an unlocked folder of an ended process is removed after a day
_ENDED = ("Z", "X")  # states of an ended process


@contextlib.contextmanager
def temporary_folder(*, prefix: str = PREFIX, parent: Path | None = None, short: bool = False) -> Iterator[Path]:
    """Create a folder (mode 0700) in `parent`, default the system's temporary folder; remove it at the end.

    Its name holds pid and start time of the process, which locks a file in it. So the next call with the same prefix
    and parent recognises and removes folders of killed processes. `short`: a path of at most 35 characters. Raises
    OSError.
    """
    if short:
        prefix = SHORT_PREFIX
        parent = parent or (SHORT_PARENT if os.access(SHORT_PARENT, os.W_OK | os.X_OK) else None)
    above = parent or Path(tempfile.gettempdir())
    _remove_stale(above, prefix)
    pid = os.getpid()
    folder = Path(tempfile.mkdtemp(prefix=f"{prefix}{pid}-{_start_of(pid) or 0}-", dir=above))
    held = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        _lock(held)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # the next call removes the rest
        os.close(held)


def _remove_stale(parent: Path, prefix: str) -> None:
    """Remove this user's folders whose process has ended; unreadable ones are kept."""
    pattern = re.compile(rf"{re.escape(prefix)}(\d+)-(\d+)-[a-z0-9_]{{8}}")
    with contextlib.suppress(OSError):
        for folder in parent.iterdir():
            if match := pattern.fullmatch(folder.name):
                with contextlib.suppress(OSError):
                    _remove_if_stale(folder, int(match[1]), int(match[2]))


def _remove_if_stale(folder: Path, pid: int, start: int) -> None:
    held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)  # a link is refused
    try:
        info = os.fstat(held)
        own = stat.S_ISDIR(info.st_mode) and info.st_uid == os.geteuid()
        if own and _is_gone(pid, start, time.time() - info.st_mtime) and not _is_locked(held):
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(held)


def _is_locked(folder: int) -> bool:
    try:
        held = os.open(LOCK, os.O_RDWR | os.O_NOFOLLOW, dir_fd=folder)
    except FileNotFoundError:
        return False
    try:
        return not _lock(held)
    finally:
        os.close(held)


def _is_gone(pid: int, start: int, age: float) -> bool:
    if _start_of(os.getpid()) is not None:
        return _start_of(pid) != start
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return age > STALE_S
    except OSError:
        return False
    return False


def _start_of(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot (field 22 of proc_pid_stat(5)), None if it has ended.

    Pids are reused, but not with the same start time. Always None on systems without /proc.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in _ENDED else int(fields[19])  # the first one after the name is field 3


def _lock(held: int) -> bool:
    """Lock a file; return False if another process holds the lock, for example in another container."""
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True  # this file system has no locks: the pid decides
    return True
