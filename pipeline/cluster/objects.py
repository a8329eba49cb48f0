"""What every Kubernetes object of a job shares: names, labels, text, ServiceAccount, settings, network policy."""

from typing import Any
from urllib.parse import urlsplit

import yaml

from pipeline.cluster.job_file import Job
from pipeline.cluster.settings import Egress
from pipeline.cluster.submit import settings_file

Manifest = dict[str, Any]

JOB_LABEL = "dladiff-job"  # the job's name; our own, because KubeRay sets app.kubernetes.io/name on its pods
RAY_METRICS, DRIVER_METRICS = 8080, 9109
STORAGE_PORTS = (443, 6443)  # object storage; the Kubernetes API, which the autoscaler calls


def text(job: Job, manifests: list[Manifest]) -> str:
    """Return the text of one YAML file."""
    head = f"# Made by `dladiff render` from the job file {job.name}; change that and render again.\n"
    return head + yaml.dump_all(manifests, Dumper=Plain, sort_keys=False, width=120)


class Plain(yaml.SafeDumper):
    """YAML without anchors and with multi-line text as blocks, for readers."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write equal values without anchors."""
        return True


def _text_node(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


Plain.add_representer(str, _text_node)


def meta(job: Job, *, queued: bool = False) -> Manifest:
    """Return name, namespace and labels of an object."""
    labels = labels_of(job)
    if queued and job.cluster.queue:
        labels["kueue.x-k8s.io/queue-name"] = job.cluster.queue
    return {"name": name_of(job), "namespace": job.cluster.namespace, "labels": labels}


def name_of(job: Job) -> str:
    """Return the name of a job's objects."""
    return job.name if job.name.startswith("dladiff") else f"dladiff-{job.name}"[:47].rstrip("-")


def labels_of(job: Job) -> dict[str, str]:
    """Return the labels of a job's objects and pods."""
    return {"app.kubernetes.io/part-of": "dladiff", JOB_LABEL: job.name}


def account(job: Job) -> Manifest:
    """Return the ServiceAccount of head and workers."""
    metadata = meta(job)
    if job.cluster.account_annotations:
        metadata["annotations"] = dict(job.cluster.account_annotations)
    return {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}


def settings_map(job: Job) -> Manifest:
    """Return the ConfigMap with the command's settings file."""
    file, content = settings_file(job)
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta(job), "data": {file: content}}


def disruption_budget(job: Job) -> Manifest:
    """Return the PodDisruptionBudget of the head: a drained node waits for the run, because the head is the run.

    `minAvailable` is a number, because KubeRay's clusters have no scale subresource, which `maxUnavailable` needs.
    """
    head = {JOB_LABEL: job.name, "ray.io/node-type": "head"}  # KubeRay sets the second one
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": meta(job),
        "spec": {"minAvailable": 1, "selector": {"matchLabels": head}},
    }


def network(job: Job) -> Manifest:
    """Return the NetworkPolicy. In: this job's pods, operator, Prometheus. Out: this job's pods, DNS, storage."""
    same = {"podSelector": {"matchLabels": {JOB_LABEL: job.name}}}
    operator = {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app.kubernetes.io/name": "kuberay-operator"}}}
    prometheus = {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app.kubernetes.io/name": "prometheus"}}}
    gateway = [_tcp(urlsplit(job.cluster.pushgateway).port or 0)] if job.cluster.pushgateway else []
    outside = {"ipBlock": {"cidr": "0.0.0.0/0", "except": ["169.254.169.254/32"]}}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": meta(job),
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
                *({"to": [_place(egress)], "ports": list(map(_tcp, egress.ports))} for egress in job.cluster.egress),
            ],
        },
    }


def _place(egress: Egress) -> Manifest:
    if egress.namespace:
        return {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": egress.namespace}}}
    return {"ipBlock": {"cidr": egress.cidr}}


def _tcp(port: int) -> Manifest:
    return {"port": port, "protocol": "TCP"}
