"""The attacker's best choice of preprocessing, person by person: what the protection leaves in the worst case."""

from collections import Counter
from dataclasses import dataclass

from dladiff.evaluation.attacks import ENCODER_ONLY
from dladiff.evaluation.columns import Column, columns
from dladiff.evaluation.intervals import Estimate, mean_over_people
from dladiff.evaluation.summaries import Group, Values
from dladiff.evaluation.tables import EMPTY, Evaluation, Table, build_table, cell

NOTE = (
    "For each {item} the preprocessing with the highest value: the mean over all, and how often it was which (the "
    "first of equal ones counts). The maximum of noisy values lies above them, so compare with clean, which has the "
    "same choice."
)


@dataclass(frozen=True)
class Worst:
    """The mean of the highest values, and how often each preprocessing had the highest."""

    estimate: Estimate
    chosen: Counter[str]


def worst_case_tables(evaluation: Evaluation) -> list[Table | None]:
    """Return a table for each attack if more than one preprocessing was run, else []."""
    if len(evaluation.preprocessings) < 2:
        return []
    photos = tuple(dict.fromkeys(("none", *evaluation.preprocessings)))  # which encoders alone always measure
    title = "Worst preprocessing of each photo, measured by encoders alone"
    tables = [_table(evaluation, title, ENCODER_ONLY, photos, "photo")]
    for attack in (a for a in evaluation.attacks if a != ENCODER_ONLY):
        title = f"Worst preprocessing of each person: {attack}"
        tables.append(_table(evaluation, title, attack, evaluation.preprocessings, "person"))
    return tables


def worst(values: dict[str, Values], *, of_each: bool) -> Worst | None:
    """Return the worst case over preprocessings, from each preprocessing's values by person; None without values.

    `of_each`: each value is a photo's and is at the same place under every preprocessing. Otherwise a person's mean
    counts. A preprocessing without a value of a person, or without all of their photos, is no choice for this person.
    """
    highest: Values = {}
    chosen: Counter[str] = Counter()
    for person in sorted({name for own in values.values() for name in own}):
        own = {name: _items(found.get(person, []), of_each) for name, found in values.items()}
        most = max(map(len, own.values()))
        names = [name for name, items in own.items() if len(items) == most]
        for items in zip(*(own[name] for name in names), strict=True):
            highest.setdefault(person, []).append(max(items))
            chosen[names[items.index(max(items))]] += 1
    estimate = mean_over_people(highest)
    return Worst(estimate, chosen) if estimate else None


def _items(values: list[float], of_each: bool) -> list[float]:
    return values if of_each or not values else [sum(values) / len(values)]


def _table(evaluation: Evaluation, title: str, attack: str, preprocessings: tuple[str, ...], item: str) -> Table | None:
    photos = attack == ENCODER_ONLY
    prompt = "" if photos else evaluation.prompts[0]
    own = columns(evaluation, "worst photos" if photos else "worst")

    def row(condition: str) -> tuple[Group, list[str]]:
        groups = {p: evaluation.of(condition, attack, preprocessing=p) for p in preprocessings}
        every = Group(tuple(record for group in groups.values() for record in group.records))
        return every, [_cell(groups, column, prompt, of_each=photos) for column in own]

    return build_table(evaluation, title, [c.heading for c in own], row, note=NOTE.format(item=item))


def _cell(groups: dict[str, Group], column: Column, prompt: str, *, of_each: bool) -> str:
    found = worst({name: column.values(group, prompt) for name, group in groups.items()}, of_each=of_each)
    if found is None:
        return EMPTY
    counts = ", ".join(f"{name.partition('=')[0]} {count}" for name, count in found.chosen.most_common())
    return f"{cell(found.estimate, column.metric.digits)}: {counts}"
