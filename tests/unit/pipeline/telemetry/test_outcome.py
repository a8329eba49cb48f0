"""Outcomes of scheduled runs: files for the node exporter and pushes to a gateway."""

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
from prometheus_client.parser import text_string_to_metric_families

from dladiff.errors import StorageError
from pipeline.telemetry.outcome import Outcome, push, write_textfile


def parsed(text: str) -> dict[tuple[str, str, str], float]:
    samples = [s for f in text_string_to_metric_families(text) for s in f.samples]
    return {
        (s.name.removeprefix("dladiff_scheduled_"), s.labels["tenant"], s.labels.get("status", "")): s.value
        for s in samples
        if s.labels["job"] == "night"
    }


def test_textfile_keeps_the_last_success_of_a_failed_run(tmp_path: Path) -> None:
    partly = Outcome(job="night", tenant="a", exit_code=1, ended=100.0, identities={"done": 3, "odd": 1})
    path = write_textfile(tmp_path, partly)
    assert parsed(path.read_text()) == {
        ("last_success_timestamp_seconds", "a", ""): 100,
        ("last_end_timestamp_seconds", "a", ""): 100,
        ("exit_code", "a", ""): 1,
        ("identities", "a", "done"): 3,
        ("identities", "a", "other"): 1,
    }
    write_textfile(tmp_path, Outcome(job="night", tenant="a", exit_code=3, ended=200.0))
    found = parsed(path.read_text())
    assert found[("last_success_timestamp_seconds", "a", "")] == 100
    assert found[("last_end_timestamp_seconds", "a", "")] == 200
    assert [p.name for p in tmp_path.iterdir()] == ["dladiff_night_a.prom"]
    path.write_text("{ not metrics")
    write_textfile(tmp_path, Outcome(job="night", tenant="a", exit_code=3, ended=300.0))
    assert ("last_success_timestamp_seconds", "a", "") not in parsed(path.read_text())


def test_textfile_in_no_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="give an existing folder"):
        write_textfile(tmp_path / "none", Outcome(job="night", tenant="a", exit_code=0, ended=1.0))


@pytest.fixture
def gateway() -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    seen: list[tuple[str, str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            seen.append((self.command, self.path, body))
            self.send_response(202)
            self.end_headers()

        def log_message(self, *args: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", seen
    server.shutdown()
    server.server_close()


def test_push_adds_to_the_tenants_group(gateway: tuple[str, list[tuple[str, str, str]]]) -> None:
    url, seen = gateway
    push(url, Outcome(job="night", tenant="a", exit_code=0, ended=100.0, identities={"done": 2}))
    push(url, Outcome(job="night", tenant="a", exit_code=3, ended=200.0))
    assert [(method, path) for method, path, _ in seen] == [("POST", "/metrics/job/night/tenant/a")] * 2
    assert ("last_success_timestamp_seconds", "a", "") in parsed(seen[0][2])
    assert ("last_success_timestamp_seconds", "a", "") not in parsed(seen[1][2])  # POST leaves it as it stands


@pytest.mark.parametrize("gateway", ["http://127.0.0.1:1", "http://127.0.0.1:1x"])
def test_gateway_out_of_reach_is_one_line(gateway: str) -> None:
    with pytest.raises(StorageError, match="check its address"):
        push(gateway, Outcome(job="night", tenant="a", exit_code=0, ended=1.0))
