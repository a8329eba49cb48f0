"""The worst preprocessing of each person and photo, on records whose maxima are plain."""

from typing import Any

from dladiff.evaluation.attacks import ENCODER_ONLY
from dladiff.evaluation.paper_layout import all_tables
from dladiff.evaluation.worst_case import worst
from tests.unit.dladiff.evaluation.test_tables import by_title, column, evaluation, everything, record


def rows(attack: str) -> list[dict[str, Any]]:
    values = {
        ("ann", "none"): [0.1, 0.3], ("ann", "tv"): [0.4, 0.2], ("ann", "blur"): [0.0, 0.1],
        ("bob", "none"): [0.5, 0.5], ("bob", "tv"): [0.3, 0.6], ("bob", "blur"): [0.2, 0.2],
    }  # fmt: skip
    return [record(who, "dladiff", attack, own, preprocessing=name) for (who, name), own in values.items()]


def tables(records: list[dict[str, Any]], **others: Any) -> Any:
    settings = {"conditions": ("dladiff",), "preprocessings": ("none", "tv", "blur"), "attacks": ("dreambooth",)}
    return all_tables(evaluation(records, **(settings | others)))


def test_of_each_person_the_highest_mean_counts() -> None:
    table = by_title(tables(rows("dreambooth")), "Worst preprocessing of each person: dreambooth")
    # ann: .2, .3, .05; bob: .5, .45, .2
    assert column(table, "ISM all e*")["dladiff"] == "0.400 (0.300 to 0.500): tv 1, none 1"
    # ann: .3, .4, .1; bob: .5, .6, .2
    assert column(table, "ISM best e*")["dladiff"] == "0.500 (0.400 to 0.600): tv 2"


def test_of_each_photo_the_highest_value_counts() -> None:
    table = by_title(tables(rows(ENCODER_ONLY)), "Worst preprocessing of each photo")
    # ann: .4, .3; bob: .5, .6
    assert column(table, "ISM_pro e*")["dladiff"] == "0.450 (0.350 to 0.550): tv 2, none 2"


def test_verification_has_a_worst_case_too() -> None:
    table = by_title(tables(rows("dreambooth"), thresholds={"e": 0.4}), "Worst preprocessing of each person")
    # ann: 0, .5, 0; bob: 1, .5, 0
    assert column(table, "verified e*")["dladiff"] == "0.750 (0.500 to 1.000): tv 1, none 1"
    assert column(table, "verified best e*")["dladiff"] == "1.000 (1.000 to 1.000): tv 1, none 1"


def test_a_purifiers_folder_is_not_shown() -> None:
    records = [
        row | {"preprocessing": row["preprocessing"].replace("tv", "sdedit=/secret/folder")} for row in rows("lora")
    ]
    found = tables(records, preprocessings=("none", "sdedit=/secret/folder", "blur"), attacks=("lora",))
    table = by_title(found, "Worst preprocessing of each person")
    assert "sdedit 1" in column(table, "ISM all e*")["dladiff"]
    assert "/secret" not in str(table)


def test_a_preprocessing_that_hides_a_face_is_no_choice() -> None:
    found = worst({"none": {"ann": [0.1, 0.2]}, "tv": {"ann": [0.9]}, "blur": {}}, of_each=True)
    assert found is not None
    assert (round(found.estimate.value, 6), found.chosen) == (0.15, {"none": 2})
    assert worst({"none": {}, "tv": {"ann": []}}, of_each=False) is None


def test_one_preprocessing_has_no_worst() -> None:
    assert not [t for t in all_tables(evaluation(everything())) if t.title.startswith("Worst")]
