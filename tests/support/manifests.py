"""The rendered manifests of jobs/, and the definitions of KubeRay and Kubernetes to check manifests against."""

import importlib
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from pipeline.cluster.job_file import Job, load_job
from pipeline.cluster.render import render

ROOT = Path(__file__).resolve().parents[2]
JOBS = sorted((ROOT / "jobs").glob("*.yaml"))
RUN = {"input": "s3://a/in", "output": "s3://a/out"}
Manifest = dict[str, Any]
KUBERNETES = "1.31"  # the oldest version that its project still repaired when KubeRay 1.7 came out


@cache
def definition(file: Path) -> Manifest:
    """The v1 schema of a CRD; unknown fields are faults, where the API server would drop them in silence."""
    versions = yaml.load(file.read_text(), Loader=yaml.CSafeLoader)["spec"]["versions"]
    schema: Manifest = next(v for v in versions if v["name"] == "v1")["schema"]["openAPIV3Schema"]
    strict(schema)
    schema["properties"]["metadata"] = {"type": "object"}
    return schema


def check(value: Any, schema: Manifest) -> None:
    """Validate; the definition itself is not checked again, which takes seconds."""
    for error in jsonschema.Draft202012Validator(schema).iter_errors(value):
        raise error


def strict(schema: Any) -> None:
    if isinstance(schema, dict):
        if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
            schema.setdefault("additionalProperties", False)
        for value in schema.values():
            strict(value)
    elif isinstance(schema, list):
        for value in schema:
            strict(value)


def manifests() -> Iterator[tuple[Job, str, Manifest]]:
    for file in JOBS:
        job = load_job(file)
        for name, found in render(job).items():
            for manifest in found:
                yield job, name, manifest


ALL = list(manifests())
PARAMETERS = [pytest.param(job, m, id=f"{name}:{m['kind']}") for job, name, m in ALL]


def inside(value: Any, key: str) -> Iterator[Any]:
    """Every value under a key, at any depth."""
    if isinstance(value, dict):
        for name, item in value.items():
            if name == key:
                yield item
            yield from inside(item, key)
    elif isinstance(value, list):
        for item in value:
            yield from inside(item, key)


def pods(manifest: Manifest) -> Iterator[Manifest]:
    for key in ("template", "submitterPodTemplate"):
        for template in inside(manifest, key):
            if "containers" in template.get("spec", {}):
                yield template["spec"]


def fits(manifest: Manifest, crds: Path) -> None:
    """Check an object of Ray against KubeRay's definitions, any other against those of Kubernetes, if installed."""
    kind = manifest["kind"]
    if manifest["apiVersion"] == "ray.io/v1":
        check(manifest, definition(crds / f"ray.io_{kind.lower()}s.yaml"))
        return
    cluster = definition(crds / "ray.io_rayclusters.yaml")["properties"]["spec"]["properties"]
    pod = cluster["headGroupSpec"]["properties"]["template"]  # the pods of both are of the same definition
    for template in inside(manifest, "template"):
        check(template, pod)
    if kind == "NetworkPolicy":
        rules = cluster["networkPolicy"]["properties"]["head"]["properties"]
        check(manifest["spec"]["ingress"], rules["ingressRules"])
        check(manifest["spec"]["egress"], rules["egressRules"])
    if find_spec("kubernetes_validate"):
        importlib.import_module("kubernetes_validate").validate(manifest, KUBERNETES, strict=True)
