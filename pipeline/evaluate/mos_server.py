"""The web server of `dladiff mos serve`: access control, time limits and replies."""

import contextlib
import hmac
import http.server
import io
import json
import re
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable
from functools import lru_cache
from http.cookies import CookieError, SimpleCookie
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

from dladiff.errors import DladiffError, NotFoundError, StorageError
from pipeline.evaluate.mos import FACES, Session, faces_of
from pipeline.evaluate.pairs import PairSession, pairs_of
from pipeline.records.output_format import PNG, encode_png
from pipeline.report.page import asset, filled, policy
from pipeline.storage.base import Storage
from pipeline.storage.keys import shown

HOST = "127.0.0.1"
"""Only this machine can connect, because the faces are of real people."""
REQUEST_S = 30.0
"""Seconds for a whole request to arrive, and for a whole reply to be sent."""
MAX_CONNECTIONS = 32
"""Simultaneous connections, one thread each; a browser opens six."""
MAX_BODY = 2048
"""Bytes of a request's body; a rating is under 200."""
MAX_NAME = 60
"""Characters of a rater's name."""

PICTURE = re.compile(r"/(face|photo)/(.*)\.png")
"""Path of a picture: its kind and its id in the session."""

Reply = tuple[int, str, bytes]


def serve(
    results: Storage,
    port: int = 8765,
    *,
    max_faces: int = FACES,
    references: Storage | None = None,
    echo: Callable[[str], None] = print,
) -> None:
    """Serve the page until the program ends; with `references`, pairs of a picture and one of their photos.

    Raises ConfigError (no faces), StorageError (the port is in use).
    """
    if references is None:
        session = Session(results, faces_of(results, max_faces))
    else:
        session = PairSession(results, pairs_of(results, references, max_faces), references)
    server = make_server(session, port)
    echo(f"{server.address}  (open this whole address; end with Ctrl-C)")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        echo("ended; all ratings are stored")
    finally:
        server.server_close()


def make_server(session: Session, port: int, request_s: float = REQUEST_S) -> "MosServer":
    """Return the server on HOST; port 0 means any free port. Raises StorageError."""
    try:
        return MosServer(session, port, request_s)
    except OSError as error:
        raise StorageError(f"port {port} cannot be used ({error.strerror}); give another --port") from error


