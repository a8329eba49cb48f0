"""Tables as text: figures with N and interval, the paper's own in columns of their own; Markdown."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from dladiff.evaluation.intervals import Estimate
from dladiff.evaluation.paper_tables import PaperTable
from dladiff.evaluation.summaries import ENCODER_ONLY, FeaturesOf, Group, Record, common, group

EMPTY = "-"


@dataclass(frozen=True)
class Table:
    """Cells as text; the last `papers` columns are the paper's own numbers."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    papers: int = 0
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """All records of an evaluation, and the names that its tables are laid out by."""

    records: Sequence[Record]
    features: FeaturesOf
    feature_name: str
    """What gave FID's features: its column says it."""
    conditions: tuple[str, ...]
    attacks: tuple[str, ...]
    bases: tuple[str, ...]
    preprocessings: tuple[str, ...]
    shares: tuple[int, ...]
    prompts: tuple[str, ...]
    encoders: tuple[str, ...]
    optimised: frozenset[str]
    """Encoders of the judge that the main method's layer 2 optimised against."""
    opinions: Mapping[tuple[str, str, str], Estimate] = field(default_factory=dict)
    """Attack, condition and prompt to MOS."""

    def of(self, condition: str, attack: str, **where: object) -> Group:
        """Return the records of a method under an attack; whatever is not named is the main one of its kind."""
        main = {"base": self.bases[0], "preprocessing": self.preprocessings[0], "share": max(self.shares)}
        where = {"attack": attack, **main, **where}
        others = [group(self.records, condition=other, **where) for other in self.conditions]
        return replace(group(self.records, condition=condition, **where), among=common(others))

    @property
    def clean(self) -> Group:
        """The rows whose thief's squares are FID's clean set."""
        return self.of("clean", ENCODER_ONLY, preprocessing="none")

    def label(self, encoder: str) -> str:
        """Name an encoder, with a star where layer 2 optimised against it."""
        return f"{encoder}*" if encoder in self.optimised else encoder


def cell(value: Estimate | None, digits: int = 3) -> str:
    """Return "value (low to high)"; a dash for None."""
    if value is None:
        return EMPTY
    text = f"{value.value:.{digits}f}"
    return text if value.low is None else f"{text} ({value.low:.{digits}f} to {value.high:.{digits}f})"


def counted(value: Estimate | None, digits: int = 3) -> str:
    """Return `cell` and how many images, photos, people or ratings are behind it."""
    return EMPTY if value is None else f"{cell(value, digits)}, n {value.n}"


def lost(which: Group) -> str:
    """Return rows that failed / rows in which the thief had no photo with a face / photos in which it found none."""
    return f"{which.count('failed')} / {which.count('no_photo')} / {which.dropped()}"


def markdown(tables: Sequence[Table]) -> str:
    """Return the tables as Markdown; cells cannot break their row."""
    parts = []
    for table in tables:
        heads = [_plain(c) for c in table.columns]
        lines = [f"## {_plain(table.title)}", "", *([_plain(table.note), ""] if table.note else [])]
        lines += ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
        lines += ["| " + " | ".join(_plain(c) for c in row) + " |" for row in table.rows]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _plain(text: str) -> str:
    visible = "".join(c if c.isprintable() else " " for c in text)
    return visible.replace("|", "\\|").replace("<", "&lt;")


def build(
    found: Evaluation,
    title: str,
    heads: Sequence[str],
    row_of: Callable[[str], tuple[Group, list[str]]],
    *,
    printed: PaperTable | None = None,
    conditions: Sequence[str] | None = None,
    note: str = "",
) -> Table | None:
    """Lay out a table of one row a method: people, images or photos lost, our cells, then the paper's."""
    rows = []
    for condition in conditions or found.conditions:
        which, cells = row_of(condition)
        if not which.records:
            continue
        theirs = printed.rows.get(condition, ()) if printed else ()
        theirs = (*theirs, *[""] * ((len(printed.columns) if printed else 0) - len(theirs)))
        rows.append((condition, str(which.people()), lost(which), *cells, *(c or EMPTY for c in theirs)))
    columns = ("method", "people", "lost", *heads, *(f"paper: {c}" for c in (printed.columns if printed else ())))
    return Table(title, columns, tuple(rows), len(printed.columns) if printed else 0, note) if rows else None
