"""The part of the Hugging Face hub's protocol that a push needs: repositories, git LFS, and commits that are whole or
not at all. It is served with the downloads of `hub`, over the same folders."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.hub import TOKEN, Answers, Hub, serve_hub

REGULAR = 1000  # bytes from which on a file is stored by LFS; the real limit is 10 MB


@dataclass
class WritableHub(Hub):
    """A hub that takes pushes from those who have the token.

    Attributes:
        root: folder of the repositories that pushes create.
        private: repositories that are private.
        heads: repository -> its commits, the oldest first.
        faults: status codes for the next requests that write, each used once: (part of the path, status).
        uploads: bytes of the LFS files that were sent, by their sha256.
    """

    root: Path = Path()
    private: set[str] = field(default_factory=set)
    heads: dict[str, list[str]] = field(default_factory=dict)
    faults: list[tuple[str, int]] = field(default_factory=list)
    uploads: dict[str, bytes] = field(default_factory=dict)
    lock: Any = field(default_factory=threading.Lock)

    def sha(self, name: str) -> str:
        commits = self.heads.get(name)
        return commits[-1] if commits else super().sha(name)

    def create(self, name: str, private: bool) -> None:
        """Create a repository with the file that the real hub puts into it."""
        self.models[name] = self.root / name
        self.models[name].mkdir(parents=True)
        (self.models[name] / ".gitattributes").write_text("*.safetensors filter=lfs\n")
        if private:
            self.private.add(name)
        self.heads[name] = [hashlib.sha1(f"{self.salt}{name}0".encode(), usedforsecurity=False).hexdigest()]

    def commit(self, name: str, lines: list[dict[str, Any]]) -> str:
        """Apply a commit, and return its hash."""
        folder = self.models[name]
        for line in lines:
            value = line["value"]
            if line["key"] in ("file", "lfsFile"):
                path = folder / value["path"]
                path.parent.mkdir(parents=True, exist_ok=True)
                small = line["key"] == "file"
                path.write_bytes(base64.b64decode(value["content"]) if small else self.uploads[value["oid"]])
            if line["key"] == "deletedFile":
                (folder / value["path"]).unlink()
        text = f"{self.salt}{name}{len(self.heads[name])}"
        self.heads[name].append(hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())
        return self.heads[name][-1]


@contextmanager
def start_writable_hub(root: Path) -> Iterator[WritableHub]:
    """Serve a hub without any repository until the block ends."""
    with serve_hub(_Writes, lambda endpoint: WritableHub(endpoint, {}, TOKEN, root=root)) as hub:
        yield hub


class _Writes(Answers):
    def do_POST(self) -> None:  # noqa: N802
        body = self._body()
        hub: WritableHub = self.server.hub  # type: ignore[attr-defined]
        path = self.path.partition("?")[0]
        with hub.lock:
            hub.seen.append(f"POST {path}")
            if self._refuses(hub, path):
                return None
            if path == "/api/validate-yaml":
                return self._json({"errors": [], "warnings": []})
            if path == "/api/repos/create":
                return self._create(hub, json.loads(body))
            about = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main", path)
            batch = re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path)
            match = about or batch
            if match is None or match.group(1) not in hub.models:
                return self._send(404, b"", {"X-Error-Code": "RepoNotFound"}, True)
            if batch:
                return self._json(self._batch(hub, json.loads(body)))
            if match.group(2) == "preupload":
                return self._json(self._preupload(hub.models[match.group(1)], json.loads(body)))
            return self._commit(hub, match.group(1), [json.loads(line) for line in body.splitlines()])

    def do_PUT(self) -> None:  # noqa: N802
        hub: WritableHub = self.server.hub  # type: ignore[attr-defined]
        body = self._body()
        oid = self.path.rpartition("/")[2]
        with hub.lock:
            hub.seen.append(f"PUT {self.path}")
            if any(part in self.path for part, _ in hub.faults) and self._refuses(hub, self.path, login=False):
                return
            assert hashlib.sha256(body).hexdigest() == oid
            hub.uploads[oid] = body
        self._send(200, b"", {}, True)

    def _answer(self, body: bool) -> None:
        hub: WritableHub = self.server.hub  # type: ignore[attr-defined]
        if any(f"/{name}" in self.path for name in hub.private) and not self._logged_in(hub):
            self._send(401, b"", {"X-Error-Code": "RepoNotFound"}, body)
        else:
            super()._answer(body)

    def _listing(self, name: str, sha: str, folder: Path, tree: bool) -> object:
        listing = super()._listing(name, sha, folder, tree)
        hub: WritableHub = self.server.hub  # type: ignore[attr-defined]
        return {**listing, "private": name in hub.private} if isinstance(listing, dict) else listing

    def _logged_in(self, hub: WritableHub) -> bool:
        return bool(self.headers["Authorization"] == f"Bearer {hub.token}")

    def _refuses(self, hub: WritableHub, path: str, login: bool = True) -> bool:
        for fault in hub.faults:
            if fault[0] in path:
                hub.faults.remove(fault)
                self._send(fault[1], b"", {}, True)
                return True
        if login and not self._logged_in(hub):
            self._send(401, b"", {"X-Error-Message": "Invalid credentials in Authorization header"}, True)
            return True
        return False

    def _create(self, hub: WritableHub, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        if name in hub.models:
            return self._send(409, json.dumps({"url": f"{hub.endpoint}/{name}"}).encode(), {}, True)
        hub.create(name, asked.get("private") is True or asked.get("visibility") == "private")
        return self._json({"url": f"{hub.endpoint}/{name}"})

    def _preupload(self, folder: Path, asked: dict[str, Any]) -> object:
        return {"files": [self._mode(folder / one["path"], one) for one in asked["files"]]}

    def _mode(self, path: Path, file: dict[str, Any]) -> dict[str, Any]:
        large = file["size"] > REGULAR
        found: dict[str, Any] = {
            "path": file["path"],
            "uploadMode": "lfs" if large else "regular",
            "shouldIgnore": False,
        }
        if path.is_file():
            content = path.read_bytes()
            git = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)
            found["oid"] = hashlib.sha256(content).hexdigest() if large else git.hexdigest()
        return found

    def _batch(self, hub: WritableHub, asked: dict[str, Any]) -> object:
        objects = [
            {**one, **({} if one["oid"] in hub.uploads else self._upload(hub, one["oid"]))} for one in asked["objects"]
        ]
        return {"transfer": "basic", "objects": objects}

    def _upload(self, hub: WritableHub, oid: str) -> dict[str, Any]:
        return {"actions": {"upload": {"href": f"{hub.endpoint}/lfs/{oid}"}}}

    def _commit(self, hub: WritableHub, name: str, lines: list[dict[str, Any]]) -> None:
        parent = lines[0]["value"].get("parentCommit")
        if parent not in (None, hub.sha(name)):
            return self._send(412, b"", {}, True)
        oid = hub.commit(name, lines)
        return self._json({"commitUrl": f"{hub.endpoint}/{name}/commit/{oid}", "commitOid": oid, "success": True})

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"}, True)

    def _body(self) -> bytes:
        """Read the body, which the library also sends in chunks."""
        if length := self.headers["Content-Length"]:
            return self.rfile.read(int(length))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)
