"""An S3 server that answers as no honest one does; the key or prefix of a request chooses how."""

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from typing import Self
from urllib.parse import parse_qs, urlsplit

PROMISED = 2**60  # bytes; more than any disk has
TICK_S = 0.02
ITEM = "<Contents><Key>{key}</Key><Size>{size}</Size>{tag}</Contents>"
TAG = "<ETag>&quot;0&quot;</ETag>"


def item(key: str, size: int = 1, tag: str = TAG) -> str:
    return ITEM.format(key=key, size=size, tag=tag)


class HostileServer:
    """Counts in `pages` the listings it answered, in `sent` the bytes of bodies."""

    def __init__(self) -> None:
        self.pages = self.sent = 0
        self.objects: dict[str, bytes] = {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                split = urlsplit(self.path)
                query = parse_qs(split.query)
                try:
                    if "list-type" in query:
                        outer.list(self, query["prefix"][0].strip("/"))
                    else:
                        outer.get(self, split.path.rpartition("/")[2])
                except OSError:  # the client has had enough
                    self.close_connection = True

            def do_HEAD(self) -> None:
                name = urlsplit(self.path).path.rpartition("/")[2]
                size = len(outer.objects[name]) if name in outer.objects else PROMISED
                outer.head(self, 200, {"Content-Length": str(1 << 20 if name == "trickle" else size), "ETag": '"0"'})

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def head(self, request: BaseHTTPRequestHandler, status: int, headers: dict[str, str]) -> None:
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name, value)
        request.end_headers()

    def get(self, request: BaseHTTPRequestHandler, name: str) -> None:
        wanted = request.headers.get("Range")
        if name in self.objects:
            data, status = self.objects[name], 200
            if wanted and not name.startswith("whole"):
                first, last = map(int, wanted.removeprefix("bytes=").split("-"))
                data, status = data[first : last + 1], 206
            self.head(request, status, {"Content-Length": str(len(data)), "ETag": '"0"'})
            self._send(request, data)
        elif name == "promised":
            self.head(request, 200, {"Content-Length": str(PROMISED)})
            self._send(request, b"x")
            request.rfile.read(1)  # until the client closes
        elif name == "trickle":
            self.head(request, 200, {"Content-Length": str(1 << 20)})
            for _ in range(1 << 20):
                self._send(request, b"x")
                time.sleep(TICK_S)
        elif name == "chunked":
            self.head(request, 200, {"Transfer-Encoding": "chunked"})
            while True:
                self._send(request, b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
        elif name == "unknown":
            request.close_connection = True
            self.head(request, 200, {"Connection": "close"})
            while True:
                self._send(request, b"x" * 0x10000)

    def list(self, request: BaseHTTPRequestHandler, prefix: str) -> None:
        self.pages += 1
        items, token = next(self._page(prefix))
        more = f"<IsTruncated>true</IsTruncated><NextContinuationToken>{token}</NextContinuationToken>" if token else ""
        body = f"<?xml version='1.0'?><ListBucketResult>{items}{more}</ListBucketResult>".encode()
        self.head(request, 200, {"Content-Length": str(len(body)), "Content-Type": "application/xml"})
        request.wfile.write(body)

    def _page(self, prefix: str) -> Iterator[tuple[str, str]]:
        for _ in count():
            if prefix == "same":
                yield item(f"same/{self.pages}"), "again"
            elif prefix == "alternating":
                yield item(f"alternating/{self.pages}"), "ab"[self.pages % 2]
            elif prefix == "empty":
                yield "", f"t{self.pages}"
            elif prefix == "endless":
                yield item(f"endless/{self.pages}"), f"t{self.pages}"
            elif prefix == "sizes":
                yield item("sizes/a", -1) + item("sizes/b", 10**30) + item("sizes/c", 5), ""
            elif prefix == "untagged":
                yield item("untagged/a", tag=""), ""

    def _send(self, request: BaseHTTPRequestHandler, data: bytes) -> None:
        request.wfile.write(data)
        self.sent += len(data)
