"""Which decoder processes run."""

import os
from pathlib import Path

from tests.support.kept import SHELF


def decoders_of(pid: int | None = None) -> set[int]:
    """Return the decoders among the children of a process, by default this one; without those kept for tests."""
    kept = {decoder._process.pid for decoder in SHELF}
    lists = Path(f"/proc/{pid or os.getpid()}/task").glob("*/children")
    found = {int(child) for file in lists for child in file.read_text().split() if decodes(child)}
    return found - kept


def decodes(pid: str) -> bool:
    """Return whether a process decodes photos."""
    try:
        return b"pipeline.sources.decoder" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
