"""`dladiff mos`: generated faces in random order on a local page, and what people say of them."""

import hashlib
import http.server
import json
import random
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from typing import Any, cast
from urllib.parse import urlsplit

from dladiff.errors import ConfigError, DladiffError, NotFoundError, StorageError
from dladiff.evaluation.ratings import SCALE, krippendorff_alpha
from pipeline.names import shown
from pipeline.page import asset, filled, policy
from pipeline.photos import decode, encode_png
from pipeline.ratings import SCORES, Rating, add_rating, opinions, read_ratings
from pipeline.records import now
from pipeline.results import sound_rows
from pipeline.rows import NO_PARQUET, RESULTS, columns, parquet
from pipeline.storage import Storage

HOST = "127.0.0.1"  # faces of real people: this machine alone
FACES = 50  # of each method and attack, as the paper asked its ten raters
MAX_BODY = 2048
MAX_NAME = 60

Face = dict[str, str]
Reply = tuple[int, str, bytes]


def faces_of(results: Storage, most: int = FACES, seed: int = 0) -> list[Face]:
    """List generated faces, at most `most` of each attack and condition, drawn with `seed`.

    Only rows that the last tables rest on count, and of those the main base model and prompt, no preprocessing, all
    photos protected. Raises ConfigError where there are none.
    """
    groups: dict[tuple[str, str], list[Face]] = {}
    keys, base = _last_question(results)
    for _, record in sound_rows(results, keys):
        main = {"status": "done", "preprocessing": "none", "share": 100, "base": base}
        if any(record.get(name) != value for name, value in main.items()):
            continue
        prompt = next(iter(record["prompts"]), "")
        about = {name: record[name] for name in ("identity", "attack", "condition")} | {"prompt": prompt}
        own = groups.setdefault((record["attack"], record["condition"]), [])
        own += [about | {"face": key} for key in record["faces"].get(prompt, ())]
    draw = random.Random(seed)
    chosen = [face for _, own in sorted(groups.items()) for face in draw.sample(own, min(most, len(own)))]
    if not chosen:
        raise ConfigError(
            [
                f"{results.uri} holds no generated faces of fully protected photos without preprocessing: run `dladiff "
                "evaluate` with --kept 1 or more, into other --results where rows are there already"
            ]
        )
    return chosen


def _last_question(results: Storage) -> tuple[list[str], str]:
    """Return the keys of the records that results.parquet rests on, and their main base model."""
    try:
        names = ["key", "base"]
        rows = parquet(results.get("results.parquet"), columns(RESULTS, names)).read(columns=names).to_pylist()
    except NotFoundError as error:
        raise ConfigError(
            [f"{results.uri} holds no results.parquet: run `dladiff evaluate` first (or with --tables-only)"]
        ) from error
    except NO_PARQUET as error:
        where = results.uri_of("results.parquet")
        raise StorageError(f"{where} cannot be read; run `dladiff evaluate` with --tables-only") from error
    keys = sorted({f"rows/{row['key']}.json" for row in rows} & {entry.key for entry in results.list("rows/")})
    return keys, rows[0]["base"] if rows else ""


class Session:
    """The faces to rate and where the ratings go. A rater never sees which method a face is of."""

    def __init__(self, results: Storage, faces: list[Face]) -> None:
        """Each face is known to the page by a sign that tells nothing and is the same in every session."""
        self.results = results
        self.faces = {hashlib.sha256(face["face"].encode()).hexdigest()[:20]: face for face in faces}

    def order(self, rater: str) -> list[str]:
        """Return the signs of the faces in this rater's own random order."""
        order = sorted(self.faces)
        random.Random(f"order/{rater}").shuffle(order)
        return order

    def next(self, rater: str) -> dict[str, Any]:
        """Return the sign of the next face and how many are rated; `face` is None at the end."""
        rated = {row["face"] for row in read_ratings(self.results) if row["rater"] == rater}
        left = [sign for sign in self.order(rater) if self.faces[sign]["face"] not in rated]
        return {"face": left[0] if left else None, "rated": len(self.faces) - len(left), "faces": len(self.faces)}

    def rate(self, rater: str, face: str, score: int) -> dict[str, Any]:
        """Store a rating; a face counts once a rater. Returns `next`. Raises KeyError: no face of this session."""
        rating: Rating = self.faces[face] | {"rater": rater, "score": str(score), "time": now()}
        add_rating(self.results, rating)
        return self.next(rater)


def serve(results: Storage, port: int = 8765, *, most: int = FACES, said: Callable[[str], None] = print) -> None:
    """Serve the page until the program is ended. Raises ConfigError, StorageError (the port is taken)."""
    server = make_server(Session(results, faces_of(results, most)), port)
    said(f"http://{HOST}:{server.server_address[1]}/  (end with Ctrl-C)")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        said("ended; ratings are kept")
    finally:
        server.server_close()


