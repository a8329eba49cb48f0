"""shards: photos in Parquet and tar files made by pyarrow and tarfile, read in place with bounded memory."""

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dladiff.errors import ConfigError, NotFoundError, PhotoError, StorageError, TooLargeError
from pipeline.config import run_config
from pipeline.run.plan import make_plan
from pipeline.sources import shards
from pipeline.sources.find import Identity, find_identities
from pipeline.sources.index_file import index_identities
from pipeline.sources.left_out import LeftOut
from pipeline.sources.originals import OutsideError, named
from pipeline.storage.base import Entry, Storage
from pipeline.storage.open import open_storage


def photo(seed: int, kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (64, 64, 3), np.uint8)).save(out, kind)
    return out.getvalue()


PHOTOS = [photo(n) for n in range(6)]


def hub_table(**columns: Any) -> pa.Table:
    """As the package `datasets` writes it: a struct of bytes and path."""
    image = pa.StructArray.from_arrays(
        [pa.array(PHOTOS, pa.binary()), pa.array([f"{n}.png" for n in range(6)])], ["bytes", "path"]
    )
    return pa.table({"image": image, **columns})


def plain_table(**columns: Any) -> pa.Table:
    return pa.table({"image": pa.array(PHOTOS, pa.large_binary()), **columns})


def parquet(
    tmp_path: Path, table: pa.Table, name: str = "data/train-00000-of-00001.parquet", **options: Any
) -> Storage:
    (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, tmp_path / "in" / name, **options)
    return open_storage(tmp_path / "in")


def taken(storage: Storage, found: list[Identity]) -> dict[str, list[bytes]]:
    """Read every photo as an actor does, with the plan's tag, and as `verify` does, by the address alone."""
    sources = named([storage.uri])
    result: dict[str, list[bytes]] = {}
    for one in found:
        for each in one.photos:
            data = shards.read(storage, each.key, 1_000_000, each.tag)
            assert sources.read(each.uri) == data == shards.read_address(each.uri, 1_000_000)
            result.setdefault(one.name, []).append(data)
    return result


@pytest.mark.parametrize("make", [hub_table, plain_table])
@pytest.mark.parametrize("rows", [1, 2, 100])
def test_rows_of_parquet_files_are_photos_of_their_people(tmp_path: Path, make: Any, rows: int) -> None:
    people = pa.array(["ann", "bob", "ann", "cid", "bob", "ann"])
    storage = parquet(tmp_path, make(identity=people, label=pa.array([0] * 6)), row_group_size=rows)
    (tmp_path / "in" / "README.md").write_text("a data set")
    found = list(find_identities(storage))
    by_name = {"ann": [PHOTOS[0], PHOTOS[2], PHOTOS[5]], "bob": [PHOTOS[1], PHOTOS[4]], "cid": [PHOTOS[3]]}
    assert taken(storage, found) == by_name
    (cid,) = found[2].photos
    assert cid.uri == f"{storage.uri}/data/train-00000-of-00001.parquet#row=3"
    alone = str(tmp_path / "in" / "data" / "train-00000-of-00001.parquet")
    assert {one.name: len(one.photos) for one in index_identities(alone)} == {"ann": 3, "bob": 2, "cid": 1}


def test_rows_without_a_person_are_identities_of_their_own(tmp_path: Path) -> None:
    storage = parquet(tmp_path, hub_table(label=pa.array(["male", "female"] * 3)))
    assert [one.name for one in find_identities(storage)] == ["0", "1", "2", "3", "4", "5"]
    storage = parquet(tmp_path / "plain", plain_table(), "a.parquet")
    assert [one.name for one in find_identities(storage)] == [f"a-{n}" for n in range(6)]


def test_a_person_by_number_and_by_role(tmp_path: Path) -> None:
    roles = pa.array(["clean", "protect", None, "ignore", "", "protect"])
    storage = parquet(tmp_path, plain_table(celeb_id=pa.array([7.0, 7.0, 7.0, 7.0, 8.0, 8.0]), role=roles))
    found = {one.name: (len(one.photos), len(one.clean)) for one in find_identities(storage)}
    assert found == {"7": (2, 1), "8": (2, 0)}
    people = pa.array([7.0, 7.5, 7.0, 7.0, 8.0, 8.0])
    storage = parquet(tmp_path / "odd", plain_table(person=people))
    with pytest.raises(ConfigError, match=r"row 1: column person is 7\.5, no whole number"):
        list(find_identities(storage))


def test_a_row_without_bytes_is_a_photo_that_fails(tmp_path: Path) -> None:
    table = pa.table({"image": pa.array([PHOTOS[0], None, b""], pa.binary()), "identity": ["ann"] * 3})
    storage = parquet(tmp_path, table)
    ((ann),) = find_identities(storage)
    for each in ann.photos[1:]:
        with pytest.raises(PhotoError, match="holds no photo"):
            shards.read(storage, each.key)
    with pytest.raises(PhotoError, match=r"row 3 of .* cannot be read"):
        shards.read(storage, ann.photos[0].key.replace("row=0", "row=3"))
    with pytest.raises(TooLargeError):
        shards.read(storage, ann.photos[0].key, 100)


