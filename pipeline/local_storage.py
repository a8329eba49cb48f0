"""A local folder as storage: whole writes by rename, put-if-absent by hard link, compare-and-swap under a lock."""

import contextlib
import errno
import fcntl
import logging
import os
import shutil
import stat
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from dladiff.errors import NotFoundError, RefusedError, StorageError
from pipeline.names import key_fault, shown
from pipeline.storage import MAX_OBJECT, TEMP_PREFIX, Entry, check_key, check_prefix, is_temporary, too_large

log = logging.getLogger(__name__)

NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}


class LocalStorage:
    """Objects as files under one folder. Tags are "<size>-<mtime in ns>".

    A link that leaves the folder is neither listed, read nor written; a linked folder is not entered at all.
    """

    def __init__(self, root: str | Path, *, create: bool = False) -> None:
        text = str(root)
        path = Path(text).expanduser() if text.startswith("~/") else Path(text)
        with _errors("open", text):
            if not text or "\0" in text:
                raise StorageError(f"no folder is named {shown(text)!r}; check the address")
            if create:
                path.mkdir(parents=True, exist_ok=True)
            try:
                self._root = path.resolve()
            except RuntimeError as error:
                raise StorageError(f"a link that leads to itself: {shown(text)}; check the address") from error
            if not self._root.exists():
                raise StorageError(f"no such folder: {shown(text)}; check the address")
            if not self._root.is_dir():
                raise StorageError(f"not a folder: {shown(text)}; give a folder")

    @property
    def uri(self) -> str:
        """The folder's absolute path."""
        return str(self._root)

    def uri_of(self, key: str) -> str:
        """Return the absolute path of an object."""
        return str(self._root / check_key(key))

    def list(self, prefix: str = "", *, tell: bool = True) -> Iterator[Entry]:
        """Yield the regular files whose key begins with `prefix`, sorted by key as S3 sorts them."""
        top = check_prefix(prefix).rpartition("/")[0]
        if top and not self._path(top).is_dir():
            return
        stack = [f"{top}/" if top else ""]
        while stack:
            key = stack.pop()
            if key.endswith("/") or not key:
                stack += [c for c in reversed(self._children(key, tell)) if _may_hold(c, prefix)]
                continue
            info = self._stat(key)
            if info is not None and stat.S_ISREG(info.st_mode):
                yield Entry(key, info.st_size, _tag(info))
            elif info is not None and tell:
                log.error("skipped %s: it is no regular file", shown(key))

    def get(self, key: str, limit: int | None = None) -> bytes:
        """Return the bytes of a file, at most `limit` of them: a sparse file of terabytes is refused before it is read."""
        path = self._path(key)
        with _errors("read", str(path)):
            if not path.is_file():
                raise NotFoundError(f"no such file: {shown(str(path))}; was it moved during the run?")
            limit = MAX_OBJECT if limit is None else limit
            if path.stat().st_size > limit:
                raise too_large(str(path), limit)
            with path.open("rb") as handle:
                data = handle.read(limit + 1)  # it may grow while it is read
            if len(data) > limit:
                raise too_large(str(path), limit)
            return data

    def get_file(self, key: str, file: Path) -> None:
        """Copy a file out."""
        path = self._path(key)
        with _errors("read", str(path)):
            if not path.is_file():
                raise NotFoundError(f"no such file: {shown(str(path))}; was it moved during the run?")
            shutil.copyfile(path, file)

    def put(self, key: str, data: bytes, content_type: str | None = None) -> None:
        """Write a file whole: beside it, fsync, then rename. A folder has no place for `content_type`."""
        path = self._path(key)
        with _errors("write", str(path)), _written_beside(path, data) as temp:
            _publish(temp, path)

    def put_file(self, key: str, file: Path) -> None:
        """Copy a file in: beside its place, fsync, then rename."""
        path = self._path(key)
        with _errors("write", str(path)), file.open("rb") as source, _written_beside(path, source) as temp:
            _publish(temp, path)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write a file unless there is one, by a hard link, which fails when the name is taken."""
        path = self._path(key)
        with _errors("write", str(path)), _written_beside(path, data) as temp:
            try:
                os.link(temp, path)
            except FileExistsError:
                return False
            except OSError as exc:
                if exc.errno not in NO_LINKS:
                    raise
                with self._lock():  # exFAT and some network folders have no hard links
                    if os.path.lexists(path):
                        return False
                    _publish(temp, path)
            _sync_folder(path.parent)
            return True

    def put_if_match(self, key: str, data: bytes, tag: str) -> bool:
        """Replace a file if its tag is still `tag`, under the folder's lock."""
        path = self._path(key)
        with _errors("write", str(path)), self._lock():
            if self.tag(key) != tag:
                return False
            with _written_beside(path, data) as temp:
                _publish(temp, path)
            return True

    def tag(self, key: str) -> str | None:
        """Return "<size>-<mtime in ns>", None when there is no such file."""
        info = self._stat(check_key(key))
        return _tag(info) if info is not None and stat.S_ISREG(info.st_mode) else None

    def age(self, key: str) -> float | None:
        """Return the seconds since the file was written, by the clock of the file system that holds it."""
        info = self._stat(check_key(key))
        if info is None:
            return None
        probe = self._root / f"{TEMP_PREFIX}{uuid.uuid4().hex}"
        with _errors("write", str(probe)):
            try:
                probe.touch(exist_ok=False)
                return probe.stat().st_mtime - info.st_mtime
            finally:
                probe.unlink(missing_ok=True)

    def delete(self, key: str) -> None:
        """Remove a file and the folders that it leaves empty, which name a person; a missing one is no error."""
        path = self._path(key)
        with _errors("delete", str(path)), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()
        with contextlib.suppress(OSError):  # not empty, or somebody else writes there
            for folder in path.relative_to(self._root).parents[:-1]:
                (self._root / folder).rmdir()

    def _path(self, key: str) -> Path:
        path = self._root / check_key(key)
        with _errors("open", str(path)):
            if not self._inside(path):
                raise StorageError(f"refused {shown(str(path))}: a link leads out of the folder; copy the file in")
        return path

    def _stat(self, key: str) -> os.stat_result | None:
        path = self._path(key)
        with _errors("read", str(path)):
            try:
                return path.stat()
            except (FileNotFoundError, NotADirectoryError):
                return None

    def _children(self, key: str, tell: bool) -> tuple[str, ...]:
        """Keys directly under the folder `key`, folders ending in "/", sorted so that whole keys come sorted."""
        folder = self._root / key
        found = []
        with _errors("list", str(folder)):
            try:
                entries = list(os.scandir(folder))
            except FileNotFoundError:
                return ()
            for entry in entries:
                child = key + entry.name
                if is_temporary(entry.name):
                    continue
                fault = key_fault(child)
                if entry.is_symlink() and not self._is_inner_file(folder / entry.name):
                    fault = "it is a link to a folder, out of the input, or to nothing"
                if fault and tell:  # an error, which a quiet run tells too: a photo may go unprotected
                    log.error("skipped %s: %s", shown(child), fault)
                elif not fault:
                    found.append(child + "/" if entry.is_dir(follow_symlinks=False) else child)
        return tuple(sorted(found))

    def _is_inner_file(self, link: Path) -> bool:
        return self._inside(link) and link.is_file()

    def _inside(self, path: Path) -> bool:
        try:
            return path.resolve().is_relative_to(self._root)
        except RuntimeError:  # a link that leads to itself
            return False

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        folder = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with contextlib.ExitStack() as held:
                try:
                    fcntl.flock(folder, fcntl.LOCK_EX)
                except OSError:  # some network folders lock only files that are open for writing
                    handle = held.enter_context((self._root / f"{TEMP_PREFIX}lock").open("ab"))
                    fcntl.flock(handle, fcntl.LOCK_EX)
                yield
        finally:
            os.close(folder)


def _may_hold(child: str, prefix: str) -> bool:
    return child.startswith(prefix) or (child.endswith("/") and prefix.startswith(child))


def _tag(info: os.stat_result) -> str:
    return f"{info.st_size}-{info.st_mtime_ns}"


@contextlib.contextmanager
def _written_beside(path: Path, data: bytes | BinaryIO) -> Iterator[Path]:
    """Write bytes or an open file to a hidden file beside `path`, synced; it is gone afterwards whatever happens."""
    temp = path.parent / f"{TEMP_PREFIX}{uuid.uuid4().hex}"
    try:
        with _opened_beside(temp) as handle:
            if isinstance(data, bytes):
                handle.write(data)
            else:
                shutil.copyfileobj(data, handle, 1 << 20)
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


def _publish(temp: Path, path: Path) -> None:
    """Rename `temp` to `path` with a newer mtime: the kernel's clock ticks in ms, and tags must differ."""
    now = time.time_ns()
    with contextlib.suppress(FileNotFoundError):
        now = max(now, path.stat().st_mtime_ns + 1)
    os.utime(temp, ns=(now, now))
    temp.replace(path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut; some network folders refuse it, and then nothing can be done."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def _errors(action: str, where: str) -> Iterator[None]:
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
