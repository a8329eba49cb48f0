"""Tables of paired differences: each person's own, because people differ more than methods."""

from dladiff.evaluation.columns import columns
from dladiff.evaluation.intervals import paired_change, paired_differences
from dladiff.evaluation.permutation import holm, sign_flip_p
from dladiff.evaluation.summaries import Group
from dladiff.evaluation.tables import EMPTY, Evaluation, Table, build_table, cell


def change(evaluation: Evaluation, attack: str) -> Table | None:
    """Return each method's mean difference from clean and from noise."""
    prompt = evaluation.prompts[0]
    own = columns(evaluation, "change")
    others = [c for c in ("clean", "noise") if c in evaluation.conditions]

    def row(condition: str) -> tuple[Group, list[str]]:
        group, cells = evaluation.of(condition, attack), []
        for other in others:
            baseline = evaluation.of(other, attack)
            for column in own:
                pair = (column.values(g, prompt) for g in (group, baseline))
                cells.append(EMPTY if condition == other else cell(paired_change(*pair)))
        return group, cells

    heads = [f"{column.heading} from {other}" for other in others for column in own]
    rows = [c for c in evaluation.conditions if c != "clean"]
    title = f"Change by protection: {attack}"
    return build_table(evaluation, title, heads, row, conditions=rows, note="Mean of each person's own difference.")


def difference(evaluation: Evaluation, attack: str) -> Table | None:
    """Return the main method minus each other method: the mean difference, and its p-value corrected by Holm."""
    name, others = evaluation.conditions[-1], evaluation.conditions[:-1]
    prompt, main = evaluation.prompts[0], evaluation.of(name, attack)
    if not (main.records and others):
        return None
    groups = {other: evaluation.of(other, attack) for other in others}
    cells: dict[str, list[str]] = {other: [] for other in others}
    for column in columns(evaluation, "difference"):
        values = column.values(main, prompt)
        pairs = {other: (values, column.values(group, prompt)) for other, group in groups.items()}
        p_values = holm([sign_flip_p([*paired_differences(*pair).values()]) for pair in pairs.values()])
        for (other, pair), p in zip(pairs.items(), p_values, strict=True):
            text = cell(paired_change(*pair))
            cells[other].append(text if p is None else f"{text}, p {p:.3f}")

    heads = [column.heading for column in columns(evaluation, "difference")]
    note = (
        f"Mean of each person's own difference; below 0, {name} leaves less than that method. p: sign-flip permutation "
        f"test over people, two-sided, corrected by Holm for the {len(others)} methods of a column (not for the number "
        "of columns); at or below .05 the two are told apart."
    )
    title = f"{name} less each method: {attack}"
    rows = {other: (groups[other], cells[other]) for other in others}
    return build_table(evaluation, title, heads, rows.__getitem__, conditions=others, note=note)
