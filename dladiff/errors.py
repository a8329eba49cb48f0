"""Error classes. Errors that a user can fix are DladiffErrors; their message is one line that says what to do."""

from collections.abc import Sequence


class DladiffError(Exception):
    """Base of all errors caused by input, data or environment; every other exception is a bug."""


class ConfigError(DladiffError):
    """Invalid configuration; `faults` lists every fault."""

    def __init__(self, faults: Sequence[str]) -> None:
        self.faults = list(faults)
        super().__init__("; ".join(self.faults))

    def __reduce__(self) -> tuple[type["ConfigError"], tuple[list[str]]]:
        """Return the arguments for unpickling: the list of faults. The message alone would be split into characters."""
        return type(self), (self.faults,)


class ModelError(DladiffError):
    """Weights are missing, damaged or of an unknown architecture."""


class PhotoError(DladiffError):
    """One photo cannot be used; the other photos of its identity can."""


class StorageError(DladiffError):
    """Storage is unreachable or full, or refuses the operation."""


class NotFoundError(StorageError):
    """An object does not exist."""


class TooLargeError(StorageError):
    """An object is larger than the caller's limit."""


class RefusedError(StorageError):
    """Storage works but refuses this object because of its name or size."""


class DamagedError(StorageError):
    """A stored record of this program is damaged."""


class BusyError(StorageError):
    """Storage is overloaded or temporarily unreachable; the same call may succeed later."""
