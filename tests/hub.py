"""The part of the Hugging Face hub's protocol that a download needs, over folders, on a free loopback port."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@dataclass
class Hub:
    """A running hub.

    Attributes:
        models: repository -> folder with its files.
        gated: repositories whose files need `token`.
        seen: every request, as `METHOD path`.
    """

    endpoint: str
    models: dict[str, Path]
    token: str
    gated: set[str] = field(default_factory=set)
    seen: list[str] = field(default_factory=list)

    def sha(self, name: str) -> str:
        """The one commit of a repository."""
        return hashlib.sha1(name.encode(), usedforsecurity=False).hexdigest()


@contextmanager
def start_hub(models: dict[str, Path]) -> Iterator[Hub]:
    """Serve models until the block ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Answers)
    hub = Hub(f"http://127.0.0.1:{server.server_port}", models, "hf_test")
    server.hub = hub  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def log_message(self, *_: Any) -> None:
        """Requests are in `Hub.seen`."""

    def _answer(self, body: bool) -> None:
        hub: Hub = self.server.hub  # type: ignore[attr-defined]
        path = self.path.partition("?")[0]
        hub.seen.append(f"{self.command} {path}")
        info = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        match = info or file
        if match is None or match.group(1) not in hub.models:
            return self._send(401, b"", {"X-Error-Code": "RepoNotFound"}, body)
        name = match.group(1)
        revision = match.group(3) if info else match.group(2)
        if revision not in (None, "main", hub.sha(name)):
            return self._send(404, b"", {"X-Error-Code": "RevisionNotFound"}, body)
        if name in hub.gated and self.headers["Authorization"] != f"Bearer {hub.token}":
            return self._send(403, b"", {"X-Error-Code": "GatedRepo"}, body)
        if info:
            return self._send(200, json.dumps(self._listing(hub, name, info.group(2) == "tree")).encode(), {}, body)
        content = (hub.models[name] / match.group(3)).read_bytes()
        etag = hashlib.sha256(content).hexdigest()
        return self._send(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": hub.sha(name)}, body)

    def _listing(self, hub: Hub, name: str, tree: bool) -> object:
        files = sorted(path for path in hub.models[name].iterdir() if path.is_file())
        if tree:
            return [{"type": "file", "path": path.name, "size": path.stat().st_size, "oid": "0"} for path in files]
        return {"id": name, "sha": hub.sha(name), "siblings": [{"rfilename": path.name} for path in files]}

    def _send(self, status: int, content: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(status)
        for header, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(header, value)
        self.end_headers()
        if body:
            self.wfile.write(content)
