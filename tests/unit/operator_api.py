"""An API server in memory behind the operator's own client: what is stored, what is asked, and how often.

Objects are kept as JSON text, so that an answer costs the operator what a real one does: decoding.
"""

import json
from collections import Counter
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

from kubernetes.aio.client import Configuration

from finetune_operator.cluster.kube import Kube, KubeError

Object = dict[str, Any]
INDEXED = ("finetune.dev/job-uid", "finetune.dev/job-name")  # labels by which objects are found without a search


class FakeApi(Kube):
    """Keeps objects by (plural, namespace, name); `requests` counts what was asked, as `GET pods`.

    `changed` is called with each object whose status was written, as a watch would tell it.
    """

    def __init__(self) -> None:
        super().__init__(Configuration(), requests=100)
        self.requests: Counter[str] = Counter()
        self.changed: Callable[[Object], None] = lambda _: None
        self._texts: dict[tuple[str, str, str], bytes] = {}
        self._labelled: dict[tuple[str, str, str, str], list[tuple[str, str, str]]] = {}  # by plural, namespace, label
        self._version = 0
        self.served = False  # whether FineTuneJobs stand in the discovery of their group

    async def close(self) -> None:
        """There is no connection."""

    def put(self, plural: str, body: Object) -> Object:
        """Stores an object with the next resourceVersion."""
        self._version += 1
        metadata = body["metadata"]
        metadata["resourceVersion"] = str(self._version)
        key = (plural, metadata.get("namespace", ""), metadata["name"])
        if key not in self._texts:
            for label in INDEXED:
                value = metadata.get("labels", {}).get(label, "")
                self._labelled.setdefault((plural, key[1], label, value), []).append(key)
        self._texts[key] = json.dumps(body).encode()
        return body

    def find(self, plural: str, namespace: str, name: str) -> Object:
        """A stored object.

        Raises:
            KubeError: there is none.
        """
        text = self._texts.get((plural, namespace, name))
        if text is None:
            raise KubeError(404, "NotFound", f"{plural} {name!r} not found")
        found: Object = json.loads(text)
        return found

    def remove(self, plural: str, namespace: str, name: str) -> None:
        """Deletes an object at once."""
        body = self.find(plural, namespace, name)
        key = (plural, namespace, name)
        for label in INDEXED:
            self._labelled[plural, namespace, label, body["metadata"].get("labels", {}).get(label, "")].remove(key)
        del self._texts[key]

    async def _request(
        self, method: str, path: str, body: Object | None = None, content_type: str = "application/json"
    ) -> bytes:
        parts = urlsplit(path)
        if parts.path.count("/") == 3:
            self.requests["GET apis"] += 1
            return json.dumps({"resources": [{"name": "finetunejobs"}] if self.served else []}).encode()
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        folders = parts.path.strip("/").split("/")[2 if parts.path.startswith("/api/") else 3 :]
        namespace = ""
        if folders[0] == "namespaces" and len(folders) > 2:
            namespace, folders = folders[1], folders[2:]
        plural, name = folders[0], folders[1] if len(folders) > 1 else ""
        verb = "LIST" if method == "GET" and not name else method
        self.requests[f"{verb} {'/'.join([plural, *folders[2:]])}"] += 1
        match verb:
            case "LIST":
                return self._list(plural, namespace, query)
            case "GET":
                self.find(plural, namespace, name)
                return self._texts[plural, namespace, name]
            case "POST":
                assert body is not None
                if (plural, namespace, body["metadata"]["name"]) in self._texts:
                    raise KubeError(409, "AlreadyExists", f"{plural} {body['metadata']['name']!r} already exists")
                return json.dumps(self.put(plural, {"metadata": {}, **body})).encode()
            case "PUT" | "PATCH":
                assert body is not None
                return self._write(plural, namespace, name, body)
            case _:
                self.remove(plural, namespace, name)
                return b"{}"

    def _write(self, plural: str, namespace: str, name: str, body: Object) -> bytes:
        found = self.find(plural, namespace, name)
        version = body["metadata"].get("resourceVersion")
        if version and version != found["metadata"]["resourceVersion"]:
            raise KubeError(409, "Conflict", f"{plural} {name!r} has been modified")
        parts = {part: body[part] for part in ("spec", "status") if part in body}
        made = self.put(plural, {**found, **parts})
        self.changed(made)
        return json.dumps(made).encode()

    def _list(self, plural: str, namespace: str, query: dict[str, str]) -> bytes:
        selector = dict(one.split("=") for one in query.get("labelSelector", "").split(",") if one)
        if label := next((one for one in INDEXED if one in selector), None):
            keys = self._labelled.get((plural, namespace, label, selector[label]), [])
        else:
            keys = [key for key in self._texts if key[0] == plural and (not namespace or key[1] == namespace)]
        return b'{"metadata": {}, "items": [' + b",".join(self._texts[key] for key in keys) + b"]}"