def test_large_row_groups_are_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = parquet(tmp_path, hub_table(identity=["ann"] * 6))
    monkeypatch.setattr(shards, "CACHED", 1000)
    monkeypatch.setattr(shards, "STREAMED", 2)
    ((ann),) = find_identities(storage)
    assert [shards.read(storage, each.key) for each in ann.photos] == PHOTOS
    monkeypatch.setattr(shards, "MAX_CHUNK", 1000)
    with pytest.raises(PhotoError, match="write smaller ones"):
        shards.read(storage, ann.photos[0].key)


def test_a_file_that_changed_is_not_read(tmp_path: Path) -> None:
    storage = parquet(tmp_path, plain_table(identity=["ann"] * 6))
    ((ann),) = find_identities(storage)
    parquet(tmp_path, plain_table(identity=["bob"] * 6).slice(1))
    with pytest.raises(NotFoundError, match="was changed since it was listed"):
        shards.read(storage, ann.photos[0].key, None, ann.photos[0].tag)


def test_parquet_files_without_photos_and_damaged_ones_are_counted(tmp_path: Path) -> None:
    storage = parquet(tmp_path, plain_table(identity=["ann"] * 6))
    parquet(tmp_path, pa.table({"identity": ["ann"], "score": [1.0]}), "scores.parquet")
    (tmp_path / "in" / "bad.parquet").write_bytes(b"PAR1 no PAR1")
    left = LeftOut()
    assert [one.name for one in find_identities(storage, left=left)] == ["ann"]
    assert (left.names, left.unread) == (["scores.parquet"], 1)


def test_files_of_photos_beside_photos_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    storage = parquet(tmp_path, plain_table(identity=["ann"] * 6))
    storage.put("bob/1.png", PHOTOS[0])
    left = LeftOut()
    assert [one.name for one in find_identities(storage, left=left)] == ["bob"]
    assert left.unknown == 1 and "train-00000-of-00001.parquet" in caplog.text
    assert [one.name for one in find_identities(storage, layout="parquet")] == ["ann"]


def tar(path: Path, *files: tuple[str | tarfile.TarInfo, bytes], end: bool = True, **options: Any) -> Storage:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as out:
        for name, data in files:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            info.size = len(data) if info.isreg() else 0
            out.addfile(info, io.BytesIO(data))
    return open_storage(path.parent)


def test_members_of_tar_files_are_photos_of_their_samples(tmp_path: Path) -> None:
    storage = tar(
        tmp_path / "in" / "shard-000000.tar",
        ("000001.jpg", PHOTOS[0]),
        ("000001.cls", b"12"),
        ("000002.json", json.dumps({"identity": 12.0, "age": 30}).encode()),
        ("000002.png", PHOTOS[1]),
        ("a/000003.cls", b" \xef\xbb\xbfann\n"),
        ("a/000003.left.jpg", PHOTOS[2]),
        ("a/000003.right.webp", PHOTOS[3]),
        ("000004.txt", b"a portrait of a man"),
        ("000004.jpg", PHOTOS[4]),
        ("000004", PHOTOS[5]),
        ("._000004.jpg", b"x"),
        format=tarfile.PAX_FORMAT,
    )
    left = LeftOut()
    found = list(find_identities(storage, left=left))
    assert taken(storage, found) == {
        "12": [PHOTOS[0], PHOTOS[1]],
        "shard-000000.tar#member=000004": [PHOTOS[5]],
        "shard-000000.tar#member=000004.jpg": [PHOTOS[4]],
        "ann": [PHOTOS[2], PHOTOS[3]],
    }
    (ann,) = [one for one in found if one.name == "ann"]
    assert ann.photos[0].uri == f"{storage.uri}/shard-000000.tar#member=a/000003.left.jpg"
    assert ann.photos[0].size == len(PHOTOS[2])
    assert (left.unread, left.hidden, dict(left.not_photos)) == (0, 1, {".txt": 1})
    alone = list(index_identities(f"{storage.uri}/shard-000000.tar"))
    assert [one.name for one in alone] == [one.name for one in found]


def test_hostile_members_are_refused_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    link, hard, pipe, device = (tarfile.TarInfo(f"{n}.jpg") for n in range(2, 6))
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    hard.type, hard.linkname = tarfile.LNKTYPE, "1.jpg"
    pipe.type, device.type = tarfile.FIFOTYPE, tarfile.CHRTYPE
    names = ["../../etc/1.jpg", "/etc/2.jpg", "a\\b.jpg", "a//b.jpg", "1.jpg"]
    files = [(name, PHOTOS[0]) for name in ["1.jpg", *names]] + [(info, b"") for info in (link, hard, pipe, device)]
    storage = tar(tmp_path / "in" / "a.tar", *files)
    left = LeftOut()
    (one,) = find_identities(storage, left=left)
    assert [p.key for p in one.photos] == ["a.tar#member=1.jpg"]
    assert left.unread == 9
    for line in ("it is a link, a device", 'it has an empty, "." or ".." part', "two members of this name"):
        assert line in caplog.text


