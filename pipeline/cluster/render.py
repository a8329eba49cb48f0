"""Kubernetes manifests of a job file: RayJob, or for tenants a RayCluster with a CronJob and a RayCronJob.

cluster/kuberay/ holds the rendered files of jobs/; a test compares them.
"""

import shlex
from importlib.metadata import version
from pathlib import Path

from dladiff.errors import ConfigError
from pipeline.cluster.checks import relative_paths, unfit
from pipeline.cluster.job_file import Job
from pipeline.cluster.objects import Manifest, account, disruption_budget, meta, name_of, network, settings_map, text
from pipeline.cluster.pods import SETTINGS, amounts, contained, head, scratch, small, variables, worker
from pipeline.cluster.submit import arguments
from pipeline.cluster.weights import weights

TTL_S = 600  # seconds that a finished job's cluster is kept, for its logs
RECONNECTS = 20  # of a submitter whose pod is lost: it finds its job on the cluster again


def render(job: Job) -> dict[str, list[Manifest]]:
    """Return the manifests of each file by its name. Raises ConfigError: the runs do not fit the cluster."""
    if faults := [*unfit(job.runs(), job.cluster), *relative_paths(job.runs())]:
        raise ConfigError(faults)
    common = [account(job), settings_map(job), network(job), disruption_budget(job)]
    files = {f"{job.name}.models.yaml": weights(job)} if job.cluster.models else {}
    if job.schedule is None:
        return {f"{job.name}.rayjob.yaml": [*common, _ray(job, "RayJob", _job_spec(job))]} | files
    timed = {"schedule": job.schedule.cron, "timeZone": job.schedule.time_zone, "jobTemplate": _job_spec(job)}
    return {
        f"{job.name}.cronjob.yaml": [*common, _ray(job, "RayCluster", _cluster_spec(job)), _cron_job(job)],
        f"{job.name}.raycronjob.yaml": [*common, _ray(job, "RayCronJob", timed)],
    } | files


def write(job: Job, folder: Path) -> list[Path]:
    """Write the manifests into a folder; return the files. Raises ConfigError."""
    files = render(job)
    folder.mkdir(parents=True, exist_ok=True)
    for name, manifests in files.items():
        (folder / name).write_text(text(job, manifests), encoding="utf-8")
    return [folder / name for name in files]


def _ray(job: Job, kind: str, spec: Manifest) -> Manifest:
    return {"apiVersion": "ray.io/v1", "kind": kind, "metadata": meta(job, queued=True), "spec": spec}


def _job_spec(job: Job) -> Manifest:
    """Return the spec of a RayJob.

    K8sJobMode: the submitter is a pod of our template. In SidecarMode KubeRay adds a container without a security
    context to the head, which namespaces of the pod security level `restricted` refuse.
    """
    return {
        "entrypoint": shlex.join(("dladiff", *arguments(job, SETTINGS))),  # of the image, where it is on PATH
        "entrypointNumCpus": 0,  # the driver waits most of the time
        "submissionMode": "K8sJobMode",
        "submitterConfig": {"backoffLimit": RECONNECTS},
        "submitterPodTemplate": small(job, "submit", env=variables(job.cluster.environment)),
        "backoffLimit": job.cluster.retries,  # each on a new cluster; the commit records show what is left
        "shutdownAfterJobFinishes": True,  # Kueue requires it
        "ttlSecondsAfterFinished": TTL_S,
        "rayClusterSpec": _cluster_spec(job),
    }


def _cron_job(job: Job) -> Manifest:
    """Return the CronJob that submits to the cluster of the same file and waits; a small pod without a GPU."""
    assert job.schedule is not None
    address = f"http://{name_of(job)}-head-svc:8265"
    command = ["dladiff", "submit", f"{SETTINGS}job.yaml", "--address", address, "--follow", "--again"]
    token = {"secretKeyRef": {"name": name_of(job), "key": "auth_token"}}  # KubeRay creates it with the cluster
    env = [
        {"name": "RAY_AUTH_MODE", "value": "token"},
        {"name": "RAY_AUTH_TOKEN", "valueFrom": token},
        *variables(job.cluster.environment),
    ]
    template = small(job, "submit", command=command, env=env)
    return {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": meta(job),
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
        sidecar = {"resources": amounts(1, 1), "securityContext": contained(), "volumeMounts": scratch()}
        spec["autoscalerOptions"] = {"version": "v2", "idleTimeoutSeconds": 120, **sidecar}
    spec["headGroupSpec"] = {
        "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0"},  # no actors on the driver's node
        "template": head(job),
    }
    spec["workerGroupSpecs"] = [
        {
            "groupName": "gpu",
            "replicas": replicas,
            "minReplicas": cluster.workers.min if autoscaled else replicas,
            "maxReplicas": cluster.workers.max,
            "rayStartParams": {},
            "template": worker(job),
        }
    ]
    return spec
