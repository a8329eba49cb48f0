"""Read records: JSON objects of bounded size, checked, many in parallel."""

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from dladiff.errors import DamagedError, NotFoundError, TooLargeError
from pipeline.records.checked import record_fault
from pipeline.records.packed import unpack
from pipeline.storage.base import Storage
from pipeline.storage.keys import shown

READERS = 16  # records read in parallel: they are small, so latency dominates
MAX_BYTES = 64 * 2**20  # of one record or trace: 64 photos with 20 faces each take < 1 MB, long traces < 10 MB
MAX_NOTE = 2**16  # bytes of a start note, lease or latest plan: they take less than 1 kB

log = logging.getLogger(__name__)

T = TypeVar("T")
Record = dict[str, Any]


def load(storage: Storage, key: str, limit: int = MAX_BYTES) -> Record:
    """Read one JSON object of at most `limit` bytes. Raises DamagedError for anything else, StorageError."""
    try:
        record = json.loads(storage.get(key, limit))
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{storage.uri_of(key)} is not JSON; delete it and run again") from error
    except TooLargeError as error:
        raise DamagedError(f"{storage.uri_of(key)} has more than {limit} bytes; delete it and run again") from error
    if not isinstance(record, dict):
        raise DamagedError(f"{storage.uri_of(key)} is no record; delete it and run again")
    return record


def load_record(storage: Storage, key: str) -> Record:
    """Read and check one record; its rows are complete. Raises DamagedError when it cannot be used, StorageError."""
    record = load(storage, key)
    fault = record_fault(key, record)
    try:
        if not fault:
            return unpack(storage, record)
    except DamagedError as error:
        fault = str(error)
    raise DamagedError(f"{storage.uri_of(key)} is no record: {fault}; delete it and run again")


def load_many(
    storage: Storage, keys: Iterable[str], read: Callable[[Storage, str], Record] = load_record
) -> Iterator[tuple[str, Record]]:
    """Yield (key, record) in the given order, at most READERS in memory.

    Damaged records are skipped with a warning, missing ones without.
    """
    for key, record in read_many(storage, keys, or_damage(read)):
        if isinstance(record, DamagedError):
            log.warning("left out: %s", shown(str(record)))
        elif record is not None:
            yield key, record


def or_damage(read: Callable[[Storage, str], T]) -> Callable[[Storage, str], T | DamagedError | None]:
    """Wrap `read`: return DamagedError instead of raising it, and None for a missing object."""

    def safely(storage: Storage, key: str) -> T | DamagedError | None:
        try:
            return read(storage, key)
        except DamagedError as error:
            return error
        except NotFoundError:
            return None

    return safely


def read_many(storage: Storage, keys: Iterable[str], read: Callable[[Storage, str], T]) -> Iterator[tuple[str, T]]:
    """Yield (key, result of `read`) in the given order, at most READERS in memory."""
    waiting: list[tuple[str, Future[T]]] = []
    with ThreadPoolExecutor(READERS) as pool:
        for key in keys:
            waiting.append((key, pool.submit(read, storage, key)))
            if len(waiting) == READERS:
                first, future = waiting.pop(0)
                yield first, future.result()
        for key, future in waiting:
            yield key, future.result()
