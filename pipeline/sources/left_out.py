"""What a listing leaves out: counted, and named where it may hold a photo."""

import logging
from collections import Counter
from dataclasses import dataclass, field

from pipeline.sources.kinds import ending_of, is_left_alone
from pipeline.storage.base import Entry
from pipeline.storage.keys import short, shown

log = logging.getLogger(__name__)

KINDS = 8  # most extensions named in a message
NAMED = 5  # most files named in a message
VANISHED = "it vanished"  # why a storage skips what was deleted during the listing: nothing stays unprotected
UNREAD_NAMED = 20  # log lines about names and folders that are not read, about a screen


@dataclass
class LeftOut:
    """Counts of one listing's files that are no photos, and of what was not read."""

    not_photos: Counter[str] = field(default_factory=Counter)
    """Files that are no photos by their extension, by extension."""
    hidden: int = 0
    """Hidden files, and those in folders that systems write by themselves."""
    unknown: int = 0
    """Files of other extensions whose first bytes are no picture's."""
    unread: int = 0
    """Names and folders that cannot be read, so that photos may stay unprotected: the exit code is 1."""
    shards: list[Entry] = field(default_factory=list)
    """Files that may hold photos in rows or members."""
    names: list[str] = field(default_factory=list)

    def not_photo(self, key: str) -> None:
        """Count a file that its extension says is no photo."""
        self.not_photos[ending_of(key)] += 1

    def no_picture(self, key: str) -> None:
        """Count a file whose bytes are no picture's; the first are named."""
        self.unknown += 1
        if len(self.names) < NAMED:
            self.names.append(key)

    def skip(self, key: str, why: str) -> None:
        """Count what is not read, and log it if it is among the first: at the level that --quiet shows too."""
        if is_left_alone(key.removesuffix("/")):
            self.hidden += 1
            return
        if why.startswith(VANISHED):
            log.warning("skipped %s: %s", short(key), why)
            return
        self.unread += 1
        if self.unread <= UNREAD_NAMED:
            log.error("skipped %s: %s", short(key), why)

    def counts(self) -> dict[str, int]:
        """Return the counts by name."""
        found = {"not_photos": self.not_photos.total() + self.unknown, "hidden": self.hidden}
        return found | {"unread": self.unread}

    def log_all(self, where: str) -> None:
        """Log the counts, one line each."""
        if self.unread > UNREAD_NAMED:
            log.error("skipped %d more in %s, %d in all", self.unread - UNREAD_NAMED, shown(where), self.unread)
        if self.not_photos:
            kinds = ", ".join(f"{shown(kind)} {count}" for kind, count in self.not_photos.most_common(KINDS))
            log.info("%d files are no photos by their names: %s", self.not_photos.total(), kinds)
        if self.hidden:
            log.info("%d hidden files, or files of system folders, are left out", self.hidden)
        if self.unknown:
            names = ", ".join(short(name, 80) for name in self.names)
            log.error("%d files are no photos by their first bytes, for example %s", self.unknown, names)
