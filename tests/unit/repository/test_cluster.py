"""What lies in cluster/: names of metrics that exist, rules that promtool accepts, files that say what they must."""

import json
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from pipeline.cluster import render
from pipeline.telemetry.metrics import METRICS, SERIES

ROOT = Path(__file__).resolve().parents[3]
CLUSTER = ROOT / "cluster"
RULES = sorted((CLUSTER / "prometheus" / "rules").glob("*.yml"))
FOREIGN = {
    "ray_node_gpus_utilization",
    "ray_node_gram_used",
    "ray_node_cpu_utilization",
    "ray_node_disk_utilization_percentage",
}
"""Metrics of Ray's node agent that the rules and the dashboard use."""
NAME = re.compile(r"\b[a-z]\w*(?::\w+)*")
WORDS = {
    "sum", "rate", "increase", "histogram_quantile", "by", "le", "step", "kind", "status", "avg", "max", "time", "and",
    "on", "clamp_min", "group_left", "device", "work", "encoder", "job", "tenant", "instance", "last_over_time",
    "offset", "or", "unless", "bool",
}  # fmt: skip


POD_LABEL = f"__meta_kubernetes_pod_label_{render.JOB_LABEL.replace('-', '_')}"
USED_BY_OTHERS = {
    "dladiff:run:superseded", "dladiff:run:done_1h", "dladiff:run:failed_1h", "dladiff:run:quarantined_1h",
    "dladiff:run:photos_1h", "dladiff:run:failed_photos_1h",
}  # fmt: skip
"""Recorded series that the tests reach through other rules."""


def rules() -> list[dict[str, Any]]:
    return [rule for file in RULES for group in yaml.safe_load(file.read_text())["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((CLUSTER / "grafana" / "dladiff.json").read_text())["panels"]
    return found


def queries() -> Iterator[tuple[str, str]]:
    for rule in rules():
        yield rule.get("record") or rule["alert"], rule["expr"]
    for panel in panels():
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]


def names(query: str) -> set[str]:
    """Identifiers of a query, without label matchers, ranges, numbers and PromQL's own words."""
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\"[^\"]*\"", " ", query)
    return set(NAME.findall(bare)) - WORDS


@pytest.mark.parametrize("where, query", list(queries()))
def test_every_query_names_metrics_that_exist(where: str, query: str) -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    found = names(query)
    assert found
    assert found <= SERIES | FOREIGN | recorded, where


def test_every_metric_of_the_table_is_looked_at() -> None:
    used = set().union(*(names(query) for _, query in queries()))
    assert [m.name for m in METRICS if not used & set(m.series)] == []


def test_a_wrong_name_would_be_found() -> None:
    assert names('sum by (le) (rate(ray_dladiff_x_total{status=~"done|y"}[10m])) * 36 > 0') == {"ray_dladiff_x_total"}


def test_every_alert_says_what_to_do_and_has_a_test() -> None:
    alerts = [rule for rule in rules() if "alert" in rule]
    tests = (CLUSTER / "prometheus" / "tests" / "alerts_test.yml").read_text()
    for alert in alerts:
        assert alert["annotations"]["summary"] and alert["annotations"]["do"]
        assert alert["labels"]["severity"] in ("warning", "critical")
        assert f"alertname: {alert['alert']}" in tests
    assert len(alerts) >= 8


