"""Released face collections: VGGFace2 by its folders, CelebA-HQ by its lists."""

import io
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePosixPath

from dladiff.errors import ConfigError
from pipeline.sources.layouts import row, warn_left_out
from pipeline.sources.spool import Listed, Spool, Value, blob, text
from pipeline.storage.base import Entry, Storage
from pipeline.storage.keys import short, shown

log = logging.getLogger(__name__)

PERSON = re.compile(r"n[0-9]{6}")  # VGGFace2: n000001/0001_01.jpg
LISTED = re.compile(r"n[0-9]{6}/.+")
VGGFACE2_LISTS = ("train_list.txt", "test_list.txt")
MAPPING = "CelebA-HQ-to-CelebA-mapping.txt"  # CelebA-HQ index to CelebA photo
PEOPLE = "identity_CelebA.txt"  # CelebA photo to person
ORIGIN = {
    MAPPING: "the CelebA-HQ release (CelebAMask-HQ has it too)",
    PEOPLE: "the CelebA release, its folder Anno",
}
UNKNOWN = "unknown-"


def vggface2(spool: Spool, photos: Iterable[Entry], storages: Sequence[Storage]) -> None:
    """Name each photo by its innermost nNNNNNN folder; photos outside such folders are skipped."""
    spool.add(row(photo, _item(photo.key).partition("/")[0]) for photo in photos)
    warn_left_out(spool.execute("DELETE FROM photo WHERE name = x''").rowcount, "are in no nNNNNNN folder")
    _keep_listed(spool, storages)


def is_vggface2(spool: Spool) -> bool:
    """Return whether all folders in the spool are named nNNNNNN, and there are no sets."""
    if spool.holds("SELECT 1 FROM owner") or not spool.holds("SELECT 1 FROM photo"):
        return False
    folders = (text(name).rpartition("/")[2] for (name,) in spool.execute("SELECT DISTINCT name FROM photo"))
    return all(PERSON.fullmatch(name) for name in folders) and not spool.holds("SELECT 1 FROM photo WHERE mark <> ''")


def settle_vggface2(spool: Spool, storages: Sequence[Storage]) -> None:
    """Rename identities named by folder ("train/n000001") to VGGFace2 people ("n000001")."""
    spool.function("person", lambda key: _item(key).partition("/")[0])
    spool.execute("UPDATE photo SET name = person(key) WHERE instr(name, x'2f')")
    _keep_listed(spool, storages)


def has_celeba_hq(storage: Storage) -> bool:
    """Return whether both lists of CelebA-HQ are at the top."""
    return all(storage.tag(name) is not None for name in (MAPPING, PEOPLE))


def celeba_hq(spool: Spool, photos: Iterable[Entry], storages: Sequence[Storage]) -> None:
    """Name each photo <index>.<extension> by its person's number; each unlisted index is its own person."""
    people = _celeba_people(storages)
    spool.add(_celeba_rows(photos, people))
    warn_left_out(spool.execute("DELETE FROM photo WHERE name = x''").rowcount, "are not named by a CelebA-HQ index")
    count, example = spool.execute("SELECT count(*), min(key) FROM photo WHERE name > ?", blob(UNKNOWN)).fetchone()
    if count:
        log.warning("%d photos are in no CelebA-HQ list, each index is a person of its own: %s", count, _shown(example))


def _celeba_rows(photos: Iterable[Entry], people: dict[int, str]) -> Iterator[Listed]:
    for photo in photos:
        stem = PurePosixPath(photo.key).stem
        index = int(stem) if stem.isascii() and stem.isdigit() and len(stem) < 10 else None
        yield row(photo, "" if index is None else people.get(index, f"{UNKNOWN}{index}"))


def _item(key: str) -> str:
    """Return the key from its innermost nNNNNNN folder on, "" for a key outside such folders."""
    parts = key.split("/")
    for depth in range(len(parts) - 2, -1, -1):
        if PERSON.fullmatch(parts[depth]):
            return "/".join(parts[depth:])
    return ""


