"""Parquet files that hold photos, as dataset hubs publish them."""

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from dladiff.errors import ConfigError
from pipeline.sources.cells import IDENTITY, ROLES, Refused, bare, text_of
from pipeline.sources.grouping import ALONE, tell_apart, warn_left_out
from pipeline.sources.layouts.record import Layout, Listing
from pipeline.sources.shards import open_parquet, photo_column
from pipeline.sources.spool import Listed
from pipeline.storage.base import Entry, Storage
from pipeline.storage.keys import is_utf8, short, shown

BATCH = 1000  # rows held at a time; photos are not read
SHOWN_FAULTS = 5  # faults of one file that are listed


def parquet(listing: Listing) -> None:
    """Name each row's photo by its column of the person; without such a column each is an identity."""
    warn_left_out(sum(1 for _ in listing.photos), "are no rows of Parquet files")
    add_rows(listing)
    tell_apart(listing.spool)


def add_rows(listing: Listing) -> None:
    """Add the photos of the listed Parquet files. A file without a column of photos is counted as no photo."""
    for entry in [one for one in listing.left.shards if one.key.lower().endswith(".parquet")]:
        listing.left.shards.remove(entry)
        try:
            file = open_parquet(listing.storage, entry)
            column = photo_column(file)
        except (ValueError, OSError) as error:
            listing.left.skip(entry.key, f"not a Parquet file that can be read: {short(str(error), 80)}")
            continue
        if column is None:
            listing.left.no_picture(entry.key)
        else:
            listing.spool.add(_rows(listing.storage, entry, file, column))


def _rows(storage: Storage, entry: Entry, file: Any, column: str) -> Iterator[Listed]:
    """Yield the rows of a file. Raises ConfigError, with the column and the row, for names that are no text."""
    names = {bare(name): name for name in reversed(file.schema_arrow.names)}
    person = next((names[name] for name in IDENTITY if name in names), None)
    role = names.get("role")
    path = f"{column.removesuffix('.bytes')}.path" if column.endswith(".bytes") else None
    wanted = [name for name in (person, role) if name]
    if path and file.schema_arrow.field(column.partition(".")[0]).type.get_field_index("path") >= 0:
        wanted.append(path)
    faults: list[str] = []
    where, number = shown(storage.uri_of(entry.key)), 0
    for cells in _cells(file, wanted):
        name = text_of(cells.get(person)) if person else ""
        mark = ROLES.get(text_of(cells.get(role))) if role else "B"
        if isinstance(name, Refused) or (person and (not name or not is_utf8(name))):
            faults.append(
                f"{where}, row {number}: column {person} {name if isinstance(name, Refused) else 'is no name'}"
            )
        elif mark is None:
            faults.append(f"{where}, row {number}: column role is unknown; use protect, clean or ignore")
        elif mark != "C":
            stem = PurePosixPath(text_of((cells.get(column.partition(".")[0]) or {}).get("path") or "")).stem
            own = stem or f"{PurePosixPath(entry.key).stem}-{number}"
            key = f"{entry.key}#row={number}"
            yield Listed(name or own, mark if person else ALONE, key, 0, f"{entry.tag}@{number}")
        if len(faults) == SHOWN_FAULTS:
            break
        number += 1
    if faults:
        raise ConfigError(faults)


def _cells(file: Any, columns: list[str]) -> Iterator[dict[str, Any]]:
    if not columns:
        yield from ({} for _ in range(file.metadata.num_rows))
        return
    for batch in file.iter_batches(BATCH, columns=columns, use_threads=False):
        yield from batch.to_pylist()


LAYOUT = Layout(
    name="parquet",
    about="a row of a Parquet file is a photo (column image) of a person (column identity or person; without one, "
    "each photo is an identity)",
    group=parquet,
)
