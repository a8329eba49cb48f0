"""Kubernetes manifests of a job file: RayJob, or for tenants a RayCluster with a CronJob and a RayCronJob.

cluster/kuberay/ holds the rendered files of jobs/; a test compares them.
"""

from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from pipeline.cluster.job_file import Cluster, Job
from pipeline.cluster.submit import entrypoint, environment, settings_file

Manifest = dict[str, Any]

SETTINGS = "/etc/dladiff/"
JOB_LABEL = "dladiff-job"  # our own: KubeRay sets app.kubernetes.io/name on its pods
USER = 1000  # the user of cluster/Dockerfile
SCRATCH = {"tmp": "/tmp", "home": "/home/dladiff"}
"""Writable volumes: Ray's sessions and temporary files; models and caches. KubeRay adds /dev/shm."""
SCRATCH_GIB = 32  # size of each on the node's disk; the largest model, SDXL in fp32, has 14
GRACE_S = 120  # seconds between the notice and the end of a spot machine
TTL_S = 600  # seconds that a finished job's cluster is kept, for its logs
RAY_METRICS, DRIVER_METRICS = 8080, 9109
STORAGE_PORTS = (443, 6443)  # object storage; the Kubernetes API, which the autoscaler calls
SPOT = {
    "karpenter": {"karpenter.sh/capacity-type": "spot"},
    "eks": {"eks.amazonaws.com/capacityType": "SPOT"},
    "gke": {"cloud.google.com/gke-spot": "true"},
}
ON_DEMAND = {
    "karpenter": {"karpenter.sh/capacity-type": "on-demand"},
    "eks": {"eks.amazonaws.com/capacityType": "ON_DEMAND"},
    "gke": {},  # spot pools are tainted: pods without the toleration stay off
}
GPU_LABEL = {
    "karpenter": "karpenter.k8s.aws/instance-gpu-name",
    "eks": "node.kubernetes.io/instance-type",
    "gke": "cloud.google.com/gke-accelerator",
}


def render(job: Job) -> dict[str, list[Manifest]]:
    """Return the manifests of each file by its name."""
    common = [_account(job), _settings(job), _network(job)]
    if job.schedule is None:
        return {f"{job.name}.rayjob.yaml": [*common, _ray(job, "RayJob", _job_spec(job))]}
    timed = {"schedule": job.schedule.cron, "timeZone": job.schedule.time_zone, "jobTemplate": _job_spec(job)}
    return {
        f"{job.name}.cronjob.yaml": [*common, _ray(job, "RayCluster", _cluster_spec(job)), _cron_job(job)],
        f"{job.name}.raycronjob.yaml": [*common, _ray(job, "RayCronJob", timed)],
    }


def write(job: Job, folder: Path) -> list[Path]:
    """Write the manifests into a folder; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, manifests in render(job).items():
        (folder / name).write_text(text(job, manifests), encoding="utf-8")
        written.append(folder / name)
    return written


def text(job: Job, manifests: list[Manifest]) -> str:
    """Return the text of one YAML file."""
    head = f"# Made by `dladiff render` from the job file {job.name}; change that and render again.\n"
    return head + yaml.dump_all(manifests, Dumper=_Plain, sort_keys=False, width=120)


class _Plain(yaml.SafeDumper):
    """YAML without anchors and with multi-line text as blocks, for readers."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write equal values without anchors."""
        return True


