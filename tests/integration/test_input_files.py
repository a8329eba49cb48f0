"""Whole runs on a real Ray, with a fake protector, over files of all kinds; `verify` reads their originals."""

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pillow_heif
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.config import RunConfig
from pipeline.run.driver import protect
from pipeline.run.verify import verify
from pipeline.storage.open import open_storage
from tests.support.photo_bytes import flat_photo, saved

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("collected"), pytest.mark.filterwarnings("ignore")]


def run(source: Path | str, target: Path) -> Any:
    return protect(RunConfig(input=str(source), output=str(target), protector="tests.support.fakes:AddNoise"))


def rows(target: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(target / "manifest" / "photos.parquet").to_pylist()
    return found


def test_photos_are_protected_by_their_bytes_and_the_rest_is_counted(tmp_path: Path) -> None:
    source, target = open_storage(tmp_path / "in", create=True), tmp_path / "out"
    pillow_heif.register_heif_opener()
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (72, 80, 3), np.uint8))
    for name, data in {
        "1.hif": saved(image, "HEIF"), "2.avif": saved(image, "AVIF"), "3": saved(image, "PNG"),
        "4.jpg?w=300": saved(image, "JPEG")[:-2], "5.jp2": saved(image, "JPEG2000"), "6.txt": b"text", "7": b"text",
        "@eaDir/1.jpg": b"x",
    }.items():  # fmt: skip
        source.put(f"ann/{name}", data)
    (tmp_path / "in" / "ann" / "a\\b.jpg").write_bytes(flat_photo(1))
    first = run(source.uri, target)
    assert (first.planned, first.photos, first.done, first.lost_photos, first.unread) == (1, 5, 1, 1, 1)
    assert first.exit_code == 1 and first.left_out == {"not_photos": 2, "hidden": 1, "unread": 1}
    found = {Path(row["source_uri"]).name: (row["status"], row["reason"]) for row in rows(target)}
    assert {name: status for name, (status, _) in found.items()} == {
        "1.hif": "protected", "2.avif": "protected", "3": "protected", "4.jpg?w=300": "protected", "5.jp2": "failed",
    }  # fmt: skip
    assert "JPEG 2000 is not supported" in found["5.jp2"][1] and "end marker is missing" in found["4.jpg?w=300"][1]
    checked = verify(open_storage(target))
    assert (checked.photos, checked.compared, checked.faults) == (4, 4, [])
    again = run(source.uri, target)
    assert (again.todo, again.skipped, again.exit_code) == (0, 1, 1)


@pytest.mark.parametrize("kind", ["parquet", "parquet alone", "tar"])
def test_photos_inside_of_files_are_protected_in_place(tmp_path: Path, kind: str) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    if kind == "tar":
        with tarfile.open(source / "a.tar", "w") as tar:
            for n in range(4):
                for name, data in ((f"{n}.cls", str(n % 2).encode()), (f"{n}.png", flat_photo(40 * n))):
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    else:
        table = pa.table({"image": [flat_photo(40 * n) for n in range(4)], "identity": [0, 1, 0, 1]})
        pq.write_table(table, source / "a.parquet")
    first = run(source / "a.parquet" if kind == "parquet alone" else source, target)
    assert (first.planned, first.photos, first.done, first.exit_code) == (2, 4, 2, 0)
    uris = sorted(row["source_uri"] for row in rows(target))
    what = "a.tar#member={}.png" if kind == "tar" else "a.parquet#row={}"
    assert uris == [f"{source}/{what.format(n)}" for n in range(4)]
    checked = verify(open_storage(target))
    assert (checked.photos, checked.compared, checked.faults) == (4, 4, [])
