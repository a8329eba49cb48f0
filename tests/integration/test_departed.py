"""Retention on a real S3 server: nothing stays of who left, uploads in parts that were not completed among it."""

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest

from pipeline.retention import leftovers
from pipeline.retention.retain import Retention, retain
from pipeline.storage.base import Storage
from pipeline.storage.open import open_storage
from tests.support.departed import LEFT, Scene, files, objects
from tests.support.outputs import portrait

pytestmark = pytest.mark.ray

PART = 5 * 2**20  # bytes: the least that S3 takes as a part


def begun(storage: Storage, key: str, data: bytes) -> None:
    """Begin an upload in parts, and die after the first."""
    split = urlsplit(storage.uri_of(key))
    client: Any = boto3.client("s3")
    at = {"Bucket": split.netloc, "Key": split.path[1:]}
    upload = client.create_multipart_upload(**at)["UploadId"]
    client.upload_part(**at, UploadId=upload, PartNumber=1, Body=data)
    client.close()


def raw(storage: Storage, key: str, data: bytes) -> None:
    """Put an object whose key no listing of ours shows."""
    split = urlsplit(storage.uri)
    client = boto3.client("s3")
    client.put_object(Bucket=split.netloc, Key=f"{split.path[1:]}/{key}", Body=data)
    client.close()


def keys(uri: str) -> set[str]:
    """Return every key below a prefix, as the server has it, and every upload in parts."""
    split = urlsplit(uri)
    client: Any = boto3.client("s3")
    at = {"Bucket": split.netloc, "Prefix": f"{split.path[1:]}/"}
    found = {o["Key"] for o in client.list_objects_v2(**at).get("Contents", [])}
    found |= {upload["Key"] for upload in client.list_multipart_uploads(**at).get("Uploads", [])}
    client.close()
    return found


def test_nothing_of_who_left_stays_on_s3(s3_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(tmp_path.resolve(), f"{s3_uri}/in", f"{s3_uri}/out", f"{s3_uri}/results")
    scene.fill(monkeypatch)
    name = LEFT[0]
    begun(scene.output, f"photos/{name}/big.png", portrait(1) + bytes(PART))
    begun(scene.output, "manifest/photos.parquet", bytes(PART))
    begun(scene.results, "results.parquet", bytes(PART))
    begun(scene.source, f"{name}/big.png", bytes(PART))  # of the input, which is not ours
    for storage in (scene.output, scene.results):
        raw(storage, ".tmp-1", name.encode())
    raw(scene.output, f"photos/{name}/.tmp-1", scene.photos[name][0])
    scene.leave()
    assert scene.traces(objects(scene.output)) and scene.traces(dict.fromkeys(keys(scene.output.uri), b""))
    young = retain(scene.output.uri, Retention(gone=True), scene.config, really=True)
    assert len(young.missed) == 2 and all("unfinished writes" in line for line in young.missed)

    monkeypatch.setattr(leftovers, "LEASE_S", -1.0)  # as if two minutes had passed
    found = retain(scene.output.uri, Retention(gone=True), scene.config, really=True)
    assert (found.due, found.missed) == ([], [])
    for storage in (scene.output, scene.results):
        assert scene.traces(objects(storage)) == []
        assert scene.traces(dict.fromkeys(keys(storage.uri), b"")) == []
        assert not [key for key in keys(storage.uri) if ".tmp-" in key]
    assert scene.traces(files(tmp_path)) == []
    assert any(name in key for key in keys(scene.source.uri))
    assert list(open_storage(scene.output.uri).unfinished()) == list(open_storage(scene.results.uri).unfinished()) == []
