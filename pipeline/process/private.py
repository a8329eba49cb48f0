"""Settings of a process that handles people's photos: private files, no core dumps."""

import contextlib
import os
import re
import resource
from collections.abc import Iterator

from dladiff.errors import ConfigError

UMASK = "077"  # octal: only the owner can access new files and folders
VARIABLE = "DLADIFF_UMASK"
_OCTAL = re.compile(r"(?:0o)?[0-7]{1,4}")
_DIGITS = (0, 2, 7)  # removes nothing, write, or all rights of the group or of others


def chosen_umask() -> str:
    """Return the umask from DLADIFF_UMASK, default UMASK. Raises ConfigError."""
    text = os.environ.get(VARIABLE) or UMASK
    if fault := umask_fault(text):
        raise ConfigError([f"{VARIABLE}: {fault}"])
    return text


def umask_fault(value: str | int) -> str | None:
    """Return what is wrong with a umask (octal text or a number), or None."""
    if _OCTAL.fullmatch(octal(value)):
        group, others = divmod(int(octal(value), 8), 0o10)
        if group in _DIGITS and others in _DIGITS:
            return None
    return f"{value!r} is no umask: two octal digits of 0, 2 and 7; write '077' (the owner alone) or '027' (its group)"


def octal(value: str | int) -> str:
    """Return a umask as octal text; YAML reads an unquoted 027 as a number."""
    return value if isinstance(value, str) else f"{value:03o}"


def private_process(umask: str) -> None:
    """Set the umask of this process, and disable core dumps: a core file holds the photos in memory."""
    os.umask(int(umask, 8))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


@contextlib.contextmanager
def private_files(umask: str) -> Iterator[None]:
    """Set the umask of this process inside the context."""
    before = os.umask(int(umask, 8))
    try:
        yield
    finally:
        os.umask(before)
