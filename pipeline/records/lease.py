"""lock.json: at most one driver writes to an output. Its age comes from the storage's clock, not the drivers'."""

import contextlib
import json
import logging
import os
import socket
import threading
import time
import uuid
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

from dladiff.errors import DamagedError, StorageError
from pipeline.records.loading import MAX_NOTE, load
from pipeline.storage.base import Storage
from pipeline.storage.keys import shown

log = logging.getLogger(__name__)

LOCK = "lock.json"
LEASE_S = 120.0  # seconds until a lease that is not renewed expires
RENEW_S = 20.0  # seconds between renewals
MISSED_S = 1.5 * RENEW_S  # age of a lease whose holder has missed a renewal
LOOK_S = 2.0  # seconds between two looks at such a lease
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
        self._renewed = time.monotonic()
        """When the last renewal that succeeded was begun."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)

    def __enter__(self) -> Self:
        """Take the lease; one whose holder has stopped renewing it is waited for until it expires.

        Raises StorageError, which names the holder, when another driver holds it.
        """
        if not self.storage.put_if_absent(LOCK, self._note()) and not self._take_over() and not self._outlasted():
            raise StorageError(
                f"another run writes to {shown(self.storage.uri)}: {_who(self._held() or {})}; wait for it, "
                f"or {LEASE_S:.0f} s after its end"
            )
        self._renewed = time.monotonic()
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
        """Raise StorageError if the lease was lost. One not renewed for LEASE_S is renewed here, or counts as lost."""
        if not self.lost and time.monotonic() - self._renewed > LEASE_S:
            with contextlib.suppress(StorageError):
                self._renew_once()
            if time.monotonic() - self._renewed > LEASE_S:
                self.lost = True
        if self.lost:
            raise StorageError(
                f"this run was cut off from {shown(self.storage.uri)} for more than {LEASE_S:.0f} s and another one "
                "took it over, or may have; nothing is lost, let the other one finish, or run again"
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

    def _outlasted(self) -> bool:
        """Wait while a lease gets older that its holder should have renewed; return whether it became ours."""
        age, said = self.storage.age(LOCK), False
        while age is not None and age >= MISSED_S:
            if not said:
                held = _who(self._held() or {})
                log.warning(
                    "waiting for the lease of a run that no longer renews it, at most %.0f s: %s", LEASE_S, held
                )
                said = True
            time.sleep(LOOK_S)
            if self._take_over():
                return True
            age = self.storage.age(LOCK)
        return age is None and self._take_over()

    def _renew(self) -> None:
        while not self._stop.wait(RENEW_S) and not self.lost:
            with contextlib.suppress(StorageError):  # temporary: several renewals fit into LEASE_S
                self._renew_once()

    def _renew_once(self) -> None:
        """Renew the lease, or find that another driver has it: commits stay safe, each is a conditional put."""
        begun, tag = time.monotonic(), self.storage.tag(LOCK)
        if tag is None or (self._held() or {}).get("owner") != self.owner:
            self.lost = True
        elif self.storage.put_if_match(LOCK, self._note(), tag):
            self._renewed = begun


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