def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("no promtool on PATH: install Debian's package prometheus")
    return found


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "rules", *map(str, RULES)],
        ["check", "config", str(CLUSTER / "prometheus" / "prometheus.yml")],
        ["test", "rules", str(CLUSTER / "prometheus" / "tests" / "alerts_test.yml")],
    ],
    ids=lambda a: " ".join(a[:2]),
)
def test_promtool_accepts(arguments: list[str]) -> None:
    done = subprocess.run([promtool(), *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_kubernetes_scrape_config_fits_the_rendered_pods() -> None:
    """Debian's promtool is built without Kubernetes discovery, so the names are compared here."""
    config = yaml.safe_load((CLUSTER / "prometheus" / "kubernetes.yml").read_text())
    ours = yaml.safe_load((CLUSTER / "prometheus" / "prometheus.yml").read_text())
    assert config["rule_files"] == ours["rule_files"]
    ports = {}
    *pods, gateway = config["scrape_configs"]
    (pushed,) = (s for s in ours["scrape_configs"] if s["job_name"] == "pushgateway")
    assert (gateway["job_name"], gateway["honor_labels"]) == ("pushgateway", pushed["honor_labels"])
    for scrape in pods:
        label, port, job = scrape["relabel_configs"]
        assert (job["source_labels"], job["target_label"]) == ([POD_LABEL], "job")
        assert scrape["honor_labels"] is True
        assert label["source_labels"] == [POD_LABEL]
        ports[scrape["job_name"]] = port["regex"]
    rendered = (CLUSTER / "kuberay" / "celeba-hq.rayjob.yaml").read_text()
    head = list(yaml.safe_load_all(rendered))[-1]["spec"]["rayClusterSpec"]["headGroupSpec"]
    exposed = {p["name"]: p["containerPort"] for p in head["template"]["spec"]["containers"][0]["ports"]}
    assert exposed[ports["ray"]] == render.RAY_METRICS
    assert exposed[ports["dladiff"]] == render.DRIVER_METRICS


def test_objects_of_the_operator_have_the_same_rules_and_scrape_jobs() -> None:
    spec = spec_from_file_location("rule_object", CLUSTER / "prometheus" / "rule_object.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    file = CLUSTER / "prometheus" / "operator" / "rules.yaml"
    assert file.read_text() == module.text(), f"run .venv/bin/python cluster/prometheus/rule_object.py > {file}"
    groups = yaml.safe_load(file.read_text())["spec"]["groups"]
    assert sorted(map(str, (rule for group in groups for rule in group["rules"]))) == sorted(map(str, rules()))
    assert len({group["name"] for group in groups}) == len(groups)
    monitors = list(yaml.safe_load_all((CLUSTER / "prometheus" / "operator" / "podmonitors.yaml").read_text()))
    scraped = yaml.safe_load((CLUSTER / "prometheus" / "kubernetes.yml").read_text())["scrape_configs"]
    for monitor, scrape in zip(monitors, scraped, strict=False):
        (selected,) = monitor["spec"]["selector"]["matchExpressions"]
        assert selected == {"key": render.JOB_LABEL, "operator": "Exists"}
        (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
        assert endpoint["port"] == scrape["relabel_configs"][1]["regex"]
        assert endpoint["honorLabels"] is scrape["honor_labels"] is True
        assert endpoint["relabelings"] == [{"sourceLabels": [POD_LABEL], "targetLabel": "job"}]


LABELLED = re.compile(r"((?:ray_)?dladiff[_:][\w:]+)(\{[^}]*\})?")


def test_panels_are_filtered_by_job_and_tenant_where_their_series_have_them() -> None:
    dashboard = json.loads((CLUSTER / "grafana" / "dladiff.json").read_text())
    assert [v["name"] for v in dashboard["templating"]["list"]] == ["datasource", "job", "tenant"]
    for panel in panels():
        for target in panel.get("targets", []):
            for name, matcher in LABELLED.findall(target["expr"]):
                if name == "dladiff:gpu_utilisation:avg":  # of all nodes
                    continue
                assert 'job=~"$job' in matcher, (panel["title"], name)
                of_driver = name.startswith(("dladiff_run_", "dladiff:run:", "dladiff_scheduled_"))
                assert ('tenant=~"$tenant"' in matcher) == of_driver, (panel["title"], name)


def test_every_recorded_rule_and_alert_is_tested_with_series_that_are_born_late() -> None:
    tests = yaml.safe_load((CLUSTER / "prometheus" / "tests" / "alerts_test.yml").read_text())["tests"]
    tried, late = set(), set()
    for test in tests:
        found = {case["alertname"] for case in test.get("alert_rule_test", []) if case["exp_alerts"]}
        found |= {name for case in test.get("promql_expr_test", []) for name in names(case["expr"])}
        tried |= found
        if any(str(series["values"]).startswith("_x") for series in test["input_series"]):
            late |= found
    alerts = {rule["alert"] for rule in rules() if "alert" in rule}
    assert alerts <= late
    assert {rule["record"] for rule in rules() if "record" in rule} - tried <= USED_BY_OTHERS


def test_dashboard_has_unique_panels_inside_the_grid() -> None:
    found = panels()
    assert len({p["id"] for p in found}) == len(found)
    for panel in found:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        if panel["type"] != "row":
            assert panel["targets"]
            assert panel["datasource"]["uid"] == "${datasource}"


def test_ray_up_file_fits_rays_own_schema() -> None:
    config = yaml.safe_load((CLUSTER / "aws.yaml").read_text())
    spec = find_spec("ray")  # found, not imported: that takes seconds
    assert spec is not None and spec.origin is not None
    schema = json.loads((Path(spec.origin).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(config, schema)
    head, gpu = (config["available_node_types"][name] for name in ("head", "gpu"))
    assert head["resources"] == {"CPU": 0}
    assert "InstanceMarketOptions" not in head["node_config"]
    assert gpu["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
    assert gpu["max_workers"] <= config["max_workers"]
    for node in (head, gpu):
        assert node["node_config"]["MetadataOptions"]["HttpTokens"] == "required"
        assert node["node_config"]["BlockDeviceMappings"][0]["Ebs"]["Encrypted"] is True
    assert not re.search(r"(?i)aws_secret|access_key", (CLUSTER / "aws.yaml").read_text())


AGAIN = "run .venv/bin/python cluster/lock.py > cluster/lock.txt"


def locked() -> dict[str, tuple[str, list[str]]]:
    """Version and hashes of each package; every line must be a pin with hashes, as --require-hashes asks."""
    found = {}
    text = (CLUSTER / "lock.txt").read_text().replace("\\\n", " ")
    for line in (line for line in text.splitlines() if not line.startswith("#")):
        match = re.fullmatch(r"([a-z0-9-]+)==([\w.]+)((?:\s+--hash=sha256:[0-9a-f]{64})+)", line)
        assert match, line
        assert match[1] not in found, line
        found[match[1]] = match[2], re.findall("sha256:([0-9a-f]+)", match[3])
    return found


def closure() -> dict[str, str]:
    """What is installed here of what this package needs, by cluster/lock.py."""
    spec = spec_from_file_location("lock", CLUSTER / "lock.py")
    assert spec is not None and spec.loader is not None
    lock = module_from_spec(spec)
    spec.loader.exec_module(lock)
    needed: dict[str, str] = lock.needed()
    return needed


def test_lock_has_what_is_needed_in_the_versions_of_make() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    pins = {name: pin for name, (pin, _) in locked().items()}
    lines = (line.partition("==") for line in (ROOT / "constraints.txt").read_text().splitlines())
    ours = {canonicalize_name(name): pin for name, equal, pin in lines if equal and not name.startswith("#")}
    needed = [Requirement(r) for r in (*project["project"]["dependencies"], *project["build-system"]["requires"])]
    assert [r.name for r in needed if not r.specifier.contains(pins[canonicalize_name(r.name)])] == [], AGAIN
    assert [name for name, pin in ours.items() if pins.get(name, pin) != pin] == [], AGAIN
    installed = closure()
    assert {"grpcio", "urllib3", "pydantic", "torch"} <= installed.keys()  # what is needed by what is needed
    assert installed.keys() - pins.keys() == set(), AGAIN


def test_lock_has_a_hash_of_both_processors() -> None:
    found = locked()
    for name in ("numpy", "torch", "pyarrow", "pillow"):  # a wheel for each
        assert len(set(found[name][1])) >= 2, AGAIN
    assert {"nvidia-cublas", "triton", "cuda-toolkit"} <= found.keys()  # of torch on PyPI, not of the one for the CPU


def test_installed_packages_and_pins_keep_the_lower_bounds() -> None:
    """The bounds exclude versions with known faults (docs/decisions/0014-supply-chain.md, which names each of them)."""
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    page = (ROOT / "docs" / "decisions" / "0014-supply-chain.md").read_text()
    stated = dict(re.findall(r"^\| ([\w-]+) \| ([\d.]+) \|", page, re.M))
    bounds = {Requirement(text).name: Requirement(text).specifier for text in needed}
    assert {name: str(bounds[name]) for name in stated} == {name: f">={version}" for name, version in stated.items()}
    assert {"torch", "transformers", "diffusers", "onnx", "pillow", "pyarrow", "ray", "jinja2"} <= stated.keys()
    assert [name for name, specifier in bounds.items() if not specifier.contains(version(name))] == []


def test_image_is_not_root_and_pinned() -> None:
    lines = (CLUSTER / "Dockerfile").read_text().splitlines()
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert users == [f"{render.USER}:{render.USER}"]
    installs = [line for line in lines if "pip install" in line]
    assert [line.partition("--no-cache-dir ")[2] for line in installs] == [
        "--require-hashes -r lock.txt",
        "--no-deps --no-build-isolation .",
    ]
    assert f"HOME={render.SCRATCH['home']}" in " ".join(lines)
    for line in lines:
        if line.startswith("COPY "):
            assert all((ROOT / name).exists() for name in line.split()[1:-1])


@pytest.mark.parametrize(
    "base, code", [("python:3.11", 1), ("python@sha256", 1), ("python:3.11@sha256:0a", 0), ("", 1)]
)
def test_image_is_built_on_a_digest_alone(base: str, code: int) -> None:
    (command,) = (
        line.removeprefix("RUN ")
        for line in (CLUSTER / "Dockerfile").read_text().splitlines()
        if line.startswith("RUN case")
    )
    done = subprocess.run(["sh", "-c", command], env={"BASE": base}, capture_output=True, text=True)
    assert done.returncode == code
    assert ("--build-arg BASE=" in done.stderr) == bool(code)
