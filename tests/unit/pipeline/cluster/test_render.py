"""Rendered manifests: what is committed, what KubeRay's definitions and its operator's own rules allow."""

import importlib
import re
from importlib.util import find_spec
from pathlib import Path

import jsonschema
import pytest
import yaml

from pipeline.cli.main import main
from pipeline.cluster.job_file import Job, load_job
from pipeline.cluster.objects import JOB_LABEL, text
from pipeline.cluster.render import render, write
from pipeline.config import run_config
from tests.support.manifests import (
    ALL,
    JOBS,
    KUBERNETES,
    PARAMETERS,
    ROOT,
    RUN,
    Manifest,
    check,
    definition,
    fits,
    inside,
    pods,
)  # fmt: skip

DOCKERFILE = (ROOT / "cluster" / "Dockerfile").read_text().splitlines()


def test_committed_files_are_what_is_rendered() -> None:
    wanted = {n: text(job, m) for job in map(load_job, JOBS) for n, m in render(job).items()}
    folder = ROOT / "cluster" / "kuberay"
    assert {p.name: p.read_text() for p in folder.iterdir()} == wanted, "run `dladiff render` on the changed job"


def test_written_files_read_back_as_rendered(tmp_path: Path) -> None:
    for job in map(load_job, JOBS):
        for path in write(job, tmp_path / "new"):
            assert list(yaml.safe_load_all(path.read_text())) == render(job)[path.name]


def test_every_kind_is_there() -> None:
    kinds = {m["kind"] for _, _, m in ALL}
    assert kinds == {
        "ServiceAccount", "ConfigMap", "NetworkPolicy", "PodDisruptionBudget", "RayJob", "RayCluster", "RayCronJob",
        "CronJob", "PersistentVolumeClaim", "Job",
    }  # fmt: skip


@pytest.mark.parametrize("job, manifest", PARAMETERS)
def test_manifest_fits_its_definition(job: Job, manifest: Manifest, assets: Path) -> None:
    fits(manifest, assets / "crds")


@pytest.mark.skipif(not find_spec("kubernetes_validate"), reason="kubernetes-validate is not installed: make")
@pytest.mark.parametrize(
    "kind, change",
    [
        ("PersistentVolumeClaim", {"spec": {"accessModes": "ReadWriteMany"}}),
        ("PodDisruptionBudget", {"spec": {"minAvailables": 1}}),
        ("ServiceAccount", {"anotations": {}}),
        ("Job", {"spec": {"backoffLimit": 1}}),
    ],
)
def test_definitions_of_kubernetes_refuse_what_is_wrong(kind: str, change: Manifest) -> None:
    kubernetes = importlib.import_module("kubernetes_validate")
    good = next(m for _, _, m in ALL if m["kind"] == kind)
    kubernetes.validate(good, KUBERNETES, strict=True)
    with pytest.raises(kubernetes.ValidationError):
        kubernetes.validate(good | change, KUBERNETES, strict=True)


def test_definitions_refuse_what_is_wrong(assets: Path) -> None:
    schema = definition(assets / "crds" / "ray.io_rayjobs.yaml")
    good = next(m for _, _, m in ALL if m["kind"] == "RayJob")
    for change in ({"backoffLimits": 1}, {"backoffLimit": "3"}):
        with pytest.raises(jsonschema.ValidationError):
            check(good | {"spec": good["spec"] | change}, schema)


