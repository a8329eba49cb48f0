"""Print the rules of cluster/prometheus/rules as a PrometheusRule, for clusters with the Prometheus operator.

.venv/bin/python cluster/prometheus/rule_object.py > cluster/prometheus/operator/rules.yaml
"""

from pathlib import Path
from typing import Any

import yaml

RULES = Path(__file__).parent / "rules"
HEAD = "# Made by cluster/prometheus/rule_object.py from cluster/prometheus/rules; change those and run it again.\n"


def rule_object() -> dict[str, Any]:
    """Return the object; each file is a group, because names of groups are unique in an object."""
    groups = []
    for file in sorted(RULES.glob("*.yml"), reverse=True):  # recording rules first
        for group in yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]:
            groups.append(group | {"name": f"{group['name']}-{file.stem}"})
    labels = {"app.kubernetes.io/part-of": "dladiff"}
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "dladiff", "namespace": "dladiff", "labels": labels},
        "spec": {"groups": groups},
    }


def text() -> str:
    """Return the object as YAML."""
    return HEAD + yaml.safe_dump(rule_object(), sort_keys=False, width=120)


if __name__ == "__main__":
    print(text(), end="")
