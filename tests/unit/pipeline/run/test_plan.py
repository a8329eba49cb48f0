"""The plan: identities split into tasks, what is new, what is taken up again, and what it would cost."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from dladiff.errors import ConfigError
from dladiff.settings.schema import method_config
from pipeline.config import RunConfig
from pipeline.records import commit as records
from pipeline.records.lease import LOCK
from pipeline.records.manifest import write_manifest
from pipeline.run.estimate import assumed_rate, estimate, measured_rate, paper_work, work_of
from pipeline.run.plan import Plan, Retry, make_plan, write_plan
from pipeline.run.status import status, watch
from pipeline.storage.base import Storage
from pipeline.storage.open import open_storage


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    source = open_storage(tmp_path / "in", create=True)
    for i in range(7):
        source.put(f"ann/{i}.png", b"x" * (i + 1))
    source.put("bob/1.png", b"y")
    return RunConfig(input=str(tmp_path / "in"), output=str(tmp_path / "out"), max_photos_per_task=3)


@pytest.fixture
def output(config: RunConfig) -> Storage:
    return open_storage(config.output, create=True)


def work(config: RunConfig, folder: Path, retry: Retry | None = None) -> tuple[Plan, list[dict[str, Any]]]:
    plan = make_plan(config, retry=retry, folder=folder)
    assert plan.todo_file is not None
    return plan, [json.loads(row["work"]) for row in plan.todo_file.rows()]


def commit(output: Storage, task: dict[str, Any], lost: tuple[str, ...] = (), seconds: float = 0.0) -> None:
    folder = f"photos/{task['identity']}"
    photos = [
        {"source_uri": p["uri"], "status": "protected", "output_key": f"{folder}/{Path(p['uri']).stem}.png"}
        for p in task["photos"]
    ]
    for photo, reason in zip(photos, lost, strict=False):
        photo |= {"status": "failed", "reason": reason, "output_key": None}
    row = {"photos": len(photos), "failed_photos": len(lost), "seconds": {"all": seconds}, "device": "cpu"}
    row |= {"started_at": records.now(), "finished_at": records.now()}
    records.commit(output, task | {"run_id": "r", "photos": photos, "identity_row": row}, replaces=task["replaces"])


def fail(output: Storage, task: dict[str, Any], reason: str, kind: str = "failed") -> None:
    record = task | {"run_id": "r", "status": kind, "reason": reason, "photos": [], "identity_row": {}}
    records.fail(output, record)


def test_many_photos_become_parts_of_equal_size_that_share_their_clean_photos(
    config: RunConfig, tmp_path: Path
) -> None:
    plan, tasks = work(config.replaced(method={"clean_photos": 1}), tmp_path)
    assert (plan.identities, plan.photos, plan.todo, plan.todo_photos) == (2, 8, 4, 8)
    assert [(t["identity"], t["part"], t["parts"]) for t in tasks] == [
        ("ann", 1, 3),
        ("ann", 2, 3),
        ("ann", 3, 3),
        ("bob", 0, 1),
    ]
    names = [[Path(p["key"]).stem for p in t["photos"]] for t in tasks]
    assert names == [["0", "1", "2"], ["3", "4", "5"], ["6"], ["1"]]
    clean = [[Path(p["key"]).stem for p in t["clean"]] for t in tasks]
    assert clean == [["3", "4", "5", "6"]] * 3 + [[]]  # the largest files, four times as many as are used
    assert [p["size"] for t in tasks[:3] for p in t["photos"]] == list(range(1, 8))
    _, tasks = work(config.model_copy(update={"method": {"clean_photos": 1}, "max_photo_bytes": 5}), tmp_path)
    assert [Path(p["key"]).stem for p in tasks[0]["clean"]] == ["1", "2", "3", "4"]  # larger ones are not read


def test_the_same_plan_twice_and_another_after_a_change(config: RunConfig, tmp_path: Path) -> None:
    first, tasks = work(config, tmp_path)
    second, again = work(config, tmp_path)
    assert (first.plan_hash, tasks) == (second.plan_hash, again)
    open_storage(config.input).put("bob/1.png", b"changed")
    third, changed = work(config, tmp_path)
    assert third.plan_hash != first.plan_hash
    assert [a["key"] == b["key"] for a, b in zip(tasks, changed, strict=True)] == [True, True, True, False]


def test_done_parts_are_no_work(config: RunConfig, output: Storage, tmp_path: Path) -> None:
    _, tasks = work(config, tmp_path)
    for task in (tasks[0], tasks[2], tasks[3]):
        commit(output, task)
    plan, left = work(config, tmp_path)
    assert [t["part"] for t in left] == [2]
    assert (plan.pending, plan.skipped) == ({"ann": 1}, 1)
    commit(output, left[0])
    plan, left = work(config, tmp_path)
    assert (left, plan.skipped, plan.settled()["skipped"]) == ([], 2, 2)
    other = config.replaced(seed=1)
    assert len(work(other, tmp_path)[1]) == 4


def test_failures_are_kept_until_asked_for_by_reason(config: RunConfig, output: Storage, tmp_path: Path) -> None:
    _, tasks = work(config, tmp_path)
    fail(output, tasks[0], "ValueError: a bug")
    fail(output, tasks[1], "quarantined: 4 starts", "quarantined")
    commit(output, tasks[2])
    fail(output, tasks[3], "no photo can be used")
    plan, left = work(config, tmp_path)
    assert (left, plan.kept) == ([], {"ann": "quarantined", "bob": "failed"})
    assert plan.settled() == {"quarantined": 1, "failed": 1, "skipped": 0}

    def taken(*reasons: str) -> list[tuple[str, int]]:
        return [(t["identity"], t["part"]) for t in work(config, tmp_path, Retry(reasons))[1]]

    assert taken() == [("ann", 1), ("ann", 2), ("bob", 0)]
    assert taken("A BUG") == [("ann", 1)]
    assert taken("quarantined", "no photo") == [("ann", 2), ("bob", 0)]
    assert taken("else") == []


def test_photos_that_failed_alone_are_taken_up_by_reason(config: RunConfig, output: Storage, tmp_path: Path) -> None:
    _, tasks = work(config, tmp_path)
    commit(output, tasks[3], lost=("the file is truncated",))
    plan, left = work(config, tmp_path)
    assert (len(left), plan.lost_photos) == (3, 1)
    tag = output.tag("done/bob.json")
    assert [t["replaces"] for t in work(config, tmp_path, Retry(("truncated",)))[1]] == [None, None, None, tag]
    assert len(work(config, tmp_path, Retry(("no face",)))[1]) == 3


def test_cost_comes_from_measured_rates_or_a_stated_default(config: RunConfig, output: Storage, tmp_path: Path) -> None:
    plan, tasks = work(config, tmp_path)
    assumed = estimate(config, plan, None)
    assert (assumed.measured_photos, assumed.cost, assumed.rate.source) == (0, None, "counted")
    assert assumed.rate.low < assumed.rate.seconds < assumed.rate.high
    assert assumed.actor_hours == pytest.approx(8 * assumed.rate.seconds / 3600, abs=1e-4)
    commit(output, tasks[0], seconds=5400)
    plan, _ = work(config, tmp_path)
    measured = estimate(config, plan, 2.0)
    assert (measured.rate.seconds, measured.measured_photos, measured.rate.source) == (1800, 3, "measured")
    assert (measured.actor_hours, measured.gpu_hours, measured.cost) == (2.5, 0.0, 5.0)
    shared = estimate(config.replaced(gpus_per_actor=0.5), plan, 2.0)
    assert shared.measured_photos == 0  # a rate of the CPU says nothing of a GPU
    assert shared.gpu_hours == pytest.approx(5 * shared.rate.seconds / 3600 / 2, abs=1e-4)


def test_the_interval_of_a_measured_rate_is_that_of_a_ratio_of_sums() -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 30, 40)
    seconds = counts * 7.0 + rng.normal(0, 200, 40)
    pairs = list(zip(seconds.tolist(), counts.tolist(), strict=True))
    found = measured_rate(pairs)
    assert found.seconds == pytest.approx(seconds.sum() / counts.sum())
    draws = rng.integers(0, 40, (4000, 40))
    rates = seconds[draws].sum(1) / counts[draws].sum(1)
    assert (found.high - found.low) / 2 / 1.96 == pytest.approx(float(rates.std()), rel=0.1)
    alike = measured_rate([(10.0, 1)] * 40)  # photos to come may differ from these
    assert (alike.low, alike.high) == (pytest.approx(10 / 1.2), pytest.approx(12))
    assert measured_rate([(10.0, 1)]).high == 20


@pytest.mark.parametrize(
    ("changes", "rate"),
    [
        ({}, (20, 10, 40, "counted")),
        ({"gpus_per_actor": 1}, (3, 3, 15, "counted")),
        ({"gpus_per_actor": 1, "profile": "sd21"}, (11.333, 3, 56.667, "counted")),
        ({"profile": "sd21", "gpus_per_actor": 0}, (300, 100, 900, "assumed")),
        ({"profile": "qwen-image", "gpus_per_actor": 1}, (300, 100, 900, "assumed")),
        ({"method": {"protection": "aspl"}}, (45, 15, 135, "assumed")),
    ],
)
def test_a_rate_follows_from_counted_work_or_is_a_guess(
    changes: dict[str, Any], rate: tuple[float, float, float, str]
) -> None:
    found = assumed_rate(RunConfig(**{"input": "in", "output": "out"} | changes))
    assert (round(found.seconds, 3), round(found.low, 3), round(found.high, 3), found.source) == rate


@pytest.mark.parametrize(
    ("profile", "changes", "tflop", "seconds"),
    [
        ("tiny", {}, 0.56, 20),
        ("tiny", {"visibility": 60.0}, 0.56, 20),
        ("tiny", {"joint": {"steps": 300}}, 1.12, 40),
        ("tiny", {"encoders": ["embedded:residual"]}, None, None),
        ("tiny", {"layers": "zero_shot"}, None, None),
        ("tiny", {"protection": "aspl"}, None, None),
        ("sd21", {"encoders": ["x.onnx"]}, 680, None),
        ("sdxl", {"encoders": ["x.onnx"]}, 3092, None),
        ("sd35", {"encoders": ["x.onnx"]}, 680, None),
        ("qwen-image", {"encoders": ["x.onnx"]}, None, None),
        ("sd35", {"encoders": ["x.onnx"], "layer_1": "adft"}, None, None),
    ],
)
def test_work_is_known_of_the_default_alone(
    profile: str, changes: dict[str, Any], tflop: float | None, seconds: float | None
) -> None:
    found = work_of(method_config(profile, None, changes))
    assert (found and found.tflop, found and found.cpu_seconds) == (tflop, seconds)


def test_the_presets_work_stands_beside_the_defaults() -> None:
    paper = work_of(method_config("tiny", "paper", {}))
    assert paper == paper_work("tiny") and paper is not None
    assert paper.tflop > 4 * 0.56
    assert paper_work("sdxl") is None


def test_status_counts_the_latest_plan_alone(config: RunConfig, output: Storage, tmp_path: Path) -> None:
    plan, tasks = work(config, tmp_path)
    write_plan(output, plan, "r")
    assert (status(output)["done"], status(output)["left"]) == (0, 4)
    commit(output, tasks[0])
    fail(output, tasks[3], "x")
    commit(output, tasks[1] | {"key": "of an earlier plan"})
    write_manifest(output)
    found = status(output)
    assert [found[name] for name in ("done", "failed", "quarantined", "left", "photos")] == [1, 1, 0, 2, 3]
    table = pq.read_table(io.BytesIO(output.get(json.loads(output.get("plan/latest.json"))["plan"])))
    assert table["identity"].to_pylist() == ["ann", "ann", "ann", "bob"]
    assert sum(len(uris) for uris in table["uris"].to_pylist()) == 8
    assert set(table["plan_hash"].to_pylist()) == {plan.plan_hash}


def test_status_rates_are_of_the_latest_run_and_watching_ends_with_it(
    config: RunConfig, output: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, tasks = work(config, tmp_path)
    monkeypatch.setattr(records, "now", lambda: "2020-01-01T00:00:00+00:00")
    commit(output, tasks[0])
    monkeypatch.undo()
    write_plan(output, plan, "r")
    commit(output, tasks[1])
    found = status(output)
    assert (found["done"], found["photos"], found["left"]) == (2, 6, 2)
    assert found["photos_per_hour"] > 1000
    looks: list[float] = []

    def one_more(seconds: float) -> None:
        looks.append(seconds)
        output.delete(LOCK)

    output.put(LOCK, b"{}")
    assert watch(output, Console(file=io.StringIO()), 7, one_more) == 1
    assert looks == [7]


def test_a_limit_counts_identities_and_nothing_found_is_an_error(config: RunConfig, tmp_path: Path) -> None:
    assert work(config.replaced(limit=1), tmp_path)[0].identities == 1
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ConfigError, match="no photos found"):
        make_plan(config.replaced(input=str(empty)))
