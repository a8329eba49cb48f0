"""Which tables an evaluation prints, in the paper's layout (its Tables 1 to 5, 9, 10), and those it lacks."""

from collections.abc import Sequence
from dataclasses import replace

from dladiff.evaluation import paper_tables as paper
from dladiff.evaluation.attacks import ZERO_SHOT
from dladiff.evaluation.intervals import paired_change
from dladiff.evaluation.metrics import in_table
from dladiff.evaluation.metrics.record import Metric
from dladiff.evaluation.paper_tables import PaperTable
from dladiff.evaluation.summaries import ENCODER_ONLY, Group, fid
from dladiff.evaluation.tables import EMPTY, Evaluation, Table, build, cell, counted, lost

PAPER_PROMPTS = ("a photo of sks person", "a dslr portrait of sks person")
ABLATIONS = ("without_dsur", "without_adft", "without_layer2")
_OF_PAPER = {
    ("dreambooth", PAPER_PROMPTS[0]): ("Table 1", paper.TABLE_1_FIRST_PROMPT),
    ("dreambooth", PAPER_PROMPTS[1]): ("Table 1", paper.TABLE_1_SECOND_PROMPT),
    ("lora", PAPER_PROMPTS[0]): ("Table 2", paper.TABLE_2),
}


def all_tables(found: Evaluation) -> list[Table]:
    """Every table of which there are records, the paper's first."""
    tuning = [a for a in found.attacks if a not in (*ZERO_SHOT, ENCODER_ONLY)]
    tables = [_attack(found, attack, prompt) for attack in tuning for prompt in found.prompts]
    tables += [_other_base(found, base, attack) for base in found.bases[1:] for attack in tuning]
    generating = [a for a in found.attacks if a != ENCODER_ONLY]
    quality = _quality(found)
    tables += [_zero_shot(found), *_ablations(found), quality, _fid_alone(found, tuning)]
    tables += [_change(found, attack) for attack in generating]
    tables += [_less(found, attack) for attack in generating]
    if (way := found.preprocessings[0]) != "none":  # the stored photos are measured as they are
        tables = [t if t in (None, quality) else _after(way, t) for t in tables]
    tables += [_purified(found)] if len(found.preprocessings) > 1 else []
    for title, name, values in (
        ("Preprocessing before {}", "preprocessing", found.preprocessings),
        ("Share of the photos that is protected, %: {}", "share", found.shares),
    ):
        tables += [_by(found, title.format(a), a, name, values) for a in generating if len(values) > 1]
    return [table for table in tables if table is not None and table.rows]


def _after(way: str, table: Table | None) -> Table | None:
    return table and replace(table, title=f"{table.title} (photos after {way})")


def _columns(found: Evaluation, *tables: str) -> list[tuple[Metric, str, str]]:
    """Return metric, encoder and heading of the columns of some kinds of table."""
    return [
        (metric, encoder, f"{metric.heading} {found.label(encoder)}" if encoder else metric.heading)
        for table in tables
        for metric in in_table(table)
        for encoder in (found.encoders if metric.per_encoder else ("",))
    ]


def _heads(found: Evaluation, *tables: str) -> list[str]:
    return [head for _, _, head in _columns(found, *tables)]


def _cells(found: Evaluation, which: Group, prompt: str, *tables: str) -> list[str]:
    return [_cell(which, metric, encoder, prompt) for metric, encoder, _ in _columns(found, *tables)]


def _cell(which: Group, metric: Metric, encoder: str, prompt: str) -> str:
    if metric.cell is not None:
        return metric.cell([v for values in which.values(metric.name, encoder, prompt).values() for v in values])
    return (counted if metric.counted else cell)(which.estimate(metric.name, encoder, prompt), metric.digits)


def _scores(found: Evaluation, which: Group, prompt: str) -> list[str]:
    """Return N and what every table of generated pictures shows."""
    images = which.estimate("fdr", "", prompt)
    return [str(images.n if images else 0), *_cells(found, which, prompt, "scores")]


def _score_heads(found: Evaluation) -> list[str]:
    return ["images", *_heads(found, "scores")]


