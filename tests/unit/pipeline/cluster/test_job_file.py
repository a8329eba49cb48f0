"""Job files: those of the repository are right, and every fault of a wrong one is reported at once."""

from datetime import UTC, datetime, time
from pathlib import Path

import pytest
import yaml

from dladiff.errors import ConfigError
from pipeline.cluster.job_file import Job, load_job
from pipeline.cluster.schedule import Schedule
from pipeline.retention.retain import Retention

JOBS = Path(__file__).resolve().parents[4] / "jobs"
RUN = {"input": "s3://a/in", "output": "s3://a/out"}
SCHEDULE = {"cron": "0 1 * * *", "time_zone": "UTC", "start": "01:00", "end": "06:00"}


def job(folder: Path, **values: object) -> Job:
    file = folder / "job.yaml"
    file.write_text(yaml.safe_dump({"name": "x"} | values))
    return load_job(file)


def faults(folder: Path, **values: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        job(folder, **values)
    return [fault.removeprefix("job.yaml: ") for fault in caught.value.faults]


@pytest.mark.parametrize("file", sorted(JOBS.glob("*.yaml")), ids=lambda p: p.stem)
def test_jobs_of_the_repository(file: Path) -> None:
    found = load_job(file)
    first = file.read_text().splitlines()[0]
    assert first.startswith(f"# dladiff submit jobs/{file.name} --address http://head:8265")
    assert found.is_nightly == (file.stem == "nightly")
    assert found.name == file.stem.replace("_", "-")
    for run in [found.run] if found.run else [tenant.run for tenant in found.tenants]:
        assert run.profile == "sd21"
        assert run.cpus_per_actor < found.cluster.cpus  # some are left for Ray itself
        assert run.gpus_per_actor == found.cluster.gpus
        assert (run.max_actors or 0) <= found.cluster.workers.max


def test_a_name_that_stands_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("name: x\nrun:\n  input: s3://a/in\n  output: s3://a/out\n  input: s3://b/in\n")
    with pytest.raises(ConfigError, match=r"job\.yaml: input: is there twice \(lines 3 and 5\)"):
        load_job(tmp_path / "job.yaml")


def test_a_run_or_tenant_without_encoders_is_refused(tmp_path: Path) -> None:
    (fault,) = faults(tmp_path, run=RUN | {"profile": "sd21"})
    assert fault.startswith("run.encoders: the profile sd21 has no identity encoders of its own")
    tenants = [{"name": "a"} | RUN, {"name": "b", "input": "s3://b/in", "output": "s3://b/out", "profile": "sdxl"}]
    (fault,) = faults(tmp_path, schedule=SCHEDULE, tenants=tenants)
    assert fault.startswith("tenants.b.encoders: the profile sdxl has no identity encoders")
    job(tmp_path, run=RUN | {"profile": "sd21", "faces": ["buffalo_l"]})


def test_every_fault_at_once_with_the_nearest_name(tmp_path: Path) -> None:
    found = faults(
        tmp_path,
        name="Bad Name",
        run=RUN | {"profil": "tiny", "seed": "x", "method": {"finetuning": {"etta": 1}}},
        cluster={"imag": "i", "cloud": "gkee", "gpus": 0, "cpus": True, "workers": {"min": 3, "max": 2}},
        shedule={},
    )
    text = "\n".join(found)
    for part in (
        "name: 'Bad Name'",
        "run.profil: unknown setting (did you mean profile?)",
        "run.seed: expected int, not 'x'",
        "run.finetuning.etta: unknown setting (did you mean eta?)",
        "cluster.imag: unknown setting (did you mean image?)",
        "cluster.cloud: 'gkee' is not one of karpenter, eks, gke, none (did you mean gke?)",
        "cluster.gpus: 0 is less than 1",
        "cluster.cpus: expected int, not True",
        "cluster.workers.max: 2 is less than min = 3",
        "shedule: unknown setting (did you mean schedule?)",
    ):
        assert part in text
    assert len(found) == 10


def test_missing_places_do_not_speak_of_options(tmp_path: Path) -> None:
    assert faults(tmp_path) == ["run.input: is missing", "run.output: is missing"]


def test_tenants_layer_over_what_they_share(tmp_path: Path) -> None:
    shared = {"seed": 3, "method": {"finetuning": {"eta": 0.01, "iter_1": 5}}}
    own = {"name": "a", **RUN, "overrides": {"method": {"finetuning": {"iter_1": 2}}}}
    found = job(tmp_path, run=shared, schedule=SCHEDULE, tenants=[own])
    (tenant,) = found.tenants
    assert tenant.run.seed == 3
    assert tenant.run.method == {"finetuning": {"eta": 0.01, "iter_1": 2}}
    assert tenant.retention is None  # nothing is deleted unasked
    assert found.run is None
    assert "cluster" not in found.settings()


def test_a_tenants_strength_replaces_the_shared_preset(tmp_path: Path) -> None:
    own = {"name": "a", **RUN, "overrides": {"strength": "faint"}}
    (tenant,) = job(tmp_path, run={"preset": "paper"}, schedule=SCHEDULE, tenants=[own]).tenants
    assert (tenant.run.strength, tenant.run.preset) == ("faint", None)
    found = faults(tmp_path, run=RUN | {"preset": "paper", "strength": "faint"})
    assert found == ["run.strength: faint and preset: paper contradict; give one of them"]


def test_faults_of_tenants(tmp_path: Path) -> None:
    found = faults(
        tmp_path,
        run={"seeed": 1},
        schedule=SCHEDULE | {"start": 90, "time_zone": "Mars/Base", "cron": "daily", "ende": "1"},
        tenants=[
            {"name": "a", **RUN, "overides": {}},
            {"name": "a", "input": "s3://b/in", "output": "s3://a/out/b"},
            {"name": "c", "input": "s3://c"},
            {"input": "d", "output": "e", "profile": "tinny"},
        ],
    )
    text = "\n".join(found)
    assert text.count("seeed") == 1
    for part in (
        "schedule.start: 90 is no time; write it in quotes",
        "schedule.time_zone: 'Mars/Base' is unknown",
        "schedule.cron: 'daily' has not five fields",
        "schedule.ende: unknown setting (did you mean end?)",
        "tenants.a.overides: unknown setting (did you mean overrides?)",
        "tenants.c.output: is missing",
        "tenants.3.name: is missing",
        "tenants.3.profile: 'tinny' is unknown (did you mean tiny?)",
    ):
        assert part in text


def test_retention_of_a_tenant_and_its_faults(tmp_path: Path) -> None:
    def tenants(*rules: object) -> list[dict[str, object]]:
        return [{"name": f"t{i}", "input": f"i{i}", "output": f"o{i}", "retention": r} for i, r in enumerate(rules)]

    found = job(tmp_path, schedule=SCHEDULE, tenants=tenants({"gone": True}, {"protected_days": 30, "records": "keep"}))
    assert [t.retention for t in found.tenants] == [Retention(gone=True), Retention(protected_days=30, records="keep")]
    wrong = tenants({"gon": True}, {"gone": "yes"}, {"protected_days": -1, "records": "kep"}, {}, "30 days")
    assert faults(tmp_path, schedule=SCHEDULE, tenants=wrong) == [
        "tenants.t0.retention.gon: unknown setting (did you mean gone?)",
        "tenants.t1.retention.gone: expected bool, not 'yes'",
        "tenants.t2.retention.protected_days: -1 is less than 0",
        "tenants.t2.retention.records: 'kep' is not one of delete, keep (did you mean keep?)",
        "tenants.t3.retention.gone: nothing is to be deleted; give gone (--gone) or protected_days (--older-than DAYS)",
        "tenants.t4.retention: expected settings (name: value), not '30 days'",
    ]


def test_price_is_a_number(tmp_path: Path) -> None:
    assert job(tmp_path, run=RUN, cluster={"price": 1}).cluster.price == 1
    assert faults(tmp_path, run=RUN, cluster={"price": -0.5, "pushgateway": "gateway"}) == [
        "cluster.pushgateway: 'gateway' is no http://host:port",
        "cluster.price: -0.5 is less than 0",
    ]


def test_tenants_must_not_overlap(tmp_path: Path) -> None:
    tenants = [
        {"name": "a", **RUN},
        {"name": "a", "input": "s3://b/in", "output": "s3://a/out/b"},
        {"name": "c", "input": "s3://c", "output": "s3://a/outer"},
    ]
    found = faults(tmp_path, schedule=SCHEDULE, tenants=tenants)
    assert found == [
        "tenants.a: is there twice; names tell tenants apart",
        "tenants.a.output: overlaps the output of a; give each its own",
    ]


def test_one_folder_by_two_spellings_is_one(tmp_path: Path) -> None:
    tenants = [{**RUN, "name": "a", "output": "/srv/out"}, {**RUN, "name": "b", "output": "file:///srv/x/../out"}]
    assert faults(tmp_path, schedule=SCHEDULE, tenants=tenants) == [
        "tenants.b.output: overlaps the output of a; give each its own"
    ]


def test_settings_that_cannot_be_meant(tmp_path: Path) -> None:
    cluster = {"price": float("nan"), "pushgateway": "http://host:99999", "namespace": ""}
    assert [f.partition(":")[0] for f in faults(tmp_path, run=RUN, cluster=cluster)] == [
        "cluster.namespace", "cluster.pushgateway", "cluster.price",
    ]  # fmt: skip


def test_schedule_and_tenants_go_together(tmp_path: Path) -> None:
    assert "schedule: needs tenants" in faults(tmp_path, run=RUN, schedule=SCHEDULE)[0]
    assert "schedule: is missing" in faults(tmp_path, tenants=[{"name": "a", **RUN}])[0]
    assert faults(tmp_path, schedule=SCHEDULE, tenants=[]) == [
        "tenants: expected a list of tenants, each with name, input and output"
    ]


def test_digest_is_of_the_work_alone(tmp_path: Path) -> None:
    one = job(tmp_path, run=RUN).digest()
    assert job(tmp_path, run=RUN, cluster={"cpus": 9}).digest() == one
    assert job(tmp_path, run=RUN | {"seed": 1}).digest() != one


def test_no_file_and_no_yaml_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give a job file"):
        load_job(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="not YAML"):
        load_job(tmp_path / "bad.yaml")
    (tmp_path / "bad.yaml").write_text("- a")
    with pytest.raises(ConfigError, match="expected a job"):
        load_job(tmp_path / "bad.yaml")


def test_window_over_midnight_and_in_its_own_time_zone() -> None:
    night = Schedule(time_zone="Europe/Berlin", start=time(23), end=time(4))
    at = {hour: datetime(2026, 7, 1, hour, 30, tzinfo=UTC) for hour in (1, 2, 20, 21)}
    assert {hour: night.is_open(now) for hour, now in at.items()} == {1: True, 2: False, 20: False, 21: True}
    assert night.closes(at[21]) == datetime(2026, 7, 2, 2, tzinfo=UTC)
    assert night.closes(at[1]) == datetime(2026, 7, 1, 2, tzinfo=UTC)


def test_a_jobs_failures_are_no_reason_to_build_its_cluster_again(tmp_path: Path) -> None:
    found = job(tmp_path, run=RUN)
    assert found.run is not None
    assert (found.run.max_failed, found.settings()["max_failed"]) == ("100%", "100%")
    strict = job(tmp_path, run=RUN | {"max_failed": 2})
    assert strict.run is not None
    assert strict.run.max_failed == "2"
