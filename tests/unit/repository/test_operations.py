"""docs/operations.md: each alert with its action, requests as counted, capacity figures that follow from inputs."""

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.config import RunConfig
from pipeline.records import commit as records
from pipeline.records import manifest
from pipeline.run.actor import ProtectIdentity
from pipeline.run.estimate import assumed_rate
from pipeline.storage.local import LocalStorage
from pipeline.storage.open import open_storage
from tests.support.photo_bytes import rgb, saved

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "operations.md").read_text()


def table(first: str) -> list[list[str]]:
    """The rows of the table whose heading begins so, without the heading."""
    lines = PAGE[PAGE.index(f"\n| {first} |") + 1 :].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if not line.startswith("|--")][1:]


def test_every_alert_is_explained_as_its_rule_says() -> None:
    groups = yaml.safe_load((ROOT / "cluster" / "prometheus" / "rules" / "alerts.yml").read_text())["groups"]
    rules = {rule["alert"]: rule for group in groups for rule in group["rules"]}
    rows = {row[0]: row for row in table("alert")}
    assert list(rows) == list(rules)
    for name, rule in rules.items():
        _, says, panels, action = rows[name]
        assert says
        assert action.replace("TENANT", "{{ $labels.tenant }}") == rule["annotations"]["do"]
        titles = {p["title"] for p in json.loads((ROOT / "cluster" / "grafana" / "dladiff.json").read_text())["panels"]}
        assert set(re.findall(r'"([^"]+)"', panels)) <= titles


@pytest.mark.parametrize("column", [1, 2], ids=["celeba_hq", "vggface2"])
def test_capacity_figures_follow_from_their_inputs(column: int) -> None:
    given = {row[0].split(" (input")[0]: float(row[column].replace(",", "")) for row in table("| CelebA-HQ")}
    photos, tasks, seconds = (given[name] for name in ("photos", "tasks", "seconds a photo"))
    rate = assumed_rate(RunConfig(input="in", output="out", profile="sd21", gpus_per_actor=1))
    assert seconds == pytest.approx(rate.seconds, abs=0.05)
    hours = photos * seconds / 3600
    expected = {
        "actor-hours": hours,
        "hours": hours / given["actors, a GPU each"],
        "cost of the GPUs": hours * given["price of a GPU-hour"],
        "storage, GB": photos * given["pixels a photo"] * given["bytes a pixel"] / 1e9,
        "PUT requests": photos + 2 * tasks,
        "GET requests, candidates left out": photos + 3 * tasks,
    }
    assert {name: given[name] for name in expected} == pytest.approx(expected, abs=0.051)


def test_requests_of_a_task_are_those_of_the_formula(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, output = (open_storage(tmp_path / name, create=True) for name in ("in", "out"))
    config = RunConfig(input=source.uri, output=output.uri, protector="tests.support.fakes:AddNoise")
    photos, candidates = 3, 2
    for i in range(photos + candidates):
        source.put(f"ann/{i}.png", saved(rgb(), "PNG"))
    listed = [{"key": f"ann/{i}.png", "uri": source.uri_of(f"ann/{i}.png")} for i in range(photos + candidates)]
    work: dict[str, Any] = {"identity": "ann", "part": 0, "parts": 1, "key": "k", "replaces": None}
    work |= {"photos": listed[:photos], "clean": listed[photos:]}

    asked: Counter[str] = Counter()

    def counted(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: LocalStorage, *args: Any, **options: Any) -> Any:
            if not (args and str(args[0]).startswith(("manifest/", "settings/"))):  # once a run or an actor
                asked[name] += 1
            return real(self, *args, **options)

        return call

    names = {"put": "PUT", "put_if_absent": "PUT", "put_if_match": "PUT", "get": "GET", "list": "LIST", "tag": "HEAD"}
    for method, name in names.items():
        monkeypatch.setattr(LocalStorage, method, counted(name, getattr(LocalStorage, method)))
    result = ProtectIdentity(config.to_dict(), "r", "d")({"work": json.dumps(work)})
    assert json.loads(result["result"])["status"] == "done"
    assert asked == {"PUT": photos + 2, "GET": photos + candidates, "LIST": 2}
    index = records.read_index(output)
    asked["LIST"] -= 2  # done/ and failed/: once a run, 1,000 records each
    manifest.sweep(output, "ann", index.rows(), [])
    manifest.write_manifest(output, index)
    assert asked == {"PUT": photos + 2, "GET": photos + candidates + 3, "LIST": 2 + 1}
