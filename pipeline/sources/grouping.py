"""What layouts share: names of photos by their keys. What needs all keys at once is said in SQL."""

import logging
import re
from collections.abc import Iterable
from pathlib import PurePosixPath

from pipeline.sources.spool import Listed, Spool, blob, text
from pipeline.storage.base import Entry
from pipeline.storage.keys import shown

log = logging.getLogger(__name__)

SET_FOLDER = re.compile(r"set_([abc])", re.IGNORECASE)  # Anti-DreamBooth: <id>/set_A/1.jpg
SET_FILE = re.compile(r"set_([abc])_.+", re.IGNORECASE)  # the same in one folder: <id>/set_A_1.jpg
ANY_FOLDER, ANY_FILE = re.compile(r"set_([a-z])", re.IGNORECASE), re.compile(r"set_([a-z])_.+", re.IGNORECASE)
ALONE = "alone"  # mark of a photo that is its own identity


def row(photo: Entry, name: str, mark: str = "") -> Listed:
    """Return the spool's row of a listed photo."""
    return Listed(name, mark, photo.key, photo.size, photo.tag)


def warn_left_out(count: int, why: str) -> None:
    """Log how many photos a layout skips, and why."""
    if count:
        log.warning("%d photos are left out: they %s; use --layout auto to include them", count, why)


def folder(key: str) -> str:
    """Return the folder of a key; "" at the top."""
    return key.rpartition("/")[0]


def stem(key: str) -> str:
    """Return a key without its extension."""
    return str(PurePosixPath(key).with_suffix(""))


def _set_of(key: str) -> tuple[str, str] | None:
    """The owner's folder and the set letter of a key in either form; None for any other key."""
    above, _, name = key.rpartition("/")
    owner, _, last = above.rpartition("/")
    if match := ANY_FOLDER.fullmatch(last):
        return owner, match[1].upper()
    if match := ANY_FILE.fullmatch(name):
        return above, match[1].upper()
    return None


def add_with_sets(spool: Spool, photos: Iterable[Entry], complete: str) -> None:
    """Name each photo by its folder, or by the owner of its set where the owner's sets are `complete`.

    The table `owner` holds the owners. Photos beside the sets have the owner's folder as name, so they are the owner's.
    """
    spool.add(row(photo, *(_set_of(photo.key) or (folder(photo.key), ""))) for photo in photos)
    spool.execute(f"CREATE TABLE owner AS SELECT name FROM photo WHERE mark <> '' GROUP BY name HAVING {complete}")
    spool.function("folder", folder)
    spool.execute(
        "UPDATE photo SET name = folder(key), mark = '' WHERE mark <> '' AND name NOT IN (SELECT name FROM owner)"
    )
    spool.execute("DELETE FROM photo WHERE mark = 'C'")
    others = "FROM photo WHERE mark > 'C'"
    count, example = spool.execute(f"SELECT count(*), min(key) {others}").fetchone()
    if count:
        where = shown(text(example))
        log.warning("%d photos of sets beside set_A, set_B and set_C are left alone, for example %s", count, where)
        spool.execute(f"DELETE {others}")


def name_root(spool: Spool, root: str) -> None:
    """The input itself holds the sets: it lends its name, unless a folder has that."""
    while spool.holds("SELECT 1 FROM photo WHERE name = ?", blob(root)):
        root += "_"
    spool.execute("UPDATE photo SET name = ? WHERE name = x''", blob(root))


def tell_apart(spool: Spool) -> None:
    """Photos that are alone and share a name get their keys for names, until no two are alike."""
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
