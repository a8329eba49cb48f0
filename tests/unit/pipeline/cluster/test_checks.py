"""Jobs against their clusters: each misfit and each relative path is a fault of the job file, before anything runs."""

from pathlib import Path

import pytest

from dladiff.errors import ConfigError
from pipeline.cluster.job_file import load_job
from tests.unit.pipeline.cluster.test_job_file import RUN, SCHEDULE, faults, job

VOLUME = {"models": "weights"}


@pytest.mark.parametrize(
    "run, cluster, wanted",
    [
        ({"gpus_per_actor": 2}, {}, "run.gpus_per_actor: 2 is more than cluster.gpus = 1"),
        ({"gpus_per_actor": 2}, {"gpus": 4}, ""),
        ({"cpus_per_actor": 8}, {}, "run.cpus_per_actor: 8 is more than cluster.cpus = 6"),
        ({"cpus_per_actor": 8}, {"cpus": 8}, ""),
        ({"gpus_per_actor": 0.5, "cpus_per_actor": 4}, {}, "need 2 x 4 CPUs, but cluster.cpus is 6; set cpus"),
        ({"gpus_per_actor": 0.5, "cpus_per_actor": 3}, {}, ""),
        ({"gpus_per_actor": 0.25, "cpus_per_actor": 2}, {}, "need 4 x 2 CPUs"),
        ({"gpus_per_actor": 0.25, "cpus_per_actor": 2, "max_actors": 3}, {}, ""),
        ({"gpus_per_actor": 1, "cpus_per_actor": 4}, {"gpus": 4}, "need 4 x 4 CPUs, but cluster.cpus is 6"),
        ({"faces": ["/models/antelopev2"]}, {}, "run.faces: /models/antelopev2 is on the volume of the weights"),
        ({"faces": ["/models/antelopev2"]}, VOLUME, ""),
        ({"faces": ["/modelsofmine/antelopev2"]}, {}, ""),
        ({"method": {"held_out": ["/models/b"]}}, {}, "run.method.held_out: /models/b is on the volume"),
    ],
)  # fmt: skip
def test_runs_fit_their_cluster(run: dict, cluster: dict, wanted: str, tmp_path: Path) -> None:
    values = {"run": RUN | run, "cluster": {"image": "i"} | cluster}
    if wanted:
        assert wanted in "\n".join(faults(tmp_path, **values))
    else:
        job(tmp_path, **values)
    job(tmp_path, run=RUN | run)  # a job for a cluster that is there: its sizes are not known


def test_relative_paths_are_faults_of_a_job_for_elsewhere(tmp_path: Path) -> None:
    tenants = [
        {"name": "a", "input": "in", "output": "s3://a/out", "overrides": {"faces": ["packs/mine"], "lists": "lists"}},
        {"name": "b", "input": "/mnt/in", "output": "file:///mnt/out", "overrides": {"faces": ["buffalo_l"]}},
    ]
    shared = {"method": {"model": "owner/name", "detector": "det.onnx"}}
    found = job(tmp_path, run=shared, schedule=SCHEDULE, tenants=tenants)  # here they are meant
    assert len(found.tenants) == 2
    with pytest.raises(ConfigError) as caught:
        load_job(tmp_path / "job.yaml", elsewhere=True)
    assert [fault.split("; ")[0].removeprefix("job.yaml: ") for fault in caught.value.faults] == [
        f"tenants.{name}: '{path}' is a relative path, which the cluster cannot resolve"
        for name, path in (
            ("a.input", "in"),
            ("a.lists", "lists"),
            ("a.faces", "packs/mine"),
            ("a.method.detector", "det.onnx"),
            ("b.method.detector", "det.onnx"),
        )
    ]


def test_faults_of_a_cluster(tmp_path: Path) -> None:
    cluster = {
        "environment": {"AWS_SECRET_ACCESS_KEY": "x"},
        "egress": [{"cidr": "10.0.0.1/8", "ports": [9000]}, {"namespace": "a", "cidr": "10.0.0.0/8", "ports": [1]}, {}],
        "tolerations": [{"key": "a", "value": "b"}],
        "node_selector": {"a": 1},
        "models": "weights",
        "models_access": "ReadWriteOnce",
        "ephemeral_gib": 10,
    }
    text = "\n".join(faults(tmp_path, run=RUN, cluster=cluster))
    for part in (
        "cluster.environment: AWS_SECRET_ACCESS_KEY looks like a credential",
        "has host bits set; write for example 10.0.0.0/8",
        "namespace: contradicts cidr",
        "ports: is missing",
        "value: needs operator: Equal",
        "cluster.node_selector",
    ):
        assert part in text
    cluster = {key: cluster[key] for key in ("models", "models_access", "ephemeral_gib")}
    assert faults(tmp_path, run=RUN, cluster=cluster) == [
        "cluster.models_access: ReadWriteOnce is for one node, and workers.max is 4",
        "cluster.ephemeral_gib: 10 is less than 2 x scratch_gib = 64",
    ]