def _attack(found: Evaluation, attack: str, prompt: str) -> Table | None:
    name, printed = _OF_PAPER.get((attack, prompt), ("", None))

    def row(condition: str) -> tuple[Group, list[str]]:
        which = found.of(condition, attack)
        return which, [
            *_scores(found, which, prompt),
            counted(fid(which, found.clean, prompt, found.features, per_person=False), 1),
            *_cells(found, which, prompt, "attack"),
            counted(found.opinions.get((attack, condition, prompt)), 2),
        ]

    title = f"{name or 'Beyond the paper'}: {attack}, prompt {prompt!r}"
    heads = [*_score_heads(found), f"FID ({found.feature_name})", *_heads(found, "attack"), "MOS"]
    return build(found, title, heads, row, printed=printed)


def _other_base(found: Evaluation, base: str, attack: str) -> Table | None:
    prompt = found.prompts[0]

    def row(condition: str) -> tuple[Group, list[str]]:
        which = found.of(condition, attack, base=base)
        distance = fid(which, found.clean, prompt, found.features, per_person=False)
        others = _cells(found, which, prompt, "other base")
        return which, [*_scores(found, which, prompt), counted(distance, 1), *others]

    heads = [*_score_heads(found), f"FID ({found.feature_name})", *_heads(found, "other base")]
    printed = paper.TABLE_3 if attack == "dreambooth" else None
    return build(found, f"Table 3: {attack} on another base model, {base}", heads, row, printed=printed)


def _zero_shot(found: Evaluation) -> Table | None:
    attacks = [a for a in ZERO_SHOT if a in found.attacks]

    def row(condition: str) -> tuple[Group, list[str]]:
        shown = found.of(condition, ENCODER_ONLY)
        cells = _cells(found, shown, "", "zero-shot photos")
        for attack in attacks:
            which = found.of(condition, attack)
            cells += [str(which.people()), lost(which)]
            cells.append(counted(which.estimate("fdr", "", found.prompts[0])))
            cells += _cells(found, which, found.prompts[0], "zero-shot pictures")
        return shown, cells

    heads = _heads(found, "zero-shot photos")
    for attack in attacks:
        shown_heads = ["people", "lost", "FDR", *_heads(found, "zero-shot pictures")]
        heads += [f"{attack} {head}" for head in shown_heads]
    both = {"Faceid": paper.TABLE_4_FACEID, "InstantID": paper.TABLE_4_INSTANTID}
    columns = tuple(f"{attack} {c}" for attack, t in both.items() for c in t.columns)
    methods = paper.TABLE_4_FACEID.rows
    printed = PaperTable(columns, {m: tuple(c for t in both.values() for c in t.rows[m]) for m in methods})
    note = "A picture without a face counts as 0."
    return build(found, "Table 4: zero-shot", heads, row, printed=printed, note=note)


def _ablations(found: Evaluation) -> list[Table | None]:
    named = [c for c in ABLATIONS if c in found.conditions]
    main = found.conditions[-1]
    if not named:
        return []
    prompt = found.prompts[0]

    def tuned(condition: str) -> tuple[Group, list[str]]:
        which = found.of(condition, "dreambooth")
        return which, [
            *_scores(found, which, prompt),
            counted(fid(which, found.clean, prompt, found.features, per_person=False), 1),
            *_cells(found, which, prompt, "attack"),
        ]

    def shown(condition: str) -> tuple[Group, list[str]]:
        which = found.of(condition, ENCODER_ONLY)
        made = found.of(condition, "ip_adapter_faceid")
        return which, [
            *_cells(found, which, "", "zero-shot photos"),
            *_cells(found, made, prompt, "zero-shot pictures"),
        ]

    tuned_heads = [*_score_heads(found), f"FID ({found.feature_name})", *_heads(found, "attack")]
    shown_heads = _heads(found, "zero-shot photos", "zero-shot pictures")
    first, second = ([c for c in (*part, main) if c in (*named, main)] for part in (ABLATIONS[:2], ABLATIONS[2:]))
    one, two = "Table 5: ablation of layer 1, dreambooth", "Table 5: ablation of layer 2, ip_adapter_faceid"
    return [
        build(found, one, tuned_heads, tuned, printed=paper.TABLE_5_FINE_TUNING, conditions=first),
        build(found, two, shown_heads, shown, printed=paper.TABLE_5_ZERO_SHOT, conditions=second),
    ]


