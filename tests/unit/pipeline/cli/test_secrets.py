"""No command shows a password, a signature or a key, whichever message, log line or traceback they are in."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from pipeline.cli.main import main
from pipeline.doctor.checks import Check
from pipeline.doctor.look import doctor
from pipeline.storage import s3 as s3_storage
from pipeline.storage.keys import redacted, short, shown

SECRET = "5ec4e7"
PRESIGNED = f"https://b.s3.amazonaws.com/1.jpg?X-Amz-Credential=AKIA%2F1&X-Amz-Date=2&X-Amz-Signature={SECRET}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://user:5ec4e7@host:1/x", "http://***@host:1/x"),
        ("no answer from http://5ec4e7@host (refused)", "no answer from http://***@host (refused)"),
        ("http:/u:5ec4e7@host", "http:/***@host"),  # what pathlib makes of it
        ("RAY://u:5ec@4e7@host", "RAY://***@host"),
        ("s3://AKIAEXAMPLE:5ec/4e+7@bucket/x", "s3://***@bucket/x"),
        ("http://u:5#c4e7@host", "http://***@host"),
        ('{"a": "http://u:5ec4e7@h", "b": "c@d"}', '{"a": "http://***@h", "b": "c@d"}'),
        (PRESIGNED, "https://b.s3.amazonaws.com/1.jpg?X-Amz-Credential=***&X-Amz-Date=2&X-Amz-Signature=***"),
        ("?x-amz-security-token=5ec4e7'", "?x-amz-security-token=***'"),
        ("/k?AWSAccessKeyId=5ec4e7&Signature=5ec4e7&Expires=1", "/k?AWSAccessKeyId=***&Signature=***&Expires=1"),
        ("?sv=1&amp;sig=5ec4e7", "?sv=1&amp;sig=***"),
        ("?access_token=5ec4e7#top", "?access_token=***#top"),
        ("key AKIAIOSFODNN7EXAMPLE is unknown", "key *** is unknown"),
        ("ASIAIOSFODNN7EXAMPLE", "***"),
    ],
)
def test_secrets_are_replaced(text: str, expected: str) -> None:
    assert redacted(text) == shown(text) == short(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/ann@example.org/1.jpg",
        "s3://bucket/a:b@c.jpg",
        "http://host:8265/ann@example.org",
        "ann@example.org",
        "/data/ann:1@home/1.jpg",
        "file:///data/a@b.jpg",
        "?page=2&sort=token",
        "AKIA, a name",
        "at 10:20, 3 of 4 @ noon",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redacted(text) == text


def test_a_secret_at_the_cut_is_not_shown_in_part() -> None:
    assert SECRET[:3] not in short("x" * 140 + f" http://user:{SECRET * 30}@host", 200)


def call(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, list(arguments))
    assert SECRET not in result.output
    return result.exit_code, result.output


@pytest.fixture
def index(tmp_path: Path) -> Path:
    Image.new("RGB", (64, 64)).save(tmp_path / "1.png")
    (tmp_path / "index.csv").write_text(f"identity,uri\nann,1.png\nbob,{PRESIGNED}\n")
    return tmp_path / "index.csv"


@pytest.mark.parametrize("debug", ["", "1"])
def test_an_endpoint_with_a_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, debug: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://user:{SECRET}@127.0.0.1:1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("DLADIFF_DEBUG", debug)
    monkeypatch.setattr(s3_storage, "TRIES", 1)
    code, text = call("plan", "--input", "s3://bucket/x", "--output", str(tmp_path / "out"))
    assert code == 3
    assert text.splitlines()[-1].startswith("error: cannot reach http://127.0.0.1:1 (EndpointConnectionError)")
    assert ("Traceback" in text) == bool(debug)
    for check in doctor(output="s3://bucket/x"):
        assert SECRET not in check.line()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"ftp://user:{SECRET}@127.0.0.1:1")
    (clock,) = [check for check in doctor(output="s3://bucket/x") if check.name == "clock"]
    assert "AWS_ENDPOINT_URL ftp://***@127.0.0.1:1 is no http address" in clock.line()


@pytest.mark.parametrize(
    "arguments",
    [
        ["plan", "--input", f"s3://AKIAEXAMPLE:{SECRET}@bucket/x", "--output", "out"],
        ["plan", "--input", f"s3://AKIAEXAMPLE:{SECRET}@bucket/index.csv", "--output", "out"],
        ["status", "--output", f"s3://AKIAEXAMPLE:{SECRET}/x@bucket/x"],
        ["plan", f"s3://AKIAEXAMPLE:{SECRET}@bucket/x"],
        ["plan", "--input", "in", "--output", f"http://user:{SECRET}@host/x"],
        ["plan", f"--inptu=s3://AKIAEXAMPLE:{SECRET}@bucket/x"],
        ["plan", "--limit", f"http://user:{SECRET}@host"],
        ["plan", "--config", f"http://user:{SECRET}@host/run.yaml"],
        ["plan", "--input", "in", "--output", "out", "--allow-root", f"s3://AKIAEXAMPLE:{SECRET}@bucket/x"],
        [f"http://user:{SECRET}@host"],
        ["explain", PRESIGNED, "--output", "out"],
        ["submit", f"http://user:{SECRET}@host/job.yaml", "--address", "http://host"],
    ],
)
def test_credentials_in_an_address_are_bad_usage(arguments: list[str]) -> None:
    code, text = call(*arguments)
    assert code == 2
    assert "rror: " in text and "Traceback" not in text


def test_an_address_of_ray_with_a_password(tmp_path: Path) -> None:
    for address in (f"ray://user:{SECRET}@127.0.0.1:1", f"user:{SECRET}@127.0.0.1:1", f"ray://user:{SECRET}@[bad"):
        code, text = call("doctor", "--output", str(tmp_path), "--address", address)
        assert code != 0
        assert "FAIL  ray: ray://***@" in text


def test_a_presigned_address_in_an_index(index: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    code, _ = call("plan", "--input", str(index), "--output", str(tmp_path / "out"))
    assert code == 0
    assert "X-Amz-Signature=***" in caplog.text
    assert SECRET not in caplog.text


def test_a_presigned_address_on_a_terminal(index: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipeline", "plan", "--input", str(index), "--output", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "row 3: uri 'https://b.s3.amazonaws.com/1.jpg?X-Amz-Credential=***" in done.stderr
    assert SECRET not in done.stderr + done.stdout
    assert "photos: 2" in done.stdout


@pytest.mark.parametrize("name", ["pipeline.anything", "dladiff.anything", "pipeline"])
def test_log_records_of_this_program_are_redacted(name: str, caplog: pytest.LogCaptureFixture) -> None:
    try:
        raise ValueError(f"http://user:{SECRET}@host")
    except ValueError as error:
        logging.getLogger(name).exception("failed at %s: %s", f"http://user:{SECRET}@host", error)
    assert SECRET not in caplog.text
    assert "failed at http://***@host: http://***@host" in caplog.text
    assert "Traceback" in caplog.text


def test_log_records_of_others_are_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("pipelines.other").error("at %s", "http://u:p@host")
    assert caplog.records[0].args == ("http://u:p@host",)


def test_checks_of_the_doctor_are_redacted() -> None:
    assert Check("ray", False, f"http://u:{SECRET}@h\nis down").line() == "FAIL  ray: http://***@h\\nis down"
