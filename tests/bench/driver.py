"""The driver's memory in a run of VGGFace2's size, with idle work: `python -m tests.bench.driver`, Linux.

The whole driver runs: plan of a synthetic listing, Ray Data, progress, totals, end. The actors answer at once, as for
protected photos, and store nothing.
"""

import argparse
import json
import os
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from rich.console import Console

from pipeline.config import RunConfig
from pipeline.run import driver, engine, plan
from pipeline.run.actor import ProtectIdentity
from pipeline.storage.open import open_storage
from tests.bench.planning import Synthetic


class Idle(ProtectIdentity):
    """Answers as for a task whose photos were all protected."""

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the result of a task."""
        work = json.loads(row["work"])
        work = self._planned(work) if "plan" in work else work
        result = {name: work[name] for name in ("identity", "part")} | {"status": "done", "reason": "", "seconds": 1.0}
        similarity = [{"encoder": "fake", "optimised": used, "before": 1.0, "after": 0.1} for used in (True, False)]
        scores = {"psnr": 31.5, "ssimulacra2": 75.1, "ssimulacra2_face": 75.2, "similarity": similarity}
        about = {"status": "protected", "reason": ""} | scores
        rows = [{"source_uri": photo["uri"]} | about for photo in work["photos"]]
        return {"result": json.dumps(result | {"photos": len(rows), "failed_photos": 0, "rows": rows})}


def in_process(config: RunConfig, todo: Any, target: Any, run_id: str, *_: Any) -> Iterator[dict[str, Any]]:
    """Yield the results of the tasks without Ray."""
    worker = Idle(config.to_dict(), run_id, config.config_digest())
    for row in todo.rows():
        yield json.loads(worker(row)["result"])


def resident() -> int:
    """Return the megabytes that this process has in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)


def peak() -> int:
    """Return the most megabytes that this process had in memory so far."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    """Print one JSON object: megabytes, and seconds where a name says so."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--photos", type=int, default=3_300_000)
    parser.add_argument("--people", type=int, default=9131)
    parser.add_argument("--without-ray", action="store_true", help="the tasks run in the driver: its own memory alone")
    parser.add_argument("--most", type=int, default=64, help="max_photos_per_task")
    args = parser.parse_args()
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[2])
    source, figures = Synthetic(args.photos, args.people), {"photos": args.photos, "load": round(os.getloadavg()[0], 1)}
    begun, real, ended = time.perf_counter(), engine.results, [0.0]

    def opened(uri: str, **options: Any) -> Any:
        return source if uri == source.uri else open_storage(uri, **options)

    def results(config: RunConfig, *arguments: Any) -> Iterator[dict[str, Any]]:
        figures.update({"after the plan": resident(), "plan, seconds": round(time.perf_counter() - begun)})
        stream = in_process(config, *arguments) if args.without_ray else real(config, *arguments)
        for number, result in enumerate(stream):
            if not number:
                figures["at the first result"] = resident()
            yield result
        figures.update({"at the last result": resident(), "peak until then": peak()})
        ended[0] = time.perf_counter()

    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(plan, "open_storage", opened),
        mock.patch.object(engine, "ProtectIdentity", Idle),
        mock.patch.object(driver, "results", results),
    ):
        config = RunConfig(
            input=source.uri, output=f"{folder}/out", layout="vggface2", max_photos_per_task=args.most, max_actors=2
        )
        summary = driver.protect(config, console=Console(quiet=True))
        figures |= {"tasks": summary.todo, "peak": peak(), "seconds": round(time.perf_counter() - begun)}
        figures["from the last result to the end, seconds"] = round(time.perf_counter() - ended[0], 1)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
