"""Folders of copied models and encoders: one process at a time writes one, and its checksums make it complete."""

import contextlib
import fcntl
import shutil
from collections.abc import Iterator
from pathlib import Path

from dladiff.diffusion.bundle import CHECKSUMS, Pins
from dladiff.errors import StorageError


def finish(partial: Path, target: Path, pins: Pins) -> None:
    """Write the checksums of a complete copy, and give its folder the final name."""
    shutil.rmtree(partial / ".cache", ignore_errors=True)  # of the hub's client
    (partial / CHECKSUMS).write_text(pins.text(), encoding="utf-8")
    partial.rename(target)


@contextlib.contextmanager
def locked(target: Path) -> Iterator[None]:
    """Hold the lock of one model's folder. Raises StorageError when the models folder cannot be written."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with (target.parent / f".lock-{target.name}").open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise StorageError(f"{target.parent}: {why}; set DLADIFF_MODELS to a folder with enough free space") from error
