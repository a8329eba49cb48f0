"""One task of an actor, without Ray."""

import json
from typing import Any

from pipeline.config import RunConfig
from pipeline.run.actor import ProtectIdentity
from tests.support.photo_bytes import rgb, saved

Row = dict[str, Any]


def png(shade: int) -> bytes:
    return saved(rgb().point(lambda value: max(value - shade, 0)), "PNG")


def call(config: RunConfig, identity: str = "ann", **more: Any) -> Row:
    photos = [{"key": f"ann/{i}.png", "uri": f"{config.input}/ann/{i}.png"} for i in range(3)]
    work = {"identity": identity, "part": 0, "parts": 1, "key": "k", "replaces": None, "photos": photos, "clean": []}
    result: Row = json.loads(ProtectIdentity(config.to_dict(), "r", "d")({"work": json.dumps(work | more)})["result"])
    return result
