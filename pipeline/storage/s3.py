"""An S3 prefix as storage, through boto3: conditional puts, retries, errors that never show credentials."""

import contextlib
import functools
import io
import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, TypeVar

import boto3
from botocore import exceptions as boto_errors
from botocore.config import Config

from dladiff.errors import BusyError, StorageError
from pipeline.storage.base import (
    MAX_OBJECT,
    S3_OPTIONS,
    Entry,
    Leftover,
    Skip,
    Skipped,
    bucket_fault,
    check_free_space,
    check_key,
    check_prefix,
    is_temporary,
    too_large,
)
from pipeline.storage.keys import key_fault, short, shown
from pipeline.storage.s3_errors import BROKEN_OFF, CONFLICT, LOST, MISSING, code_of, s3_errors
from pipeline.storage.s3_listing import leftovers, objects
from pipeline.storage.whole_files import CHUNK, file_errors

T = TypeVar("T")

TRIES = 7  # of one request: with standard backoff half a minute in all on average
MIN_RATE = 100_000  # bytes a second of one object, a tenth of a slow home line: slower transfers are given up
GRACE_S = 60.0  # seconds added for the first byte and short stalls: the read timeout
PART = 16 << 20  # bytes of one request of a download to a file: about a second on a usual line
STREAMS = 4  # such requests at a time
MAX_SIZE = 2**63 - 1  # bytes; what a database column holds
READ_TRIES = 3  # boto3 retries a request, but not a reply that breaks off
CONFLICT_TRIES = 5  # S3 answers 409 when two conditional writes of one key overlap: try again


