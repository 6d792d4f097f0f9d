"""The part of the Hugging Face hub's protocol that a download needs, served from folders on a free loopback port."""

import hashlib
import json
import re
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote

import yaml

TOKEN = "hf_test"


@dataclass
class Hub:
    """A running hub.

    Attributes:
        models: repository -> folder with its files.
        datasets: repository of a data set -> folder with its files, also in subfolders.
        branches: further branches of data sets, with files of their own: (repository, branch) -> folder.
        refs: further names of that commit.
        gated: repositories whose files need `token`.
        seen: every request, as `METHOD path`.
        sent: bytes of all response bodies.
    """

    endpoint: str
    models: dict[str, Path]
    token: str
    datasets: dict[str, Path] = field(default_factory=dict)
    branches: dict[tuple[str, str], Path] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    refs: set[str] = field(default_factory=set)
    seen: list[str] = field(default_factory=list)
    sent: int = 0
    salt: str = field(default_factory=lambda: uuid.uuid4().hex)  # a cache must not mix up the files of two hubs

    def sha(self, name: str) -> str:
        """Return the only commit of a repository."""
        return hashlib.sha1(f"{self.salt}{name}".encode(), usedforsecurity=False).hexdigest()


H = TypeVar("H", bound=Hub)


@contextmanager
def start_hub(models: dict[str, Path], datasets: dict[str, Path] | None = None) -> Iterator[Hub]:
    """Serve models and data sets until the block ends."""
    with serve_hub(Answers, lambda endpoint: Hub(endpoint, models, TOKEN, datasets or {})) as hub:
        yield hub


@contextmanager
def serve_hub(answers: type[BaseHTTPRequestHandler], made: Callable[[str], H]) -> Iterator[H]:
    """Serve the hub that is made for an address until the block ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), answers)
    hub = made(f"http://127.0.0.1:{server.server_port}")
    server.hub = hub  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _card(readme: Path) -> object:
    """Return the YAML at the head of a README."""
    if not readme.exists():
        return None
    parts = readme.read_text("utf-8").split("---\n")
    return yaml.safe_load(parts[1]) if len(parts) > 2 and not parts[0] else None


class Answers(BaseHTTPRequestHandler):
    """One request to the hub."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def log_message(self, *_: Any) -> None:
        """Log nothing: the requests are in `Hub.seen`."""

    def _answer(self, body: bool) -> None:
        hub: Hub = self.server.hub  # type: ignore[attr-defined]
        path = self.path.partition("?")[0]
        hub.seen.append(f"{self.command} {path}")
        info = re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path)
        file = re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        match = info or file
        folders = hub.datasets if match is not None and (match.group(1) or "").startswith("datasets") else hub.models
        if match is None or match.group(2) not in folders:
            return self._send(401, b"", {"X-Error-Code": "RepoNotFound"}, body)
        name, folder = match.group(2), folders[match.group(2)]
        revision = unquote((match.group(4) if info else match.group(3)) or "main")
        sha = hub.sha(name)
        for (repository, branch), files in hub.branches.items():
            commit = hub.sha(f"{name}@{branch}")
            if repository == name and revision in (branch, commit):
                folder, sha, revision = files, commit, "main"
        if revision not in ("main", *hub.refs, hub.sha(name)):
            return self._send(404, b"", {"X-Error-Code": "RevisionNotFound"}, body)
        if name in hub.gated and self.headers["Authorization"] != f"Bearer {hub.token}":
            return self._send(403, b"", {"X-Error-Code": "GatedRepo"}, body)
        if info:
            listing = self._listing(name, sha, folder, info.group(3) == "tree")
            return self._send(200, json.dumps(listing).encode(), {}, body)
        return self._file(folder / unquote(match.group(4)), sha, body)

    def _file(self, path: Path, commit: str, body: bool) -> None:
        """Send a file, or only the requested range of it."""
        size = path.stat().st_size
        etag = hashlib.sha256(f"{commit}{path}{size}".encode()).hexdigest()
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)?", self.headers["Range"] or "")
        if asked is None:
            content = path.read_bytes() if body else b""
            return self._send(200, content, headers, body, size)
        begin, end = int(asked.group(1)), min(size, int(asked.group(2) or size - 1) + 1)
        with path.open("rb") as file:
            file.seek(begin)
            part = file.read(end - begin)
        return self._send(206, part, {**headers, "Content-Range": f"bytes {begin}-{end - 1}/{size}"}, body)

    def _listing(self, name: str, sha: str, folder: Path, tree: bool) -> object:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        named = [(path.relative_to(folder).as_posix(), path.stat().st_size) for path in files]
        if tree:
            return [{"type": "file", "path": path, "size": size, "oid": "0"} for path, size in named]
        siblings = [{"rfilename": path, "size": size} for path, size in named]
        return {"id": name, "sha": sha, "siblings": siblings, "cardData": _card(folder / "README.md")}

    def _send(self, status: int, content: bytes, headers: dict[str, str], body: bool, size: int | None = None) -> None:
        self.send_response(status)
        for header, value in {**headers, "Content-Length": str(len(content) if size is None else size)}.items():
            self.send_header(header, value)
        self.end_headers()
        if body:
            hub: Hub = self.server.hub  # type: ignore[attr-defined]
            hub.sent += len(content)
            self.wfile.write(content)