def test_damaged_tar_files_are_counted_as_not_read(tmp_path: Path) -> None:
    tar(tmp_path / "in" / "a.tar", ("1.jpg", PHOTOS[0]), ("2.jpg", PHOTOS[1]), ("3.jpg", PHOTOS[2]))
    data = (tmp_path / "in" / "a.tar").read_bytes()
    second = data.index(b"2.jpg")
    longname = tarfile.TarInfo("x")
    longname.type, longname.size = tarfile.GNUTYPE_LONGNAME, 8 << 30
    for broken, photos in (
        (data[: second + 3000], 1),
        (data[:second] + b"\xff" * 512 + data[second + 512 :], 1),
        (data[:second] + longname.tobuf(tarfile.GNU_FORMAT) + data[second + 512 :], 1),
        (b"this is no tar file" * 100, 0),
    ):
        (tmp_path / "in" / "a.tar").write_bytes(broken)
        left = LeftOut()
        found = list(find_identities(open_storage(tmp_path / "in"), left=left))
        assert (sum(len(one.photos) for one in found), left.unread > 0) == (photos, True)


class Bucket:
    """Counts what is read of one object."""

    uri = "s3://bucket/in"

    def __init__(self, key: str, data: bytes) -> None:
        self.key, self.data, self.read = key, data, [0, 0]

    def list(self, prefix: str = "", **_: Any) -> Iterator[Entry]:
        yield Entry(self.key, len(self.data), "etag")

    def part(self, key: str, start: int, length: int) -> bytes:
        assert key == self.key and 0 <= start < len(self.data)
        self.read = [self.read[0] + 1, self.read[1] + length]
        return self.data[start : start + length]

    def tag(self, key: str) -> None:
        return None

    def uri_of(self, key: str) -> str:
        return f"{self.uri}/{key}"


def test_a_tar_in_a_bucket_is_read_by_ranges(tmp_path: Path) -> None:
    files = [(f"{n:06d}.jpg", bytes(300_000)) for n in range(40)] + [("x.bin", bytes(20_000_000))]
    tar(tmp_path / "in" / "a.tar", *files, ("z.jpg", PHOTOS[0]))
    data = (tmp_path / "in" / "a.tar").read_bytes()
    bucket: Any = Bucket("a.tar", data)
    found = list(find_identities(bucket))
    assert len(found) == 41
    assert bucket.read[0] < 20 and bucket.read[1] < 15_000_000  # neither a request a member nor the large file
    bucket.read = [0, 0]
    (z,) = found[-1].photos
    assert shards.read(bucket, z.key, None, z.tag) == PHOTOS[0]
    assert bucket.read == [1, len(PHOTOS[0])]


def test_names_that_look_like_addresses_and_addresses_outside(tmp_path: Path) -> None:
    storage = tar(tmp_path / "in" / "a.tar", ("1.jpg", PHOTOS[0]))
    storage.put("b.parquet#row=1", PHOTOS[0])
    left = LeftOut()
    assert len(list(find_identities(storage, left=left))) == 1 and left.unread == 1
    found = named([storage.uri])
    with pytest.raises(NotFoundError):
        found.read(f"{storage.uri}/a.tar#member=2.jpg")
    with pytest.raises(OutsideError):
        found.read(f"{tmp_path}/a.tar#member=1.jpg")
    for hostile in ("a.tar#member=../1.jpg", "../a.tar#member=1.jpg", "c.parquet#row=0"):
        with pytest.raises(StorageError):
            found.read(f"{storage.uri}/{hostile}")


@pytest.mark.parametrize("alone", [False, True])
def test_a_plan_names_file_and_row_and_gives_the_actor_the_tag(tmp_path: Path, alone: bool) -> None:
    storage = parquet(tmp_path, hub_table(identity=["ann"] * 3 + ["bob"] * 3), "a.parquet")
    given = f"{storage.uri}/a.parquet" if alone else storage.uri
    config = run_config(None, {"input": given, "output": str(tmp_path / "out")})
    (tmp_path / "work").mkdir()
    plan = make_plan(config, folder=tmp_path / "work")
    assert (plan.identities, plan.photos, plan.left_out.unread) == (2, 6, 0)
    assert plan.todo_file is not None
    work = [json.loads(row["work"]) for row in plan.todo_file.rows()]
    listed = work[0]["photos"][0]
    assert listed["uri"] == f"{storage.uri}/a.parquet#row=0"
    assert listed["shard"] == f"{storage.tag('a.parquet')}@0"
    again = make_plan(config)
    assert again.plan_hash == plan.plan_hash
