"""Answers of nodes are data; what a node checks of itself: weights, a shared folder, GPUs."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from dladiff.errors import StorageError
from pipeline.config import run_config
from pipeline.doctor import node as own
from pipeline.doctor import nodes, probe
from pipeline.doctor.nodes import COLUMNS, cluster_nodes, table

FACTS = {"host": "h1", "address": "10.0.0.2", "worker": True, "round_trip_s": 0.01, "clock_s": 0.02}
FACTS |= {"versions": {"dladiff": "0.1.0", "python": "3.11.7", "torch": "2.13"}, "checks": [["models", True, "sd21"]]}


def answered(monkeypatch: pytest.MonkeyPatch, *found: dict[str, Any]) -> list[nodes.Node]:
    text = f"noise\n{nodes.FOUND}{json.dumps({'nodes': found})}\nnoise"
    monkeypatch.setattr(nodes, "_from_here", lambda *_: text)
    return cluster_nodes("head:6379")


def test_a_row_for_each_node_and_a_line_for_each_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = FACTS | {"host": "h0", "clock_s": -75.0}
    lost = {"host": "h2", "address": "10.0.0.3", "worker": True, "error": "no answer within 180 s"}
    found = answered(monkeypatch, FACTS, slow, lost)
    assert [one.ok for one in found] == [False, True, False]
    heading, *rows = table(found)
    assert heading.split() == list(COLUMNS)
    assert [row.split()[:4] for row in rows[:2]] == [
        ["h0", "10.0.0.2", "0.1.0", "3.11.7"],
        ["h1", "10.0.0.2", "0.1.0", "3.11.7"],
    ]
    assert rows[0].endswith("-75.0 s") and rows[1].endswith("+0.0 s") and rows[2].split()[2:] == ["-"] * 8
    assert rows[3].startswith("FAIL  h0 (10.0.0.2): clock: -75 s from the driver's, more than 60 s")
    assert rows[4] == "FAIL  h2 (10.0.0.3): answer: no answer within 180 s"


def test_what_nodes_answer_is_data(monkeypatch: pytest.MonkeyPatch) -> None:
    hostile = FACTS | {"host": "h\x1b[31m\nok", "versions": {"dladiff": "x" * 5000}}
    hostile |= {"checks": [["storage", False, "s3://user:5ec4e7@host is\nok    all"]]}
    lines = table(answered(monkeypatch, hostile))
    assert len(lines) == 3
    text = "\n".join(lines)
    assert "\x1b" not in text and "5ec4e7" not in text and max(map(len, lines)) < 600


def test_a_slow_answer_is_no_wrong_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = answered(monkeypatch, FACTS | {"clock_s": 70.0, "round_trip_s": 30.0})
    assert found.ok


@pytest.mark.parametrize(
    ("text", "says"),
    [("", "nothing was printed"), ("Traceback\nboom", "boom"), (f'{nodes.FOUND}{{"error": "no raylet"}}', "no raylet")],
)
def test_a_cluster_that_cannot_be_asked_is_one_line(text: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "_from_here", lambda *_: text)
    with pytest.raises(StorageError, match=says):
        cluster_nodes("head:6379")


def test_both_sides_agree_on_the_line() -> None:
    assert nodes.FOUND == probe.FOUND


def request(tmp_path: Path, **values: Any) -> dict[str, Any]:
    (tmp_path / "in").mkdir(exist_ok=True)
    (tmp_path / "in" / "1.png").write_bytes(b"x")
    config = run_config(None, {"input": str(tmp_path / "in"), "output": str(tmp_path / "out")})
    found = {"config": config.to_dict(), "output": config.output, "marker": None, "worker": True, "gpus": 0}
    return found | {"version": "0.1.0"} | values


def test_a_node_that_does_not_see_the_drivers_file_has_another_folder(tmp_path: Path) -> None:
    with probe._marked(str(tmp_path / "out")) as marker:
        assert all(check.ok for check in own.node_checks(request(tmp_path, marker=marker)))
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    (fault,) = [check for check in own.node_checks(request(tmp_path, marker=marker)) if not check.ok]
    assert fault.name == "storage" and "mount one on every node" in fault.text


def test_a_head_needs_no_weights(tmp_path: Path) -> None:
    names = [check.name for check in own.node_checks(request(tmp_path, worker=False, gpus=2))]
    assert names == ["input", "storage"]


def test_weights_behind_a_broken_link_are_named(tmp_path: Path) -> None:
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "net.onnx").symlink_to(tmp_path / "gone")
    values = {"input": str(tmp_path), "output": str(tmp_path / "out"), "method": {"encoders": [str(tmp_path / "pack")]}}
    fault = own.unreadable(run_config(None, values).method_config())
    assert fault is not None and fault.startswith(str(tmp_path / "pack" / "net.onnx"))


@pytest.mark.parametrize(
    ("program", "text"),
    [
        ("print(1)", "torch finds 1 of the 2 GPUs that Ray counts here"),
        ("raise SystemExit('CUDA error: unspecified launch failure')", "fails: CUDA error: unspecified launch failure"),
        ("import time; time.sleep(60)", "does not end within"),
    ],
)
def test_gpus_that_do_not_compute(program: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own, "SUM", program)
    monkeypatch.setattr(own, "GPU_S", 5.0)
    check = own.gpu_check(2)
    assert not check.ok and text in check.text


def test_gpus_that_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own, "SUM", "print(2)")
    assert own.gpu_check(2).ok


@pytest.mark.parametrize("have", ["0.0.1", ""])
def test_another_version_or_none_is_all_that_is_said(
    have: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "_version", lambda _: have)
    (check,) = probe.Probe().look(request(tmp_path))["checks"]
    assert check[:2] == ("version", False) and "install dladiff 0.1.0" in check[2] and sys.executable in check[2]
