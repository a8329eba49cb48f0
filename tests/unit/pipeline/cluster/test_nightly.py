"""The nightly run with chosen outcomes: order, window, isolation, summary, exit code, and what monitoring gets."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from dladiff.errors import ConfigError, ModelError, StorageError
from pipeline.cluster.job_file import Job, load_job
from pipeline.cluster.nightly import run_nightly
from pipeline.config import RunConfig
from pipeline.records import commit as records
from pipeline.run.driver import Summary
from pipeline.storage.open import open_storage

NAMES = ("ann", "bob", "cy")
START = datetime.fromordinal(3 * 246_000).replace(hour=1, tzinfo=UTC)  # a night that begins with the first tenant
Act = Callable[[], Summary]


class Night:
    """A clock, and a protect whose ends are chosen by tenant; each takes an hour."""

    def __init__(self, **ends: Act) -> None:
        self.now = START
        self.ends = ends
        self.ran: list[str] = []

    def clock(self) -> datetime:
        return self.now

    def protect(self, config: RunConfig, *, deadline: datetime | None = None) -> Summary:
        name = config.output.rpartition("/")[2]
        self.ran.append(name)
        self.now += timedelta(hours=1)
        return self.ends.get(name, good)()


def good() -> Summary:
    return Summary(planned=5, photos=9, todo=2, done=2, skipped=3)


def partly() -> Summary:
    return Summary(planned=5, photos=9, todo=2, done=1, failed=1, skipped=3)


def fails(error: Exception) -> Act:
    def act() -> Summary:
        raise error

    return act


def job(folder: Path, start: str = "01:00", end: str = "06:00") -> Job:
    tenants = [{"name": n, "input": f"s3://in/{n}", "output": f"s3://out/{n}"} for n in NAMES]
    schedule = {"cron": "0 1 * * *", "time_zone": "UTC", "start": start, "end": end}
    (folder / "job.yaml").write_text(yaml.safe_dump({"name": "night", "schedule": schedule, "tenants": tenants}))
    return load_job(folder / "job.yaml")


def test_all_tenants_in_order(tmp_path: Path) -> None:
    night = Night()
    summary = run_nightly(job(tmp_path), protect=night.protect, now=night.clock)
    assert night.ran == list(NAMES)
    assert summary.exit_code == 0
    assert summary.tenants[0].counts == {
        "planned": 5, "done": 2, "failed": 0, "quarantined": 0, "skipped": 3, "lost_photos": 0,
    }  # fmt: skip
    assert summary.text().splitlines()[0] == "dladiff night: 3 of 3 tenants all protected, exit code 0"


@pytest.mark.parametrize(
    "end, code, reason",
    [
        (partly, 1, "dladiff failed --output s3://out/bob"),
        (fails(ConfigError(["a: bad", "b: bad"])), 2, "a: bad; b: bad"),
        (fails(ModelError("no weights")), 2, "no weights"),
        (fails(StorageError("another run writes to s3://out/bob")), 3, "another run writes"),
        (fails(KeyError("boom")), 3, "KeyError"),
    ],
)
def test_one_tenants_end_stops_no_other(end: Act, code: int, reason: str, tmp_path: Path) -> None:
    night = Night(bob=end)
    summary = run_nightly(job(tmp_path), protect=night.protect, now=night.clock)
    assert night.ran == list(NAMES)
    assert [t.exit_code for t in summary.tenants] == [0, code, 0]
    assert summary.exit_code == code
    assert reason in summary.tenants[1].reason
    assert reason in summary.text()
    assert ("Traceback" in summary.tenants[1].traceback) == (reason == "KeyError")


def test_worst_outcome_wins(tmp_path: Path) -> None:
    night = Night(ann=fails(StorageError("x")), bob=fails(ConfigError(["y"])), cy=partly)
    assert run_nightly(job(tmp_path), protect=night.protect, now=night.clock).exit_code == 3


def test_no_tenant_begins_after_the_window(tmp_path: Path) -> None:
    night = Night()
    summary = run_nightly(job(tmp_path, end="02:30"), protect=night.protect, now=night.clock)
    assert night.ran == ["ann", "bob"]  # bob began at 02:00 and may end at 03:00
    assert [t.exit_code for t in summary.tenants] == [0, 0, -1]
    assert summary.exit_code == 1
    assert "01:00 to 02:30 UTC" in summary.text()
    assert "no turn" in summary.text()


def test_another_tenant_is_first_each_night(tmp_path: Path) -> None:
    firsts = []
    for day in range(4):
        night = Night()
        night.now += timedelta(days=day)
        run_nightly(job(tmp_path, end="01:30"), protect=night.protect, now=night.clock)
        firsts += night.ran
    assert firsts == ["ann", "bob", "cy", "ann"]


def test_by_hand_at_noon_for_one_tenant(tmp_path: Path) -> None:
    night = Night()
    night.now = START.replace(hour=12)
    assert run_nightly(job(tmp_path), protect=night.protect, now=night.clock).exit_code == 1
    assert night.ran == []
    summary = run_nightly(job(tmp_path), only=["cy"], ignore_window=True, protect=night.protect, now=night.clock)
    assert night.ran == ["cy"]
    assert [t.tenant for t in summary.tenants] == ["cy"]


def test_unknown_tenant_and_job_without_tenants(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"bop: unknown \(did you mean bob\?\)"):
        run_nightly(job(tmp_path), only=["bop"])
    (tmp_path / "one.yaml").write_text(yaml.safe_dump({"name": "one", "run": {"input": "a", "output": "b"}}))
    with pytest.raises(ConfigError, match="has no tenants"):
        run_nightly(load_job(tmp_path / "one.yaml"))


def test_summary_is_json_and_mail(tmp_path: Path) -> None:
    night = Night(bob=partly)
    summary = run_nightly(job(tmp_path), protect=night.protect, now=night.clock)
    read = json.loads(json.dumps(summary.to_dict()))
    assert read["exit_code"] == 1
    assert [t["tenant"] for t in read["tenants"]] == list(NAMES)
    lines = summary.text().splitlines()
    assert lines[0] == "dladiff night: 2 of 3 tenants all protected, exit code 1"
    assert "ann  all protected  planned 5, done 2, failed 0, quarantined 0, skipped 3  0 min" in lines
    assert "bob  some failed  planned 5, done 1, failed 1, quarantined 0, skipped 3  0 min" in lines


def test_retention_of_a_tenant_comes_after_its_turn(tmp_path: Path) -> None:
    for name in ("ann", "bob"):
        for person in ("p", "q"):
            (tmp_path / name / "in" / person).mkdir(parents=True)
            (tmp_path / name / "in" / person / "1.png").write_bytes(b"")
        out = open_storage(str(tmp_path / name / "out"), create=True)
        for person in ("p", "q", "left"):
            row = {"identity": person, "status": "done"}
            records.commit(out, {"identity": person, "key": "k", "photos": [], "identity_row": row})
    tenants = [
        {"name": n, "input": str(tmp_path / n / "in"), "output": str(tmp_path / n / "out")} for n in ("ann", "bob")
    ]
    schedule = {"cron": "0 1 * * *", "time_zone": "UTC", "start": "01:00", "end": "06:00"}
    values = {
        "name": "night",
        "schedule": schedule,
        "tenants": [tenants[0] | {"retention": {"gone": True}}, tenants[1]],
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(values))
    night = Night()
    summary = run_nightly(load_job(tmp_path / "job.yaml"), protect=night.protect, now=night.clock)
    assert [t.counts.get("deleted") for t in summary.tenants] == [1, None]  # of bob nobody asked it
    assert "skipped 3, deleted 1" in summary.text()
    kept = {n: sorted(e.key for e in open_storage(str(tmp_path / n / "out")).list("done/")) for n in ("ann", "bob")}
    assert kept == {"ann": ["done/p.json", "done/q.json"], "bob": ["done/left.json", "done/p.json", "done/q.json"]}

    for person in ("p", "q"):
        (tmp_path / "ann" / "in" / person / "1.png").rename(tmp_path / "ann" / "in" / f"{person}.png")
    summary = run_nightly(load_job(tmp_path / "job.yaml"), protect=night.protect, now=night.clock, ignore_window=True)
    assert summary.exit_code == 0  # photos side by side are named by their stems: the same people
    (tmp_path / "ann" / "in" / "p.png").rename(tmp_path / "ann" / "in" / "z.png")
    (tmp_path / "ann" / "in" / "q.png").unlink()
    summary = run_nightly(load_job(tmp_path / "job.yaml"), protect=night.protect, now=night.clock, ignore_window=True)
    outcome = next(t for t in summary.tenants if t.tenant == "ann")
    assert (outcome.exit_code, outcome.counts["done"]) == (2, 2)
    assert "none of 2 recorded identities" in outcome.reason


def test_monitoring_gets_outcomes_and_its_faults_are_notes(tmp_path: Path) -> None:
    night, texts = Night(bob=fails(StorageError("gone"))), tmp_path / "textfiles"
    texts.mkdir()
    summary = run_nightly(
        job(tmp_path),
        protect=night.protect,
        now=night.clock,
        textfiles=texts,
        pushgateway="http://user:5ec4e7@127.0.0.1:1",
    )
    assert "5ec4e7" not in json.dumps(summary.to_dict())
    assert sorted(p.name for p in texts.iterdir()) == [f"dladiff_night_{name}.prom" for name in NAMES]
    assert 'dladiff_scheduled_exit_code{job="night",tenant="bob"} 3.0' in (texts / "dladiff_night_bob.prom").read_text()
    assert 'status="done",tenant="ann"} 2.0' in (texts / "dladiff_night_ann.prom").read_text()
    assert len(summary.notes) == 3
    assert summary.exit_code == 3
    assert "Pushgateway" in summary.text()
