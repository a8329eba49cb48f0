"""lock.json: at most one driver writes to an output. Its age comes from the storage's clock, not the drivers'."""

import json
import os
import socket
import threading
import uuid
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

from dladiff.errors import DamagedError, StorageError
from pipeline.records.loading import MAX_NOTE, load
from pipeline.storage.base import Storage
from pipeline.storage.keys import shown

LOCK = "lock.json"
LEASE_S = 120.0  # seconds until a lease that is not renewed expires
RENEW_S = 20.0  # seconds between renewals
MAX_PID = 2**22  # largest pid on Linux; 0 and negative numbers mean process groups
MAX_SHOWN = 60  # characters of each lock value in an error message


class Lease:
    """A lease held by one driver and renewed by a thread. After LEASE_S without renewal another driver can take it."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.owner = uuid.uuid4().hex
        self.lost = False
        """Whether another driver took the lease because this one could not renew it."""
        self._since = datetime.now(UTC).isoformat()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)

    def __enter__(self) -> Self:
        """Take the lease. Raises StorageError, which names the holder, when another driver holds it."""
        if not self.storage.put_if_absent(LOCK, self._note()) and not self._take_over():
            raise StorageError(
                f"another run writes to {shown(self.storage.uri)}: {_who(self._held() or {})}; wait for it, "
                f"or {LEASE_S:.0f} s after its end"
            )
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Release the lease if it is still ours."""
        self._stop.set()
        self._thread.join()
        try:
            if (self._held() or {}).get("owner") == self.owner:
                self.storage.delete(LOCK)
        except StorageError:
            if error is None:
                raise

    def check(self) -> None:
        """Raise StorageError if the lease was lost; the other driver finishes the run."""
        if self.lost:
            raise StorageError(
                f"this run was cut off from {shown(self.storage.uri)} for more than {LEASE_S:.0f} s and another one "
                "took it over; nothing is lost, let the other one finish"
            )

    def _note(self) -> bytes:
        note = {"owner": self.owner, "host": socket.gethostname(), "pid": os.getpid(), "time": self._since}
        return json.dumps(note | {"renewed": datetime.now(UTC).isoformat()}, indent=1).encode()

    def _held(self) -> dict[str, Any] | None:
        if self.storage.tag(LOCK) is None:
            return None
        try:
            return load(self.storage, LOCK, MAX_NOTE)
        except DamagedError:
            return {}  # not written by a driver: it expires by its age

    def _take_over(self) -> bool:
        tag = self.storage.tag(LOCK)
        age = self.storage.age(LOCK)
        if tag is None or age is None:
            return self.storage.put_if_absent(LOCK, self._note())
        if age < LEASE_S and not _is_dead(self._held() or {}):
            return False
        return self.storage.put_if_match(LOCK, self._note(), tag)

    def _renew(self) -> None:
        while not self._stop.wait(RENEW_S):
            try:
                tag = self.storage.tag(LOCK)
                if tag is None or (self._held() or {}).get("owner") != self.owner:
                    self.lost = True  # commits stay safe: each is a conditional put
                    return
                self.storage.put_if_match(LOCK, self._note(), tag)
            except StorageError:
                continue  # temporary: several renewals fit into LEASE_S


def _who(held: dict[str, Any]) -> str:
    """Return host, pid and start of the holder, for a message."""
    if not held.keys() >= {"host", "pid", "time"}:
        return f"its {LOCK} does not say who"
    host, pid, since = (str(held[name])[:MAX_SHOWN] for name in ("host", "pid", "time"))
    return shown(f"host {host}, pid {pid}, since {since}")


def _is_dead(held: dict[str, Any]) -> bool:
    """Return whether the holder ran on this host and its process has ended."""
    pid = held.get("pid")
    if held.get("host") != socket.gethostname() or not isinstance(pid, int) or isinstance(pid, bool):
        return False
    if not 0 < pid <= MAX_PID:
        return False  # not written by a driver
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
