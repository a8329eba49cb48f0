"""`dladiff report`: one HTML page of the photos before and after, and of the measured effect."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from dladiff.errors import ConfigError, StorageError
from pipeline.records.pages import PICTURE, REPORT, announce, mark
from pipeline.records.schema import PhotoRow
from pipeline.records.trace import Curve, curves_of
from pipeline.report.data import LISTED, Encoder, Facts, Series, gather
from pipeline.report.page import asset, embedded, filled
from pipeline.report.pictures import FACTOR, pictures
from pipeline.report.sample import Person, listed, or_least, similarity
from pipeline.sources.originals import Originals
from pipeline.sources.originals import originals as below
from pipeline.storage.base import Storage
from pipeline.storage.open import open_storage

EMBEDDED = 200  # most photos whose pictures are embedded in the page: 10 to 15 MB
PEOPLE = 500  # most identities listed, unless the photos shown are of more
OPEN = 12  # photos shown without a click, of the worst identities
TRACED, CHARTS = 50, 8  # most identities with curves, and most curves of one: about 2 MB
FEW = 24  # up to this many photos the pictures are large
SIDE, SIDE_FEW = 320, 640  # px, longest side of a picture
READERS = 2  # photos decoded at a time: each may be large

Sink = Callable[[str, bytes], str]
"""Takes a picture's name and bytes; returns the value of `src`."""
Card = dict[str, Any]
"""Template values of one photo."""


@dataclass(frozen=True)
class Written:
    """Address of the page, photos shown and in all, size in bytes, notes for the operator."""

    report: str
    shown: int
    photos: int
    bytes: int
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Group:
    """An identity on the page: figures, photos shown, and curves of its steps."""

    person: Person
    cards: list[Card]
    open: bool
    curves: list[Curve]
    more: str = ""
    """Note on curves that are not shown."""

    @property
    def statuses(self) -> list[str]:
        """Statuses of the identity and of the photos shown."""
        return [self.person.status, *(card["row"]["status"] for card in self.cards)]


def write_report(
    storage: Storage,
    html: Path | None = None,
    photos: int = EMBEDDED,
    seed: int = 0,
    *,
    originals: bool = True,
    inputs: Sequence[str] = (),
) -> Written:
    """Write the page of an output: to `report/index.html` in it, or to the local file `html`.

    At most `photos` photos are shown: the worst, the slowest, and random ones (`seed`). More than EMBEDDED need
    `html`: their pictures are written to a folder beside it. Originals are read below `inputs`, else below the input
    that the output records; with `originals=False` the page shows none. Raises ConfigError and StorageError.
    """
    if photos > EMBEDDED and html is None:
        raise ConfigError([f"--photos: more than {EMBEDDED} pictures are stored beside the page; give --html FILE too"])
    sources = below(storage, inputs) if originals else None
    facts = gather(storage, photos, seed)
    target, key = (storage, REPORT) if html is None else (open_storage(html.absolute().parent, create=True), html.name)
    rows = facts.sample.rows()
    linked, folder = len(rows) > EMBEDDED, f"{Path(key).stem}_files"
    written: set[str] = set()
    noted = announce(storage, "report", html or REPORT, _named(facts, rows))
    sink = partial(_beside, target, folder, written) if linked else _embedded
    side = SIDE_FEW if len(rows) <= FEW else SIDE
    with ThreadPoolExecutor(READERS) as pool:
        make = partial(_card, storage=storage, sources=sources, sink=sink, side=side)
        cards = list(pool.map(make, range(len(rows)), rows))
    page = render(facts, _groups(facts, cards, storage), storage.uri, linked=linked, originals=originals).encode()
    target.put(key, page, "text/html; charset=utf-8")
    for entry in list(target.list(f"{folder}/")):  # pictures of an earlier page, which this page may not show
        if PICTURE.fullmatch(entry.key.removeprefix(f"{folder}/")) and entry.key not in written:
            target.delete(entry.key)
    noted()
    return Written(target.uri_of(key), len(cards), facts.photos.total(), len(page), _notes(sources, facts, cards))


def _notes(sources: Originals | None, facts: Facts, cards: list[Card]) -> list[str]:
    """Return notes for the operator that are not on the page."""
    notes = [sources.note] if sources and sources.note else []
    counts = Counter(card["unread"] for card in cards if card["unread"])
    if counts:
        reasons = ", ".join(f"{reason} {count}" for reason, count in counts.most_common())
        notes.append(f"originals that are not shown: {reasons}")
    if facts.damaged:
        notes.append(f"rows of the manifests that are damaged and left out: {facts.damaged}; run `dladiff finalise`")
    return notes


def _named(facts: Facts, rows: list[PhotoRow]) -> set[str]:
    """Return the names of the people on the page."""
    people = listed(facts.people.values(), {row["identity"] for row in rows}, PEOPLE)
    return {person.name for person in people} | {row["identity"] for row in facts.lost}


