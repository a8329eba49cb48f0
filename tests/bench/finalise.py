"""Seconds and memory of building the manifests: `python -m tests.bench.finalise --identities 10000`.

Records of the size of real ones (values of a run with the tiny profile) are written to a local folder, or with `--s3`
to a real S3 server on this machine. Each measurement runs in a process of its own: all records are read, some records
changed, nothing changed.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pipeline.config import RunConfig
from pipeline.records import commit as records
from pipeline.records.manifest import FILES, write_manifest
from pipeline.run.task_rows import TaskRows
from pipeline.storage.base import Storage
from pipeline.storage.keys import escape, task_name
from pipeline.storage.open import open_storage
from tests.integration.conftest import s3_server

Figures = dict[str, float | int | str]
_RESEARCH = "research and non-commercial use, as the training collection"
MODELS = [
    {"name": "tiny", "role": "surrogate", "sha256": "84e283cd" * 8, "licence": "see the model card"},
    {"name": "residual", "role": "encoder", "sha256": "06666357" * 8, "licence": _RESEARCH},
    {"name": "mobile", "role": "held_out", "sha256": "83f988cc" * 8, "licence": _RESEARCH},
    {"name": "centerface", "role": "detector", "sha256": "09189dea" * 8, "licence": "MIT"},
]
VERSIONS = {
    "python": "3.11.7",
    "torch": "2.13.0+cpu",
    "diffusers": "0.42.1",
    "transformers": "5.23.0",
    "onnxruntime": "1.32.0",
    "insightface": "2.1",
    "numpy": "2.4.6",
    "pillow": "13.0.0",
}


class Writer:
    """Makes records as the actor makes them, of photos that do not exist."""

    def __init__(self, storage: Storage, photos: int, run_id: str) -> None:
        config = RunConfig(input="in", output="out")
        self.storage, self.photos = storage, photos
        self.rows = TaskRows(run_id, config.seed, config.config_digest())
        self.layers = config.layer_settings(faces=True)

    def write(self, number: int) -> int:
        """Write the record of one identity; return its bytes."""
        rng = random.Random(f"{self.rows.run_id} {number}")
        name = f"n{number:06d}"
        uris = [f"s3://portraits/vggface2/train/{name}/{photo:04d}_01.jpg" for photo in range(self.photos)]
        work = {"identity": name, "part": 0, "parts": 1, "photos": uris}
        work["key"] = hashlib.sha256(f"{name} {self.rows.run_id}".encode()).hexdigest()
        how = {"models": MODELS, "versions": VERSIONS, "device": "cpu", "peak_memory_bytes": 933_539_840}
        how |= {"seconds": {step: round(rng.uniform(1, 500), 3) for step in ("read", "store", "detect")}}
        how |= {"started_at": records.now(), "finished_at": records.now()}
        rows = [self.rows.photo(work, uri) | self._measured(name, uri, rng) | how for uri in uris]
        summary = self.rows.identity(work, "done", "", 0) | how
        records.commit(self.storage, self.rows.task(work) | {"photos": rows, "identity_row": summary})
        return len(self.storage.get(f"done/{task_name(name, 0)}.json"))

    def _measured(self, name: str, uri: str, rng: random.Random) -> dict[str, Any]:
        sha, key = f"{rng.getrandbits(256):064x}", f"photos/{escape(name)}/{uri[-11:-4]}"
        box = [rng.uniform(0, 500) for _ in range(4)]
        face = {"box": box, "landmarks": [[rng.uniform(0, 500), rng.uniform(0, 500)] for _ in range(5)]}
        seen = [("residual", True), ("mobile", False)]
        row = {
            "source_sha256": f"{rng.getrandbits(256):064x}",
            "width": 512,
            "height": 512,
            "status": "protected",
            "faces": [face | {"score": rng.random()}],
            "similarity": [
                {"encoder": encoder, "optimised": used, "before": 1.0000001192092896, "after": rng.random()}
                for encoder, used in seen
            ],
            "geometry": None,
            "output_key": f"{key}.{sha[:12]}.png",
            "output_uri": self.storage.uri_of(f"{key}.{sha[:12]}.png"),
            "output_sha256": sha,
        }
        names = ("linf_face", "psnr", "psnr_face", "ssim", "ssimulacra2", "ssimulacra2_face", "retained")
        return row | {"linf": 12 / 255} | {name: rng.random() * 100 for name in names} | self.layers


def fill(uri: str, identities: int, photos: int, run_id: str = "run") -> Figures:
    """Write the records of the first `identities` identities."""
    storage = open_storage(uri, create=True)
    storage.tag("warm")  # makes the client before the threads share it
    writer = Writer(storage, photos, run_id)
    with ThreadPoolExecutor(8) as pool:
        size = sum(pool.map(writer.write, range(identities)))
    return {"records written": identities, "bytes of records, a photo": round(size / identities / photos)}


def build(uri: str, *, force: bool = False) -> Figures:
    """Build the manifests, as `dladiff finalise` and the end of a run do."""
    storage = open_storage(uri)
    begun, used = time.perf_counter(), time.process_time()
    count, people = write_manifest(storage, force=force)
    seconds, cpu = time.perf_counter() - begun, time.process_time() - used
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # Linux counts KiB
    figures: Figures = {"seconds": round(seconds, 1), "CPU seconds": round(cpu, 1), "peak RSS (MB)": round(peak)}
    sizes = {entry.key: entry.size for entry in storage.list("manifest/")}
    return figures | {
        "photos": count,
        "identities": people,
        "manifests (MB)": round(sum(sizes[k] for k in FILES) / 1e6),
    }


MEASUREMENTS: dict[str, Callable[[str], Figures]] = {
    "all records": lambda uri: build(uri, force=True),
    "changed records": build,
    "nothing changed": build,
}


def measured(name: str, uri: str) -> None:
    """Measure in a process of its own and print the figures."""
    command = [sys.executable, "-m", "tests.bench.finalise", "--measure", name, "--uri", uri]
    load = os.getloadavg()[0]
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    print(json.dumps({"measurement": name} | found | {"load before": round(load, 1)}), flush=True)


def main() -> None:
    """Print one JSON object a measurement."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--identities", type=int, default=10_000)
    parser.add_argument("--photos", type=int, default=1, help="of each identity")
    parser.add_argument("--changed", type=int, default=10, help="identities")
    parser.add_argument("--s3", action="store_true", help="on a real S3 server instead of a folder")
    parser.add_argument("--measure", choices=MEASUREMENTS)
    parser.add_argument("--uri")
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(MEASUREMENTS[args.measure](args.uri)))
        return
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        uri = stack.enter_context(s3_server(Path(folder))) + "/out" if args.s3 else f"{folder}/out"
        print(json.dumps(fill(uri, args.identities, args.photos)), flush=True)
        measured("all records", uri)
        fill(uri, args.changed, args.photos, "next")
        measured("changed records", uri)
        measured("nothing changed", uri)


if __name__ == "__main__":
    main()
