"""The user's own AWS configuration decides addressing style and endpoint; refusals say what to set."""

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from dladiff.errors import StorageError
from pipeline.cli.main import main
from pipeline.storage.open import address_fault
from pipeline.storage.s3 import S3Storage
from pipeline.storage.s3_errors import custom_endpoint

OK = (200, {"ETag": '"0"'}, "")
RESOLVE = socket.getaddrinfo


class Server:
    """Answers every request with `answer`; keeps host and path of each in `asked`, and its headers in `headers`."""

    def __init__(self) -> None:
        self.answer: tuple[int, dict[str, str], str] = OK
        self.asked: list[tuple[str, str]] = []
        self.headers: dict[str, str] = {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_PUT(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                outer.asked.append((self.headers["Host"].partition(":")[0], self.path))
                outer.headers = {name.lower(): value for name, value in self.headers.items()}
                status, headers, body = outer.answer
                self.send_response(status)
                for name, value in (headers | {"Content-Length": str(len(body))}).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_: object) -> None: ...

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://s3.test:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def refuse(self, code: str, message: str = "", extra: str = "", status: int = 400) -> None:
        self.answer = (status, {}, f"<Error><Code>{code}</Code><Message>{message}</Message>{extra}</Error>")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    """A server at s3.test; the name of a bucket there resolves too, unless it begins with "lost"."""

    def resolve(host: Any, *rest: Any, **more: Any) -> Any:
        if str(host).startswith("lost."):
            raise socket.gaierror("unknown")
        return RESOLVE("127.0.0.1" if str(host).endswith("s3.test") else host, *rest, **more)

    for name in ("AWS_ENDPOINT_URL_S3", "AWS_PROFILE", "AWS_REQUEST_CHECKSUM_CALCULATION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (("ACCESS_KEY_ID", "key"), ("SECRET_ACCESS_KEY", "secret"), ("DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    running = Server()
    monkeypatch.setenv("AWS_ENDPOINT_URL", running.endpoint)
    yield running
    running.http.shutdown()
    running.http.server_close()


def put(uri: str = "s3://bucket/p") -> None:
    storage = S3Storage(uri)
    try:
        storage.put("k", b"data")
    finally:
        storage.close()


def refused(uri: str = "s3://bucket/p") -> str:
    with pytest.raises(StorageError) as caught:
        put(uri)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("config", "profile", "host", "path"),
    [
        ("", None, "s3.test", "/bucket/p/k"),
        ("[default]\ns3 =\n  addressing_style = virtual\n", None, "bucket.s3.test", "/p/k"),
        ("[default]\ns3 =\n  addressing_style = path\n", None, "s3.test", "/bucket/p/k"),
        ("[profile oss]\ns3 =\n  addressing_style = virtual\n", None, "s3.test", "/bucket/p/k"),
        ("[profile oss]\ns3 =\n  addressing_style = virtual\n", "oss", "bucket.s3.test", "/p/k"),
    ],
)
def test_the_users_addressing_style_counts(
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    config: str,
    profile: str | None,
    host: str,
    path: str,
) -> None:
    (tmp_path / "config").write_text(config)
    if profile:
        monkeypatch.setenv("AWS_PROFILE", profile)
    put()
    assert server.asked == [(host, path)]


def test_an_endpoint_of_the_configuration_counts_and_is_named(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    (tmp_path / "config").write_text(f"[default]\nendpoint_url = {server.endpoint}\n")
    put()
    assert server.asked == [("s3.test", "/bucket/p/k")] and custom_endpoint() == server.endpoint
    server.refuse("Strange")
    assert "S3 error Strange" in refused()
    (tmp_path / "config").write_text(
        f"[default]\nservices = x\n[services x]\ns3 =\n  endpoint_url = {server.endpoint}\n"
    )
    assert custom_endpoint() == server.endpoint
    monkeypatch.setenv("AWS_PROFILE", "none")
    assert custom_endpoint() == ""


@pytest.mark.parametrize(
    ("code", "message", "extra", "says"),
    [
        ("NotImplemented", "A header you provided implies functionality", "", "older servers refuse checksum headers"),
        (
            "NotImplemented",
            "",
            "<Header>x-amz-sdk-checksum-algorithm</Header>",
            "refuses the checksum headers of boto3",
        ),
        ("InvalidArgument", "x-amz-checksum-crc32 is unsupported", "", "refuses the checksum headers of boto3"),
        ("InvalidArgument", "bad", "", "older servers refuse checksum headers"),
        (
            "XAmzContentSHA256Mismatch",
            "The provided header does not match",
            "",
            "refuses the checksum headers of boto3",
        ),
        ("InvalidRequest", "aws-chunked is not supported", "", "refuses the checksum headers of boto3"),
    ],
)
def test_refused_checksum_headers_say_what_to_set(
    server: Server, monkeypatch: pytest.MonkeyPatch, code: str, message: str, extra: str, says: str
) -> None:
    server.refuse(code, message, extra)
    line = refused()
    assert "x-amz-sdk-checksum-algorithm" in server.headers
    assert says in line and "AWS_REQUEST_CHECKSUM_CALCULATION=when_required" in line and server.endpoint in line
    server.answer = OK
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")  # what the line says
    put()
    assert not any("checksum" in name for name in server.headers)


def test_refused_conditional_writes_are_another_fault(server: Server) -> None:
    server.refuse("NotImplemented", "A header you provided", "<Header>If-None-Match</Header>", 501)
    storage = S3Storage("s3://bucket")
    with pytest.raises(StorageError, match=r"does not support conditional writes \(If-None-Match\)"):
        storage.put_if_absent("k", b"")
    storage.close()


@pytest.mark.parametrize("code", ["PermanentRedirect", "SecondLevelDomainForbidden"])
def test_a_server_that_wants_the_bucket_in_the_host_name(server: Server, code: str) -> None:
    server.refuse(code, status=403)
    line = refused()
    assert "wants the bucket bucket addressed by another host" in line and "addressing_style = virtual" in line


def test_a_server_that_wants_the_bucket_in_the_path(server: Server, tmp_path: Path) -> None:
    (tmp_path / "config").write_text("[default]\ns3 =\n  addressing_style = virtual\n")
    server.refuse("NoSuchBucket", status=404)
    line = refused()
    assert "no such bucket: bucket; create it" in line and "addressing_style = path" in line
    line = refused("s3://lost/p")
    assert line.startswith("cannot reach lost.s3.test") and "addressing_style = path" in line
    (tmp_path / "config").write_text("[default]\ns3 =\n  addressing_style = host\n")
    assert "unknown addressing_style = host" in refused()


@pytest.mark.parametrize(
    "address",
    ["s3:/x", "s3//x", "S3://x", "s3:x", "S3:/x/y", "s3a://x", "S3//x", "gs:/x", "file:/x", "File:///x", "https:/x"],
)
def test_mistyped_addresses_are_bad_usage(address: str, tmp_path: Path) -> None:
    assert address_fault(address)
    for command in (
        ["plan", "--input", address, "--output", str(tmp_path / "out")],
        ["plan", "--input", str(tmp_path), "--output", address],
        ["status", "--output", address],
        ["models", "mirror", "tiny", address],
        ["models", "fetch", "sd21", "--from", address],
        ["doctor", "--output", address],
    ):
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 2, (command, result.output)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "address", ["s3://b/x", "./s3:x", "/s3:/x", "s3", "s3/x", "s3x:/y", "photos/s3:x", "file:///x"]
)
def test_other_addresses_are_none(address: str) -> None:
    assert address_fault(address) is None