@pytest.mark.parametrize("job, manifest", PARAMETERS)
def test_rules_of_the_operator(job: Job, manifest: Manifest) -> None:
    """What KubeRay refuses although its schema allows it, and Kueue's demands."""
    assert len(manifest["metadata"]["name"]) <= 47
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", manifest["metadata"]["name"])
    specs = [manifest["spec"]] if manifest["kind"] == "RayJob" else list(inside(manifest, "jobTemplate"))
    for spec in specs:
        if "rayClusterSpec" not in spec:
            continue
        assert spec["submissionMode"] == "K8sJobMode"  # the mode whose submitter has a security context of ours
        assert "clusterSelector" not in spec
        (submitter,) = spec["submitterPodTemplate"]["spec"]["containers"]
        assert not {"command", "args"} & submitter.keys()  # KubeRay's own, which finds its job again after a restart
        assert spec["submitterPodTemplate"]["metadata"]["labels"][JOB_LABEL] == job.name
        assert spec["shutdownAfterJobFinishes"] is True
        assert spec["ttlSecondsAfterFinished"] >= 0
        assert spec["backoffLimit"] == job.cluster.retries > 0
        assert spec["entrypoint"].split("/etc/dladiff/")[1] in next(
            m["data"] for j, _, m in ALL if j is job and m["kind"] == "ConfigMap"
        )
    for spec in [
        *inside(manifest, "rayClusterSpec"),
        *([manifest["spec"]] if manifest["kind"] == "RayCluster" else []),
    ]:
        head, (group,) = spec["headGroupSpec"], spec["workerGroupSpecs"]
        assert head["rayStartParams"]["num-cpus"] == "0"
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        assert {t["template"]["spec"]["restartPolicy"] for t in (head, group)} == {"Never"}
        assert spec["enableInTreeAutoscaling"] is not bool(job.cluster.queue)
        assert ("autoscalerOptions" in spec) == spec["enableInTreeAutoscaling"]
        assert "nvidia.com/gpu" not in str(head)
        assert group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
        assert group["template"]["spec"]["nodeSelector"]["karpenter.sh/capacity-type"] == "spot"
        assert head["template"]["spec"]["nodeSelector"]["karpenter.sh/capacity-type"] == "on-demand"
    if manifest["kind"] in ("RayJob", "RayCluster", "RayCronJob"):
        queue = manifest["metadata"]["labels"].get("kueue.x-k8s.io/queue-name", "")
        assert queue == job.cluster.queue


@pytest.mark.parametrize("job, manifest", PARAMETERS)
def test_pods_are_contained_and_carry_no_secret(job: Job, manifest: Manifest) -> None:
    for pod in pods(manifest):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["terminationGracePeriodSeconds"] >= 120
        for container in pod["containers"]:
            assert container["resources"]["requests"] == container["resources"]["limits"]
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for variables in inside(manifest, "env"):
        for variable in variables:
            assert ("value" in variable) != ("valueFrom" in variable)
            if re.search("TOKEN|SECRET|PASSWORD|KEY", variable["name"]):
                assert "value" not in variable
    assert manifest["kind"] != "Secret"
    assert not re.search(r"(?i)aws_secret|password", yaml.safe_dump(manifest))


@pytest.mark.parametrize("job, manifest", PARAMETERS)
def test_root_file_systems_are_read_only_and_what_is_written_is_mounted(job: Job, manifest: Manifest) -> None:
    """Ray writes below /tmp, models and caches go below HOME; KubeRay's init container copies these mounts."""
    home = next(line.split()[1] for line in DOCKERFILE if line.startswith("ENV HOME")).removeprefix("HOME=")
    for pod in pods(manifest):
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        beside = [*inside(manifest, "autoscalerOptions")] if manifest["kind"] not in ("CronJob", "Job") else []
        for container in [*pod["containers"], *beside]:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
            if manifest["kind"] == "Job":  # fills the claim
                del mounts["/models"]
            for path in ("/tmp", home):
                assert not mounts[path].get("readOnly")
                assert set(volumes[mounts[path]["name"]]["emptyDir"]) == {"sizeLimit"}  # of the disk, not of memory
            assert all(mount.get("readOnly") for path, mount in mounts.items() if path not in ("/tmp", home))


