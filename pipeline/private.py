"""A process that handles people's photos: its new files are private, and it dumps no core."""

import contextlib
import os
import re
import resource
from collections.abc import Iterator

from dladiff.errors import ConfigError

UMASK = "077"  # octal: new files and folders are their owner's alone
VARIABLE = "DLADIFF_UMASK"
_OCTAL = re.compile(r"(?:0o)?[0-7]{1,4}")
_DIGITS = (0, 2, 7)  # takes from the group, or from others: nothing, writing, everything


def chosen_umask() -> str:
    """Return the umask of DLADIFF_UMASK, by default UMASK. Raises ConfigError."""
    text = os.environ.get(VARIABLE) or UMASK
    if fault := umask_fault(text):
        raise ConfigError([f"{VARIABLE}: {fault}"])
    return text


def umask_fault(value: str | int) -> str | None:
    """Return what is wrong with a umask: octal text, or a number."""
    if not isinstance(value, str) or _OCTAL.fullmatch(value):
        group, others = divmod(umask_bits(value), 0o10)
        if group in _DIGITS and others in _DIGITS:
            return None
    return f"{value!r} is no umask: two octal digits of 0, 2 and 7; write '077' (the owner alone) or '027' (its group)"


def umask_bits(value: str | int) -> int:
    """Return a umask as a number."""
    return int(value, 8) if isinstance(value, str) else value


def private_process(umask: str | int) -> None:
    """Set the umask of this process, and forbid core dumps for good: a core holds the photos in memory."""
    os.umask(umask_bits(umask))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


@contextlib.contextmanager
def private_files(umask: str | int) -> Iterator[None]:
    """Set the umask of this process for a while."""
    before = os.umask(umask_bits(umask))
    try:
        yield
    finally:
        os.umask(before)