def _quality(found: Evaluation) -> Table | None:
    def row(condition: str) -> tuple[Group, list[str]]:
        which = found.of(condition, ENCODER_ONLY, preprocessing="none")
        photos = sum(len(values) for values in which.values("linf").values())
        return which, [str(photos), *_cells(found, which, "", "stored")]

    heads = ["photos", *_heads(found, "stored")]
    return build(found, "Table 9: the protected photos", heads, row, printed=paper.TABLE_9)


def _fid_alone(found: Evaluation, attacks: Sequence[str]) -> Table | None:
    prompt = found.prompts[0]

    def row(condition: str) -> tuple[Group, list[str]]:
        groups = [found.of(condition, attack) for attack in attacks]
        cells = [counted(fid(g, found.clean, prompt, found.features, per_person=True), 1) for g in groups]
        return Group(tuple(r for g in groups for r in g.records)), cells

    heads = [f"{attack} FID ({found.feature_name})" for attack in attacks]
    return build(found, "Table 10: FID of each person alone", heads, row, printed=paper.TABLE_10) if attacks else None


def _change(found: Evaluation, attack: str) -> Table | None:
    """Differences within people, which say more than two intervals side by side: people differ most."""
    prompt = found.prompts[0]
    metrics = _columns(found, "change")
    others = [c for c in ("clean", "noise") if c in found.conditions]

    def row(condition: str) -> tuple[Group, list[str]]:
        which, cells = found.of(condition, attack), []
        for other in others:
            than = found.of(other, attack)
            for metric, encoder, _ in metrics:
                pair = (g.values(metric.name, encoder, prompt) for g in (which, than))
                cells.append(EMPTY if condition == other else cell(paired_change(*pair)))
        return which, cells

    heads = [f"{name} from {other}" for other in others for _, _, name in metrics]
    rows = [c for c in found.conditions if c != "clean"]
    title = f"Change by protection: {attack}"
    return build(found, title, heads, row, conditions=rows, note="Mean of each person's own difference.")


def _less(found: Evaluation, attack: str) -> Table | None:
    """The main method less each of the others: whether it is lower than they are, and by how much."""
    prompt, main = found.prompts[0], found.of(found.conditions[-1], attack)
    metrics = _columns(found, "less")

    def row(condition: str) -> tuple[Group, list[str]]:
        which = found.of(condition, attack)
        pairs = ((main.values(m.name, e, prompt), which.values(m.name, e, prompt)) for m, e, _ in metrics)
        return which, [cell(paired_change(*pair)) for pair in pairs]

    heads = [head for _, _, head in metrics]
    title = f"{found.conditions[-1]} less each method: {attack}"
    note = "Mean of each person's own difference; below 0 it leaves less than that method."
    others = found.conditions[:-1]
    return build(found, title, heads, row, conditions=others, note=note) if main.records and others else None


def _purified(found: Evaluation) -> Table | None:
    rows: list[tuple[str, ...]] = []
    for way in found.preprocessings:
        for condition in found.conditions:
            which = found.of(condition, ENCODER_ONLY, preprocessing=way)
            if which.records:
                cells = [cell(which.estimate("pro_all", e)) for e in found.encoders]
                rows.append((way, condition, str(which.people()), str(which.dropped()), *cells))
    heads = ("preprocessing", "method", "people", "no face", *_heads(found, "zero-shot photos"))
    return Table("Preprocessing, seen by encoders alone", heads, tuple(rows))


def _by(found: Evaluation, title: str, attack: str, name: str, values: Sequence[object]) -> Table:
    rows: list[tuple[str, ...]] = []
    for value in values:
        for condition in found.conditions:
            which = found.of(condition, attack, **{name: value})
            if which.records:
                rows.append((str(value), condition, str(which.people()), *_scores(found, which, found.prompts[0])))
    return Table(title, (name, "method", "people", *_score_heads(found)), tuple(rows))
