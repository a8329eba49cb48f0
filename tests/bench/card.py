"""All that is measured on a GPU, in one command and one file: `python -m tests.bench.card --json FILE`.

Each step is a process of its own, and its lines are stored as they come, so what is measured when the time is over is
kept. The most important steps come first. Random weights, no download. 25 minutes on one card of the H100's kind.

    python -m tests.bench.card --json FILE [--minutes 25] [--only NAME]...
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dladiff.settings.presets import GPU_MEMORY

LEAST = 20.0
"""Seconds that must be left for a step to start."""
KEPT = 2000
"""Lines of a step that are stored; the last ones count."""


def steps(model: Path) -> dict[str, list[str]]:
    """Return the arguments of Python by name of step, in their order; `model`: folder that the steps share."""
    there = ["--model", str(model)]
    identity, layer = ["-m", "tests.bench.identity", *there], ["-m", "tests.bench.gpu", *there]
    return {
        "identity, balanced": [*identity, "--preset", "balanced", "--flop"],
        "layer 1, ours and straight": layer,
        "captured steps are the eager ones": ["-m", "pytest", "-q", "-m", "gpu", "tests/gpu"],
        "identity, paper": [*identity, "--preset", "paper"],
        **{f"layer 1 within {size}": [*layer, "--gpu-memory", size] for size in GPU_MEMORY},
        "layer 1, formats": [*layer, "--formats"],
    }


def run(arguments: Sequence[str], seconds: float, line: Callable[[str], None]) -> int | None:
    """Run Python; pass on each line of its output; return its exit code, or None if the time was over."""
    over = threading.Event()
    command = [sys.executable, "-u", *arguments]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:

        def end() -> None:
            over.set()
            process.kill()

        timer = threading.Timer(seconds, end)
        timer.start()
        try:
            for text in process.stdout or ():
                line(text.rstrip("\n"))
            code = process.wait()
        finally:
            timer.cancel()
            process.kill()
    return None if over.is_set() else code


def facts() -> dict[str, Any]:
    """Return what the figures depend on: card, driver, versions."""
    import torch

    found: dict[str, Any] = {"torch": torch.__version__, "cuda": torch.version.cuda, "cores": os.cpu_count()}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found |= {"card": properties.name, "gib": round(properties.total_memory / 2**30, 1)}
    return found


def store(file: Path, report: dict[str, Any]) -> None:
    """Replace the file with the report."""
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(json.dumps(report, indent=1))
    partial.replace(file)


def measure(named: dict[str, list[str]], file: Path, minutes: float, say: Callable[[str], None] = print) -> bool:
    """Run the steps one after the other, each within what is left of the time; return whether all succeeded."""
    start, report = time.monotonic(), {"facts": facts(), "steps": {name: {"ended": "not started"} for name in named}}
    store(file, report)
    for name, arguments in named.items():
        left = 60 * minutes - (time.monotonic() - start)
        if left < LEAST:
            break
        say(f"== {name}: python {' '.join(arguments)}")
        lines: list[str] = []
        step: dict[str, Any] = {"command": ["python", *arguments], "lines": lines, "ended": "running"}
        report["steps"][name] = step

        def keep(text: str, lines: list[str] = lines) -> None:
            say(text)
            lines.append(text)
            del lines[:-KEPT]
            store(file, report)

        began = time.monotonic()
        code = run(arguments, left, keep)
        step["seconds"] = round(time.monotonic() - began, 1)
        step["ended"] = "time over" if code is None else code
        store(file, report)
    return all(step["ended"] == 0 for step in report["steps"].values())


def main() -> int:
    """Measure; exit code 1 if a step failed or was not finished."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=25.0)
    parser.add_argument("--only", action="append", help="only these steps")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        named = steps(Path(folder) / "model")
        if unknown := [name for name in options.only or () if name not in named]:
            parser.error(f"no step {unknown[0]!r}; known: {', '.join(named)}")
        if "card" not in facts():
            parser.error("no CUDA device here; python -m tests.bench.memory counts the memory without one")
        return 0 if measure({n: named[n] for n in options.only or named}, options.json, options.minutes) else 1


if __name__ == "__main__":
    sys.exit(main())