def test_network_policy_covers_the_jobs_pods_and_no_metadata_service() -> None:
    for job, name, policy in ALL:
        if policy["kind"] != "NetworkPolicy":
            continue
        selected = policy["spec"]["podSelector"]["matchLabels"].items()
        for manifest in render(job)[name]:
            for template in [*inside(manifest, "template"), *inside(manifest, "submitterPodTemplate")]:
                assert selected <= template["metadata"]["labels"].items()
        assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
        (block,) = inside(policy, "ipBlock")
        assert "169.254.169.254/32" in block["except"]


def test_price_and_gateway_reach_the_driver_and_the_way_is_open(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    for cluster in ({"price": 0.5, "pushgateway": "http://gateway.monitoring:9191"}, {}):
        file.write_text(yaml.safe_dump({"name": "x", "run": RUN, "cluster": cluster}))
        found = {m["kind"]: m for m in render(load_job(file))["x.rayjob.yaml"]}
        head = found["RayJob"]["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
        variables = {entry["name"]: entry["value"] for entry in head["env"]}
        options = {str(p.envvar) for p in main.commands["nightly"].params if p.envvar}
        assert {"DLADIFF_PRICE", "DLADIFF_PUSHGATEWAY", "DLADIFF_METRICS"} <= options
        wanted = {"DLADIFF_PRICE": "0.5", "DLADIFF_PUSHGATEWAY": "http://gateway.monitoring:9191"} if cluster else {}
        assert {
            name: variables.get(name) for name in ("DLADIFF_PRICE", "DLADIFF_PUSHGATEWAY") if name in variables
        } == wanted
        ports = {port["port"] for rule in found["NetworkPolicy"]["spec"]["egress"] for port in rule.get("ports", [])}
        assert ports == {53, 443, 6443} | ({9191} if cluster else set())


def test_plain_cron_submits_to_the_cluster_of_its_file() -> None:
    found = {m["kind"]: m for _, name, m in ALL if name == "nightly.cronjob.yaml"}
    pod = next(pods(found["CronJob"]))
    command = pod["containers"][0]["command"]
    assert command[command.index("--address") + 1] == f"http://{found['RayCluster']['metadata']['name']}-head-svc:8265"
    assert found["RayCluster"]["spec"]["authOptions"]["mode"] == "token"
    (token,) = inside(pod, "secretKeyRef")
    assert token == {"name": found["RayCluster"]["metadata"]["name"], "key": "auth_token"}
    assert found["CronJob"]["spec"]["concurrencyPolicy"] == "Forbid"
    assert found["CronJob"]["spec"]["schedule"] == "0 1 * * *"


def test_mounted_settings_are_read_by_the_commands_that_get_them(tmp_path: Path) -> None:
    for job, _, manifest in ALL:
        if manifest["kind"] != "ConfigMap":
            continue
        ((name, content),) = manifest["data"].items()
        (tmp_path / name).write_text(content)
        if job.is_nightly:
            assert load_job(tmp_path / name).tenants == job.tenants
        else:
            assert run_config(tmp_path / name, {}) == job.run


@pytest.mark.parametrize("cloud", ["karpenter", "eks", "gke"])
@pytest.mark.parametrize("spot", [True, False])
def test_other_clouds_and_capacity(cloud: str, spot: bool, tmp_path: Path, assets: Path) -> None:
    file = tmp_path / "job.yaml"
    cluster = {"cloud": cloud, "spot": spot, "gpu": "g6.xlarge", "queue": "q", "workers": {"min": 1, "max": 3}}
    file.write_text(yaml.safe_dump({"name": "x", "run": RUN, "cluster": cluster}))
    (manifest,) = [m for m in render(load_job(file))["x.rayjob.yaml"] if m["kind"] == "RayJob"]
    check(manifest, definition(assets / "crds" / "ray.io_rayjobs.yaml"))
    (group,) = manifest["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert (group["minReplicas"], group["replicas"], group["maxReplicas"]) == (3, 3, 3)
    selector = group["template"]["spec"]["nodeSelector"]
    assert "g6.xlarge" in selector.values()
    assert any(re.search(r"spot|SPOT", f"{k}={v}") for k, v in selector.items()) == spot
    assert "models" not in str(group)
