"""Outputs of `dladiff protect` without the method: photos of known levels, one level of noise, hostile names."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.config import RunConfig
from pipeline.records.commit import Index
from pipeline.records.manifest import ParquetFile, write_manifest
from pipeline.records.schema import PLAN
from pipeline.run.actor import ProtectIdentity
from pipeline.run.plan import Plan, write_plan
from pipeline.storage.base import Storage
from pipeline.storage.open import open_storage
from tests.support.kept import kept_decoders
from tests.support.photo_bytes import rgb, saved

HOSTILE = "<script>alert(1)</script>\"'&amp;\u202etxt"
HOSTILE_FILE = "\"><img src=x onerror=alert(2)>'{{ 7*7 }}.png"


def portrait(shade: int) -> bytes:
    """A photo of 96 x 80 px whose levels depend on `shade`."""
    return saved(rgb().resize((96, 80)).point(lambda value: max(value - shade, 0)), "PNG")


def protected_output(folder: Path, people: Mapping[str, Sequence[str]], visibility: float = 75.0) -> Storage:
    """Protect `people` (identity to file names) with one grey level of noise, as a run does; build the manifest."""
    source, target = open_storage(folder / "in", create=True), open_storage(folder / "out", create=True)
    config = RunConfig(input=source.uri, output=target.uri, protector="tests.support.fakes:AddNoise")
    config = config.replaced(method={"visibility": visibility})
    plan = Plan(Index(), inputs=(source.uri,), plan_file=ParquetFile(folder, PLAN))
    assert plan.plan_file is not None
    actor = ProtectIdentity(config.to_dict(), "r", "d")
    for place, (identity, names) in enumerate(people.items()):
        keys = [f"{place}/{name}" for name in names]
        for shade, key in enumerate(keys):
            source.put(key, b"broken" if "broken" in key else portrait(10 * place + shade))
        photos = [{"key": key, "uri": source.uri_of(key)} for key in keys]
        work = {"identity": identity, "part": 0, "parts": 1, "key": "k", "replaces": None, "photos": photos}
        with kept_decoders():
            actor({"work": json.dumps(work | {"clean": []})})
        plan.plan_file.add({"identity": identity, "part": 0, "key": "k", "uris": [photo["uri"] for photo in photos]})
    plan.plan_file.close()
    write_plan(target, plan, "r")
    plan.plan_file.path.unlink()
    write_manifest(target)
    return target
