"""The tables of an evaluation: those of the DLADiff paper (Tables 1 to 5, 9, 10) in its layout, and further ones."""

from collections.abc import Sequence
from dataclasses import replace

from dladiff.evaluation import paper_tables as paper
from dladiff.evaluation.attacks import ENCODER_ONLY, ZERO_SHOT
from dladiff.evaluation.columns import cells_of, headings
from dladiff.evaluation.paired_tables import change, difference
from dladiff.evaluation.paper_tables import PROMPTS, PaperTable
from dladiff.evaluation.summaries import Group, fid
from dladiff.evaluation.tables import Evaluation, Table, build_table, cell_with_n, lost
from dladiff.evaluation.worst_case import worst_case_tables

ABLATIONS = ("without_dsur", "without_adft", "without_layer2")
_OF_PAPER = {
    ("dreambooth", PROMPTS[0]): ("Table 1", paper.TABLE_1_FIRST_PROMPT),
    ("dreambooth", PROMPTS[1]): ("Table 1", paper.TABLE_1_SECOND_PROMPT),
    ("lora", PROMPTS[0]): ("Table 2", paper.TABLE_2),
}


def all_tables(evaluation: Evaluation) -> list[Table]:
    """Return every table that has records, the paper's first."""
    tuning = [a for a in evaluation.attacks if a not in (*ZERO_SHOT, ENCODER_ONLY)]
    tables = [_attack(evaluation, attack, prompt) for attack in tuning for prompt in evaluation.prompts]
    tables += [_other_base(evaluation, base, attack) for base in evaluation.bases[1:] for attack in tuning]
    generating = [a for a in evaluation.attacks if a != ENCODER_ONLY]
    quality = _quality(evaluation)
    tables += [_zero_shot(evaluation), *_ablations(evaluation), quality, _fid_alone(evaluation, tuning)]
    tables += [change(evaluation, attack) for attack in generating]
    tables += [difference(evaluation, attack) for attack in generating]
    if (main := evaluation.preprocessings[0]) != "none":  # the table of stored photos has no preprocessing
        tables = [t if t in (None, quality) else _name_preprocessing(main, t) for t in tables]
    tables += [_preprocessed_photos(evaluation)] if len(evaluation.preprocessings) > 1 else []
    for title, name, values in (
        ("Preprocessing before {}", "preprocessing", evaluation.preprocessings),
        ("Share of the photos that is protected, %: {}", "share", evaluation.shares),
    ):
        tables += [_by(evaluation, title.format(a), a, name, values) for a in generating if len(values) > 1]
    tables += worst_case_tables(evaluation)
    return [table for table in tables if table is not None and table.rows]


def _name_preprocessing(preprocessing: str, table: Table | None) -> Table | None:
    return table and replace(table, title=f"{table.title} (photos after {preprocessing})")


def _scores(evaluation: Evaluation, group: Group, prompt: str) -> list[str]:
    """Return the number of images and the cells of every table of generated pictures."""
    images = group.estimate("fdr", "", prompt)
    return [str(images.n if images else 0), *cells_of(evaluation, group, prompt, "scores")]


def _score_heads(evaluation: Evaluation) -> list[str]:
    return ["images", *headings(evaluation, "scores")]


def _attack(evaluation: Evaluation, attack: str, prompt: str) -> Table | None:
    name, printed = _OF_PAPER.get((attack, prompt), ("", None))

    def row(condition: str) -> tuple[Group, list[str]]:
        group = evaluation.of(condition, attack)
        return group, [
            *_scores(evaluation, group, prompt),
            cell_with_n(fid(group, evaluation.clean, prompt, evaluation.features, per_person=False), 1),
            *cells_of(evaluation, group, prompt, "attack"),
            cell_with_n(evaluation.opinions.get((attack, condition, prompt)), 2),
        ]

    title = f"{name or 'Beyond the paper'}: {attack}, prompt {prompt!r}"
    heads = [*_score_heads(evaluation), f"FID ({evaluation.feature_name})", *headings(evaluation, "attack"), "MOS"]
    return build_table(evaluation, title, heads, row, paper=printed)


def _other_base(evaluation: Evaluation, base: str, attack: str) -> Table | None:
    prompt = evaluation.prompts[0]

    def row(condition: str) -> tuple[Group, list[str]]:
        group = evaluation.of(condition, attack, base=base)
        distance = fid(group, evaluation.clean, prompt, evaluation.features, per_person=False)
        others = cells_of(evaluation, group, prompt, "other base")
        return group, [*_scores(evaluation, group, prompt), cell_with_n(distance, 1), *others]

    heads = [*_score_heads(evaluation), f"FID ({evaluation.feature_name})", *headings(evaluation, "other base")]
    printed = paper.TABLE_3 if attack == "dreambooth" else None
    return build_table(evaluation, f"Table 3: {attack} on another base model, {base}", heads, row, paper=printed)