def render(facts: Facts, groups: list[Group], output: str, *, linked: bool, originals: bool) -> str:
    """Return the page. `linked`: pictures are files beside it. `originals`: it may show originals."""
    kinds = [facts.pooled(optimised=True), facts.pooled(optimised=False)]
    return filled(
        "report.html.j2",
        asset("report.css", "curves.css"),
        asset("report.js"),
        images="'self'" if linked else "data:",
        filters={"number": number, "cosine": cosine},
        facts=facts,
        groups=groups,
        shown_photos=sum(len(group.cards) for group in groups),
        statuses=list(dict.fromkeys(status for group in groups for status in group.statuses)),
        total=facts.photos.total(),
        kinds=[kind for kind in kinds if kind.after.values],
        histograms=_histograms(facts, kinds),
        output=output,
        mark=mark(output),
        linked=linked,
        originals=originals,
        factor=FACTOR,
        listed=LISTED,
    )


def number(value: float | None, digits: int = 1) -> str:
    """Return a number with a minus sign and grouped thousands, a dash for None."""
    return "\N{EN DASH}" if value is None else f"{value:,.{digits}f}".replace("-", "\N{MINUS SIGN}")


def cosine(value: float | None) -> str:
    """Return a cosine with two digits."""
    return number(value if value is None or abs(value) >= 0.005 else 0.0, 2)


def short(title: str) -> str:
    """Return a chart's title with the photo's file name instead of its address."""
    stage, comma, photo = title.partition(", ")
    return f"{stage}{comma}{photo.rsplit('/', 1)[-1]}"


def _embedded(name: str, data: bytes) -> str:
    return embedded(data)


def _beside(target: Storage, folder: str, written: set[str], name: str, data: bytes) -> str:
    target.put(f"{folder}/{name}", data, "image/webp")
    written.add(f"{folder}/{name}")
    return quote(f"{folder}/{name}")


def _groups(facts: Facts, cards: list[Card], storage: Storage) -> list[Group]:
    """Return the identities and their photos, worst first, with curves where a trace is stored."""
    of: dict[str, list[Card]] = defaultdict(list)
    for card in sorted(cards, key=lambda card: (-or_least(card["optimised"]), not card["pictures"])):
        of[card["row"]["identity"]].append(card)
    people = listed(facts.people.values(), set(of), PEOPLE)
    traced = {one.name for one in [p for p in people if p.name in of][:TRACED]}
    traced = traced if next(iter(storage.list("traces/")), None) else set()
    groups, unfolded = [], OPEN
    for person in people:
        own = of.get(person.name, [])
        curves, more = _curves(storage, person) if person.name in traced else ([], "")
        groups.append(Group(person, own, bool(own) and unfolded > 0, curves, more))
        unfolded -= len(own)
    return groups


def _curves(storage: Storage, person: Person) -> tuple[list[Curve], str]:
    try:
        curves, more = curves_of(storage, person.name, CHARTS)
    except StorageError as error:
        return [], str(error)
    curves = [replace(curve, title=short(curve.title)) for curve in curves]
    return curves, f"The first {CHARTS} charts; traces/ in the output holds all." if more else ""


def _card(index: int, row: PhotoRow, storage: Storage, sources: Originals | None, sink: Sink, side: int) -> Card:
    """Return the template values of one photo."""
    files, missing, unread = pictures(row, storage, sources, side)
    return {
        "name": PurePosixPath(row["source_uri"].rsplit("/", 1)[-1]).name,
        "optimised": similarity(row, optimised=True),
        "groups": [
            (title, [s for s in row["similarity"] or [] if s["optimised"] is kind])
            for title, kind in (("Optimised encoders", True), ("Held-out encoders", False))
        ],
        "pictures": {name: sink(f"{index:05d}-{name}.webp", data) for name, data in files.items()},
        "missing": missing,
        "unread": unread,
        "row": row,
    }


def _histograms(facts: Facts, kinds: list[Encoder]) -> list[dict[str, Any]]:
    plots = [
        _histogram(f"Similarity, {kind.name} encoders", "cosine", 2, {"before": kind.before, "after": kind.after}, 0.1)
        for kind in kinds
    ]
    plots += [
        _histogram("PSNR, whole photo", "dB", 1, {"after": facts.psnr}, 1),
        _histogram("PSNR, face", "dB", 1, {"after": facts.psnr_face}, 1),
        _histogram("SSIM", "", 3, {"after": facts.ssim}, 0.01),
        _histogram("SSIMULACRA2, whole photo", "", 1, {"after": facts.ssimulacra2}, 5),
        _histogram("SSIMULACRA2, face", "", 1, {"after": facts.ssimulacra2_face}, 5),
        _histogram("Time a photo", "s", 1, {"after": facts.seconds}, 1),
    ]
    return [plot for plot in plots if plot["count"]]


def _histogram(title: str, unit: str, digits: int, series: dict[str, Series], grid: float) -> dict[str, Any]:
    """Return the bars of a histogram whose range is widened to multiples of `grid`."""
    values = [v for one in series.values() for v in one.values]
    if not values:
        return {"count": 0}
    low = math.floor(min(values) / grid + 1e-9) * grid
    high = max(math.ceil(max(values) / grid - 1e-9) * grid, low + grid)
    counts = {name: one.bins(low, high) for name, one in series.items()}
    top = max(n for bins in counts.values() for n in bins)
    return {
        "title": title,
        "unit": unit,
        "digits": digits,
        "low": low,
        "high": high,
        "count": len(series["after"].values),
        "spread": series["after"].spread,
        "top": top,
        "bars": {name: [n / top for n in bins] for name, bins in counts.items()},
    }
