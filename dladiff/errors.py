"""The error tree: every error a user can act on is a DladiffError whose message is one line that says what to do."""

from collections.abc import Sequence


class DladiffError(Exception):
    """Base of every error that is the user's, the data's or the machine's, not a bug."""


class ConfigError(DladiffError):
    """Bad configuration; `faults` lists every fault found, not only the first."""

    def __init__(self, faults: Sequence[str]) -> None:
        self.faults = list(faults)
        super().__init__("; ".join(self.faults))

    def __reduce__(self) -> tuple[type["ConfigError"], tuple[list[str]]]:
        """Pickle by the fault list, since the message alone would be split into characters."""
        return type(self), (self.faults,)


class ModelError(DladiffError):
    """Weights are missing, damaged or of an unknown architecture."""


class PhotoError(DladiffError):
    """One photo cannot be used; the rest of its identity can."""


class StorageError(DladiffError):
    """Storage is out of reach, full or refuses the operation."""


class NotFoundError(StorageError):
    """An object is not there (any more)."""


class TooLargeError(StorageError):
    """An object has more bytes than the caller reads."""


class RefusedError(StorageError):
    """Storage works, and does not take this one object: its name, or its size."""


class DamagedError(StorageError):
    """A record of ours is not what it should be."""


class BusyError(StorageError):
    """Storage is overloaded or out of reach for the moment; the same call may succeed later."""