def _keep_listed(spool: Spool, storages: Sequence[Storage]) -> None:
    """Delete photos that are not in the official lists, if the lists exist."""
    found: dict[str, Storage] = {}
    for name in VGGFACE2_LISTS:
        for storage in storages:
            if name not in found and storage.tag(name) is not None:
                found[name] = storage
    if not found:
        if len(storages) > 1:
            where = " or ".join(shown(storage.uri) for storage in storages)
            raise ConfigError([f"no {' or '.join(VGGFACE2_LISTS)} in {where}; they come with the VGGFace2 release"])
        return
    spool.execute("CREATE TABLE listed (item BLOB NOT NULL)")
    for name, storage in found.items():
        spool.many("INSERT INTO listed VALUES (?)", _listed_items(storage, name))
    spool.execute("CREATE INDEX by_item ON listed (item)")
    spool.function("item", _item)
    missing, example = spool.execute(
        "SELECT count(*), min(item) FROM (SELECT item FROM listed EXCEPT SELECT item(key) FROM photo)"
    ).fetchone()
    unlisted = spool.execute("DELETE FROM photo WHERE item(key) NOT IN (SELECT item FROM listed)").rowcount
    names = " and ".join(found)
    if missing:
        log.warning("%d photos of %s are not in the input, for example %s", missing, names, _shown(example))
    if unlisted:
        log.warning("%d photos are left out: they are not in %s", unlisted, names)


def _listed_items(storage: Storage, name: str) -> Iterator[Sequence[Value]]:
    for number, line in _lines(storage, name):
        if not LISTED.fullmatch(line):
            raise _malformed(storage, name, number, line, "n000002/0001_01.jpg")
        yield (blob(line),)


def _celeba_people(storages: Sequence[Storage]) -> dict[int, str]:
    """CelebA-HQ index to the number of the person. Raises ConfigError."""
    found = _locate(storages, (MAPPING, PEOPLE))
    files = dict(_mapping(*found[MAPPING]))
    wanted = set(files.values())
    people = {file: person for file, person in _people(*found[PEOPLE]) if file in wanted}
    return {index: people[file] for index, file in files.items() if file in people}


def _mapping(storage: Storage, key: str) -> Iterator[tuple[int, str]]:
    lines = _lines(storage, key)
    number, line = next(lines, (1, ""))
    header = line.split()
    if not {"idx", "orig_file"} <= set(header):
        raise _malformed(storage, key, number, line, "the header idx orig_idx orig_file")
    first, second = header.index("idx"), header.index("orig_file")
    for number, line in lines:
        fields = line.split()
        if len(fields) < len(header) or not _is_number(fields[first]):
            raise _malformed(storage, key, number, line, "0 119613 119614.jpg")
        yield int(fields[first]), fields[second]


def _people(storage: Storage, key: str) -> Iterator[tuple[str, str]]:
    for number, line in _lines(storage, key):
        fields = line.split()
        if len(fields) != 2 or not _is_number(fields[1]):
            raise _malformed(storage, key, number, line, "000001.jpg 2880")
        yield fields[0], str(int(fields[1]))


def _is_number(field: str) -> bool:
    return field.isascii() and field.isdigit() and len(field) < 10


def _locate(storages: Sequence[Storage], names: Sequence[str]) -> dict[str, tuple[Storage, str]]:
    """Find files by name: at the top of a storage, in a folder there, or in a folder Anno at any depth."""
    found: dict[str, tuple[Storage, str]] = {}
    for storage in storages:
        at_top = {name: (storage, name) for name in names if storage.tag(name) is not None}
        found = at_top | found
        if len(found) == len(names):
            break
        for entry in storage.list(whole=False):
            folder, _, name = entry.key.rpartition("/")
            if name in names and name not in found and ("/" not in folder or folder.endswith("/Anno")):
                found[name] = (storage, entry.key)
    if faults := [
        f"layout celeba_hq needs {name}: looked at the top, in the folders and in any Anno of "
        f"{' and '.join(shown(s.uri) for s in storages)}; it comes with {ORIGIN[name]}"
        for name in names
        if name not in found
    ]:
        raise ConfigError(faults)
    return found


def _lines(storage: Storage, key: str) -> Iterator[tuple[int, str]]:
    """Yield number and text of each line that is not blank; bytes that are not UTF-8 become U+FFFD."""
    for number, line in enumerate(io.BytesIO(storage.get(key)), 1):
        bare = line.decode("utf-8-sig" if number == 1 else "utf-8", "replace").strip()
        if bare:
            yield number, bare


def _malformed(storage: Storage, key: str, number: int, line: str, expected: str) -> ConfigError:
    where = f"{shown(storage.uri_of(key))}, line {number}"
    return ConfigError([f"{where}: expected {expected}, not {short(line, 80)!r}; use the file of the release"])


def _shown(value: bytes) -> str:
    return shown(text(value))
