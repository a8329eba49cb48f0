"""Pods of a job: head, workers, submitters; within the pod security level `restricted`."""

from collections.abc import Mapping

from pipeline.cluster.checks import MODELS
from pipeline.cluster.job_file import Job
from pipeline.cluster.objects import DRIVER_METRICS, RAY_METRICS, Manifest, labels_of, name_of
from pipeline.cluster.settings import Cluster
from pipeline.cluster.submit import environment
from pipeline.telemetry.metrics import JOB_VARIABLE

SETTINGS = "/etc/dladiff/"
USER = 1000  # the user of cluster/Dockerfile
SCRATCH = {"tmp": "/tmp", "home": "/home/dladiff"}
"""Writable volumes: Ray's sessions and temporary files; models and caches. KubeRay adds /dev/shm."""
GRACE_S = 120  # seconds between the notice and the end of a spot machine
SPOT = {
    "karpenter": {"karpenter.sh/capacity-type": "spot"},
    "eks": {"eks.amazonaws.com/capacityType": "SPOT"},
    "gke": {"cloud.google.com/gke-spot": "true"},
    "none": {},
}
ON_DEMAND = {
    "karpenter": {"karpenter.sh/capacity-type": "on-demand"},
    "eks": {"eks.amazonaws.com/capacityType": "ON_DEMAND"},
    "gke": {},  # spot pools are tainted: pods without the toleration stay off
    "none": {},
}
GPU_LABEL = {
    "karpenter": "karpenter.k8s.aws/instance-gpu-name",
    "eks": "node.kubernetes.io/instance-type",
    "gke": "cloud.google.com/gke-accelerator",
}
STAYS = {"karpenter.sh/do-not-disrupt": "true", "cluster-autoscaler.kubernetes.io/safe-to-evict": "false"}
"""Annotations of the head: consolidation by Karpenter or the cluster autoscaler would end the run."""


def head(job: Job) -> Manifest:
    """Return the pod template of the head."""
    cluster = job.cluster
    ports = {"gcs": 6379, "dashboard": 8265, "client": 10001, "metrics": RAY_METRICS, "driver": DRIVER_METRICS}
    resources = amounts(cluster.head_cpus, cluster.head_memory_gib, ephemeral_gib=cluster.ephemeral_gib)
    variables = {"DLADIFF_METRICS": f"0.0.0.0:{DRIVER_METRICS}"} | environment(job)
    nodes = ON_DEMAND[cluster.cloud] | cluster.head_node_selector
    return _template(job, _container(job, "ray-head", ports, resources, variables), nodes, STAYS)


def worker(job: Job) -> Manifest:
    """Return the pod template of a worker."""
    cluster = job.cluster
    label = {GPU_LABEL[cluster.cloud]: cluster.gpu} if cluster.cloud in GPU_LABEL else {}
    nodes = label | (SPOT if cluster.spot else ON_DEMAND)[cluster.cloud] | cluster.node_selector
    resources = amounts(cluster.cpus, cluster.memory_gib, cluster.gpus, ephemeral_gib=cluster.ephemeral_gib)
    container = _container(job, "ray-worker", {"metrics": RAY_METRICS}, resources, {JOB_VARIABLE: job.name})
    found = _template(job, container, nodes, {})
    found["spec"] |= {"tolerations": _tolerations(cluster), "automountServiceAccountToken": False}
    return found


def small(job: Job, name: str, **fields: object) -> Manifest:
    """Return the pod template of one small container, without rights in the cluster; `fields` are the container's."""
    container = {
        "name": name,
        "image": job.cluster.image,
        "resources": amounts(1, 1),
        "securityContext": contained(),
        "volumeMounts": _mounts(),
    }
    pod = _pod(job, container | {key: value for key, value in fields.items() if value}) | {
        "automountServiceAccountToken": False
    }
    return {"metadata": _metadata(job, {}), "spec": pod}


def variables(values: Mapping[str, str]) -> list[Manifest]:
    """Return a container's environment variables."""
    return [{"name": name, "value": value} for name, value in values.items()]


def contained() -> Manifest:
    """Return the security context of every container."""
    return {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}


def scratch() -> list[Manifest]:
    """Return the mounts of the writable volumes."""
    return [{"name": name, "mountPath": path} for name, path in SCRATCH.items()]


def amounts(cpus: int, memory_gib: int, gpus: int = 0, *, ephemeral_gib: int = 0) -> Manifest:
    """Return equal requests and limits: Ray counts by limits, the scheduler by requests."""
    found = {"cpu": str(cpus), "memory": f"{memory_gib}Gi"}
    if ephemeral_gib:
        found["ephemeral-storage"] = f"{ephemeral_gib}Gi"
    if gpus:
        found["nvidia.com/gpu"] = str(gpus)
    return {"requests": found, "limits": dict(found)}


def _container(
    job: Job, name: str, ports: Mapping[str, int], resources: Manifest, values: Mapping[str, str]
) -> Manifest:
    mounts, models = _mounts(), {}
    if job.cluster.models:
        mounts.append({"name": "models", "mountPath": MODELS, "readOnly": True})
        if not any(str(run.method.get("model")).startswith("s3://") for _, run in job.runs()):
            models = {"DLADIFF_MODELS": MODELS}  # a model of a bucket is copied there, and the volume is read-only
    own = {"RAY_USAGE_STATS_ENABLED": "0", **models, **values, **job.cluster.environment}
    return {
        "name": name,
        "image": job.cluster.image,
        "env": variables(own),
        "envFrom": [{"secretRef": {"name": job.cluster.secret, "optional": True}}],
        "ports": [{"name": key, "containerPort": port} for key, port in ports.items()],
        "resources": resources,
        "securityContext": contained(),
        "volumeMounts": mounts,
    }


def _template(job: Job, container: Manifest, nodes: Mapping[str, str], annotations: Mapping[str, str]) -> Manifest:
    pod = _pod(job, container)
    if nodes:
        pod["nodeSelector"] = dict(nodes)
    if job.cluster.models:
        claim = {"claimName": job.cluster.models, "readOnly": True}
        pod["volumes"].append({"name": "models", "persistentVolumeClaim": claim})
    return {"metadata": _metadata(job, annotations), "spec": pod}


def _metadata(job: Job, annotations: Mapping[str, str]) -> Manifest:
    found = {**job.cluster.annotations, **annotations}
    return {"labels": labels_of(job)} | ({"annotations": found} if found else {})


def _pod(job: Job, container: Manifest) -> Manifest:
    cluster = job.cluster
    pod: Manifest = {
        "serviceAccountName": name_of(job),
        "restartPolicy": "Never",  # the autoscaler requires it; KubeRay replaces pods
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
            {"name": "settings", "configMap": {"name": name_of(job)}},
            *({"name": name, "emptyDir": {"sizeLimit": f"{cluster.scratch_gib}Gi"}} for name in SCRATCH),
        ],
    }
    if cluster.pull_secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in cluster.pull_secrets]
    if cluster.priority_class:
        pod["priorityClassName"] = cluster.priority_class
    return pod


def _mounts() -> list[Manifest]:
    return [{"name": "settings", "mountPath": SETTINGS, "readOnly": True}, *scratch()]


def _tolerations(cluster: Cluster) -> list[Manifest]:
    keys = ["nvidia.com/gpu"] + (["cloud.google.com/gke-spot"] if cluster.cloud == "gke" and cluster.spot else [])
    known: list[Manifest] = [{"key": key, "operator": "Exists", "effect": "NoSchedule"} for key in keys]
    given = ({name: value for name, value in dict(one).items() if value} for one in cluster.tolerations)
    return known + [one for one in given if one not in known]
