"""What an actor's start costs: a model of full size read from a disk, and again from the page cache.

    python -m tests.bench.start [--folder DIR]

Writes a model in the layout of SD 2.1 with random weights (5 GB; kept in --folder, or found there). Then processes of
their own load it as an actor does, checksums included: one after its pages were dropped from the cache, one with them
in the cache, two at once. For each: seconds, seconds of its processor, bytes read from the disk, and memory: its own
(dirty pages), and what it maps of the page cache, which processes share. On Linux only.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

OWN = ("Private_Dirty", "Shared_Dirty")
CACHED = ("Private_Clean", "Shared_Clean")


def drop(folder: Path) -> None:
    """Drop the pages of a folder's files from the cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def load(folder: Path) -> dict[str, float]:
    """Load the model in this process; return what it cost beyond Python's imports."""
    import torch
    from diffusers.utils import logging as diffusers_logging

    from dladiff.diffusion.loading import load_base_model

    diffusers_logging.disable_progress_bar()
    torch.set_num_threads(1)
    start, used, read = time.perf_counter(), time.process_time(), disk()
    model = load_base_model(folder, torch.device("cpu"))
    found = {"seconds": time.perf_counter() - start, "processor": time.process_time() - used}
    found["read"] = disk() - read
    rows = (line.split() for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    sizes = {row[0].rstrip(":"): 1024 * float(row[1]) for row in rows}
    for name, kinds in (("own", OWN), ("cached", CACHED)):
        found[name] = sum(sizes[kind] for kind in kinds)
    assert model.name
    return found


def disk() -> float:
    """Return the bytes that this process has read from a disk."""
    rows = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return float(rows["read_bytes"])


def started(folder: Path) -> "subprocess.Popen[str]":
    """Start a process that loads the model."""
    command = [sys.executable, "-m", "tests.bench.start", "--load", str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def print_rows(name: str, processes: list["subprocess.Popen[str]"]) -> None:
    """Print a Markdown row for each process."""
    for process in processes:
        text, _ = process.communicate()
        if process.returncode:
            sys.exit(f"{name}: exit code {process.returncode}")
        row = json.loads(text.splitlines()[-1])
        sizes = " | ".join(f"{row[size] / 2**30:.2f}" for size in ("read", "own", "cached"))
        print(f"| {name} | {row['seconds']:.1f} | {row['processor']:.1f} | {sizes} |", flush=True)


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.load:
        print(json.dumps(load(given.load)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        if not (folder / "model_index.json").exists():
            from tests.bench.speed import sd21

            folder.mkdir(parents=True, exist_ok=True)
            sd21(folder, 1)
        print("| start | seconds | processor | GiB read from the disk | GiB of its own | GiB mapped from the cache |")
        print("|---" * 6 + "|", flush=True)
        drop(folder)
        print_rows("first on the node", [started(folder)])
        print_rows("second, pages in the cache", [started(folder)])
        print_rows("two at once, pages in the cache", [started(folder), started(folder)])
        drop(folder)
        print_rows("two at once, nothing in the cache", [started(folder), started(folder)])


if __name__ == "__main__":
    main()
