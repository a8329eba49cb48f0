"""The rating page's server: access control, replies, limits, stored ratings."""

import contextlib
import http.client
import json
import re
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any

import pytest

from dladiff.errors import StorageError
from pipeline.evaluate.mos import Session, faces_of
from pipeline.evaluate.mos_server import MAX_CONNECTIONS, MosServer, make_server, serve
from pipeline.evaluate.ratings import read_ratings
from pipeline.evaluate.results import write_results
from pipeline.sources.decode import decode
from pipeline.storage.open import open_storage
from tests.support.evaluated import evaluated

FACE_ID = "the id of a face"
PEOPLE = {"ann": ["1.png", "2.png"], "bob": ["1.png"]}


@dataclass(frozen=True)
class Reply:
    """What the server sent."""

    status: int
    headers: Message
    body: bytes


class Client:
    """A browser that has opened the server's address."""

    def __init__(self, server: MosServer) -> None:
        self.server, self.port, self.cookie = server, server.port, f"{server.cookie}={server.token}"

    def open(self, method: str, path: str, data: bytes | None = None, **headers: str) -> "Reply":
        """Send a request with these headers alone."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        with contextlib.closing(connection):
            connection.request(method, path, data, {k.replace("_", "-"): v for k, v in headers.items()})
            with connection.getresponse() as reply:
                return Reply(reply.status, reply.headers, reply.read())

    def ask(
        self, method: str, path: str, body: Any = None, raw: bytes | None = None, **headers: str
    ) -> tuple[int, bytes]:
        data = raw if raw is not None else (None if body is None else json.dumps(body).encode())
        own = {"Cookie": self.cookie}
        if method == "POST":
            own |= {"Content_Type": "application/json", "Origin": f"http://127.0.0.1:{self.port}"}
        reply = self.open(method, path, data, **(own | headers))
        return reply.status, reply.body

    def post(self, path: str, **body: Any) -> dict[str, Any]:
        status, data = self.ask("POST", path, body)
        assert status == 200, data
        found: dict[str, Any] = json.loads(data)
        return found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluated")
    config, plan, results = evaluated(folder, PEOPLE)
    write_results(results, config, plan)
    return folder / "results"


@pytest.fixture
def results(made: Path, tmp_path: Path) -> Any:
    return open_storage(shutil.copytree(made, tmp_path / "results"))


@contextlib.contextmanager
def served(server: MosServer) -> Iterator[Client]:
    """Run a server in a thread."""
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield Client(server)
    server.shutdown()
    server.server_close()
    thread.join()


@contextlib.contextmanager
def running(results: Any, **how: float) -> Iterator[Client]:
    with served(make_server(Session(results, faces_of(results)), 0, **how)) as client:
        yield client


@pytest.fixture
def client(results: Any) -> Iterator[Client]:
    with running(results) as found:
        yield found


def test_rating_all_faces(client: Client, results: Any) -> None:
    status, page = client.ask("GET", "/")
    assert status == 200
    assert b"dladiff" not in page.lower()  # no method is named
    state, seen = client.post("/next", rater="rita"), []
    while state["face"] is not None:
        status, png = client.ask("GET", f"/face/{state['face']}.png")
        assert decode(png).pixels.shape == (64, 64, 3)
        seen.append(state["face"])
        state = client.post("/rate", rater="rita", face=state["face"], score=len(seen) % 5 + 1)
    assert state == {"face": None, "rated": 24, "faces": 24}
    assert len(set(seen)) == 24
    assert seen != sorted(seen)
    assert not any(word in "".join(seen) for word in ("dladiff", "clean", "noise"))
    rows = read_ratings(results)
    assert len(rows) == 24
    assert {r["condition"] for r in rows} == {"clean", "noise", "dladiff"}
    other = client.post("/next", rater="otto")
    assert other["rated"] == 0


def test_a_face_counts_once_a_rater_and_work_goes_on_later(client: Client, results: Any) -> None:
    face = client.post("/next", rater="rita")["face"]
    after = client.post("/rate", rater="rita", face=face, score=4)
    assert client.post("/rate", rater="rita", face=face, score=1) == after
    assert [r["score"] for r in read_ratings(results)] == ["4"]
    again = Session(results, faces_of(results)).next("rita")
    assert again == after


@pytest.mark.parametrize(
    "body",
    [
        {"rater": "a", "face": 0, "score": 3},
        {"rater": "a", "face": "of no session", "score": 3},
        {"rater": "a", "face": FACE_ID, "score": 6},
        {"rater": "a", "face": True, "score": 3},
        {"rater": "a", "face": FACE_ID, "score": "3"},
        {"rater": " ", "face": FACE_ID, "score": 3},
        {"face": FACE_ID, "score": 3},
        [],
    ],
)
def test_what_is_no_rating_is_refused(client: Client, results: Any, body: Any) -> None:
    face_id = client.post("/next", rater="x")["face"]
    sent = body and {name: face_id if value == FACE_ID else value for name, value in body.items()}
    assert client.ask("POST", "/rate", sent)[0] == 400
    assert read_ratings(results) == []


def test_other_sites_and_paths_are_refused(client: Client, results: Any) -> None:
    rating = {"rater": "a", "face": client.post("/next", rater="a")["face"], "score": 3}
    assert client.ask("GET", "/", Host="evil.example")[0] == 403
    assert client.ask("POST", "/rate", rating, Host=f"evil.example:{client.port}")[0] == 403
    assert client.ask("POST", "/rate", rating, Content_Type="text/plain")[0] == 415
    assert client.ask("POST", "/rate", raw=b"{" * 5000)[0] == 415
    assert client.ask("POST", "/rate", raw=b"{not json")[0] == 400
    assert client.ask("POST", "/rate", raw=b"[" * 2000)[0] == 400
    for path in ("/face/-1.png", "/face/x.png", "/face/../../rows.png", "/face/99.png"):
        assert client.ask("GET", path)[0] == 400
    assert client.ask("GET", "/rows")[0] == 404
    assert read_ratings(results) == []


def test_the_printed_address_opens_the_page_and_its_cookie_the_rest(client: Client) -> None:
    address = client.server.address
    assert re.fullmatch(rf"http://127\.0\.0\.1:{client.port}/\?token=[\w-]{{43}}", address)
    reply = client.open("GET", address.removeprefix(f"http://127.0.0.1:{client.port}"))
    cookie, *flags = reply.headers["Set-Cookie"].split("; ")
    assert (reply.status, cookie) == (200, client.cookie)
    assert set(flags) == {"HttpOnly", "SameSite=Strict", "Path=/"}
    assert client.server.token.encode() not in reply.body  # which a script or a saved page could leak
    assert client.open("GET", "/", Cookie=f"other=1; {cookie}").status == 200


@pytest.mark.parametrize("method, path", [("GET", "/"), ("GET", "/rows"), ("POST", "/next"), ("POST", "/rate")])
@pytest.mark.parametrize("given", ["", "wrong", "é", "x" * 5000, "TOKEN "])
def test_without_the_token_nothing_is_sent(client: Client, results: Any, method: str, path: str, given: str) -> None:
    other = make_server(Session(results, []), 0)  # its token is not this server's
    other.server_close()
    assert other.token != client.server.token
    body = {"rater": "a", "face": next(iter(client.server.session.faces)), "score": 3}
    for value in (given, given.replace("TOKEN", client.server.token[:-1]), other.token):
        status, data = client.ask(method, path, body, Cookie=f"{client.server.cookie}={value}")
        assert (status, data) == (403, b'{"error": "forbidden"}')
    for cookie in ("", f"wrong={client.server.token}", "\x01", ";=;"):
        reply = client.open(method, path, Cookie=cookie, Origin=f"http://127.0.0.1:{client.port}")
        assert (reply.status, reply.body) == (403, b'{"error": "forbidden"}')
        assert reply.headers["Set-Cookie"] is None
    assert client.open("GET", f"/?token={other.token}").status == 403
    assert client.open("GET", f"/face/x.png?token={client.server.token}").status == 403  # in the first address alone
    assert read_ratings(results) == []


def test_other_methods_and_broken_requests_are_refused_without_a_word(client: Client) -> None:
    for method in ("PUT", "DELETE", "OPTIONS", "HEAD"):
        reply = client.open(method, "/", Cookie=client.cookie)
        assert reply.status == 501
        assert "Python" not in str(reply.headers)
    with socket.create_connection(("127.0.0.1", client.port), timeout=10) as raw:
        raw.sendall(b"GET / HTTP/9.9 extra words\r\n\r\n")
        assert b"Python" not in raw.recv(4000)


def test_the_token_stands_in_the_printed_address_alone(
    results: Any, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(results) as client:
        assert client.ask("GET", f"/?token={client.server.token}")[0] == 200
        assert client.ask("GET", f"/nothing?token={client.server.token}")[0] == 404
        assert client.ask("POST", "/rate", raw=b"[")[0] == 400
        with socket.create_connection(("127.0.0.1", client.port)) as raw:
            raw.sendall(f"GET /?token={client.server.token} HTTP/1.0\r\n".encode())
    assert capfd.readouterr() == ("", "")
    lines: list[str] = []
    monkeypatch.setattr(MosServer, "serve_forever", lambda self: None)
    serve(results, 0, echo=lines.append)
    assert [line.count("token=") for line in lines] == [1]


def test_another_sites_page_cannot_rate(client: Client, results: Any) -> None:
    rating = {"rater": "a", "face": client.post("/next", rater="a")["face"], "score": 3}
    for origin in ("http://evil.example", "null", f"http://localhost:{client.port}", "http://127.0.0.1:1"):
        assert client.ask("POST", "/rate", rating, Origin=origin)[0] == 403
    body = json.dumps(rating).encode()
    reply = client.open("POST", "/rate", body, Cookie=client.cookie, Content_Type="application/json")
    assert reply.status == 403  # no Origin: no browser's POST
    assert read_ratings(results) == []
    host = f"localhost:{client.port}"
    assert client.ask("POST", "/rate", rating, Host=host, Origin=f"http://{host}")[0] == 200


def test_a_request_that_trickles_ends_and_connections_are_bounded(results: Any) -> None:
    """Each byte comes in time for a timeout of a read; the request as a whole does not."""
    with running(results, request_s=1.0) as client:
        with socket.create_connection(("127.0.0.1", client.port), timeout=30) as slow:
            head = f"POST /next HTTP/1.0\r\nHost: 127.0.0.1:{client.port}\r\nCookie: {client.cookie}\r\n"
            head += f"Origin: http://127.0.0.1:{client.port}\r\nContent-Type: application/json\r\n"
            slow.sendall(f"{head}Content-Length: 2000\r\n\r\n".encode())
            reply = b""
            for _ in range(300):
                slow.settimeout(0.1)
                with contextlib.suppress(TimeoutError):
                    reply = slow.recv(4000)
                    break
                with contextlib.suppress(OSError):
                    slow.sendall(b" ")
            assert b" 408 " in reply.partition(b"\r\n")[0]
    with running(results) as client, contextlib.ExitStack() as held:
        for _ in range(MAX_CONNECTIONS):
            held.enter_context(socket.create_connection(("127.0.0.1", client.port), timeout=30))
        deadline = time.monotonic() + 30
        while threading.active_count() < MAX_CONNECTIONS and time.monotonic() < deadline:
            time.sleep(0.01)
        with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
            client.ask("GET", "/")
        assert threading.active_count() < MAX_CONNECTIONS + 10
        held.close()  # they are free again
        while time.monotonic() < deadline:
            with contextlib.suppress(http.client.RemoteDisconnected, ConnectionError):
                assert client.ask("GET", "/")[0] == 200
                break


def test_a_port_in_use_is_reported(client: Client, results: Any) -> None:
    with pytest.raises(StorageError, match="--port"):
        make_server(Session(results, []), client.port)


def test_a_deleted_face_is_reported(client: Client, results: Any) -> None:
    face = client.post("/next", rater="a")["face"]
    for entry in list(results.list("faces/")):
        results.delete(entry.key)
    assert client.ask("GET", f"/face/{face}.png")[0] == 404
