"""The `cluster` group of a job file: what `dladiff render` makes Kubernetes objects of."""

import ipaddress
import re
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from dladiff.settings.validate import Items, Settings, unless

_GATEWAY = re.compile(r"https?://[\w.-]+:(\d{1,5})/?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRET = re.compile(r"(?i)(SECRET|PASSWORD|TOKEN|ACCESS_KEY|API_KEY)")
Port = Annotated[int, Field(ge=1, le=65535)]


def _gateway_fault(url: str) -> str | None:
    found = _GATEWAY.fullmatch(url)
    return None if not url or (found and int(found[1]) < 2**16) else f"{url!r} is no http://host:port"


def _cidr_fault(text: str) -> str | None:
    try:
        ipaddress.ip_network(text)
    except ValueError as error:
        return f"{error}; write for example 10.0.0.0/8"
    return None


def _environment_fault(variables: dict[str, str]) -> str | None:
    for name in variables:
        if not _VARIABLE.fullmatch(name):
            return f"{name!r} is no name of an environment variable"
        if _SECRET.search(name):
            return f"{name} looks like a credential, and job files are no place for those; put it into `secret`"
    return None


class Workers(Settings):
    """How many GPU workers."""

    min: int = Field(default=0, ge=0)
    """Fewest."""
    max: int = Field(default=4, ge=1)
    """Most."""

    def contradictions(self) -> Iterator[str]:
        """Yield how settings contradict each other."""
        if self.max < self.min:
            yield f"max: {self.max} is less than min = {self.min}"


class Toleration(Settings):
    """A taint of nodes that workers tolerate."""

    key: str = Field(min_length=1)
    """Key of the taint."""
    operator: Literal["Exists", "Equal"] = "Exists"
    """Whether the value counts."""
    value: str = ""
    """Value of the taint, with Equal."""
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = ""
    """Effect of the taint; empty: any."""

    def contradictions(self) -> Iterator[str]:
        """Yield how settings contradict each other."""
        if self.value and self.operator == "Exists":
            yield "value: needs operator: Equal"


class Egress(Settings):
    """A place that pods may connect to, besides DNS and ports 443 and 6443 anywhere."""

    cidr: Annotated[str, unless(_cidr_fault)] = "0.0.0.0/0"
    """Addresses outside of the cluster."""
    namespace: str = ""
    """A namespace of the cluster instead, by its name."""
    ports: Items[Port] = Field(min_length=1)
    """TCP ports."""

    def contradictions(self) -> Iterator[str]:
        """Yield how settings contradict each other."""
        if self.namespace and self.cidr != "0.0.0.0/0":
            yield "namespace: contradicts cidr; give one of them"


class Cluster(Settings):
    """What `dladiff render` makes a cluster of."""

    image: str = "registry.example/dladiff:0.1.0"
    """Container image of head and workers, made by cluster/Dockerfile."""
    cloud: Literal["karpenter", "eks", "gke", "none"] = "karpenter"
    """Whose node labels name spot capacity and GPUs; none: only the selectors and tolerations given here."""
    gpu: str = "l4"
    """GPU type as that cloud's node label has it; for eks the instance type. Unused without a cloud."""
    gpus: int = Field(default=1, ge=1)
    """GPUs of one worker."""
    workers: Workers = Workers()
    """Fewest and most workers."""
    cpus: int = Field(default=6, ge=1)
    """CPUs of one worker."""
    memory_gib: int = Field(default=24, ge=1)
    """Memory of one worker."""
    head_cpus: int = Field(default=2, ge=1)
    """CPUs of the head, which runs the driver and no actor."""
    head_memory_gib: int = Field(default=8, ge=1)
    """Memory of the head."""
    spot: bool = True
    """Workers on spot capacity: what is interrupted is done again. Unused without a cloud."""
    node_selector: dict[str, str] = Field(default_factory=dict)
    """Further labels of the workers' nodes."""
    head_node_selector: dict[str, str] = Field(default_factory=dict)
    """Further labels of the head's node."""
    tolerations: Items[Toleration] = ()
    """Further taints that workers tolerate, besides nvidia.com/gpu."""
    annotations: dict[str, str] = Field(default_factory=dict)
    """Annotations of all pods."""
    account_annotations: dict[str, str] = Field(default_factory=dict)
    """Annotations of the ServiceAccount, such as a cloud's storage role."""
    environment: Annotated[dict[str, str], unless(_environment_fault)] = Field(default_factory=dict)
    """Environment variables of all pods, such as AWS_ENDPOINT_URL; no credentials."""
    egress: Items[Egress] = ()
    """Further places that pods may connect to, such as MinIO's port 9000."""
    pull_secrets: Items[str] = ()
    """Names of Secrets with the registry's credentials."""
    priority_class: str = ""
    """PriorityClass of all pods; empty: the namespace's default."""
    scratch_gib: int = Field(default=32, ge=1)
    """Size limit of each pod's volumes at /tmp and at the home folder; the largest model, SDXL in fp32, has 14 GiB."""
    ephemeral_gib: int = Field(default=0, ge=0)
    """Ephemeral storage that each Ray pod requests, and its limit; 0: none. It holds the content of both volumes."""
    namespace: str = Field(default="dladiff", min_length=1)
    """Kubernetes namespace."""
    secret: str = "dladiff-storage"
    """Secret with the storage's credentials as environment variables; may be absent where a role gives them."""
    models: str = ""
    """Volume claim with the weights, mounted read-only at /models; empty: none. `dladiff render` also writes the claim
    and a job that fills it."""
    models_gib: int = Field(default=20, ge=1)
    """Size of that claim."""
    models_access: Literal["ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"] = "ReadWriteMany"
    """Access mode of that claim. Workers on several nodes need ReadWriteMany (NFS, EFS, Filestore, CephFS)."""
    models_class: str = ""
    """StorageClass of that claim; empty: the cluster's default."""
    models_from: str = ""
    """Where the filling job fetches the run's model: s3://bucket/prefix as `dladiff models mirror` wrote it; empty: the
    first mirror that answers."""
    queue: str = ""
    """Kueue queue; empty: none. With one all `workers.max` workers start together, without autoscaling."""
    retries: int = Field(default=3, ge=0)
    """New clusters after a failure; each goes on where the records end."""
    pushgateway: Annotated[str, unless(_gateway_fault)] = ""
    """http://host:port of a Pushgateway inside the cluster, which gets the results of scheduled runs; empty: none."""
    price: float = Field(default=0.0, ge=0)
    """Price of one GPU-hour, any currency; a run then reports its cost. 0: no cost is reported."""

    def contradictions(self) -> Iterator[str]:
        """Yield how settings contradict each other."""
        if self.models and self.models_access != "ReadWriteMany" and self.workers.max > 1:
            yield f"models_access: {self.models_access} is for one node, and workers.max is {self.workers.max}"
        if 0 < self.ephemeral_gib < 2 * self.scratch_gib:
            yield f"ephemeral_gib: {self.ephemeral_gib} is less than 2 x scratch_gib = {2 * self.scratch_gib}"
