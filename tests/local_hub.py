"""A small Hugging Face hub on loopback: models with commits, as huggingface_hub asks for them."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

TOKEN = "hf_reader"  # noqa: S105


@dataclass
class LocalHub:
    """Models by OWNER/NAME; what is asked for is kept in `asked`."""

    url: str = ""
    revisions: dict[str, dict[str, str]] = field(default_factory=dict)
    """Of each model, what its branches are now: a commit."""
    trees: dict[str, dict[str, Path]] = field(default_factory=dict)
    """Of each commit, its files."""
    private: set[str] = field(default_factory=set)
    gated: set[str] = field(default_factory=set)
    down: bool = False
    sizes: dict[str, int] = field(default_factory=dict)
    """Bytes that files of these names are said to have, whatever they have."""
    asked: list[str] = field(default_factory=list)
    pause_at: str = ""
    """The file whose second half waits for `go_on`."""
    go_on: threading.Event = field(default_factory=threading.Event)

    def commit(self, model: str, folder: Path, branch: str = "main") -> str:
        """A new commit with a folder's files, as they are now; returns its name."""
        files = {
            path.relative_to(folder).as_posix(): path
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        digest = hashlib.sha1(f"{model} {len(self.trees)}".encode(), usedforsecurity=False)
        self.trees[digest.hexdigest()] = files
        self.revisions.setdefault(model, {})[branch] = digest.hexdigest()
        return digest.hexdigest()

    @property
    def downloaded(self) -> list[str]:
        """Names of the files that were sent."""
        sent = [one for one in self.asked if one.startswith("GET ") and "/resolve/" in one]
        return sorted(one.partition("/resolve/")[2].partition("/")[2] for one in sent)

    def refusal(self, model: str, authorization: str | None) -> tuple[int, str] | None:
        """Status and error code, where a model may not be read."""
        if self.down:
            return 503, ""
        if model not in self.revisions or (
            model in self.private and authorization != f"Bearer {TOKEN}"
        ):
            return (401 if authorization is None else 404), "RepoNotFound"
        if model in self.gated and authorization != f"Bearer {TOKEN}":
            return 403, "GatedRepo"
        return None


def _handler(hub: LocalHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer()

        def do_HEAD(self) -> None:
            self._answer()

        def _answer(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.asked.append(f"{self.command} {path}")
            api = path.startswith("/api/models/")
            owner, name, kind, rest = (path.removeprefix("/api/models") + "//").split("/", 4)[1:]
            model = f"{owner}/{name}"
            if refusal := hub.refusal(model, self.headers["Authorization"]):
                return self._send(b"{}", refusal[0], {"X-Error-Code": refusal[1]})
            revision, _, inside = rest.strip("/").partition("/") if kind != "" else ("main", "", "")
            if kind == "revision":
                revision, inside = rest.strip("/"), ""
            commit = hub.revisions[model].get(revision, revision)
            if commit not in hub.trees:
                return self._send(b"{}", 404, {"X-Error-Code": "RevisionNotFound"})
            files = hub.trees[commit]
            if api and kind == "tree":
                listed = [
                    {
                        "type": "file",
                        "path": one,
                        "size": hub.sizes.get(one, path.stat().st_size),
                        "oid": _etag(path),
                    }
                    for one, path in files.items()
                ]
                return self._send(json.dumps(listed).encode())
            if api:
                info = {"id": model, "sha": commit, "siblings": [], "tags": []}
                return self._send(json.dumps(info).encode())
            headers = {"X-Repo-Commit": commit, "ETag": f'"{_etag(files[inside])}"'}
            return self._send(files[inside].read_bytes(), 200, headers)

        def _send(
            self, body: bytes, status: int = 200, headers: dict[str, str] | None = None
        ) -> None:
            self.send_response(status)
            for key, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                half = len(body) // 2
                self.wfile.write(body[:half])
                if hub.pause_at and self.path.endswith(hub.pause_at):
                    self.wfile.flush()
                    hub.go_on.wait()
                with suppress(ConnectionError):
                    self.wfile.write(body[half:])

        def log_message(self, *_: object) -> None:
            pass

    return Handler


def _etag(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextmanager
def local_hub() -> Iterator[LocalHub]:
    """A hub that answers until the end of the block."""
    hub = LocalHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.go_on.set()
        server.shutdown()
        server.server_close()
        thread.join()