def make_server(session: Session, port: int) -> http.server.ThreadingHTTPServer:
    """Return the server, on this machine's own address only; port 0 takes a free one."""
    try:
        return http.server.ThreadingHTTPServer((HOST, port), partial(_Handler, session))
    except OSError as error:
        raise StorageError(f"port {port} cannot be taken ({error.strerror}); give another --port") from error


class _Handler(http.server.BaseHTTPRequestHandler):
    """GET / and /face/SIGN.png, POST /next and /rate; other hosts and kinds of body are refused."""

    timeout = 30  # s that a request may take to arrive

    def __init__(self, session: Session, *args: Any, **kwargs: Any) -> None:
        self.session = session
        super().__init__(*args, **kwargs)

    def do_GET(self) -> None:
        """Answer with the page or a face."""
        self._answer(self._get)

    def do_POST(self) -> None:
        """Answer with the next face, after storing a rating where one is sent."""
        self._answer(self._post)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the terminal is the user's."""

    def _answer(self, find: Callable[[], Reply]) -> None:
        """Reply, whatever happens; the Host check keeps pages that rename themselves to this address out."""
        port = cast(tuple[str, int], self.server.server_address)[1]
        if self.headers.get("Host") not in (f"{HOST}:{port}", f"localhost:{port}"):
            status, kind, body = _error(403, "wrong host")
        else:
            try:
                status, kind, body = find()
            except (ValueError, KeyError, TypeError, RecursionError):
                status, kind, body = _error(400, "not a request of this page")
            except NotFoundError:
                status, kind, body = _error(404, "this face is gone")
            except DladiffError as error:
                status, kind, body = _error(500, str(error))
            except TimeoutError:
                status, kind, body = _error(408, "the request did not come to its end")
        self.send_response(status)
        for name, value in {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "Content-Security-Policy": _page()[1],
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _get(self) -> Reply:
        path = urlsplit(self.path).path
        if path == "/":
            return 200, "text/html; charset=utf-8", _page()[0].encode()
        if path.startswith("/face/") and path.endswith(".png"):
            face = self.session.faces[path.removeprefix("/face/").removesuffix(".png")]["face"]
            pixels = decode(self.session.results.get(face), max_pixels=2048 * 2048, min_side=1).pixels
            return 200, "image/png", encode_png(pixels)
        return _error(404, "no such page")

    def _post(self) -> Reply:
        size = int(self.headers.get("Content-Length") or 0)
        if self.headers.get("Content-Type") != "application/json" or not 0 < size <= MAX_BODY:
            return _error(415, "expected a small JSON body")  # which other sites' pages cannot send unasked
        sent = json.loads(self.rfile.read(size))
        rater = shown(str(sent["rater"])).strip()[:MAX_NAME]
        if not rater:
            raise ValueError("no name")
        if self.path == "/next":
            return _json(self.session.next(rater))
        if self.path == "/rate":
            face, score = sent["face"], sent["score"]
            if type(face) is not str or type(score) is not int or str(score) not in SCORES:
                raise ValueError("no rating")
            return _json(self.session.rate(rater, face, score))
        return _error(404, "no such page")


def summary(results: Storage) -> list[dict[str, Any]]:
    """Mean opinion score of each attack, condition and prompt with its interval, raters, and agreement.

    Agreement is Krippendorff's alpha (ordinal) over all faces of an attack; None with fewer than two raters of a face.
    """
    ratings = read_ratings(results)
    rows = []
    for (attack, condition, prompt), mean in sorted(opinions(ratings).items()):
        own = [r for r in ratings if (r["attack"], r["condition"], r["prompt"]) == (attack, condition, prompt)]
        rows.append(
            {
                "attack": attack,
                "condition": condition,
                "prompt": prompt,
                "mos": mean.value,
                "low": mean.low,
                "high": mean.high,
                "ratings": mean.n,
                "faces": len({r["face"] for r in own}),
                "people": mean.people,
                "raters": len({r["rater"] for r in own}),
                "alpha": agreement(r for r in ratings if r["attack"] == attack),
            }
        )
    return rows


def agreement(ratings: Iterable[Rating]) -> float | None:
    """Krippendorff's alpha over the faces rated."""
    units: dict[str, list[float]] = {}
    for row in ratings:
        units.setdefault(row["face"], []).append(float(row["score"]))
    return krippendorff_alpha(units)


@lru_cache
def _page() -> tuple[str, str]:
    """The page and its policy: its own style, script and faces, nothing else."""
    css, js = asset("mos.css"), asset("mos.js")
    own = policy(css, js, "'self'")
    return filled("mos.html.j2", css, js, scale=SCALE), f"{own}; connect-src 'self'; frame-ancestors 'none'"


def _json(value: dict[str, Any]) -> Reply:
    return 200, "application/json", json.dumps(value).encode()


def _error(status: int, text: str) -> Reply:
    return status, "application/json", json.dumps({"error": text}).encode()
