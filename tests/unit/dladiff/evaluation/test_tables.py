"""Records to tables: hand-made records whose means are plain, the paper's numbers where the paper prints them."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dladiff.evaluation import paper_tables as paper
from dladiff.evaluation.attacks import ENCODER_ONLY
from dladiff.evaluation.frechet import frechet_distance
from dladiff.evaluation.intervals import Estimate
from dladiff.evaluation.paper_layout import all_tables
from dladiff.evaluation.paper_tables import PROMPTS
from dladiff.evaluation.summaries import fid, group
from dladiff.evaluation.tables import Evaluation, Table, cell, markdown

PROMPT = PROMPTS[0]
CONDITIONS = ("clean", "noise", "aspl", "without_dsur", "dladiff")


def image(ism: float | None) -> dict[str, Any]:
    return {"face": ism is not None, "ism": {"e": ism}, "gen": {"e": ism}, "fiqa": None, "nsfw": None}


def photo(pro: float, psnr: float | None) -> dict[str, Any]:
    quality = {"psnr": psnr, "psnr_face": psnr, "ssim": 0.9, "linf": 7 / 255, "lpips": None}
    quality |= {"ssimulacra2": 81.54, "ssimulacra2_face": 62.17, "butteraugli": None}
    return {"original_face": True, "face": True, "pro": {"e": pro}, "quality": quality}


def record(identity: str, condition: str, attack: str, isms: list[float | None], **others: Any) -> dict[str, Any]:
    generated = attack != ENCODER_ONLY
    return {
        "identity": identity,
        "condition": condition,
        "attack": attack,
        "base": "embedded",
        "preprocessing": "none",
        "share": 100,
        "seed": 0,
        "status": "done",
        "dropped": 0,
        "prompts": [PROMPT],
        "images": {PROMPT: [image(v) for v in isms]} if generated else {},
        "protected": [] if generated else [photo(v or 0.0, 30.0) for v in isms],
        "features": f"{identity}/{condition}/{attack}",
    } | others


def features(found: Any, prompt: str) -> NDArray[np.float32]:
    """Features of clean crops around 0; those of generated sets are shifted by 2 along the first axis."""
    rng = np.random.default_rng(len(found["identity"]))
    shift = np.eye(6)[0] * (2 if prompt else 0)
    return (rng.normal(size=(8, 6)) + shift).astype(np.float32)


def evaluation(records: list[dict[str, Any]], **others: Any) -> Evaluation:
    settings: dict[str, Any] = {
        "records": records,
        "features": features,
        "feature_name": "mobile, not Inception",
        "conditions": CONDITIONS,
        "attacks": ("dreambooth", "ip_adapter_faceid"),
        "bases": ("embedded",),
        "preprocessings": ("none",),
        "shares": (100,),
        "prompts": (PROMPT,),
        "encoders": ("e",),
        "optimised": frozenset({"e"}),
    }
    return Evaluation(**(settings | others))


def everything() -> list[dict[str, Any]]:
    level = {"clean": 0.6, "noise": 0.6, "aspl": 0.5, "without_dsur": 0.4, "dladiff": 0.2}
    rows = []
    for identity in ("ann", "robert"):
        for condition, ism in level.items():
            for attack in (ENCODER_ONLY, "dreambooth", "ip_adapter_faceid"):
                rows.append(record(identity, condition, attack, [ism, ism, None, None]))
    return rows


def test_tables_of_preprocessed_photos_say_so() -> None:
    rows = [row | {"preprocessing": "tv"} for row in everything()]
    rows += [row for row in everything() if row["attack"] == ENCODER_ONLY]
    titles = [t.title for t in all_tables(evaluation(rows, preprocessings=("tv",)))]
    plain = [title for title in titles if "(photos after tv)" not in title]
    assert len(titles) > 4 and plain == ["Table 9: the protected photos"]


def by_title(tables: list[Table], start: str) -> Table:
    return next(t for t in tables if t.title.startswith(start))


def column(table: Table, head: str) -> dict[str, str]:
    place = table.columns.index(head)
    return {row[0]: row[place] for row in table.rows}


def test_means_count_a_missing_face_as_nothing_or_leave_it_out() -> None:
    found = group([record("ann", "clean", "dreambooth", [0.4, None])], condition="clean")
    fdr, every, detected = (found.estimate(m, "e", PROMPT) for m in ("fdr", "ism_all", "ism_detected"))
    assert fdr is not None
    assert every is not None
    assert detected is not None
    assert (fdr.value, every.value, detected.value) == (0.5, 0.2, 0.4)
    assert (fdr.n, detected.n) == (2, 1)
    assert found.estimate("fiqa", "", PROMPT) is None
    assert found.estimate("nsfwr", "", PROMPT) is None


def test_failed_rows_are_counted_and_measure_nothing() -> None:
    failed = {k: v for k, v in record("ann", "clean", "dreambooth", []).items() if k not in ("images", "protected")}
    found = group([failed | {"status": "failed"}, record("bob", "clean", "dreambooth", [1.0], dropped=3)])
    assert (found.count("failed"), found.people(), found.dropped()) == (1, 1, 3)
    assert found.values("fdr", "", PROMPT) == {"bob": [1.0]}


def test_rows_of_a_table_are_means_over_the_same_people() -> None:
    """A person without a usable photo under one method is left out of all rows; that method's row counts it as lost."""
    rows = everything()
    hidden = {"identity": "robert", "condition": "aspl", "attack": "dreambooth"}
    for row in rows:
        if all(row[name] == value for name, value in hidden.items()):
            row |= {"status": "no_photo", "images": {}}
        if row["identity"] == "robert" and row["condition"] == "clean" and row["attack"] == "dreambooth":
            row["images"] = {PROMPT: [image(None)] * 4}
    one = by_title(all_tables(evaluation(rows)), "Table 1")
    assert set(column(one, "people").values()) == {"1"}
    assert column(one, "FDR")["clean"] == "0.500"
    assert column(one, "lost") == dict.fromkeys(CONDITIONS, "0 / 0 / 0") | {"aspl": "0 / 1 / 0"}