class S3Storage:
    """Objects under s3://bucket/prefix. Tags are ETags.

    Credentials, endpoint, addressing style and checksums come from the usual AWS variables and files. Without an
    addressing style there, botocore addresses a custom endpoint by path: few such servers have a name per bucket.
    """

    def __init__(self, uri: str, options: Mapping[str, str] | None = None) -> None:
        bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        prefix = prefix.strip("/")
        if fault := bucket_fault(uri):
            raise StorageError(f"bad S3 address: {fault}")
        if not uri.startswith("s3://") or (prefix and key_fault(prefix)):
            raise StorageError(f"bad S3 address {short(uri)}; use s3://bucket/prefix")
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._extra = {S3_OPTIONS[name]: value for name, value in (options or {}).items()}
        self._made: Any = None

    @property
    def uri(self) -> str:
        """The prefix, without a slash at its end."""
        return f"s3://{self._bucket}/{self._prefix}".rstrip("/")

    def uri_of(self, key: str) -> str:
        """Return s3://bucket/prefix/key."""
        return f"s3://{self._bucket}/{self._prefix}{check_key(key)}"

    def list(
        self, prefix: str = "", *, log_skipped: bool = True, whole: bool = True, skip: Skip | None = None
    ) -> Iterator[Entry]:
        """Yield the objects whose key begins with `prefix`, page by page as the server sends them.

        S3 sorts by key; some other servers list folder by folder. Keys that are no path ("..", "//") are skipped.
        Raises StorageError for an endless listing: a repeated token, more than MAX_EMPTY_PAGES pages in a row without
        a key, or MAX_PAGES pages in all.
        """
        skipped = Skipped(self.uri, log_skipped, skip)
        with self._errors(self.uri):
            for item in objects(self._client(), self._bucket, self._prefix + check_prefix(prefix)):
                key = item["Key"].removeprefix(self._prefix)
                if key.endswith("/") or not key or is_temporary(key):
                    continue
                fault = key_fault(key) or ("" if 0 <= item["Size"] <= MAX_SIZE else "its size is no size")
                if fault:
                    skipped.add(key, fault)
                else:
                    yield Entry(key, item["Size"], item["ETag"].strip('"'))
            skipped.end()

    def get(self, key: str, limit: int | None = None) -> bytes:
        """Return the bytes of an object, at most `limit`, whatever length the server announces.

        Raises BusyError for a body slower than MIN_RATE.
        """
        limit = MAX_OBJECT if limit is None else limit
        with self._errors(self.uri_of(key)):
            return self._again(lambda: self._read(key, limit))

    def part(self, key: str, start: int, length: int) -> bytes:
        """Return at most `length` bytes of an object from byte `start` on, in one request."""
        with self._errors(self.uri_of(key)):
            return self._again(lambda: self._read(key, length, Range=f"bytes={start}-{start + length - 1}"))

    def get_file(self, key: str, file: Path) -> None:
        """Download an object in parallel parts; a part that breaks off is tried again.

        Raises StorageError, before writing, when the disk has too little free space; BusyError like `get`.
        """
        with self._errors(self.uri_of(key)):
            head = self._client().head_object(**self._at(key))
            size, tag = int(head["ContentLength"]), str(head["ETag"])
            check_free_space(file, size)
            starts = range(0, size, PART)
            with file_errors("write", str(file)), file.open("wb") as target, ThreadPoolExecutor(STREAMS) as pool:
                write = functools.partial(os.pwrite, target.fileno())
                list(pool.map(lambda start: self._again(lambda: self._part(key, start, size, tag, write)), starts))

    def put(self, key: str, data: bytes, content_type: str | None = None) -> None:
        """Write an object in one request, which is atomic."""
        extra: dict[str, Any] = {"ContentType": content_type} if content_type else {}
        with self._errors(self.uri_of(key)):
            self._client().put_object(**self._at(key), Body=data, **extra, **self._extra)

    def put_file(self, key: str, file: Path) -> None:
        """Upload a file, a large one as a multipart upload, which becomes visible when it is complete."""
        with self._errors(self.uri_of(key)):
            at = self._at(key)
            with file.open("rb") as source:
                self._client().upload_fileobj(source, at["Bucket"], at["Key"], ExtraArgs=self._extra or None)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write an object unless it exists (If-None-Match: *)."""
        return self._put_if(key, data, {"IfNoneMatch": "*"})

    def put_if_match(self, key: str, data: bytes, tag: str) -> bool:
        """Replace an object if its ETag is still `tag` (If-Match)."""
        return self._put_if(key, data, {"IfMatch": f'"{tag}"'})

    def tag(self, key: str) -> str | None:
        """Return the ETag of an object, None when it is missing."""
        with self._errors(self.uri_of(key)):
            try:
                return str(self._client().head_object(**self._at(key))["ETag"].strip('"'))
            except boto_errors.ClientError as exc:
                if code_of(exc) in MISSING:
                    return None
                raise

    def age(self, key: str) -> float | None:
        """Return the seconds since an object was written, both times from the server's reply."""
        with self._errors(self.uri_of(key)):
            try:
                reply = self._client().head_object(**self._at(key))
            except boto_errors.ClientError as exc:
                if code_of(exc) in MISSING:
                    return None
                raise
        now = parsedate_to_datetime(reply["ResponseMetadata"]["HTTPHeaders"]["date"])
        return float((now - reply["LastModified"]).total_seconds())

    def delete(self, key: str) -> None:
        """Remove an object; a missing one is no error."""
        with self._errors(self.uri_of(key)):
            try:
                self._client().delete_object(**self._at(key))
            except boto_errors.ClientError as exc:
                if code_of(exc) not in MISSING:
                    raise

    def close(self) -> None:
        """Close the client's connections; the next operation opens new ones."""
        if self._made is not None:
            self._made.close()
            self._made = None

    def _read(self, key: str, limit: int, **extra: str) -> bytes:
        reply = self._client().get_object(**self._at(key), **extra)
        data = io.BytesIO()  # getvalue makes no second copy
        for chunk in self._body(key, reply, limit, MIN_RATE):
            data.write(chunk)
        return data.getvalue()

    def _part(self, key: str, start: int, size: int, tag: str, write: Callable[[bytes, int], int]) -> None:
        """Read the part of an object that begins at byte `start`, and write it at the same offset of the file."""
        length = min(PART, size - start)
        extra = {} if length == size else {"Range": f"bytes={start}-{start + length - 1}"}
        reply = self._client().get_object(**self._at(key), IfMatch=tag, **extra)
        offset = start
        for chunk in self._body(key, reply, length, MIN_RATE / STREAMS):
            while chunk:
                written = write(chunk, offset)
                offset, chunk = offset + written, chunk[written:]
        if offset != start + length:
            raise boto_errors.IncompleteReadError(actual_bytes=offset - start, expected_bytes=length)

    def _body(self, key: str, reply: dict[str, Any], limit: int, rate: float) -> Iterator[bytes]:
        """Yield a body in chunks. Raises TooLargeError above `limit` bytes, BusyError below `rate` bytes a second.

        `read` waits for a whole chunk, and a trickle never triggers the read timeout. `read1` returns what has arrived
        (urllib3 before 2.1 lacks it).
        """
        expected, count, begun = reply.get("ContentLength"), 0, time.monotonic()
        with reply["Body"] as raw:
            if expected is not None and expected > limit:
                raise too_large(self.uri_of(key), limit)
            read = getattr(raw, "read1", raw.read)
            while chunk := read(CHUNK):
                count += len(chunk)
                if count > limit:
                    raise too_large(self.uri_of(key), limit)
                yield chunk
                if (elapsed := time.monotonic() - begun) > GRACE_S + count / rate:
                    raise BusyError(
                        f"{shown(self.uri_of(key))} comes too slowly ({count} bytes in {elapsed:.0f} s); check the "
                        "network and the server, and run again"
                    )
        if expected is not None and count != expected:
            raise boto_errors.IncompleteReadError(actual_bytes=count, expected_bytes=expected)

    @staticmethod
    def _again(read: Callable[[], T]) -> T:
        """Call `read`, up to READ_TRIES times while replies break off. Raises the last error."""
        for _ in range(READ_TRIES - 1):
            with contextlib.suppress(*BROKEN_OFF):
                return read()
        return read()

    def _put_if(self, key: str, data: bytes, condition: dict[str, Any]) -> bool:
        with self._errors(self.uri_of(key)):
            for attempt in range(CONFLICT_TRIES):
                try:
                    self._client().put_object(**self._at(key), Body=data, **condition, **self._extra)
                    return True
                except boto_errors.ClientError as exc:
                    if code_of(exc) in LOST:
                        return self._was_ours(key, data, exc)
                    if code_of(exc) in MISSING and "IfMatch" in condition:
                        return False
                    if code_of(exc) not in CONFLICT or attempt == CONFLICT_TRIES - 1:
                        raise
                    time.sleep(0.05 * 2**attempt)
        return False

    def _was_ours(self, key: str, data: bytes, exc: boto_errors.ClientError) -> bool:
        """Return whether a 412 answers a retry of our own write whose reply was lost: then the bytes are ours."""
        retried = exc.response.get("ResponseMetadata", {}).get("RetryAttempts", 0)
        return bool(retried) and self.get(key) == data

    def _at(self, key: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._prefix + check_key(key)}

    def _client(self) -> Any:
        if self._made is None:
            self._made = boto3.session.Session().client(  # the default session is not thread-safe
                "s3",
                config=Config(
                    retries={"mode": "standard", "total_max_attempts": TRIES},
                    connect_timeout=10,
                    read_timeout=60,
                ),
            )
        return self._made

    def _errors(self, where: str) -> contextlib.AbstractContextManager[None]:
        return s3_errors(where, self._bucket)

    def unfinished(self, prefix: str = "") -> Iterator[Leftover]:
        """Yield incomplete multipart uploads, hidden objects, and empty objects that stand for folders."""
        with self._errors(self.uri):
            yield from leftovers(self._client(), self._bucket, self._prefix, check_prefix(prefix))

    def discard(self, left: Leftover) -> None:
        """Abort a multipart upload, or remove an object."""
        at = {"Bucket": self._bucket, "Key": self._prefix + left.key}
        with self._errors(f"{self.uri}/{left.key}"):
            try:
                if left.upload:
                    self._client().abort_multipart_upload(**at, UploadId=left.upload)
                else:
                    self._client().delete_object(**at)
            except boto_errors.ClientError as exc:
                if code_of(exc) not in MISSING | {"NoSuchUpload"}:
                    raise
