"""`python docs/figures/make_verification.py RESULTS ENCODER...`: make verification.svg from results of `evaluate`.

RESULTS is the folder of `dladiff evaluate --results`. One panel per encoder, which should be a held-out one: the share
of DreamBooth's pictures that it verifies as the person, against the mean SSIMULACRA2 of the faces in the protected
photos. Runs whose names are strengths, and the clean photos at 100, form one curve; every other method is a point. Bars
are 95 % intervals of a bootstrap over people.
"""

import html
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from dladiff.evaluation.intervals import Estimate, mean_over_people

CURVE = {"strong": "strong", "dladiff": "balanced", "faint": "faint", "clean": "clean"}
"""Conditions of the curve, with their labels."""
LEFT, RIGHT, TOP, BOTTOM, WIDTH, HEIGHT = 46, 14, 34, 44, 330, 260
"""Margins and size of a panel's plot, units of the picture."""
LOWEST = 55
"""Left end of the horizontal axis, SSIMULACRA2."""
TEXT = 11
"""Size of the letters, and the least distance of two labels, units of the picture."""

Point = tuple[float, Estimate]


def points(rows: Sequence[Mapping[str, Any]], encoder: str) -> dict[str, Point]:
    """Return, by condition, the faces' mean SSIMULACRA2 and the verified share of the pictures of DreamBooth."""
    shown: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    seen: dict[str, dict[str, float]] = defaultdict(dict)
    for row in rows:
        if row["ssimulacra2_face"] is not None:
            seen[row["condition"]][row["identity"]] = row["ssimulacra2_face"]
        if row["attack"] != "dreambooth" or row["status"] != "done" or row["preprocessing"] != "none":
            continue
        for found in row["similarity"]:
            if found["encoder"] == encoder and found["verified"] is not None:
                shown[row["condition"]][row["identity"]].append(found["verified"])
    made = {name: mean_over_people(people) for name, people in shown.items()}
    return {
        name: (sum(seen[name].values()) / len(seen[name]), share)
        for name, share in made.items()
        if share is not None and seen[name] and name != "noise"
    }


def panel(found: Mapping[str, Point], encoder: str, left: float) -> list[str]:
    """Return the elements of one encoder's panel, whose plot starts at `left`."""

    def x(score: float) -> float:
        return left + WIDTH * (score - LOWEST) / (100 - LOWEST)

    def y(share: float) -> float:
        return TOP + HEIGHT * (1 - share)

    parts = [f'<text x="{left}" y="{TOP - 14}" class="title">{html.escape(encoder)}</text>']
    for tenth in range(0, 11, 2):
        at = y(tenth / 10)
        parts.append(f'<path class="grid" d="M{left} {at:.1f}H{left + WIDTH}"/>')
        parts.append(f'<text x="{left - 6}" y="{at + 4:.1f}" class="end">{tenth * 10} %</text>')
    for score in range(60, 101, 10):
        parts.append(f'<text x="{x(score):.1f}" y="{TOP + HEIGHT + 16}" class="middle">{score}</text>')
    parts.append(f'<text x="{left + WIDTH / 2}" y="{TOP + HEIGHT + 34}" class="middle">SSIMULACRA2 of the faces</text>')
    curve = [found[name] for name in CURVE if name in found]
    parts.append(f'<path class="curve" d="M{"L".join(f"{x(s):.1f} {y(e.value):.1f}" for s, e in curve)}"/>')
    taken: list[float] = []
    for name, (score, share) in sorted(found.items(), key=lambda item: item[1][1].value):
        kind = "ours" if name in CURVE else "other"
        at, middle = x(score), y(share.value)
        if kind == "ours" and share.low is not None and share.high is not None:
            parts.append(f'<path class="bar" d="M{at:.1f} {y(share.low):.1f}V{y(share.high):.1f}"/>')
        parts.append(f'<circle class="{kind}" cx="{at:.1f}" cy="{middle:.1f}" r="3.5"/>')
        place = middle + (4 if kind == "other" else -8 if name == "clean" else 16)
        if kind == "other":
            place = min([place, *(line - TEXT for line in taken)])
            taken.append(place)
        beside = ("end", -8) if at > left + WIDTH - 40 else ("start", 8)
        label = html.escape(CURVE.get(name, name))
        parts.append(f'<text x="{at + beside[1]:.1f}" y="{place:.1f}" class="{beside[0]} {kind}-text">{label}</text>')
    return parts


def figure(rows: Sequence[Mapping[str, Any]], encoders: Sequence[str]) -> str:
    """Return the picture as SVG."""
    wide = LEFT + WIDTH + RIGHT
    parts = [
        part
        for number, encoder in enumerate(encoders)
        for part in panel(points(rows, encoder), encoder, LEFT + number * wide)
    ]
    style = (
        f"text{{font:{TEXT}px sans-serif;fill:#333}}.title{{font-weight:bold;font-size:{TEXT + 2}px}}"
        ".end{text-anchor:end}.middle{text-anchor:middle}.grid{stroke:#ddd}.curve{fill:none;stroke:#0a5fa8;stroke-width:2}"
        ".bar{stroke:#0a5fa8;opacity:.5}.ours{fill:#0a5fa8}.other{fill:#c2501a}.ours-text{fill:#0a5fa8}.other-text{fill:#c2501a}"
    )
    size = f"0 0 {wide * len(encoders)} {TOP + HEIGHT + BOTTOM}"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{size}" role="img">'
    title = "<title>Share of generated pictures that an encoder verifies as the person, against SSIMULACRA2</title>"
    ground = '<rect width="100%" height="100%" fill="#fff"/>'
    return "\n".join([head, title, f"<style>{style}</style>", ground, *parts, "</svg>"]) + "\n"


def main(arguments: list[str]) -> int:
    """Write the figure beside this file; exit code 2 on bad usage."""
    if len(arguments) < 2:
        print(__doc__, file=sys.stderr)
        return 2
    rows = pq.read_table(Path(arguments[0]) / "results.parquet").to_pylist()
    Path(__file__).with_name("verification.svg").write_text(figure(rows, arguments[1:]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
