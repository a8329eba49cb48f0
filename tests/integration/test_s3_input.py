"""Photos, index files, shards and models that are read from a real S3 server."""

import hashlib
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dladiff.diffusion.bundle import damage, read_pins
from dladiff.errors import ModelError, NotFoundError, StorageError
from dladiff.settings.schema import method_config
from pipeline.models.fetch import fetch, mirror, on_this_machine
from pipeline.models.fingerprint import faces, fingerprint_model, missing
from pipeline.sources import index_file, shards
from pipeline.sources.addresses import read_allowed
from pipeline.sources.find import find_identities
from pipeline.sources.index_file import index_identities
from pipeline.sources.kinds import LOOK
from pipeline.sources.left_out import LeftOut
from pipeline.sources.originals import named
from pipeline.storage.s3 import S3Storage
from tests.support.photo_bytes import flat_photo

pytestmark = pytest.mark.ray


@pytest.fixture
def s3(s3_uri: str) -> Iterator[S3Storage]:
    storage = S3Storage(s3_uri)
    yield storage
    storage.close()


def test_an_index_names_objects_and_one_wrong_bucket_ends_nothing(
    s3: S3Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_file, "PAGE", 3)  # the photo of "many" is not among its first
    for number in range(5):
        s3.put(f"many/{number}.jpg", b"1")
    s3.put("many/9.jpg", b"123")
    s3.put("few/1.jpg", b"12")
    rows = ["many/9.jpg", "few/1.jpg", "few/gone.jpg", "s3://missing-bucket/1.jpg", "/etc/passwd"]
    s3.put("index.csv", "\n".join(["identity,uri", *(f"ann,{row}" for row in rows)]).encode())
    (ann,) = index_identities(s3.uri_of("index.csv"))
    tag = hashlib.md5(b"123", usedforsecurity=False).hexdigest()
    assert {p.uri: (p.size, p.tag) for p in ann.photos if p.size} == {
        s3.uri_of("many/9.jpg"): (3, tag),
        s3.uri_of("few/1.jpg"): (2, s3.tag("few/1.jpg")),
    }
    assert len(ann.photos) == 5
    assert [p.uri for p in ann.photos if p.tag.startswith("refused: ")] == ["/etc/passwd"]
    (allowed,) = index_identities(s3.uri_of("index.csv"), ["/etc"])  # an index in a bucket has no folder here
    assert [p.uri for p in allowed.photos if p.size and p.uri.startswith("/")] == ["/etc/passwd"]


def test_identities_from_a_bucket(s3: S3Storage) -> None:
    for key in ("103/set_A_1.jpg", "103/set_B_2.jpg", "ann/1.jpg", "top.jpg"):
        s3.put(key, b"x")
    found = list(find_identities(s3))
    assert [(i.name, len(i.photos), len(i.clean)) for i in found] == [("103", 1, 1), ("ann", 1, 0), ("top", 1, 0)]
    assert found[1].photos[0].uri == f"{s3.uri}/ann/1.jpg"


