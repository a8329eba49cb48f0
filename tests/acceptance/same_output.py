"""Compare the outputs of two checkouts for the demo's photos: bytes of the photos and columns of the manifest.

    python tests/acceptance/same_output.py --before ../other-checkout --after . --work demo/same

Each checkout runs its own code with this interpreter. A refactoring must show no difference.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

RUN_ONLY = {"run_id", "output_uri", "started_at", "finished_at", "seconds", "peak_memory_bytes"}
"""Columns that differ between two runs of the same code."""
SETTINGS = {"config_digest", "finetuning_layer", "zero_shot_layer"}
"""Columns that hold settings by name. They differ where a setting was renamed, added or removed: noted, not counted."""


def protect(checkout: Path, photos: Path, output: Path) -> list[dict[str, Any]]:
    """Run `protect` with the code of a checkout; return the rows of its photo manifest, sorted by source."""
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    if not photos.exists():
        subprocess.run([sys.executable, "-m", "pipeline.demo", str(photos)], cwd=checkout, env=environment, check=True)
    command = [sys.executable, "-m", "pipeline", "protect", "--input", str(photos), "--output", str(output), "--quiet"]
    subprocess.run(command, cwd=checkout, env=environment, check=True)
    rows: list[dict[str, Any]] = pq.read_table(output / "manifest" / "photos.parquet").to_pylist()
    return sorted(rows, key=lambda row: str(row["source_uri"]))


def differences(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> list[str]:
    """Return one line for each photo and column that differs; a column that only one side has is named once."""
    found = []
    if [row["source_uri"] for row in before] != [row["source_uri"] for row in after]:
        return ["the photos are not the same"]
    columns = set(before[0]) ^ set(after[0])
    found += [f"only one side has the column {name}" for name in sorted(columns)]
    for old, new in zip(before, after, strict=True):
        for name in sorted((set(old) & set(new)) - RUN_ONLY - SETTINGS):
            if old[name] != new[name]:
                found.append(f"{old['source_uri']}: {name}: {str(old[name])[:80]} is now {str(new[name])[:80]}")
    return found


def main() -> int:
    """Return 0 if nothing differs, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("before", "after", "work"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    given = parser.parse_args()
    work = given.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    sides = [protect(getattr(given, n).resolve(), work / "photos", work / n) for n in ("before", "after")]
    found = differences(*sides)
    if renamed := sorted(n for n in SETTINGS if any(a.get(n) != b.get(n) for a, b in zip(*sides, strict=False))):
        print(f"note: names of settings differ in {', '.join(renamed)}")
    for line in found:
        print(line)
    print(f"{len(sides[0])} photos compared, {len(found)} differences")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
