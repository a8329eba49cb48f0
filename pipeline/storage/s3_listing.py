"""Listings of an S3 bucket, page by page: a listing that would never end is an error."""

from collections.abc import Iterator, Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime
from itertools import islice
from typing import Any

from dladiff.errors import StorageError
from pipeline.storage.base import Leftover, is_temporary
from pipeline.storage.keys import shown
from pipeline.storage.s3_errors import endpoint

MAX_EMPTY_PAGES = 1000  # in a row; S3 sends a few after many deleted versions, at least 1000 a page
MAX_PAGES = 1_000_000  # of one listing, 1000 keys each: 1e9 objects, which take a day to list


def objects(client: Any, bucket: str, prefix: str) -> Iterator[dict[str, Any]]:
    """Yield the objects whose whole key begins with `prefix`, as the server describes them.

    Raises StorageError for an endless listing: a repeated token, more than MAX_EMPTY_PAGES pages in a row without an
    object, or MAX_PAGES pages in all.
    """
    for page in _pages(client, bucket, prefix):
        yield from page.get("Contents", [])


def leftovers(client: Any, bucket: str, root: str, prefix: str) -> Iterator[Leftover]:
    """Yield incomplete multipart uploads, hidden objects, and empty objects that stand for folders.

    `prefix` and the keys yielded are relative to `root`, the beginning of whole keys.
    """
    whole = root + prefix
    uploads = client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=whole)
    for page in islice(uploads, MAX_PAGES):
        for item in page.get("Uploads", []):
            if item["Key"].startswith(whole):
                key = item["Key"].removeprefix(root)
                yield Leftover(key, _seconds_since(item["Initiated"], page), item["UploadId"])
    for page in _pages(client, bucket, whole):
        for item in page.get("Contents", []):
            key = item["Key"].removeprefix(root)
            if key.endswith("/") and not item["Size"]:
                yield Leftover(key, float("inf"))
            elif is_temporary(key):
                yield Leftover(key, _seconds_since(item["LastModified"], page))


def _pages(client: Any, bucket: str, prefix: str) -> Iterator[dict[str, Any]]:
    where: dict[str, str] = {"Bucket": bucket, "Prefix": prefix}
    tokens, empty = set[int](), 0
    for _ in range(MAX_PAGES):
        page = client.list_objects_v2(**where)
        yield page
        if not page.get("IsTruncated"):
            return
        token, empty = page.get("NextContinuationToken"), 0 if page.get("Contents") else empty + 1
        if not token or hash(token) in tokens:
            raise _endless(where, "sends a page again that it sent before")
        if empty > MAX_EMPTY_PAGES:
            raise _endless(where, f"sent {empty} pages in a row without an object")
        tokens.add(hash(token))
        where["ContinuationToken"] = token
    raise _endless(where, f"sent {MAX_PAGES} pages and has not ended")


def _endless(where: Mapping[str, str], what: str) -> StorageError:
    uri = f"s3://{where['Bucket']}/{where['Prefix']}".rstrip("/")
    return StorageError(f"the listing of {shown(uri)} does not end: {endpoint()} {what}; check the server")


def _seconds_since(then: datetime, reply: Mapping[str, Any]) -> float:
    now = parsedate_to_datetime(reply["ResponseMetadata"]["HTTPHeaders"]["date"])
    return float((now - then).total_seconds())
