"""The rating page's server: what it shows, what it refuses, what a rating becomes."""

import http.client
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from dladiff.errors import ConfigError, StorageError
from pipeline.cli import main
from pipeline.mos import Session, faces_of, make_server, summary
from pipeline.photos import decode
from pipeline.ratings import read_ratings
from pipeline.results import write_results
from pipeline.storage import open_storage
from tests.evaluated import evaluated

SIGN = "the sign of a face"
PEOPLE = {"ann": ["1.png", "2.png"], "bob": ["1.png"]}


class Client:
    def __init__(self, port: int) -> None:
        self.port = port

    def ask(
        self, method: str, path: str, body: Any = None, raw: bytes | None = None, **headers: str
    ) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        data = raw if raw is not None else (None if body is None else json.dumps(body).encode())
        kind = {"Content-Type": "application/json"} if method == "POST" else {}
        connection.request(method, path, data, kind | {k.replace("_", "-"): v for k, v in headers.items()})
        reply = connection.getresponse()
        found = reply.status, reply.read()
        connection.close()
        return found

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


@pytest.fixture
def client(results: Any) -> Iterator[Client]:
    server = make_server(Session(results, faces_of(results)), 0)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield Client(server.server_address[1])
    server.shutdown()
    server.server_close()
    thread.join()


def test_faces_are_drawn_evenly_and_the_same_again(results: Any) -> None:
    few = faces_of(results, most=3)
    assert {(f["attack"], f["condition"]) for f in few} == {("dreambooth", c) for c in ("clean", "noise", "dladiff")}
    assert len(few) == 9
    assert few == faces_of(results, most=3)
    assert few != faces_of(results, most=3, seed=1)
    assert len(faces_of(results)) == 3 * 8  # two people, four pictures


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
        {"rater": "a", "face": SIGN, "score": 6},
        {"rater": "a", "face": True, "score": 3},
        {"rater": "a", "face": SIGN, "score": "3"},
        {"rater": " ", "face": SIGN, "score": 3},
        {"face": SIGN, "score": 3},
        [],
    ],
)
def test_what_is_no_rating_is_refused(client: Client, results: Any, body: Any) -> None:
    sign = client.post("/next", rater="x")["face"]
    sent = body and {name: sign if value == SIGN else value for name, value in body.items()}
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


def test_a_taken_port_and_no_faces_are_told(client: Client, results: Any, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="--port"):
        make_server(Session(results, []), client.port)
    config, plan, empty = evaluated(tmp_path / "none", PEOPLE, kept=0)
    with pytest.raises(ConfigError, match="dladiff evaluate"):
        faces_of(empty)
    write_results(empty, config, plan)
    with pytest.raises(ConfigError, match="--kept"):
        faces_of(empty)


def test_a_face_that_is_gone_is_told_and_foreign_files_are_passed_over(client: Client, results: Any) -> None:
    results.put("rows/.DS_Store", b"\x00")
    assert len(faces_of(results)) == 24
    face = client.post("/next", rater="a")["face"]
    for entry in list(results.list("faces/")):
        results.delete(entry.key)
    assert client.ask("GET", f"/face/{face}.png")[0] == 404


def test_only_the_main_base_of_the_last_tables_is_shown(tmp_path: Path) -> None:
    config, plan, results = evaluated(tmp_path, PEOPLE, bases=("embedded", "other"))
    write_results(results, config, plan)
    assert len(faces_of(results)) == 24
    keys = {face["face"].split("/")[1] for face in faces_of(results)}
    assert {row["base"] for row in plan.rows if row["key"] in keys} == {"embedded"}


def test_the_summary(client: Client, results: Any) -> None:
    assert summary(results) == []
    session = Session(results, faces_of(results))
    dladiff = [sign for sign, face in session.faces.items() if face["condition"] == "dladiff"]
    for rater in ("a", "b"):
        for i, sign in enumerate(dladiff):
            session.rate(rater, sign, 1 + i % 2)
    (row,) = summary(results)
    assert (row["condition"], row["ratings"], row["raters"], row["faces"], row["people"]) == ("dladiff", 16, 2, 8, 2)
    assert row["mos"] == pytest.approx(1.5)
    assert row["alpha"] == 1.0


def test_a_summary_of_nothing_says_so(tmp_path: Path) -> None:
    found = CliRunner().invoke(main, ["mos", "summary", "--results", str(tmp_path)])
    assert (found.exit_code, found.stdout) == (
        0,
        f"no rating in {tmp_path}/ratings.csv yet; `dladiff mos serve` collects them\n",
    )