def _text_node(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Plain.add_representer(str, _text_node)


def _meta(job: Job, *, queued: bool = False) -> Manifest:
    labels = _labels(job)
    if queued and job.cluster.queue:
        labels["kueue.x-k8s.io/queue-name"] = job.cluster.queue
    return {"name": _name(job), "namespace": job.cluster.namespace, "labels": labels}


def _name(job: Job) -> str:
    return job.name if job.name.startswith("dladiff") else f"dladiff-{job.name}"[:47].rstrip("-")


def _labels(job: Job) -> dict[str, str]:
    return {"app.kubernetes.io/part-of": "dladiff", JOB_LABEL: _name(job)}


def _account(job: Job) -> Manifest:
    """Return the ServiceAccount of head and workers; a cloud's storage role is set in its annotations."""
    return {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": _meta(job)}


def _settings(job: Job) -> Manifest:
    file, content = settings_file(job)
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": _meta(job), "data": {file: content}}


def _network(job: Job) -> Manifest:
    """Return the NetworkPolicy. In: this job's pods, operator, Prometheus. Out: this job's pods, DNS, storage."""
    same = {"podSelector": {"matchLabels": {JOB_LABEL: _name(job)}}}
    operator = {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app.kubernetes.io/name": "kuberay-operator"}}}
    prometheus = {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app.kubernetes.io/name": "prometheus"}}}
    gateway = [_tcp(urlsplit(job.cluster.pushgateway).port or 0)] if job.cluster.pushgateway else []
    outside = {"ipBlock": {"cidr": "0.0.0.0/0", "except": ["169.254.169.254/32"]}}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": _meta(job),
        "spec": {
            "podSelector": same["podSelector"],
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [
                {"from": [same]},
                {"from": [operator], "ports": [_tcp(8265)]},
                {"from": [prometheus], "ports": [_tcp(RAY_METRICS), _tcp(DRIVER_METRICS)]},
            ],
            "egress": [
                {"to": [same]},
                {"to": [{"namespaceSelector": {}}], "ports": [{"port": 53, "protocol": p} for p in ("UDP", "TCP")]},
                {"to": [outside], "ports": [_tcp(port) for port in STORAGE_PORTS]},
                *([{"to": [{"namespaceSelector": {}}], "ports": gateway}] if gateway else []),
            ],
        },
    }


def _tcp(port: int) -> Manifest:
    return {"port": port, "protocol": "TCP"}


def _ray(job: Job, kind: str, spec: Manifest) -> Manifest:
    return {"apiVersion": "ray.io/v1", "kind": kind, "metadata": _meta(job, queued=True), "spec": spec}


def _job_spec(job: Job) -> Manifest:
    return {
        "entrypoint": entrypoint(job, SETTINGS),
        "entrypointNumCpus": 0,  # the driver waits most of the time
        "submissionMode": "SidecarMode",  # the submitter runs in the head's pod: no third pod to lose
        "backoffLimit": job.cluster.retries,  # each on a new cluster; the commit records show what is left
        "shutdownAfterJobFinishes": True,  # Kueue requires it
        "ttlSecondsAfterFinished": TTL_S,
        "rayClusterSpec": _cluster_spec(job),
    }


def _cron_job(job: Job) -> Manifest:
    """Return the CronJob that submits to the cluster of the same file and waits; a small pod without a GPU."""
    assert job.schedule is not None
    address = f"http://{_name(job)}-head-svc:8265"
    command = ["dladiff", "submit", f"{SETTINGS}job.yaml", "--address", address, "--follow", "--again"]
    token = {"secretKeyRef": {"name": _name(job), "key": "auth_token"}}  # KubeRay creates it with the cluster
    container = {
        "name": "submit",
        "image": job.cluster.image,
        "command": command,
        "env": [{"name": "RAY_AUTH_MODE", "value": "token"}, {"name": "RAY_AUTH_TOKEN", "valueFrom": token}],
        "resources": _resources(1, 1),
        "securityContext": _contained(),
        "volumeMounts": [{"name": "settings", "mountPath": SETTINGS, "readOnly": True}, *_scratch()],
    }
    pod = _pod(job, container) | {"automountServiceAccountToken": False}
    template = {"metadata": {"labels": _labels(job)}, "spec": pod}
    return {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": _meta(job),
        "spec": {
            "schedule": job.schedule.cron,
            "timeZone": job.schedule.time_zone,
            "concurrencyPolicy": "Forbid",
            "startingDeadlineSeconds": 3600,
            "jobTemplate": {"spec": {"backoffLimit": 0, "ttlSecondsAfterFinished": 86400, "template": template}},
        },
    }


def _cluster_spec(job: Job) -> Manifest:
    cluster = job.cluster
    autoscaled = not cluster.queue  # Kueue admits a fixed size
    replicas = cluster.workers.min if autoscaled else cluster.workers.max
    spec: Manifest = {
        "rayVersion": version("ray"),
        "authOptions": {"mode": "token"},
        "enableInTreeAutoscaling": autoscaled,
    }
    if autoscaled:
        sidecar = {"resources": _resources(1, 1), "securityContext": _contained(), "volumeMounts": _scratch()}
        spec["autoscalerOptions"] = {"version": "v2", "idleTimeoutSeconds": 120, **sidecar}
    spec["headGroupSpec"] = {
        "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0"},  # no actors on the driver's node
        "template": _template(job, _head(job), ON_DEMAND[cluster.cloud]),
    }
    wanted = {GPU_LABEL[cluster.cloud]: cluster.gpu} | (SPOT if cluster.spot else ON_DEMAND)[cluster.cloud]
    resources = _resources(cluster.cpus, cluster.memory_gib, cluster.gpus)
    worker = _template(job, _container(job, "ray-worker", {"metrics": RAY_METRICS}, resources), wanted)
    worker["spec"] |= {"tolerations": _tolerations(cluster), "automountServiceAccountToken": False}
    spec["workerGroupSpecs"] = [
        {
            "groupName": "gpu",
            "replicas": replicas,
            "minReplicas": cluster.workers.min if autoscaled else replicas,
            "maxReplicas": cluster.workers.max,
            "rayStartParams": {},
            "template": worker,
        }
    ]
    return spec


def _head(job: Job) -> Manifest:
    ports = {"gcs": 6379, "dashboard": 8265, "client": 10001, "metrics": RAY_METRICS, "driver": DRIVER_METRICS}
    container = _container(job, "ray-head", ports, _resources(job.cluster.head_cpus, job.cluster.head_memory_gib))
    variables = {"DLADIFF_METRICS": f"0.0.0.0:{DRIVER_METRICS}"} | environment(job)
    container["env"] += [{"name": name, "value": value} for name, value in variables.items()]
    return container


def _container(job: Job, name: str, ports: dict[str, int], resources: Manifest) -> Manifest:
    mounts = [{"name": "settings", "mountPath": SETTINGS, "readOnly": True}, *_scratch()]
    if job.cluster.models:
        mounts.append({"name": "models", "mountPath": "/models", "readOnly": True})
    return {
        "name": name,
        "image": job.cluster.image,
        "env": [{"name": "RAY_USAGE_STATS_ENABLED", "value": "0"}],
        "envFrom": [{"secretRef": {"name": job.cluster.secret, "optional": True}}],
        "ports": [{"name": key, "containerPort": port} for key, port in ports.items()],
        "resources": resources,
        "securityContext": _contained(),
        "volumeMounts": mounts,
    }


def _template(job: Job, container: Manifest, nodes: dict[str, str]) -> Manifest:
    pod = _pod(job, container) | {"nodeSelector": dict(nodes)}
    if job.cluster.models:
        claim = {"claimName": job.cluster.models, "readOnly": True}
        pod["volumes"].append({"name": "models", "persistentVolumeClaim": claim})
    return {"metadata": {"labels": _labels(job)}, "spec": pod}


def _pod(job: Job, container: Manifest) -> Manifest:
    return {
        "serviceAccountName": _name(job),
        "restartPolicy": "Never",  # SidecarMode and the autoscaler require it; KubeRay replaces pods
        "terminationGracePeriodSeconds": GRACE_S,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [
            {"name": "settings", "configMap": {"name": _name(job)}},
            *({"name": name, "emptyDir": {"sizeLimit": f"{SCRATCH_GIB}Gi"}} for name in SCRATCH),
        ],
    }


def _contained() -> Manifest:
    return {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}


def _scratch() -> list[Manifest]:
    return [{"name": name, "mountPath": path} for name, path in SCRATCH.items()]


def _resources(cpus: int, memory_gib: int, gpus: int = 0) -> Manifest:
    """Return equal requests and limits: Ray counts by limits, the scheduler by requests."""
    amounts = {"cpu": str(cpus), "memory": f"{memory_gib}Gi"} | ({"nvidia.com/gpu": str(gpus)} if gpus else {})
    return {"requests": amounts, "limits": dict(amounts)}


def _tolerations(cluster: Cluster) -> list[Manifest]:
    keys = ["nvidia.com/gpu"] + (["cloud.google.com/gke-spot"] if cluster.cloud == "gke" and cluster.spot else [])
    return [{"key": key, "operator": "Exists", "effect": "NoSchedule"} for key in keys]
