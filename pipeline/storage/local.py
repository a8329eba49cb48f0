"""A local folder as storage: atomic writes by rename, put-if-absent by hard link, compare-and-swap under a lock."""

import contextlib
import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from dladiff.errors import NotFoundError, StorageError
from pipeline.storage.base import (
    MAX_OBJECT,
    TEMP_PREFIX,
    Entry,
    Leftover,
    Skip,
    Skipped,
    check_free_space,
    check_key,
    check_prefix,
    is_temporary,
    too_large,
)
from pipeline.storage.keys import key_fault, shown
from pipeline.storage.local_leftovers import clock, leftovers, remove
from pipeline.storage.whole_files import CHUNK, file_errors, publish, sync_folder, written_beside

GONE = {errno.ENOENT, errno.ENOTDIR}
NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


class LocalStorage:
    """Objects as files under one folder. Tags are "<size>-<mtime in ns>".

    Links that lead out of the folder are not listed, read or written. Links to folders are never followed.
    """

    def __init__(self, root: str | Path, *, create: bool = False) -> None:
        text = str(root)
        path = Path(text).expanduser() if text.startswith("~/") else Path(text)
        with file_errors("open", text):
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

    def list(
        self, prefix: str = "", *, log_skipped: bool = True, whole: bool = True, skip: Skip | None = None
    ) -> Iterator[Entry]:
        """Yield the regular files whose key begins with `prefix`, sorted by key as S3 sorts them."""
        top = check_prefix(prefix).rpartition("/")[0]
        with file_errors("list", prefix):
            if top and not self._path(top).is_dir():
                return
        skipped, stack = Skipped(self.uri, log_skipped, skip), [f"{top}/" if top else ""]
        while stack:
            key = stack.pop()
            try:
                if key.endswith("/") or not key:
                    stack += [c for c in reversed(self._children(key, skipped)) if _may_hold(c, prefix)]
                elif entry := self._entry(key, skipped):
                    yield entry
            except OSError as error:
                if why := self._unlisted(key, error, whole=whole or key in ("", f"{top}/")):
                    skipped.add(key, why)
        skipped.end()

    def get(self, key: str, limit: int | None = None) -> bytes:
        """Return the bytes of a file. Raises TooLargeError, before reading, for one of more than `limit` bytes."""
        limit = MAX_OBJECT if limit is None else limit
        path = self._path(key)
        with file_errors("read", str(path)), self._opened(path) as handle:
            size = os.fstat(handle.fileno()).st_size
            if size > limit:
                raise too_large(str(path), limit)
            data = handle.read(size + 1)
            if len(data) > size:  # the file grew meanwhile
                data += handle.read(limit + 1 - len(data))
            if len(data) > limit:
                raise too_large(str(path), limit)
            return data

    def part(self, key: str, start: int, length: int) -> bytes:
        """Return at most `length` bytes of a file from byte `start` on."""
        path = self._path(key)
        with file_errors("read", str(path)), self._opened(path) as handle:
            handle.seek(start)
            return handle.read(length)

    def get_file(self, key: str, file: Path) -> None:
        """Copy an object to a local file."""
        path = self._path(key)
        with file_errors("read", str(path)), self._opened(path) as source:
            check_free_space(file, os.fstat(source.fileno()).st_size)
            with file.open("wb") as target:
                shutil.copyfileobj(source, target, CHUNK)

    def put(self, key: str, data: bytes, content_type: str | None = None) -> None:
        """Write a temporary file in the same folder, fsync, rename. `content_type` is ignored."""
        path = self._path(key)
        with file_errors("write", str(path)), written_beside(path, data) as temp:
            publish(temp, path)

    def put_file(self, key: str, file: Path) -> None:
        """Copy a local file to a temporary file in the target's folder, fsync, rename."""
        path = self._path(key)
        with file_errors("write", str(path)), file.open("rb") as source, written_beside(path, source) as temp:
            publish(temp, path)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write a file unless it exists, by a hard link, which fails when the name is taken."""
        path = self._path(key)
        with file_errors("write", str(path)), written_beside(path, data) as temp:
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
                    publish(temp, path)
            sync_folder(path.parent)
            return True

    def put_if_match(self, key: str, data: bytes, tag: str) -> bool:
        """Replace a file if its tag is still `tag`, under the folder's lock."""
        path = self._path(key)
        with file_errors("write", str(path)), self._lock():
            if self.tag(key) != tag:
                return False
            with written_beside(path, data) as temp:
                publish(temp, path)
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
        with file_errors("write", str(self._root)):
            return clock(self._root) - info.st_mtime

    def delete(self, key: str) -> None:
        """Remove a file, and folders that become empty, since their names name a person; a missing file is no error."""
        path = self._path(key)
        with file_errors("delete", str(path)), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()
        with contextlib.suppress(OSError):  # not empty, or another process writes there
            for folder in path.relative_to(self._root).parents[:-1]:
                (self._root / folder).rmdir()

    def _path(self, key: str) -> Path:
        path = self._root / check_key(key)
        with file_errors("open", str(path)):
            if self._inner(path) is None:
                raise StorageError(f"refused {shown(str(path))}: a link leads out of the folder; copy the file in")
        return path

    @contextlib.contextmanager
    def _opened(self, path: Path) -> Iterator[BinaryIO]:
        """Open a regular file for reading. Raises NotFoundError if another process replaced it by anything else.

        Links are resolved first, so O_NOFOLLOW refuses a link put there since. O_NONBLOCK: opening a pipe does not
        wait for its writer.
        """
        gone = NotFoundError(f"no such file: {shown(str(path))}; was it moved during the run?")
        real = self._inner(path)
        if real is None:
            raise gone
        try:
            number = os.open(real, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
        except OSError as error:
            if error.errno in (*GONE, errno.ELOOP):
                raise gone from error
            raise
        with os.fdopen(number, "rb") as handle:
            if not stat.S_ISREG(os.fstat(number).st_mode):
                raise gone
            yield handle

    def _stat(self, key: str) -> os.stat_result | None:
        path = self._path(key)
        with file_errors("read", str(path)):
            try:
                return path.stat()
            except (FileNotFoundError, NotADirectoryError):
                return None

    def _children(self, key: str, skipped: Skipped) -> tuple[str, ...]:
        """Return the keys directly under the folder `key`, sorted; folders end in "/", which sorts as S3 sorts keys."""
        found = []
        for entry in list(os.scandir(f"{self._root}/{key}")):  # pathlib is slow with thousands of path parts
            child = key + entry.name
            if is_temporary(entry.name):
                continue
            if fault := key_fault(child):
                skipped.add(child, fault)
            elif entry.is_symlink() and not self._is_inner_file(self._root / child):
                skipped.add(child, "it is a link to a folder, out of the input, or to nothing")
            else:
                found.append(child + "/" if entry.is_dir(follow_symlinks=False) else child)
        return tuple(sorted(found))

    def _entry(self, key: str, skipped: Skipped) -> Entry | None:
        """Return the entry of a file, None if it is not regular. Only the last part can be a link: see `_children`."""
        path = f"{self._root}/{key}"
        info = os.lstat(path)
        if stat.S_ISLNK(info.st_mode):
            info = Path(path).stat()
        if stat.S_ISREG(info.st_mode):
            return Entry(key, info.st_size, _tag(info))
        skipped.add(key, "it is no regular file")
        return None

    def _unlisted(self, key: str, error: OSError, *, whole: bool) -> str:
        """Return why a listing skips a folder or file, "" for no message. Raises StorageError with `whole`."""
        if error.errno == errno.ENAMETOOLONG:
            return f"its path is longer than the system allows ({len(key)} characters); move it up"
        if error.errno in GONE and key:
            return "" if whole else "it vanished while the folder was listed"
        if whole:
            with file_errors("list", str(self._root / key)):
                raise error
        return f"it cannot be read ({error.strerror or type(error).__name__}); check its owner and mode"

    def _is_inner_file(self, link: Path) -> bool:
        return link.is_file() and self._inner(link) is not None  # is_file fails above 40 links, resolve does not

    def _inner(self, path: Path) -> Path | None:
        """Return the resolved path; None when a link leads out of the folder or to itself."""
        try:
            real = path.resolve()
        except RuntimeError:  # a link to itself, or a chain of over a thousand
            return None
        return real if real.is_relative_to(self._root) else None

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

    def unfinished(self, prefix: str = "") -> Iterator[Leftover]:
        """Yield hidden files of unfinished writes, and empty folders; links are not followed."""
        above = check_prefix(prefix).rpartition("/")[0]
        top = self._path(above) if above else self._root
        with file_errors("list", str(top)):
            yield from leftovers(self._root, top, prefix)

    def discard(self, left: Leftover) -> None:
        """Remove a hidden file or an empty folder, and the folders that become empty."""
        with file_errors("delete", str(self._root / left.key)):
            if self._inner((self._root / left.key).parent) is not None:  # no link replaced a folder since
                remove(self._root, left)


def _may_hold(child: str, prefix: str) -> bool:
    return child.startswith(prefix) or (child.endswith("/") and prefix.startswith(child))


def _tag(info: os.stat_result) -> str:
    return f"{info.st_size}-{info.st_mtime_ns}"
