"""An S3 prefix as storage, through boto3: conditional puts, retries, errors that never show credentials."""

import contextlib
import logging
import os
import time
from collections.abc import Iterator, Mapping
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
from boto3.exceptions import RetriesExceededError
from botocore import exceptions as boto_errors
from botocore.config import Config

from dladiff.errors import BusyError, NotFoundError, RefusedError, StorageError
from pipeline.names import key_fault, shown
from pipeline.storage import MAX_OBJECT, S3_OPTIONS, Entry, check_key, check_prefix, is_temporary, too_large

log = logging.getLogger(__name__)

TRIES = 7  # of one request: standard backoff, half a minute in all on average
CHUNK = 1 << 20  # bytes read at a time
READ_TRIES = 3  # boto3 retries a request, but not a reply that breaks off half way
CONFLICT_TRIES = 5  # S3 answers 409 when two conditional writes of one key overlap: try again
LOST = {"PreconditionFailed", "412"}
CONFLICT = {"ConditionalRequestConflict", "OperationAborted", "409"}
MISSING = {"NoSuchKey", "404", "NotFound"}
DENIED = {
    "AccessDenied", "AllAccessDisabled", "403", "Forbidden", "InvalidAccessKeyId", "SignatureDoesNotMatch",
    "ExpiredToken", "InvalidToken", "TokenRefreshRequired", "ExpiredTokenException", "UnauthorizedAccess",
}  # fmt: skip
BUSY = {"SlowDown", "ServiceUnavailable", "InternalError", "RequestTimeout", "500", "502", "503", "504"}
REFUSED = {"KeyTooLongError", "EntityTooLarge"}  # one object's name or size
UNREACHABLE = (
    boto_errors.EndpointConnectionError,
    boto_errors.HTTPClientError,  # timeouts, closed connections, TLS and proxy errors
    boto_errors.IncompleteReadError,
)
BROKEN_OFF = (
    boto_errors.ResponseStreamingError,
    boto_errors.ReadTimeoutError,
    boto_errors.IncompleteReadError,
)


