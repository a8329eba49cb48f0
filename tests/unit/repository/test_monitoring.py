"""Rules, dashboard, scrape jobs: names of metrics that exist, rules that promtool accepts, panels with filters."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.cluster import objects
from pipeline.telemetry.metrics import METRICS, SERIES

ROOT = Path(__file__).resolve().parents[3]
CLUSTER = ROOT / "cluster"
RULES = sorted((CLUSTER / "prometheus" / "rules").glob("*.yml"))
TESTS = sorted((CLUSTER / "prometheus" / "tests").glob("*.yml"))
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
    "avg_over_time", "max_over_time", "offset", "or", "unless", "bool",
}  # fmt: skip


POD_LABEL = f"__meta_kubernetes_pod_label_{objects.JOB_LABEL.replace('-', '_')}"
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
    tests = "".join(file.read_text() for file in TESTS)
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
        ["test", "rules", *map(str, TESTS)],
    ],
    ids=lambda a: " ".join(a[:2]),
)
def test_promtool_accepts(arguments: list[str]) -> None:
    done = subprocess.run([promtool(), *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_kubernetes_scrape_config_fits_the_rendered_pods() -> None:
    """Debian's promtool is built without Kubernetes discovery, so the names are compared here."""
    config = yaml.safe_load((CLUSTER / "prometheus" / "kubernetes.yml").read_text())
    ours = yaml.safe_load((CLUSTER / "prometheus" / "prometheus.yml").read_text())
    assert config["rule_files"] == ours["rule_files"]
    ports = {}
    *scraped, gateway = config["scrape_configs"]
    (pushed,) = (s for s in ours["scrape_configs"] if s["job_name"] == "pushgateway")
    assert (gateway["job_name"], gateway["honor_labels"]) == ("pushgateway", pushed["honor_labels"])
    for scrape in scraped:
        label, port, job = scrape["relabel_configs"]
        assert (job["source_labels"], job["target_label"]) == ([POD_LABEL], "job")
        assert scrape["honor_labels"] is True
        assert label["source_labels"] == [POD_LABEL]
        ports[scrape["job_name"]] = port["regex"]
    rendered = (CLUSTER / "kuberay" / "celeba-hq.rayjob.yaml").read_text()
    head = list(yaml.safe_load_all(rendered))[-1]["spec"]["rayClusterSpec"]["headGroupSpec"]
    exposed = {p["name"]: p["containerPort"] for p in head["template"]["spec"]["containers"][0]["ports"]}
    assert exposed[ports["ray"]] == objects.RAY_METRICS
    assert exposed[ports["dladiff"]] == objects.DRIVER_METRICS


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
        assert selected == {"key": objects.JOB_LABEL, "operator": "Exists"}
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
    tests = [test for file in TESTS for test in yaml.safe_load(file.read_text())["tests"]]
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
