"""What the batch costs beside the method, on a real S3 server: `python -m tests.bench.machinery`.

First a few identities whose work is a sleep of ten seconds, on one actor: the share of time that is not the sleep.
Then many identities without work: how many a second, and the driver's memory. With `--latency` the storage is that many
milliseconds away, for each request.
"""

import argparse
import contextlib
import json
import os
import resource
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import numpy as np
import skimage.data
from rich.console import Console

from pipeline.config import RunConfig
from pipeline.records.commit import load_many
from pipeline.records.manifest import write_manifest
from pipeline.records.output_format import encode_png
from pipeline.run import driver as run
from pipeline.run import engine
from pipeline.run.plan import make_plan
from pipeline.storage.open import open_storage
from tests.faults.proxy import FaultyProxy
from tests.integration.conftest import s3_server


def fill(uri: str, identities: int, photos: int, side: int) -> None:
    """Write `identities` folders of `photos` portraits, side x side px: one real photo, shifted."""
    storage = open_storage(uri)
    portrait = skimage.data.astronaut()[:side, :side]
    data = [encode_png(np.ascontiguousarray(np.roll(portrait, 7 * n, axis=0))) for n in range(photos)]
    storage.put("warm.txt", b"")  # makes the client before the threads share it
    with ThreadPoolExecutor(16) as pool:
        keys = [(f"{i:05d}/{n}.png", data[n]) for i in range(identities) for n in range(photos)]
        list(pool.map(lambda pair: storage.put(*pair), keys))


def timed(label: str, figures: dict[str, Any], call: Any) -> Any:
    """Call and note the seconds."""
    start = time.perf_counter()
    result = call()
    figures[label] = round(time.perf_counter() - start, 3)
    return result


def sleeping(uri: str, identities: int, seconds: float) -> dict[str, Any]:
    """One actor, identities of four 512 px photos whose work is a sleep."""
    fill(f"{uri}/in", identities, 4, 512)
    os.environ["DLADIFF_FAKE_SECONDS"] = str(seconds)
    config = RunConfig(
        input=f"{uri}/in", output=f"{uri}/out", protector="tests.support.fakes:Slow", min_actors=1, max_actors=1
    )
    figures: dict[str, Any] = {"identities": identities, "sleep": seconds}
    timed("plan", figures, lambda: make_plan(config))
    timed("whole run, with the start of Ray", figures, lambda: run.protect(config, console=Console(quiet=True)))
    output = open_storage(f"{uri}/out")
    records = [record for _, record in load_many(output, sorted(e.key for e in output.list("done/")))]
    rows = sorted((record["identity_row"] for record in records), key=lambda row: row["started_at"])
    rows = rows[1:]  # the first one waits for the actor's imports, once a run
    times = [(datetime.fromisoformat(r["started_at"]), datetime.fromisoformat(r["finished_at"])) for r in rows]
    gaps = [(b[0] - a[1]).total_seconds() for a, b in pairwise(times)]
    span = (times[-1][1] - times[0][0]).total_seconds()
    figures["gap between two identities, median"] = round(median(gaps), 3)
    for step in ("read", "store"):
        figures[f"{step} four photos, median"] = round(median(row["seconds"][step] for row in rows), 3)
    figures["share outside the sleep"] = f"{1 - seconds * len(rows) / span:.2%}"
    timed("finalise, all records read", figures, lambda: write_manifest(output, force=True))
    timed("second run, nothing new", figures, lambda: run.protect(config, console=Console(quiet=True)))
    return figures


def idle(uri: str, identities: int) -> dict[str, Any]:
    """Identities of one small photo whose work is nothing."""
    fill(f"{uri}/in", identities, 1, 64)
    config = RunConfig(input=f"{uri}/in", output=f"{uri}/out", protector="tests.support.fakes:AddNoise")
    figures: dict[str, Any] = {"identities": identities}
    timed("plan", figures, lambda: make_plan(config))
    streamed: list[float] = []
    real = engine.results

    def results(*arguments: Any) -> Iterator[dict[str, Any]]:
        for result in real(*arguments):
            streamed.append(time.perf_counter())
            yield result

    mock.patch.object(run, "results", results).start()
    timed("whole run", figures, lambda: run.protect(config, console=Console(quiet=True)))
    figures["identities a second, first result to last"] = round(identities / (streamed[-1] - streamed[0]), 1)
    figures["driver's peak memory, MB"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    output = open_storage(f"{uri}/out")
    timed("finalise, all records read", figures, lambda: write_manifest(output, force=True))
    timed("second run, nothing new", figures, lambda: run.protect(config, console=Console(quiet=True)))
    return figures


def main() -> None:
    """Print one JSON object a measurement; seconds unless a name says otherwise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sleepers", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--idle", type=int, default=10_000)
    parser.add_argument("--latency", type=float, default=0.0, help="milliseconds that the storage is away")
    options = parser.parse_args()
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[2])
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        bucket = stack.enter_context(s3_server(folder))
        if options.latency:
            far = stack.enter_context(FaultyProxy(os.environ["AWS_ENDPOINT_URL"], options.latency / 1000))
            os.environ["AWS_ENDPOINT_URL"] = far.endpoint
        if options.sleepers:
            print(json.dumps(sleeping(f"{bucket}/sleep", options.sleepers, options.seconds), indent=1), flush=True)
        if options.idle:
            print(json.dumps(idle(f"{bucket}/idle", options.idle), indent=1), flush=True)


if __name__ == "__main__":
    main()
