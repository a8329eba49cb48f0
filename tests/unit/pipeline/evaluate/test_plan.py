"""The plan of an evaluation: people, photos, references, rows, and what changes a row's key."""

import dataclasses
import io
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from PIL import Image

from dladiff.errors import ConfigError
from pipeline.cli.main import main
from pipeline.evaluate import plan as evaluation_plan
from pipeline.evaluate.config import EvaluateConfig, missing
from pipeline.evaluate.plan import make_plan
from pipeline.storage.open import open_storage
from tests.support.evaluated import configured
from tests.support.outputs import protected_output
from tests.support.photo_bytes import rgb, saved


def keys(config: EvaluateConfig) -> dict[tuple[Any, ...], str]:
    names = ("identity", "condition", "attack", "base", "preprocessing", "share", "seed")
    return {tuple(row[n] for n in names): row["key"] for row in make_plan(config).rows}


def test_every_distinct_combination_once(tmp_path: Path) -> None:
    protected_output(tmp_path, {"ann": ["1.png", "2.png"]})
    config = configured(
        tmp_path, attacks=("dreambooth", "lora"), seeds=(0, 1), shares=(50, 100), preprocessings=("none", "half")
    )
    rows = keys(config)
    assert len(set(rows.values())) == len(rows)
    counted = [key for key in rows if key[2] == "lora" and key[4] == "half"]
    assert len(counted) == 2 * (1 + 2 + 2)  # seeds times clean, and two shares of noise and of the run
    alone = [key for key in rows if key[2] == "encoder_only"]
    assert len(alone) == 3 * 2
    assert {key[5:] for key in alone} == {(100, 0)}


def test_preprocessing_alone_still_measures_the_stored_photos(tmp_path: Path) -> None:
    protected_output(tmp_path, {"ann": ["1.png"]})
    rows = keys(configured(tmp_path, preprocessings=("half",)))
    assert {key[4] for key in rows if key[2] == "encoder_only"} == {"none", "half"}
    assert {key[4] for key in rows if key[2] == "dreambooth"} == {"half"}


def test_what_changes_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    protected_output(tmp_path, {"ann": ["1.png", "2.png"], "bob": ["1.png"]})
    config = configured(tmp_path)
    before = keys(config)
    assert keys(config.replaced(name="ours", kept=1, actors=3)).values() != before.values()
    assert set(keys(config.replaced(kept=1, actors=3)).values()) == set(before.values())
    assert set(keys(config.replaced(attacks=("dreambooth", "lora"))).values()) > set(before.values())
    for change in ({"count": 5}, {"prompts": ("x",)}, {"evaluators": ("embedded:mobile",)}):
        assert not set(keys(config.replaced(**change)).values()) & set(before.values())
    changed = keys(config.replaced(settings={"dreambooth": {"steps": 3}}))
    assert {k for k in before if before[k] != changed[k]} == {k for k in before if k[2] == "dreambooth"}
    given = config.replaced(settings={"dreambooth": {"adapter": str(tmp_path / "weights.bin")}})
    (tmp_path / "weights.bin").write_bytes(b"one")
    first = keys(given)
    (tmp_path / "weights.bin").write_bytes(b"two")
    assert {k for k in first if first[k] != keys(given)[k]} == {k for k in before if k[2] == "dreambooth"}
    record = evaluation_plan.ATTACKS["ip_adapter_faceid"]
    other = dataclasses.replace(record, tiny=record.tiny.replaced(adapter=str(tmp_path / "weights.bin")))
    monkeypatch.setitem(evaluation_plan.ATTACKS, "ip_adapter_faceid", other)  # another adapter ships
    zero_shot = config.replaced(attacks=("dreambooth", "ip_adapter_faceid"))
    others = keys(zero_shot)
    monkeypatch.undo()
    mine = keys(zero_shot)
    assert {k[2] for k in mine if mine[k] != others[k]} == {"ip_adapter_faceid"}
    fewer = keys(config.replaced(photos=1))
    assert {k[0] for k in before if before[k] == fewer[k] and k[2] == "dreambooth"} == {"bob"}


def test_other_references_and_other_weights_of_a_purifier_under_old_names_are_new_work(tmp_path: Path) -> None:
    protected_output(tmp_path, {"ann": ["1.png"]})
    for name, colour in (("one", "red"), ("two", "blue")):
        photo = io.BytesIO()
        Image.new("RGB", (80, 80), colour).save(photo, "PNG")
        open_storage(tmp_path / name, create=True).put("ann/01.png", photo.getvalue())
    one, two = (keys(configured(tmp_path, references=str(tmp_path / name))) for name in ("one", "two"))
    assert one.keys() == two.keys() and not set(one.values()) & set(two.values())
    weights = tmp_path / "weights" / "model.safetensors"
    weights.parent.mkdir()
    purified = configured(tmp_path, preprocessings=("none", f"diffpure={weights.parent}"))
    weights.write_bytes(b"one")
    before = keys(purified)
    weights.write_bytes(b"two")
    assert {k[4] for k in before if before[k] != keys(purified)[k]} == {f"diffpure={weights.parent}"}


@pytest.mark.parametrize("name", ["..", "/abs", "back\\slash", "tr/"])
def test_a_name_that_no_folder_can_have_has_no_references(tmp_path: Path, name: str) -> None:
    protected_output(tmp_path, {name: ["1.png"]})
    open_storage(tmp_path / "clean", create=True).put("x/1.png", saved(rgb(), "PNG"))
    assert make_plan(configured(tmp_path, references=str(tmp_path / "clean"))).rows[0]["references"] == []


