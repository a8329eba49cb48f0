"""Tables as text and as Markdown: estimates with n and interval, and the paper's numbers in separate columns."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from dladiff.evaluation.attacks import ENCODER_ONLY
from dladiff.evaluation.intervals import Estimate
from dladiff.evaluation.paper_tables import PaperTable
from dladiff.evaluation.summaries import FeaturesOf, Group, Result, common, group

EMPTY = "-"


@dataclass(frozen=True)
class Table:
    """A table of text cells; the last `papers` columns hold the paper's numbers."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    papers: int = 0
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """All records of an evaluation, and the conditions, attacks and other names that its tables list."""

    records: Sequence[Result]
    features: FeaturesOf
    feature_name: str
    """Network of FID's features, for the column's heading."""
    conditions: tuple[str, ...]
    attacks: tuple[str, ...]
    bases: tuple[str, ...]
    preprocessings: tuple[str, ...]
    shares: tuple[int, ...]
    prompts: tuple[str, ...]
    encoders: tuple[str, ...]
    optimised: frozenset[str]
    """Encoders of the evaluator that the main method's layer 2 optimised against."""
    opinions: Mapping[tuple[str, str, str], Estimate] = field(default_factory=dict)
    """Attack, condition and prompt to MOS."""
    rescores: tuple[str, ...] = ()
    """Preprocessings of the generated pictures, after which they are scored a second time."""
    thresholds: Mapping[str, float] = field(default_factory=dict)
    """Encoder to the smallest cosine that verifies."""

    def of(self, condition: str, attack: str, **where: object) -> Group:
        """Return the records of a method under an attack, by default of the main base model and preprocessing."""
        main = {"base": self.bases[0], "preprocessing": self.preprocessings[0], "share": max(self.shares)}
        where = {"attack": attack, **main, **where}
        others = [group(self.records, condition=other, **where) for other in self.conditions]
        own = group(self.records, condition=condition, **where)
        return replace(own, among=common(others), thresholds=self.thresholds)

    @property
    def clean(self) -> Group:
        """The records whose crops are FID's clean set."""
        return self.of("clean", ENCODER_ONLY, preprocessing="none")

    def label(self, encoder: str) -> str:
        """Return an encoder's name, with a star if layer 2 optimised against it."""
        return f"{encoder}*" if encoder in self.optimised else encoder


def cell(value: Estimate | None, digits: int = 3) -> str:
    """Return "value (low to high)", or a dash for None."""
    if value is None:
        return EMPTY
    text = f"{value.value:.{digits}f}"
    return text if value.low is None else f"{text} ({value.low:.{digits}f} to {value.high:.{digits}f})"


def cell_with_n(value: Estimate | None, digits: int = 3) -> str:
    """Return `cell` followed by the number of images, photos, people or ratings."""
    return EMPTY if value is None else f"{cell(value, digits)}, n {value.n}"


def lost(group: Group) -> str:
    """Return "failed rows / rows in which the attacker had no photo with a face / photos without a detected face"."""
    return f"{group.count('failed')} / {group.count('no_photo')} / {group.dropped()}"


def markdown(tables: Sequence[Table]) -> str:
    """Return the tables as Markdown; `|`, `<` and line breaks in cells are escaped."""
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


def build_table(
    evaluation: Evaluation,
    title: str,
    heads: Sequence[str],
    row_of: Callable[[str], tuple[Group, list[str]]],
    *,
    paper: PaperTable | None = None,
    conditions: Sequence[str] | None = None,
    note: str = "",
) -> Table | None:
    """Return a table with one row per method that has records, or None without a row.

    The columns are the method, its people, what was lost, the cells of `row_of` under `heads`, and the paper's cells.
    """
    rows = []
    paper_columns = paper.columns if paper else ()
    for condition in conditions or evaluation.conditions:
        group, cells = row_of(condition)
        if not group.records:
            continue
        printed = paper.rows.get(condition, ()) if paper else ()
        printed = (*printed, *[""] * (len(paper_columns) - len(printed)))
        rows.append((condition, str(group.people()), lost(group), *cells, *(c or EMPTY for c in printed)))
    columns = ("method", "people", "lost", *heads, *(f"paper: {c}" for c in paper_columns))
    return Table(title, columns, tuple(rows), len(paper_columns), note) if rows else None