def test_only_a_part_of_an_object_is_read_to_see_what_it_is(s3: S3Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    s3.put("ann/photo", flat_photo(1) + bytes(100_000))
    s3.put("ann/notes", b"text")
    s3.put("ann/empty", b"")
    s3.put("ann/1.jpg", flat_photo(2))
    s3.put("ann/list.txt", b"text")
    asked = []
    s3._client().meta.events.register("before-call.s3.GetObject", lambda params, **_: asked.append(params["headers"]))
    left = LeftOut()
    (ann,) = find_identities(s3, left=left)
    assert [photo.key for photo in ann.photos] == ["ann/1.jpg", "ann/photo"]
    assert (left.counts(), left.unknown) == ({"not_photos": 3, "hidden": 0, "unread": 0}, 2)
    assert [headers["Range"] for headers in asked] == [f"bytes=0-{LOOK - 1}"] * 2
    assert s3.part("ann/photo", 4, 10) == flat_photo(1)[4:14]
    with pytest.raises(NotFoundError):
        s3.part("ann/2.jpg", 0, 10)


def test_photos_inside_of_files_in_a_bucket(s3: S3Storage) -> None:
    table, shard = io.BytesIO(), io.BytesIO()
    pq.write_table(
        pa.table({"image": [flat_photo(n) for n in range(6)], "person": [1, 2] * 3}), table, row_group_size=2
    )
    s3.put("data/a.parquet", table.getvalue())
    with tarfile.open(fileobj=shard, mode="w") as tar:
        for name, data in (("7.cls", b"2"), ("7.jpg", flat_photo(7)), ("8.jpg", flat_photo(8))):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    s3.put("data/b.tar", shard.getvalue())
    found = {one.name: one for one in find_identities(s3)}
    assert {name: len(one.photos) for name, one in found.items()} == {"1": 3, "2": 4, "8": 1}
    sources = named([s3.uri])
    for photo in (photo for one in found.values() for photo in one.photos):
        data = shards.read(s3, photo.key, 100_000, photo.tag)
        assert data == sources.read(photo.uri) and data.startswith(b"\x89PNG")
    (last,) = found["8"].photos
    assert last.uri == f"{s3.uri}/data/b.tar#member=8.jpg"
    alone = f"{s3.uri}/data/a.parquet"
    assert [one.name for one in index_identities(alone)] == ["1", "2"]
    assert read_allowed(f"{alone}#row=3", (), {}, tag=found["2"].photos[1].tag) == flat_photo(3)


def test_a_model_goes_to_a_bucket_and_comes_to_a_worker(
    s3: S3Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DLADIFF_MODELS", str(tmp_path / "models"))
    s3.put("there", b"1")
    uri = f"{s3.uri}/models/tiny"
    with pytest.raises(ModelError, match="dladiff models mirror"):
        fingerprint_model(uri)
    pins = mirror("embedded", uri)
    assert fingerprint_model(uri) == f"sha256:{pins.digest()}"
    settings = {"profile": "tiny", "preset": None, "overrides": {"model": uri, "visibility": 0}}
    folder = Path(on_this_machine(settings, S3Storage)["overrides"]["model"])
    assert read_pins(folder) == pins and damage(folder, pins) == {}
    settings["overrides"] = {"model": uri}  # the latent push needs the VAE alone
    lent = read_pins(Path(on_this_machine(settings, S3Storage)["overrides"]["model"]))
    assert lent is not None and lent.sha256 == pins.within("vae/").sha256 != pins.sha256
    missing = tmp_path / "missing"
    with pytest.raises(NotFoundError, match="no such object"):
        s3.get_file("nothing", missing)
    with pytest.raises(StorageError, match="check the disk"):
        s3.get_file("there", tmp_path / "no folder" / "file")


def test_encoders_go_to_a_bucket_and_come_to_a_worker(
    s3: S3Storage, tmp_path: Path, assets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DLADIFF_MODELS", "DLADIFF_FACES", "HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    pack = assets / "insightface_pack" / "mini_y1"
    uri = f"{s3.uri}/encoders/buffalo_l"
    config = method_config("tiny", None, {"encoders": [uri]})
    assert "holds no encoder" in missing(config)[0]
    pins = mirror(f"encoder:{pack}", uri)
    assert missing(config) == [] and faces(uri) == f"sha256:{pins.digest()}"
    settings = {"profile": "tiny", "preset": None, "overrides": {"encoders": [uri]}}
    (local,) = on_this_machine(settings, S3Storage)["overrides"]["encoders"]
    assert Path(local).name == "buffalo_l" and {f.name for f in pack.glob("*.onnx")} <= {
        f.name for f in Path(local).iterdir()
    }
    assert on_this_machine(settings, S3Storage)["overrides"]["encoders"] == [local]  # copied once

    against: dict[str, Any] = {"profile": "tiny", "preset": None, "overrides": {"encoders": ["adapter:faceid"]}}
    faceid = method_config("tiny", None, against["overrides"])
    assert "adapter faceid needs" in missing(faceid)[0] and missing(faceid, f"{s3.uri}/encoders") == []
    content = faces("adapter:faceid.id", f"{s3.uri}/encoders")
    on_this_machine(against | {"encoders_from": f"{s3.uri}/encoders"}, S3Storage)
    assert missing(faceid) == [] and faces("adapter:faceid.id") == content

    name = next(path for path in pins.sha256 if path.startswith("rec"))
    s3.put(f"encoders/buffalo_l/{name}", b"damaged")
    with pytest.raises(ModelError, match="mirror it again"):
        fetch("encoder:antelopev2", uri)


def test_originals_are_read_below_the_prefix_and_in_no_other_bucket(
    s3: S3Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = S3Storage(s3.uri + "x")
    for storage in (s3, beside):
        storage.put("ann/1.png", b"photo")
    asked: list[str] = []
    real = S3Storage.get
    monkeypatch.setattr(S3Storage, "get", lambda own, key, limit=None: asked.append(key) or real(own, key, limit))
    sources = named([s3.uri])
    assert sources.read(s3.uri_of("ann/1.png")) == b"photo"
    assert sources.photos(f"{s3.uri}/ann") == [(s3.uri_of("ann/1.png"), s3.tag("ann/1.png"))]
    foreign = (beside.uri_of("ann/1.png"), "s3://foreign/ann/1.png", f"{s3.uri}/../x", f"{s3.uri}//ann/1.png", s3.uri)
    for uri in foreign:
        with pytest.raises(StorageError, match=r"outside of the input|refused key"):
            sources.read(uri)
    assert [key for key in asked if key not in ("../x", "/ann/1.png")] == ["ann/1.png"]
    with pytest.raises(StorageError, match="more than 3 bytes"):
        sources.read(s3.uri_of("ann/1.png"), 3)
    opened: list[Any] = [beside, *sources.roots.values()]
    for one in opened:
        one.close()
