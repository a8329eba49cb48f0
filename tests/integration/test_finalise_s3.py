"""Records, settings and manifests on a real S3 server; the tasks run in this process."""

import pytest

from pipeline.records.index import read_index
from pipeline.run import driver
from pipeline.run.verify import verify
from tests.support.in_process import Scene, in_process
from tests.support.photo_bytes import flat_photo

pytestmark = pytest.mark.ray  # the tier with the S3 server


def test_a_change_on_s3_is_merged_into_the_manifests(s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "results", in_process)
    scene = Scene(s3_uri)
    scene.fill()
    assert scene.run().done == 3
    scene.source.put("bob/1.png", flat_photo(190))
    scene.source.put("abe/1.png", flat_photo(191))
    assert scene.run().done == 2
    assert [row["identity"] for row in scene.manifest()] == ["abe"] + ["ann"] * 5 + ["bob"] + ["cleo"] * 2
    assert read_index(scene.output).fresh and len(list(scene.output.list("settings/"))) > 0
    found = verify(scene.output)
    assert (found.photos, found.faults, found.orphans) == (9, [], [])
    assert scene.equal_to_a_rebuilt_one()
