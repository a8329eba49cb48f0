"""Reading records: one JSON object each, with a bound, checked before it is used, many at a time."""

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from dladiff.errors import DamagedError, NotFoundError, TooLargeError
from pipeline.records.checked import record_fault
from pipeline.storage.base import Storage
from pipeline.storage.keys import shown

READERS = 16  # records are small: their latency is hidden by reading that many at once
MOST_BYTES = 64 * 2**20  # of one record: 64 photos with twenty faces each take less than 1 MB
MOST_NOTE = 2**16  # bytes of a note of a start, of the lease or of the latest plan: they take less than 1 kB

log = logging.getLogger(__name__)

Found = TypeVar("Found")
Record = dict[str, Any]


def load(storage: Storage, key: str, limit: int = MOST_BYTES) -> Record:
    """Read one JSON object of at most `limit` bytes. Raises DamagedError where it is none, and StorageError."""
    try:
        record = json.loads(storage.get(key, limit))
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{storage.uri_of(key)} is not JSON; delete it and run again") from error
    except TooLargeError as error:
        raise DamagedError(f"{storage.uri_of(key)} has more than {limit} bytes; delete it and run again") from error
    if not isinstance(record, dict):
        raise DamagedError(f"{storage.uri_of(key)} is no record; delete it and run again")
    return record


def load_record(storage: Storage, place: str) -> Record:
    """Read and check one record. Raises DamagedError where it is not what its place says, StorageError."""
    record = load(storage, place)
    if fault := record_fault(place, record):
        raise DamagedError(f"{storage.uri_of(place)} is no record: {fault}; delete it and run again")
    return record


def load_many(
    storage: Storage, places: Iterable[str], read: Callable[[Storage, str], Record] = load_record
) -> Iterator[tuple[str, Record]]:
    """Yield (place, what `read` returns) in the order given, at most READERS of them in memory.

    Damaged ones are left out with a warning, and so is what is gone, without one.
    """
    for place, record in read_many(storage, places, or_damage(read)):
        if isinstance(record, DamagedError):
            log.warning("left out: %s", shown(str(record)))
        elif record is not None:
            yield place, record


def or_damage(read: Callable[[Storage, str], Found]) -> Callable[[Storage, str], Found | DamagedError | None]:
    """Return `read` with DamagedError as a value, and None for what is gone."""

    def safely(storage: Storage, place: str) -> Found | DamagedError | None:
        try:
            return read(storage, place)
        except DamagedError as error:
            return error
        except NotFoundError:
            return None

    return safely


def read_many(
    storage: Storage, keys: Iterable[str], read: Callable[[Storage, str], Found]
) -> Iterator[tuple[str, Found]]:
    """Yield (key, what `read` returns) in the order given, at most READERS of them in memory."""
    waiting: list[tuple[str, Future[Found]]] = []
    with ThreadPoolExecutor(READERS) as pool:
        for key in keys:
            waiting.append((key, pool.submit(read, storage, key)))
            if len(waiting) == READERS:
                first, future = waiting.pop(0)
                yield first, future.result()
        for key, future in waiting:
            yield key, future.result()