def test_a_remover_asks_for_its_file(tmp_path: Path) -> None:
    (fault,) = missing(configured(tmp_path, preprocessings=("none", "remover")))
    assert "remover=FILE of the weights" in fault


def test_missing_models_are_reported_on_the_driver(tmp_path: Path) -> None:
    good = configured(tmp_path, preprocessings=("none", "sdedit"), evaluators=("embedded:mobile",))
    assert missing(good) == []
    bad = good.replaced(
        evaluators=("embedded:moble", "nonsense", "nothing.onnx"),
        preprocessings=("diffpure", f"gridpure={tmp_path / 'absent'}"),
        bases=("embedded", "absent"),
    )
    assert [fault.partition(":")[0] for fault in missing(bad)] == ["--evaluator"] * 3 + ["--preprocessing"] * 2 + [
        "--base"
    ]


def test_only_people_and_photos_that_every_run_protects(tmp_path: Path) -> None:
    protected_output(tmp_path, {"ann": ["1.png", "2.png"], "bob": ["1.png"], "cid": ["1.png"]})
    protected_output(tmp_path / "other", {"ann": ["1.png"], "bob": ["1.png"]})
    plan = make_plan(configured(tmp_path, compare={"aspl": str(tmp_path / "other" / "out")}))
    assert (plan.identities, plan.left_out) == (["ann", "bob"], ["cid"])
    ann = next(row for row in plan.rows if row["identity"] == "ann")
    assert len(ann["photos"]) == 1
    assert set(ann["photos"][0]["protected"]) == {"aspl", "dladiff"}
    assert [row["condition"] for row in plan.rows[:4]] == ["clean", "noise", "aspl", "dladiff"]
    assert [uri.rsplit("/", 1)[1] for uri in ann["references"]] == ["2.png"]  # a photo that the attacker does not have
    few = make_plan(configured(tmp_path, identities=1))
    assert few.identities == ["ann"]


def test_nobody_in_common_and_no_run(tmp_path: Path) -> None:
    protected_output(tmp_path, {"ann": ["1.png"]})
    protected_output(tmp_path / "other", {"bob": ["1.png"]})
    with pytest.raises(ConfigError, match="same photos"):
        make_plan(configured(tmp_path, compare={"aspl": str(tmp_path / "other" / "out")}))
    with pytest.raises(ConfigError, match="dladiff protect"):
        make_plan(configured(tmp_path, compare={"aspl": str(tmp_path / "in")}))


def reference_names(config: EvaluateConfig) -> list[str]:
    return ["/".join(uri.rsplit("/", 2)[1:]) for uri in make_plan(config).rows[0]["references"]]


def test_references_are_the_clean_sets_or_further_photos_never_strangers(tmp_path: Path) -> None:
    names = ["set_B/1.png", "set_B/2.png"]
    protected_output(tmp_path, {"ann": names})
    photo, beside = saved(rgb(), "PNG"), open_storage(tmp_path / "in")
    for key in ("0/set_A/a.png", "0/set_C/c.png", "0/notes/n.png", "0/set_A/note.txt"):
        beside.put(key, photo)
    assert reference_names(configured(tmp_path)) == ["set_A/a.png", "set_C/c.png"]
    for key in ("ann/r.png", "bob/r.png"):
        open_storage(tmp_path / "clean", create=True).put(key, photo)
    assert reference_names(configured(tmp_path, references=str(tmp_path / "clean"))) == ["ann/r.png"]

    files = tmp_path / "files"
    protected_output(files, {"ann": ["set_B_1.png"]})
    for key in ("0/set_A_2.png", "0/other.png"):
        open_storage(files / "in").put(key, photo)
    assert reference_names(configured(files)) == ["0/set_A_2.png"]

    plain = tmp_path / "plain"
    protected_output(plain, {"ann": [f"{i}.png" for i in range(6)]})
    open_storage(plain / "in").put("0/stranger.png", photo)
    assert reference_names(configured(plain)) == ["0/4.png", "0/5.png"]


def test_settings_are_checked_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        EvaluateConfig(
            output="o", results="r", compare={"clean": "x", "dladiff": "y"}, shares=(0,), count=0, seeds=(1, 1)
        )
    text = str(caught.value)
    assert all(part in text for part in ("count: 0", "--share: 0", "'clean'", "'dladiff'", "seeds"))
    with pytest.raises(ConfigError) as caught:
        EvaluateConfig(output="", results="ftp://a/b", inputs=("in", "s3://"), compare={"aspl": "s3://"}, references="")
    assert [fault.partition(":")[0] for fault in caught.value.faults] == [
        "--output",
        "--results",
        "--input s3",
        "--compare aspl",
        "--references",
    ]


def test_old_names_of_the_evaluators_are_answered_with_the_new_ones() -> None:
    values = {"output": "o", "results": "r", "judges": ["embedded:mobile"]}
    assert EvaluateConfig.load(values) == (None, ["judges: renamed to evaluators"])
    called = CliRunner().invoke(main, ["evaluate", "--output", "o", "--results", "r", "--judge", "embedded:mobile"])
    assert called.exit_code == 2 and "--judge: renamed to --evaluator" in called.output


def test_settings_survive_the_transfer_to_a_worker() -> None:
    config = EvaluateConfig(output="o", results="r", compare={"aspl": "x"}, settings={"lora": {"steps": 3}})
    assert EvaluateConfig(**config.to_dict()) == config