def test_a_person_without_a_face_in_any_original_has_no_similarity_to_them() -> None:
    found = group([record("ann", "clean", "dreambooth", [0.4, None])], condition="clean")
    for row in found.records[0]["images"][PROMPT]:
        row["gen"] = {}
    assert found.estimate("gen_all", "e", PROMPT) is None


def test_fid_pools_people_or_takes_each_alone() -> None:
    rows = [record(n, "clean", a, [0.5]) for n in ("ann", "robert") for a in (ENCODER_ONLY, "dreambooth")]
    clean, attacked = group(rows, attack=ENCODER_ONLY), group(rows, attack="dreambooth")
    alone = fid(attacked, clean, PROMPT, features, per_person=True)
    pooled = fid(attacked, clean, PROMPT, features, per_person=False)
    assert alone is not None
    assert pooled is not None
    assert alone.value == pytest.approx(4, rel=1e-5)  # the same covariance, means 2 apart
    one, other = (np.concatenate([features(r, p) for r in clean.records]) for p in ("", PROMPT))
    assert pooled.value == pytest.approx(frechet_distance(one, other))
    assert (pooled.n, pooled.people) == (16, 2)
    assert fid(attacked, clean, PROMPT, lambda r, p: None, per_person=False) is None


def test_the_papers_layout() -> None:
    tables = all_tables(evaluation(everything()))
    names = [t.title.split(":")[0] for t in tables]
    assert names == [
        "Table 1",
        "Table 4",
        "Table 5",
        "Table 5",
        "Table 9",
        "Table 10",
        *["Change by protection"] * 2,
        *["dladiff less each method"] * 2,
    ]
    one = by_title(tables, "Table 1")
    assert [row[0] for row in one.rows] == list(CONDITIONS)
    assert column(one, "ISM all e*")["dladiff"] == "0.100 (0.100 to 0.100)"
    assert column(one, "ISM detected e*")["dladiff"] == "0.200 (0.200 to 0.200), n 4"
    assert column(one, "FDR")["clean"].startswith("0.500")
    assert column(one, "images")["aspl"] == "8"
    assert column(one, "FIQA")["clean"] == column(one, "MOS")["clean"] == "-"
    assert column(one, "FID (mobile, not Inception)")["clean"].startswith("4.0")
    assert column(one, "paper: CelebA-HQ ISM") == {
        "clean": "0.580", "noise": "-", "aspl": "0.452", "without_dsur": "-", "dladiff": "0.096",
    }  # fmt: skip
    assert all(head.startswith("paper: ") for head in one.columns[-one.papers :])
    assert not any(head.startswith("paper") for head in one.columns[: -one.papers])