class S3Storage:
    """Objects under s3://bucket/prefix. Tags are ETags.

    Credentials and endpoint come from the usual AWS variables and files. A custom endpoint
    (AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL) is addressed by path, since few such servers have a name per bucket.
    """

    def __init__(self, uri: str, options: Mapping[str, str] | None = None) -> None:
        bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        prefix = prefix.strip("/")
        if not uri.startswith("s3://") or not bucket or (prefix and key_fault(prefix)):
            raise StorageError(f"bad S3 address {shown(uri)}; use s3://bucket/prefix")
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

    def list(self, prefix: str = "", *, tell: bool = True) -> Iterator[Entry]:
        """Yield the objects whose key begins with `prefix`, page by page as the server sends them.

        S3 sorts by key; some other servers list folder by folder. Keys a path cannot hold ("..", "//") are skipped.
        """
        with self._errors(self.uri):
            pages = self._client().get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self._bucket, Prefix=self._prefix + check_prefix(prefix)):
                for item in page.get("Contents", []):
                    key = item["Key"].removeprefix(self._prefix)
                    if key.endswith("/") or not key or is_temporary(key):
                        continue
                    fault = key_fault(key)
                    if fault and tell:
                        log.error("skipped %s: %s", shown(key), fault)
                    elif not fault:
                        yield Entry(key, item["Size"], item["ETag"].strip('"'))

    def get(self, key: str, limit: int | None = None) -> bytes:
        """Return the bytes of an object, at most `limit` of them, whatever length the server announces."""
        limit = MAX_OBJECT if limit is None else limit
        with self._errors(self.uri_of(key)):
            for _ in range(READ_TRIES - 1):
                with contextlib.suppress(*BROKEN_OFF):
                    return self._read(key, limit)
            return self._read(key, limit)

    def get_file(self, key: str, file: Path) -> None:
        """Download an object, a large one in ranges at a time, each tried again where it breaks off."""
        at = self._at(key)
        with self._errors(self.uri_of(key)):
            try:
                self._client().download_file(at["Bucket"], at["Key"], str(file))
            except RetriesExceededError:
                raise BusyError(f"reading {shown(self.uri_of(key))} broke off again and again; run again") from None
            except OSError as exc:
                why = exc.strerror or type(exc).__name__
                raise StorageError(f"cannot write {shown(str(file))}: {why}; check the disk") from exc

    def put(self, key: str, data: bytes, content_type: str | None = None) -> None:
        """Write an object in one request, so that readers see it whole or not at all."""
        extra: dict[str, Any] = {"ContentType": content_type} if content_type else {}
        with self._errors(self.uri_of(key)):
            self._client().put_object(**self._at(key), Body=data, **extra, **self._extra)

    def put_file(self, key: str, file: Path) -> None:
        """Upload a file; a large one in parts, which appear as one object when all are there."""
        with self._errors(self.uri_of(key)):
            at = self._at(key)
            with file.open("rb") as source:
                self._client().upload_fileobj(source, at["Bucket"], at["Key"], ExtraArgs=self._extra or None)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write an object unless there is one (If-None-Match: *)."""
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
                if _code(exc) in MISSING:
                    return None
                raise

    def age(self, key: str) -> float | None:
        """Return the seconds since an object was written, both times from the server's reply."""
        with self._errors(self.uri_of(key)):
            try:
                reply = self._client().head_object(**self._at(key))
            except boto_errors.ClientError as exc:
                if _code(exc) in MISSING:
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
                if _code(exc) not in MISSING:
                    raise

    def close(self) -> None:
        """Close the client's connections; the next operation opens new ones."""
        if self._made is not None:
            self._made.close()
            self._made = None

    def _read(self, key: str, limit: int) -> bytes:
        reply = self._client().get_object(**self._at(key))
        with contextlib.closing(reply["Body"]) as body:
            if reply.get("ContentLength", 0) > limit:
                raise too_large(self.uri_of(key), limit)
            data = bytearray()
            while chunk := body.read(CHUNK):
                data += chunk
                if len(data) > limit:
                    raise too_large(self.uri_of(key), limit)
        return bytes(data)

    def _put_if(self, key: str, data: bytes, condition: dict[str, Any]) -> bool:
        with self._errors(self.uri_of(key)):
            for attempt in range(CONFLICT_TRIES):
                try:
                    self._client().put_object(**self._at(key), Body=data, **condition, **self._extra)
                    return True
                except boto_errors.ClientError as exc:
                    if _code(exc) in LOST:
                        return self._was_ours(key, data, exc)
                    if _code(exc) in MISSING and "IfMatch" in condition:
                        return False
                    if _code(exc) not in CONFLICT or attempt == CONFLICT_TRIES - 1:
                        raise
                    time.sleep(0.05 * 2**attempt)
        return False

    def _was_ours(self, key: str, data: bytes, exc: boto_errors.ClientError) -> bool:
        """After a retry a 412 may answer our own first try, whose reply was lost: then the bytes are ours."""
        retried = exc.response.get("ResponseMetadata", {}).get("RetryAttempts", 0)
        return bool(retried) and self.get(key) == data

    def _at(self, key: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._prefix + check_key(key)}

    def _client(self) -> Any:
        if self._made is None:
            custom = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
            self._made = boto3.session.Session().client(  # the default session is not safe between threads
                "s3",
                config=Config(
                    retries={"mode": "standard", "total_max_attempts": TRIES},
                    connect_timeout=10,
                    read_timeout=60,
                    s3={"addressing_style": "path" if custom else "auto"},
                ),
            )
        return self._made

    @contextlib.contextmanager
    def _errors(self, where: str) -> Iterator[None]:
        """Turn botocore's errors into one line; their own text is dropped, as it can hold key ids and proxies."""
        kind = StorageError
        try:
            yield
        except boto_errors.ClientError as exc:
            code = _code(exc)
            kinds = {NotFoundError: MISSING, BusyError: BUSY, RefusedError: REFUSED}
            kind = next((one for one, codes in kinds.items() if code in codes), StorageError)
            line = self._line(code, shown(where))
        except (boto_errors.NoCredentialsError, boto_errors.PartialCredentialsError):
            line = "no S3 credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or a role"
        except (boto_errors.ProfileNotFound, boto_errors.TokenRetrievalError, boto_errors.SSOError):
            line = "the AWS profile or its login is not usable; check AWS_PROFILE or run `aws sso login`"
        except UNREACHABLE as exc:
            kind = BusyError
            line = f"cannot reach {self._endpoint()} ({type(exc).__name__}); check the network and AWS_ENDPOINT_URL"
        except (boto_errors.BotoCoreError, ValueError) as exc:
            line = f"S3 refused {shown(where)} before sending ({type(exc).__name__}); check the URI and AWS settings"
        else:
            return
        raise kind(line) from None

    def _line(self, code: str, where: str) -> str:
        if code == "NoSuchBucket":
            return f"no such bucket: {shown(self._bucket)}; create it or check the URI"
        if code in MISSING:
            return f"no such object: {where}; was it deleted during the run?"
        if code in DENIED:
            return f"access denied to {where} ({code}); check the credentials and the bucket's policy"
        if code in BUSY:
            return f"S3 is overloaded or down ({code} after retries) at {where}; run again later, done work is kept"
        if code in REFUSED:
            return f"S3 refuses {where[:200]} ({code}); shorten its name or make it smaller"
        return f"S3 error {shown(code)} at {where}; check the URI, the region and AWS_ENDPOINT_URL"

    def _endpoint(self) -> str:
        """Scheme, host and port of the endpoint; a user and password in the URL are left out."""
        url = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "S3"
        parts = urlsplit(url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}" if parts.netloc else "S3"


def _code(exc: boto_errors.ClientError) -> str:
    return str(exc.response.get("Error", {}).get("Code", "unknown"))
