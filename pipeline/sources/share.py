"""Parts of a collection for runs side by side, each with an output of its own (`shard: 3/8`)."""

import hashlib
import re

MOST = 10_000  # parts; Slurm's own default limit of an array is 1001 tasks
_SHARD = re.compile(r"([1-9][0-9]{0,4})/([1-9][0-9]{0,4})")


def shard_fault(text: str) -> str | None:
    """Return what is wrong with a `shard`, or None."""
    found = _SHARD.fullmatch(text)
    if found is None or not int(found[1]) <= int(found[2]) <= MOST:
        return f"expected a part of all parts, as 3/8, with {MOST} parts at most, not {text!r}"
    return None


class Shard:
    """Decides which identities belong to a part, by a hash of the name: others that come or go change nothing."""

    def __init__(self, text: str | None) -> None:
        """`text`: part/parts, counted from 1; None: all identities."""
        part, parts = (text or "1/1").split("/")
        self.part, self.parts = int(part) - 1, int(parts)
        self.seen = 0
        """Identities that were asked about."""

    def holds(self, name: str) -> bool:
        """Return whether the identity belongs to this part."""
        self.seen += 1
        hashed = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
        return int.from_bytes(hashed[:8]) % self.parts == self.part
