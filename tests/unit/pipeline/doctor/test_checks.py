"""Each check on a machine that has what it needs, and on one that lacks it: every fault says what to do."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from pipeline.config import RunConfig, run_config
from pipeline.doctor import checks as module
from pipeline.doctor.checks import Check
from pipeline.doctor.look import doctor
from pipeline.models.fingerprint import EMBEDDED
from pipeline.storage.local import LocalStorage


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    (tmp_path / "in" / "ann").mkdir(parents=True)
    (tmp_path / "in" / "ann" / "1.png").write_bytes(b"x")
    (tmp_path / "out").mkdir()
    return run_config(None, {"input": str(tmp_path / "in"), "output": str(tmp_path / "out")})


def named(checks: list[Check]) -> dict[str, Check]:
    assert len({c.name for c in checks}) == len(checks)
    return {c.name: c for c in checks}


def with_(config: RunConfig, **values: Any) -> RunConfig:
    return run_config(None, config.to_dict() | {"faces": list(config.faces)} | values)


def test_a_machine_that_has_everything(config: RunConfig) -> None:
    found = named(doctor(config))
    assert list(found) == ["python", "packages", "memory", "gpu", "models", "input", "storage", "clock"]
    assert [c.line() for c in found.values() if not c.ok] == []
    assert found["python"].line().startswith("ok    python: 3.")
    assert list(Path(config.output).iterdir()) == []


def test_without_a_configuration_only_the_machine_is_looked_at() -> None:
    assert list(named(doctor())) == ["python", "packages", "memory", "gpu"]


def test_a_folder_made_for_the_probe_is_gone_afterwards(tmp_path: Path) -> None:
    assert named(doctor(output=str(tmp_path / "new")))["storage"].ok
    assert list(tmp_path.iterdir()) == []


def test_torch_is_not_imported() -> None:
    code = "import sys; from pipeline.doctor.look import doctor; doctor(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_packages_that_are_missing_or_old(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["numpy>=999", "no-such-package>=1", 'other>=1; extra == "dev"', "pyyaml>=1"]
    monkeypatch.setattr(module, "requires", lambda _: wanted)
    check = module._packages()
    assert not check.ok
    assert "numpy" in check.text and "is not >=999" in check.text
    assert "no-such-package is missing" in check.text
    assert "other" not in check.text


def test_models_that_are_missing(config: RunConfig, tmp_path: Path) -> None:
    method = {"model": str(tmp_path / "sd"), "encoders": [str(tmp_path / "pack")], "held_out": ["embedded:mobile"]}
    found = named(doctor(with_(config, profile="sd21", method=method)))
    assert not found["models"].ok
    assert f"model: {tmp_path / 'sd'}" in found["models"].text
    assert f"encoders: nothing at {tmp_path / 'pack'}" in found["models"].text
    shutil.copytree(EMBEDDED / "bundle", tmp_path / "sd")
    shutil.copytree(EMBEDDED / "encoders", tmp_path / "pack")
    assert named(doctor(with_(config, profile="sd21", method=method)))["models"].ok
    unnamed = named(doctor(with_(config, profile="sd21", method={"model": str(tmp_path / "sd")})))["models"]
    assert not unnamed.ok and "buffalo_l" in unnamed.text


def test_input_that_is_missing_or_empty(config: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for place, text in (("empty", "holds nothing"), ("none", "none"), ("list.csv", "not there")):
        check = named(doctor(with_(config, input=str(tmp_path / place))))["input"]
        assert not check.ok
        assert text in check.text
    (tmp_path / "list.csv").write_text("identity,uri\n")
    assert named(doctor(with_(config, input=str(tmp_path / "list.csv"))))["input"].ok


@pytest.mark.parametrize(
    "method, answer, text",
    [
        ("put_if_absent", True, "ignores If-None-Match"),
        ("put_if_match", True, "ignores If-Match"),
        ("get", b"other", "returned other bytes"),
        ("delete", None, "does not delete"),
    ],
)
def test_storage_that_does_not_keep_its_word(
    method: str, answer: object, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalStorage, method, lambda *_: answer)
    check = named(doctor(output=str(tmp_path)))["storage"]
    assert not check.ok
    assert text in check.text


def test_storage_out_of_reach(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    check = named(doctor(output=str(tmp_path / "file")))["storage"]
    assert not check.ok
    assert "\n" not in check.line()
    for address in ("gs://bucket/x", "s3://"):
        (check,) = [c for c in doctor(output=address) if c.name == "storage"]
        assert not check.ok
        assert "use " in check.text


def tool(folder: Path, text: str, code: int = 0) -> None:
    script = folder / "nvidia-smi"
    script.write_text(f"#!/bin/sh\ncat <<'EOF'\n{text}\nEOF\nexit {code}\n")
    script.chmod(0o755)


def test_gpu(config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_version", lambda _: "2.13.0")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    wants = with_(config, gpus_per_actor=1, profile="sd21", method={"model": "x", "encoders": ["y"], "visibility": 0})
    tool(tmp_path, "NVIDIA L4, 23034, 10, 580.1\nNVIDIA L4, 23034, 0, 580.1")
    assert module._gpu(wants).line() == "ok    gpu: NVIDIA L4, 22 GiB, 10 MiB in use; NVIDIA L4, 22 GiB, 0 MiB in use"
    tool(tmp_path, "Tesla T4, 15360, 0, 580.1")
    assert "has less than 22 GiB: set method.gpu_memory" in module._gpu(wants).text
    assert module._gpu(with_(wants, method={**wants.method, "gpu_memory": "16GB"})).ok
    tool(tmp_path, "NVIDIA GB10, [N/A], [N/A], 580.1")
    assert module._gpu(wants).line() == "ok    gpu: NVIDIA GB10; nvidia-smi does not report its memory"
    tool(tmp_path, "No devices were found", 6)
    assert "set gpus_per_actor: 0" in module._gpu(wants).text
    assert module._gpu(None).ok
    monkeypatch.setattr(module, "_version", lambda _: "2.13.0+cpu")
    tool(tmp_path, "NVIDIA L4, 23034, 10, 580.1")
    assert "built for the CPU" in module._gpu(wants).text
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    assert not module._gpu(wants).ok


def test_memory_limit_of_a_container_counts(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_read_number", lambda _: 2 * 2**30)
    check = module._memory(config)
    assert not check.ok
    assert check.text.startswith("2.0 GiB")
    assert "needs 4 GiB" in check.text


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[timedelta]]:
    ahead = [timedelta()]

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response_only(403)
            self.send_header("Date", format_datetime(datetime.now(UTC) + ahead[0], usegmt=True))
            self.end_headers()

        def log_message(self, *args: object) -> None: ...

    http = HTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{http.server_port}")
    yield ahead
    http.shutdown()
    http.server_close()


def test_clock_against_the_server_even_one_that_refuses(server: list[timedelta]) -> None:
    assert module._clock("s3://bucket/x").ok
    server[0] = timedelta(minutes=5)
    check = module._clock("s3://bucket/x")
    assert not check.ok
    assert "-300 s" in check.text or "-301 s" in check.text or "-299 s" in check.text
    assert "NTP" in check.text


def test_ray_reach() -> None:
    for address in ("127.0.0.1:1", "ray://127.0.0.1:1"):
        check = named(doctor(address=address))["ray"]
        assert not check.ok
        assert "is the head up" in check.text
