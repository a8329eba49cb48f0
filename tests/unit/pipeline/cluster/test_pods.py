"""Pods: all options reach them, the head is protected, a namespace of the level `restricted` accepts them."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from dladiff.errors import ConfigError
from pipeline.cluster.job_file import Job, load_job
from pipeline.cluster.render import render, write
from tests.support.manifests import ALL, PARAMETERS, RUN, Manifest, fits, inside, pods

EVERYTHING: Manifest = {
    "cloud": "none",
    "gpus": 2,
    "cpus": 16,
    "node_selector": {"gpu": "a100"},
    "head_node_selector": {"pool": "system"},
    "tolerations": [
        {"key": "dedicated", "operator": "Equal", "value": "gpu", "effect": "NoExecute"},
        {"key": "nvidia.com/gpu", "effect": "NoSchedule"},
    ],
    "annotations": {"sidecar.istio.io/inject": "false"},
    "account_annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/dladiff"},
    "environment": {"AWS_ENDPOINT_URL": "https://minio.storage:9000"},
    "egress": [
        {"namespace": "storage", "ports": [9000]},
        {"cidr": "10.2.0.0/16", "ports": [7480, 8443]},
        {"cidr": "169.254.170.23/32", "ports": [80]},
    ],
    "pull_secrets": ["registry"],
    "priority_class": "batch",
    "scratch_gib": 20,
    "ephemeral_gib": 50,
    "models": "weights",
    "models_gib": 40,
    "models_class": "nfs",
    "models_from": "s3://models/sd21",
    "pushgateway": "http://pushgateway.monitoring:9091",
}
FULL = RUN | {"profile": "sd21", "faces": ["/models/antelopev2"], "gpus_per_actor": 0.5, "cpus_per_actor": 4}


def rendered(folder: Path, cluster: Manifest, run: Manifest | None = FULL, **values: Any) -> dict[str, Manifest]:
    (folder / "job.yaml").write_text(
        yaml.safe_dump({"name": "x", "cluster": cluster} | ({"run": run} if run else {}) | values)
    )
    files = render(load_job(folder / "job.yaml"))
    return {f"{name.split('.')[1]}:{m['kind']}": m for name, found in files.items() for m in found}


def test_without_a_cloud_every_option_reaches_the_pods_and_all_objects_are_valid(tmp_path: Path, assets: Path) -> None:
    found = rendered(tmp_path, EVERYTHING)
    schedule = {"cron": "0 1 * * *", "time_zone": "UTC", "start": "01:00", "end": "06:00"}
    tenants = [{"name": "a"} | {key: FULL[key] for key in ("input", "output")}]
    shared = {key: value for key, value in FULL.items() if key not in tenants[0]}
    nightly = rendered(tmp_path, EVERYTHING, shared, schedule=schedule, tenants=tenants)
    for manifest in [*found.values(), *nightly.values()]:
        fits(manifest, assets / "crds")
        for pod in pods(manifest):
            assert pod["imagePullSecrets"] == [{"name": "registry"}]
            assert pod["priorityClassName"] == "batch"
            for container in pod["containers"]:
                assert {"name": "AWS_ENDPOINT_URL", "value": "https://minio.storage:9000"} in container["env"]
    assert found["rayjob:ServiceAccount"]["metadata"]["annotations"] == EVERYTHING["account_annotations"]
    spec = found["rayjob:RayJob"]["spec"]["rayClusterSpec"]
    head, worker = spec["headGroupSpec"]["template"], spec["workerGroupSpecs"][0]["template"]
    assert head["spec"]["nodeSelector"] == {"pool": "system"}
    assert worker["spec"]["nodeSelector"] == {"gpu": "a100"}
    assert worker["spec"]["tolerations"] == [
        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},
        {"key": "dedicated", "operator": "Equal", "value": "gpu", "effect": "NoExecute"},
    ]
    assert worker["metadata"]["annotations"] == EVERYTHING["annotations"]
    assert head["metadata"]["annotations"].items() >= EVERYTHING["annotations"].items()
    for template in (head, worker):
        resources = template["spec"]["containers"][0]["resources"]
        assert resources["requests"]["ephemeral-storage"] == resources["limits"]["ephemeral-storage"] == "50Gi"
        assert {v["emptyDir"]["sizeLimit"] for v in template["spec"]["volumes"] if "emptyDir" in v} == {"20Gi"}
    egress = found["rayjob:NetworkPolicy"]["spec"]["egress"]
    minio = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "storage"}}}
    assert {"to": [minio], "ports": [{"port": 9000, "protocol": "TCP"}]} in egress
    assert {"to": [{"ipBlock": {"cidr": "169.254.170.23/32"}}], "ports": [{"port": 80, "protocol": "TCP"}]} in egress
    claim = found["models:PersistentVolumeClaim"]
    assert claim["metadata"]["name"] == "weights"
    assert claim["spec"] == {
        "accessModes": ["ReadWriteMany"],
        "resources": {"requests": {"storage": "40Gi"}},
        "storageClassName": "nfs",
    }
    (script,) = next(pods(found["models:Job"]))["containers"][0]["command"][2:]
    assert script == "dladiff models fetch sd21 --from s3://models/sd21\ndladiff models check sd21"


def test_head_is_protected_from_those_who_tidy_up_nodes() -> None:
    for job, name, manifest in ALL:
        if manifest["kind"] not in ("RayJob", "RayCluster", "RayCronJob"):
            continue
        (head,) = inside(manifest, "headGroupSpec")
        assert head["template"]["metadata"]["annotations"] == {
            "karpenter.sh/do-not-disrupt": "true",
            "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
        }
        (budget,) = (m for m in render(job)[name] if m["kind"] == "PodDisruptionBudget")
        selected = budget["spec"]["selector"]["matchLabels"]
        assert selected.pop("ray.io/node-type") == "head"  # KubeRay's label
        assert selected.items() <= head["template"]["metadata"]["labels"].items()
        assert budget["spec"]["minAvailable"] == 1


RESTRICTED_VOLUMES = {"configMap", "emptyDir", "persistentVolumeClaim"}


@pytest.mark.parametrize("job, manifest", PARAMETERS)
def test_pods_fit_the_level_restricted(job: Job, manifest: Manifest) -> None:
    """The list of kubernetes.io/docs/concepts/security/pod-security-standards; the sidecar of the autoscaler too."""
    beside = list(inside(manifest, "autoscalerOptions"))
    for pod in pods(manifest):
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        assert {key for volume in pod["volumes"] for key in volume if key != "name"} <= RESTRICTED_VOLUMES
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
        for container in [*pod["containers"], *beside]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert not {"privileged", "procMount"} & container["securityContext"].keys()
            assert not any("hostPort" in port for port in container.get("ports", []))


def test_what_does_not_fit_is_not_rendered(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(yaml.safe_dump({"name": "x", "run": RUN | {"gpus_per_actor": 2}}))
    with pytest.raises(ConfigError, match=r"run\.gpus_per_actor: 2 is more than cluster\.gpus = 1"):
        write(load_job(tmp_path / "job.yaml"), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_model_of_a_bucket_is_copied_to_a_folder_that_can_be_written(tmp_path: Path) -> None:
    for model, variable in (("s3://models/sd21", False), ("sd21", True)):
        found = rendered(tmp_path, EVERYTHING, FULL | {"method": {"model": model}})
        env = [e["name"] for e in next(pods(found["rayjob:RayJob"]["spec"]["rayClusterSpec"]))["containers"][0]["env"]]
        assert ("DLADIFF_MODELS" in env) == variable