def test_other_tables() -> None:
    tables = all_tables(evaluation(everything(), opinions={("dreambooth", "aspl", PROMPT): Estimate(2.5, 2, 3, 9, 3)}))
    assert column(by_title(tables, "Table 1"), "MOS")["aspl"] == "2.50 (2.00 to 3.00), n 9"
    four = by_title(tables, "Table 4")
    assert column(four, "ISM_pro e*")["dladiff"].startswith("0.100")  # two of its four photos read as nobody
    assert column(four, "ip_adapter_faceid people")["dladiff"] == "2"
    assert column(four, "ip_adapter_faceid ISM_gen e*")["clean"] == "0.300 (0.300 to 0.300), n 8"
    assert column(four, "paper: InstantID VGGFace2 ISM_gen")["dladiff"] == "0.058"
    five = [t for t in tables if t.title.startswith("Table 5")]
    assert [row[0] for row in five[0].rows] == ["without_dsur", "dladiff"]
    nine = by_title(tables, "Table 9")
    assert column(nine, "PSNR dB")["dladiff"].startswith("30.00")
    assert column(nine, "largest change, of 255")["aspl"] == "7"
    assert column(nine, "SSIMULACRA2")["aspl"].startswith("81.5")
    assert column(nine, "SSIMULACRA2 face")["aspl"].startswith("62.2")
    assert column(nine, "Butteraugli 3-norm")["aspl"] == "-"  # the worker has no such program
    assert column(by_title(tables, "Table 10"), "dreambooth FID (mobile, not Inception)")["clean"].startswith("4.0")
    change = by_title(tables, "Change by protection: dreambooth")
    assert column(change, "ISM all e* from clean")["dladiff"] == "-0.200 (-0.200 to -0.200)"
    assert column(change, "ISM all e* from noise")["noise"] == "-"
    less = by_title(tables, "dladiff less each method: dreambooth")
    assert [row[0] for row in less.rows] == list(CONDITIONS[:-1])
    assert column(less, "ISM all e*")["clean"] == column(change, "ISM all e* from clean")["dladiff"] + ", p 1.000"
    assert column(less, "ISM detected e*")["clean"] == "-0.400 (-0.400 to -0.400), p 1.000"  # two people: p is .5 or 1


def test_preprocessing_shares_and_other_bases_get_tables_of_their_own() -> None:
    rows = everything()
    rows += [row | {"preprocessing": "jpeg75"} for row in everything()]
    rows += [row | {"share": 50} for row in everything() if row["condition"] != "clean"]
    rows += [row | {"base": "other"} for row in everything() if row["attack"] == "dreambooth"]
    found = evaluation(rows, preprocessings=("none", "jpeg75"), shares=(50, 100), bases=("embedded", "other"))
    tables = all_tables(found)
    assert column(by_title(tables, "Table 1"), "images")["clean"] == "8"  # the others are not mixed in
    assert column(by_title(tables, "Table 3"), "paper: NSFWR")["dladiff"] == "0.733"
    assert by_title(tables, "Table 3").rows[0][0] == "clean"
    purified = by_title(tables, "Preprocessing, measured")
    assert {row[:2] for row in purified.rows} == {(w, c) for w in ("none", "jpeg75") for c in CONDITIONS}
    shares = by_title(tables, "Share of the photos")
    assert ("50", "clean") not in {row[:2] for row in shares.rows}
    assert ("50", "dladiff") in {row[:2] for row in shares.rows}


def test_nothing_measured_gives_no_table() -> None:
    assert all_tables(evaluation([])) == []
    assert cell(None) == "-"
    assert cell(Estimate(0.5, None, None, 1, 1)) == "0.500"


def test_markdown_cells_cannot_break_out() -> None:
    table = Table("a\nb", ("method", "x"), (("<script>|", "1"),), note="n")
    text = markdown([table])
    assert "## a b" in text
    assert "| &lt;script>\\| | 1 |" in text


def test_the_papers_numbers_are_those_it_prints() -> None:
    ours = paper.TABLE_1_FIRST_PROMPT.rows["dladiff"]
    assert ours == ("0.201", "0.096", "233.7", "0.225", "1.57", "0.608", "0.263", "194.0", "0.217", "1.76")
    every = [v for name, v in vars(paper).items() if name.startswith("TABLE_")]
    assert len(every) == 10
    assert all(len(row) == len(table.columns) for table in every for row in table.rows.values())
    assert all(name in paper.NAMES for table in every for name in table.rows)
    psnr = [float(row[0]) for row in paper.TABLE_9.rows.values()]
    assert all(abs(value - 35) <= 0.5 for value in psnr)  # "all methods achieve a comparable PSNR (35 +- 0.5)"
