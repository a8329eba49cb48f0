"""Layouts: assign photos to identities by their keys. Rules that need all keys are SQL."""

import logging
import re
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Literal, get_args

from pipeline.sources.spool import Listed, Spool, blob, text
from pipeline.storage.base import Entry

log = logging.getLogger(__name__)

Layout = Literal["auto", "folders", "flat", "one", "sets", "celeba_hq", "vggface2"]
LAYOUTS: tuple[str, ...] = get_args(Layout)

SET_FOLDER = re.compile(r"set_([abc])", re.IGNORECASE)  # Anti-DreamBooth: <id>/set_A/1.jpg
SET_FILE = re.compile(r"set_([abc])_.+", re.IGNORECASE)  # the same in one folder: <id>/set_A_1.jpg
ALONE = "alone"  # mark of a photo that is its own identity


def one(spool: Spool, photos: Iterable[Entry], root: str) -> None:
    """Assign all photos to one identity."""
    spool.add(row(photo, root) for photo in photos)


def folders(spool: Spool, photos: Iterable[Entry]) -> None:
    """Assign each photo to its folder; photos at the top are skipped."""
    spool.add(row(photo, _folder(photo.key)) for photo in photos)
    warn_left_out(spool.execute("DELETE FROM photo WHERE name = x''").rowcount, "are in no folder")


def flat(spool: Spool, photos: Iterable[Entry]) -> None:
    """Make each photo an identity."""
    spool.add(row(photo, _stem(photo.key), ALONE) for photo in photos)
    _make_unique(spool)


def sets(spool: Spool, photos: Iterable[Entry], root: str) -> None:
    """Assign photos of <id>/set_A, set_B and set_C to <id>; photos of identities without set_B are skipped."""
    _add_with_sets(spool, photos, "max(mark = 'B')")
    left_out = spool.execute("DELETE FROM photo WHERE mark = ''").rowcount
    warn_left_out(left_out, "belong to no identity with a set_B")
    _name_root(spool, root)


def auto(spool: Spool, photos: Iterable[Entry], root: str) -> None:
    """Use sets for identities with A and B, else folders; a photo at the top is its own identity."""
    _add_with_sets(spool, photos, "max(mark = 'A') AND max(mark = 'B')")
    if spool.holds("SELECT 1 FROM owner WHERE name = x''"):
        _name_root(spool, root)
        return
    spool.function("stem", _stem)
    if spool.execute("UPDATE photo SET name = stem(key), mark = ? WHERE name = x''", ALONE).rowcount:
        _make_unique(spool)


def row(photo: Entry, name: str, mark: str = "") -> Listed:
    """Return the spool's row of a listed photo."""
    return Listed(name, mark, photo.key, photo.size, photo.tag)


def warn_left_out(count: int, why: str) -> None:
    """Log how many photos a layout skips, and why."""
    if count:
        log.warning("%d photos are left out: they %s; use --layout auto to include them", count, why)


def _folder(key: str) -> str:
    return key.rpartition("/")[0]


def _stem(key: str) -> str:
    return str(PurePosixPath(key).with_suffix(""))


def _set_of(key: str) -> tuple[str, str] | None:
    """Return the owner's folder and the set letter (A, B or C) of a key in either form; None for other keys."""
    folder, _, name = key.rpartition("/")
    owner, _, last = folder.rpartition("/")
    if match := SET_FOLDER.fullmatch(last):
        return owner, match[1].upper()
    if match := SET_FILE.fullmatch(name):
        return folder, match[1].upper()
    return None


def _add_with_sets(spool: Spool, photos: Iterable[Entry], complete: str) -> None:
    """Name each photo by its folder, or by the owner of its set if the owner's sets are `complete` (SQL).

    The table `owner` holds the owners. Photos beside the sets have the owner's folder as name, so they are the owner's.
    """
    spool.add(row(photo, *(_set_of(photo.key) or (_folder(photo.key), ""))) for photo in photos)
    spool.execute(f"CREATE TABLE owner AS SELECT name FROM photo WHERE mark <> '' GROUP BY name HAVING {complete}")
    spool.function("folder", _folder)
    spool.execute(
        "UPDATE photo SET name = folder(key), mark = '' WHERE mark <> '' AND name NOT IN (SELECT name FROM owner)"
    )
    spool.execute("DELETE FROM photo WHERE mark = 'C'")


def _name_root(spool: Spool, root: str) -> None:
    """Name the identity of sets at the top after the input, with "_" appended while a folder has that name."""
    while spool.holds("SELECT 1 FROM photo WHERE name = ?", blob(root)):
        root += "_"
    spool.execute("UPDATE photo SET name = ? WHERE name = x''", blob(root))


def _make_unique(spool: Spool) -> None:
    """Name photos that are their own identity by their key if they share a name, until names are unique."""
    spool.execute("CREATE INDEX by_name ON photo (name, mark)")
    changed = 1
    while changed:
        spool.execute(
            "CREATE TABLE clash AS SELECT name FROM photo GROUP BY name HAVING count(*) > 1 AND max(mark = ?)", ALONE
        )
        changed = spool.execute(
            "UPDATE photo SET name = key WHERE mark = ? AND name <> key AND name IN (SELECT name FROM clash)", ALONE
        ).rowcount
        spool.execute("DROP TABLE clash")
    clashes = spool.execute(  # a bucket, unlike a folder, can hold both "a.jpg" and "a.jpg/1.png"
        "SELECT rowid, name FROM photo WHERE mark = ?1 AND name IN (SELECT name FROM photo WHERE mark <> ?1)"
        " ORDER BY key",
        ALONE,
    )
    for rowid, name in clashes.fetchall():
        free = text(name)
        while spool.holds("SELECT 1 FROM photo WHERE name = ?", blob(free)):
            free += "_"
        spool.execute("UPDATE photo SET name = ? WHERE rowid = ?", blob(free), rowid)
