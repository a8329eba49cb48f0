"""The share of pairs that raters call the same person, by attack and condition, as rows and as a table."""

from collections.abc import Collection
from typing import Any

from dladiff.evaluation.crossed import mean_over_people_and_raters
from dladiff.evaluation.tables import Table, cell
from pipeline.evaluate.ratings import PAIRS_SHEET, Rating, read_ratings
from pipeline.storage.base import Storage

DIFFERENT = "different people"
"""Condition of the pairs that show two people; its space keeps it apart from every method's name."""
NOTE = (
    "Share of the answers `same` to a real photo beside a generated picture, with a 95 % interval of a bootstrap over "
    "people and raters. Controls: clean is the most that a picture can reach, and different people is what raters see "
    "in pictures of somebody else. Cannot say counts as not the same."
)


def pair_summary(results: Storage, faces: Collection[str] | None = None) -> list[dict[str, Any]]:
    """Return each attack, condition and prompt with its share of `same` and `cannot say`, interval and counts.

    `faces`: keys of the pictures whose answers count; None: all.
    """
    groups: dict[tuple[str, str, str], list[Rating]] = {}
    for row in read_ratings(results, PAIRS_SHEET):
        if faces is None or row["face"] in faces:
            groups.setdefault((row["attack"], row["prompt"], row["condition"]), []).append(row)
    rows = []
    for (attack, prompt, condition), own in sorted(groups.items()):
        same = mean_over_people_and_raters([(r["identity"], r["rater"], float(r["answer"] == "same")) for r in own])
        assert same is not None  # a group has an answer
        rows.append(
            {
                "attack": attack,
                "condition": condition,
                "prompt": prompt,
                "same": same.value,
                "low": same.low,
                "high": same.high,
                "cannot_say": sum(r["answer"] == "cannot say" for r in own) / len(own),
                "answers": len(own),
                "pairs": len({r["pair"] for r in own}),
                "people": same.people,
                "raters": len({r["rater"] for r in own}),
                "estimate": same,  # for `cell`
            }
        )
    return rows


def pair_table(results: Storage, faces: Collection[str]) -> list[Table]:
    """Return the table of the answers, or [] without any."""
    names = ("attack", "prompt", "condition", "same", "cannot_say", "answers", "pairs", "people", "raters")
    rows = []
    for row in pair_summary(results, faces):
        shown = row | {"same": cell(row["estimate"], 2), "cannot_say": f"{row['cannot_say']:.2f}"}
        rows.append(tuple(str(shown[name]) for name in names))
    return (
        [Table("The same person or not", tuple(n.replace("_", " ") for n in names), tuple(rows), note=NOTE)]
        if rows
        else []
    )
