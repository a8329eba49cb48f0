"""A run with a displaced face on the tiny profile's real networks: rows, stored photos, and `verify`."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.config import RunConfig
from pipeline.records import commit as records
from pipeline.records.manifest import write_manifest
from pipeline.run.actor import ProtectIdentity
from pipeline.run.verify import verify
from pipeline.sources.decode import decode
from pipeline.storage.open import open_storage
from tests.golden.make_tiny import photo

pytestmark = pytest.mark.networks


def test_rows_say_what_was_displaced_and_verify_passes(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    wide = np.pad(photo(), ((0, 0), (0, 60), (0, 0)), mode="edge")
    for name, pixels in (("face", wide), ("plain", np.full_like(wide, 127))):
        Image.fromarray(pixels).save(tmp_path / "in" / f"{name}.png")
    source, target = open_storage(tmp_path / "in"), open_storage(tmp_path / "out", create=True)
    method = {"experimental": {"geometry": 2.0}, "joint": {"steps": 3}}
    config = RunConfig(input=source.uri, output=target.uri, method=method)
    photos = [{"key": f"{name}.png", "uri": source.uri_of(f"{name}.png")} for name in ("face", "plain")]
    work = {"identity": "ann", "part": 0, "parts": 1, "key": "k", "replaces": None, "photos": photos, "clean": []}
    done = json.loads(ProtectIdentity(config.to_dict(), "r", "d")({"work": json.dumps(work)})["result"])
    assert done["status"] == "done", done["reason"]
    write_manifest(target)
    found = verify(target, [source.uri])
    assert (found.photos, found.compared, found.faults) == (2, 2, [])

    rows = {Path(row["source_uri"]).stem: row for row in records.load_record(target, "done/ann.json")["photos"]}
    moved, plain = rows["face"], rows["plain"]
    assert plain["geometry"] is None and "geometry" not in plain["reason"]
    assert moved["geometry"]["largest"] == 2.0
    assert "geometry: the face is displaced by up to 2 % of the distance between the eyes" in moved["reason"]
    assert moved["linf"] > 12 / 255  # of the original: more than the bound of the pixels
    x0, y0, x1, y1 = moved["geometry"]["box"]
    change = np.abs(decode(target.get(moved["output_key"]), max_pixels=10**6).pixels.astype(int) - wide).max(2)
    change[y0:y1, x0:x1] = 0
    assert 0 <= x0 < x1 <= wide.shape[1] and 0 <= y0 < y1 <= wide.shape[0] and change.max() <= 12