class MosServer(http.server.ThreadingHTTPServer):
    """A threaded server of at most MAX_CONNECTIONS connections that requires the token of its address."""

    def __init__(self, session: Session, port: int, request_s: float) -> None:
        super().__init__((HOST, port), _Handler)
        self.session, self.request_s = session, request_s
        self.token = secrets.token_urlsafe(32)
        self._free = threading.BoundedSemaphore(MAX_CONNECTIONS)

    @property
    def pairs(self) -> bool:
        """Whether the page shows pairs."""
        return isinstance(self.session, PairSession)

    @property
    def port(self) -> int:
        """The port in use."""
        return cast(tuple[str, int], self.server_address)[1]

    @property
    def address(self) -> str:
        """The page's address with the token. It is a secret: print it to the user's terminal only."""
        return f"http://{HOST}:{self.port}/?token={self.token}"

    @property
    def cookie(self) -> str:
        """Name of the token's cookie. It has the port's number, because browsers share cookies between ports."""
        return f"mos_{self.port}"

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread; close the connection at once if MAX_CONNECTIONS are open."""
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread was started
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer, then release the connection's slot."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Report an error, except OSError: browsers may close a connection during a reply."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Arriving(io.RawIOBase):
    """Reads a connection until a deadline. A socket's own timeout would restart with every byte."""

    def __init__(self, connection: socket.socket, seconds: float) -> None:
        self._connection, self._end = connection, time.monotonic() + seconds

    def readable(self) -> bool:
        """Return True, as BufferedReader requires."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read the available bytes. Raises TimeoutError after the deadline."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._connection.settimeout(left)
        return self._connection.recv_into(buffer)


class _Handler(http.server.BaseHTTPRequestHandler):
    """GET /, /face/ID.png and /photo/ID.png, POST /next and /rate; one request per connection (HTTP/1.0)."""

    server: MosServer

    def setup(self) -> None:
        """Set one deadline for the whole request."""
        super().setup()
        self.rfile.close()
        self.rfile = io.BufferedReader(_Arriving(self.connection, self.server.request_s))

    def do_GET(self) -> None:
        """Answer with the page or a face."""
        self._answer(self._get)

    def do_POST(self) -> None:
        """Answer with the next face; /rate stores a rating first."""
        self._answer(self._post)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing, because a request line contains the token."""

    def version_string(self) -> str:
        """Return a server name without the versions of this program and of Python."""
        return "mos"

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer what http.server refuses (a bad request line, an unknown method) with JSON instead of its HTML."""
        self._reply(*_error(int(code), "not a request of this page"))

    def _answer(self, find: Callable[[], Reply]) -> None:
        """Reply, also after an error. Requests without access get 403 and no further information."""
        if not self._allowed():
            self._reply(*_error(403, "forbidden"))
            return
        try:
            reply = find()
        except (ValueError, KeyError, TypeError, RecursionError):
            reply = _error(400, "not a request of this page")
        except NotFoundError:
            reply = _error(404, "this face has been deleted")
        except DladiffError as error:
            reply = _error(500, str(error))
        except TimeoutError:
            reply = _error(408, "the request took too long")
        self._reply(*reply, allowed=True)

    def _allowed(self) -> bool:
        """Check Host (against foreign names that resolve to HOST), Origin (against other sites) and the token."""
        host = self.headers.get("Host")
        if host not in (f"{HOST}:{self.server.port}", f"localhost:{self.server.port}"):
            return False
        if self.command == "POST" and self.headers.get("Origin") != f"http://{host}":
            return False
        token = self.server.token.encode()
        return any(hmac.compare_digest(sent.encode("utf-8", "replace"), token) for sent in self._tokens())

    def _tokens(self) -> list[str]:
        """Return the tokens of the request: of the page's address and of the cookie."""
        tokens = []
        with contextlib.suppress(ValueError, CookieError):
            url = urlsplit(self.path)
            if self.command == "GET" and url.path == "/":
                tokens += parse_qs(url.query).get("token", [])
        with contextlib.suppress(CookieError):
            cookie = SimpleCookie(self.headers.get("Cookie") or "").get(self.server.cookie)
            tokens += [cookie.value] if cookie else []
        return tokens

    def _reply(self, status: int, kind: str, body: bytes, *, allowed: bool = False) -> None:
        self.connection.settimeout(self.server.request_s)  # for the whole reply; reading has shortened the timeout
        self.send_response(status)
        headers = {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "Content-Security-Policy": _page(self.server.pairs)[1]
            if allowed
            else "default-src 'none'; frame-ancestors 'none'",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
        }
        if allowed and kind.startswith("text/html"):
            headers["Set-Cookie"] = f"{self.server.cookie}={self.server.token}; HttpOnly; SameSite=Strict; Path=/"
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _get(self) -> Reply:
        path = urlsplit(self.path).path
        if path == "/":
            return 200, "text/html; charset=utf-8", _page(self.server.pairs)[0].encode()
        if found := PICTURE.fullmatch(path):
            return 200, PNG.content_type, encode_png(self.server.session.picture(found[1], found[2]))
        return _error(404, "no such page")

    def _post(self) -> Reply:
        size = int(self.headers.get("Content-Length") or 0)
        if self.headers.get("Content-Type") != "application/json" or not 0 < size <= MAX_BODY:
            return _error(415, "expected a small JSON body")  # other sites cannot send JSON without a preflight
        sent = json.loads(self.rfile.read(size))
        rater = shown(str(sent["rater"])).strip()[:MAX_NAME]
        if not rater:
            raise ValueError("no name")
        if self.path == "/next":
            return _json(self.server.session.next(rater))
        if self.path == "/rate":
            face, score = sent["face"], sent["score"]
            if type(face) is not str or type(score) is not int:
                raise ValueError("no rating")
            return _json(self.server.session.rate(rater, face, score))
        return _error(404, "no such page")


@lru_cache
def _page(pairs: bool) -> tuple[str, str]:
    """Return the page of faces or of pairs, and its policy, which allows its own style, script and faces only."""
    css, js = asset("mos.css"), asset("mos.js")
    own = policy(css, js, "'self'")
    kind = PairSession if pairs else Session
    page = filled("mos.html.j2", css, js, scale=kind.scale, title=kind.title, pairs=pairs)
    return page, f"{own}; connect-src 'self'; frame-ancestors 'none'"


def _json(value: dict[str, Any]) -> Reply:
    return 200, "application/json", json.dumps(value).encode()


def _error(status: int, text: str) -> Reply:
    return status, "application/json", json.dumps({"error": text}).encode()
