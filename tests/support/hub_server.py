"""A small Hugging Face hub on this machine: model information, file trees and files, over real HTTP."""

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "89abcdef0123456789abcdef0123456789abcdef"


@dataclass
class Hub:
    """Its address, its models by id, the paths it was asked for, and files that it cuts short or changes."""

    models: dict[str, Path]
    url: str = ""
    asked: list[str] = field(default_factory=list)
    broken: set[str] = field(default_factory=set)
    changed: set[str] = field(default_factory=set)
    gated: set[str] = field(default_factory=set)
    """Models that state what they hold, and give a file to nobody."""

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body of a GET."""
        self.asked.append(path)
        for hub_id, root in self.models.items():
            files = {p.relative_to(root).as_posix(): p for p in sorted(root.rglob("*")) if p.is_file()}
            if path in (
                f"/api/models/{hub_id}",
                *(f"/api/models/{hub_id}/revision/{r}" for r in (COMMIT, "v2", "main")),
            ):
                siblings = [self.entry("rfilename", name, file) for name, file in files.items()]
                facts = {"id": hub_id, "sha": COMMIT, "siblings": siblings, "cardData": {"license": "openrail"}}
                return 200, {}, json.dumps(facts).encode()
            if path.startswith(f"/api/models/{hub_id}/tree/{COMMIT}"):
                tree = [self.entry("path", name, file) | {"type": "file"} for name, file in files.items()]
                return 200, {}, json.dumps(tree).encode()
            start = f"/{hub_id}/resolve/{COMMIT}/"
            if path.startswith(start) and hub_id in self.gated:
                return 403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"}, b""
            if path.startswith(start) and (name := path.removeprefix(start)) in files:
                data = files[name].read_bytes()
                if name in self.changed:
                    data = data[:-1] + bytes([data[-1] ^ 1])
                return 200, {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(data).hexdigest()}"'}, data
        return 404, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository Not Found"}, b""

    @staticmethod
    def entry(key: str, name: str, file: Path) -> dict[str, Any]:
        data = file.read_bytes()
        out: dict[str, Any] = {key: name, "size": len(data), "blobId": "0" * 40, "oid": "0" * 40}
        if name.endswith((".safetensors", ".bin")):
            sha = hashlib.sha256(data).hexdigest()
            out["lfs"] = {"size": len(data), "sha256": sha, "oid": sha, "pointerSize": 130}
        return out


@contextlib.contextmanager
def serving(models: dict[str, Path]) -> Iterator[Hub]:
    """Serve folders as models until the block ends."""
    hub = Hub(models)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            status, headers, body = hub.answer(path)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                cut = any(path.endswith(name) for name in hub.broken)
                self.wfile.write(body[: len(body) // 2] if cut else body)
                self.close_connection = cut

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
