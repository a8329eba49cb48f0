"""An HTTP proxy before the S3 server of the tests that fails as storage does: 503, cut connections, refused writes."""

import http.client
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal, Self
from urllib.parse import urlsplit

Mode = Literal["pass", "busy", "cut", "read_only", "no_lease"]
SLOW_DOWN = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>later</Message></Error>"
REFUSED = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>no</Message></Error>"
HOP = {"connection", "transfer-encoding", "keep-alive"}


class FaultyProxy:
    """Forwards to `endpoint` while `mode` is "pass"; counts in `faults` the requests it failed.

    Each request waits for `delay_s` seconds first, as if the storage were that far away.
    """

    def __init__(self, endpoint: str, delay_s: float = 0.0) -> None:
        self.mode: Mode = "pass"
        self.delay_s = delay_s
        self.faults = 0
        self._there = urlsplit(endpoint).netloc
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _handle(self) -> None:
                outer._handle(self)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        for method in ("GET", "PUT", "HEAD", "DELETE", "POST"):
            setattr(Handler, f"do_{method}", Handler._handle)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handle(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        time.sleep(self.delay_s)
        if self.mode == "busy":
            self._answer(request, 503, SLOW_DOWN)
        elif self.mode == "no_lease" and request.command == "PUT" and request.path.endswith("/lock.json"):
            self._answer(request, 503, SLOW_DOWN)
        elif self.mode == "read_only" and request.command in ("PUT", "POST", "DELETE"):
            self._answer(request, 403, REFUSED)
        else:
            self._forward(request, body)

    def _answer(self, request: BaseHTTPRequestHandler, status: int, body: bytes) -> None:
        self.faults += 1
        request.send_response(status)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(body)

    def _forward(self, request: BaseHTTPRequestHandler, body: bytes) -> None:
        """Pass on under the name the client signed; in mode "cut" send half a reply and hang up."""
        there = http.client.HTTPConnection(self._there, timeout=60)
        try:
            there.putrequest(request.command, request.path, skip_host=True, skip_accept_encoding=True)
            for name, value in request.headers.items():
                there.putheader(name, value)
            there.endheaders(body)
            reply = there.getresponse()
            data = reply.read()
        finally:
            there.close()
        request.send_response_only(reply.status, reply.reason)
        length = reply.headers.get("Content-Length") or str(len(data))
        for name, value in reply.headers.items():
            if name.lower() not in HOP | {"content-length"}:
                request.send_header(name, value)
        request.send_header("Content-Length", length if request.command == "HEAD" else str(len(data)))
        request.end_headers()
        if self.mode == "cut":
            self.faults += 1
            request.wfile.write(data[: len(data) // 2])
            request.close_connection = True
            request.connection.shutdown(socket.SHUT_RDWR)
            return
        if request.command != "HEAD":
            request.wfile.write(data)