def _zero_shot(evaluation: Evaluation) -> Table | None:
    attacks = [a for a in ZERO_SHOT if a in evaluation.attacks]

    def row(condition: str) -> tuple[Group, list[str]]:
        photos = evaluation.of(condition, ENCODER_ONLY)
        cells = cells_of(evaluation, photos, "", "zero-shot photos")
        for attack in attacks:
            group = evaluation.of(condition, attack)
            cells += [str(group.people()), lost(group)]
            cells.append(cell_with_n(group.estimate("fdr", "", evaluation.prompts[0])))
            cells += cells_of(evaluation, group, evaluation.prompts[0], "zero-shot pictures")
        return photos, cells

    heads = headings(evaluation, "zero-shot photos")
    for attack in attacks:
        attack_heads = ["people", "lost", "FDR", *headings(evaluation, "zero-shot pictures")]
        heads += [f"{attack} {head}" for head in attack_heads]
    halves = {"Faceid": paper.TABLE_4_FACEID, "InstantID": paper.TABLE_4_INSTANTID}
    columns = tuple(f"{attack} {c}" for attack, t in halves.items() for c in t.columns)
    methods = paper.TABLE_4_FACEID.rows
    printed = PaperTable(columns, {m: tuple(c for t in halves.values() for c in t.rows[m]) for m in methods})
    note = "A picture without a face counts as 0."
    return build_table(evaluation, "Table 4: zero-shot", heads, row, paper=printed, note=note)


def _ablations(evaluation: Evaluation) -> list[Table | None]:
    ablations = [c for c in ABLATIONS if c in evaluation.conditions]
    main = evaluation.conditions[-1]
    if not ablations:
        return []
    prompt = evaluation.prompts[0]

    def fine_tuning_row(condition: str) -> tuple[Group, list[str]]:
        group = evaluation.of(condition, "dreambooth")
        return group, [
            *_scores(evaluation, group, prompt),
            cell_with_n(fid(group, evaluation.clean, prompt, evaluation.features, per_person=False), 1),
            *cells_of(evaluation, group, prompt, "attack"),
        ]

    def zero_shot_row(condition: str) -> tuple[Group, list[str]]:
        photos = evaluation.of(condition, ENCODER_ONLY)
        pictures = evaluation.of(condition, "ip_adapter_faceid")
        return photos, [
            *cells_of(evaluation, photos, "", "zero-shot photos"),
            *cells_of(evaluation, pictures, prompt, "zero-shot pictures"),
        ]

    fine_tuning_heads = [*_score_heads(evaluation), f"FID ({evaluation.feature_name})", *headings(evaluation, "attack")]
    zero_shot_heads = headings(evaluation, "zero-shot photos", "zero-shot pictures")
    first, second = ([c for c in (*part, main) if c in (*ablations, main)] for part in (ABLATIONS[:2], ABLATIONS[2:]))
    one, two = "Table 5: ablation of layer 1, dreambooth", "Table 5: ablation of layer 2, ip_adapter_faceid"
    return [
        build_table(
            evaluation, one, fine_tuning_heads, fine_tuning_row, paper=paper.TABLE_5_FINE_TUNING, conditions=first
        ),
        build_table(evaluation, two, zero_shot_heads, zero_shot_row, paper=paper.TABLE_5_ZERO_SHOT, conditions=second),
    ]


def _quality(evaluation: Evaluation) -> Table | None:
    def row(condition: str) -> tuple[Group, list[str]]:
        group = evaluation.of(condition, ENCODER_ONLY, preprocessing="none")
        photos = sum(len(values) for values in group.values("linf").values())
        return group, [str(photos), *cells_of(evaluation, group, "", "stored")]

    heads = ["photos", *headings(evaluation, "stored")]
    return build_table(evaluation, "Table 9: the protected photos", heads, row, paper=paper.TABLE_9)


def _fid_alone(evaluation: Evaluation, attacks: Sequence[str]) -> Table | None:
    prompt = evaluation.prompts[0]

    def row(condition: str) -> tuple[Group, list[str]]:
        groups = [evaluation.of(condition, attack) for attack in attacks]
        cells = [cell_with_n(fid(g, evaluation.clean, prompt, evaluation.features, per_person=True), 1) for g in groups]
        return Group(tuple(r for g in groups for r in g.records)), cells

    heads = [f"{attack} FID ({evaluation.feature_name})" for attack in attacks]
    return (
        build_table(evaluation, "Table 10: FID of each person alone", heads, row, paper=paper.TABLE_10)
        if attacks
        else None
    )


def _preprocessed_photos(evaluation: Evaluation) -> Table | None:
    rows: list[tuple[str, ...]] = []
    for preprocessing in evaluation.preprocessings:
        for condition in evaluation.conditions:
            group = evaluation.of(condition, ENCODER_ONLY, preprocessing=preprocessing)
            if group.records:
                cells = cells_of(evaluation, group, "", "zero-shot photos")
                rows.append((preprocessing, condition, str(group.people()), str(group.dropped()), *cells))
    heads = ("preprocessing", "method", "people", "no face", *headings(evaluation, "zero-shot photos"))
    return Table("Preprocessing, measured by encoders alone", heads, tuple(rows))


def _by(evaluation: Evaluation, title: str, attack: str, name: str, values: Sequence[object]) -> Table:
    rows: list[tuple[str, ...]] = []
    for value in values:
        for condition in evaluation.conditions:
            group = evaluation.of(condition, attack, **{name: value})
            if group.records:
                rows.append(
                    (str(value), condition, str(group.people()), *_scores(evaluation, group, evaluation.prompts[0]))
                )
    return Table(title, (name, "method", "people", *_score_heads(evaluation)), tuple(rows))
