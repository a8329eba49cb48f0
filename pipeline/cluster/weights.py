"""The volume claim with the weights, and the Kubernetes Job that fills it."""

import shlex

from dladiff.diffusion.catalogue import MODELS as KNOWN
from pipeline.cluster.checks import MODELS
from pipeline.cluster.job_file import Job
from pipeline.cluster.objects import Manifest, account, labels_of, meta, name_of
from pipeline.cluster.pods import SCRATCH, amounts, scratch, small, variables

TRIES = 3  # a download that breaks off goes on where it ended
KEPT_S = 86400  # seconds that the ended job is kept, for its log


def weights(job: Job) -> list[Manifest]:
    """Return the claim, and the job that fetches the runs' models into it if they are known by name.

    The file is applied before the others, so it has the ServiceAccount too and no settings.
    """
    cluster = job.cluster
    claim: Manifest = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": cluster.models, "namespace": cluster.namespace, "labels": labels_of(job)},
        "spec": {
            "accessModes": [cluster.models_access],
            "resources": {"requests": {"storage": f"{cluster.models_gib}Gi"}},
        },
    }
    if cluster.models_class:
        claim["spec"]["storageClassName"] = cluster.models_class
    names = sorted({run.profile for _, run in job.runs() if run.profile in KNOWN})
    return [account(job), claim, _filling(job, names)] if names else [claim]


def _filling(job: Job, names: list[str]) -> Manifest:
    source = f" --from {shlex.quote(job.cluster.models_from)}" if job.cluster.models_from else ""
    commands = [line for name in names for line in (f"models fetch {name}{source}", f"models check {name}")]
    template = small(
        job,
        "fetch",
        command=["sh", "-ec", "\n".join(f"dladiff {command}" for command in commands)],
        env=variables({"DLADIFF_MODELS": MODELS} | job.cluster.environment),
        envFrom=[{"secretRef": {"name": job.cluster.secret, "optional": True}}],
        resources=amounts(1, 4),
    )
    pod = template["spec"]
    pod["volumes"] = [volume for volume in pod["volumes"] if volume["name"] in SCRATCH]
    pod["volumes"].append({"name": "models", "persistentVolumeClaim": {"claimName": job.cluster.models}})
    pod["containers"][0]["volumeMounts"] = [*scratch(), {"name": "models", "mountPath": MODELS}]
    metadata = meta(job) | {"name": f"{name_of(job)}-models"}
    spec = {"backoffLimit": TRIES, "ttlSecondsAfterFinished": KEPT_S, "template": template}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}
