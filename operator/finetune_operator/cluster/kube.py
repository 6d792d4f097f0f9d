"""The API server on plain dicts: the only importer of `kubernetes`. Errors are one class with the server's sentence.

Decoding to the client's typed objects costs ten times as much as JSON, and nothing here needs them.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any
from urllib.parse import quote, urlencode

import aiohttp
from kubernetes.aio import config
from kubernetes.aio.client import ApiClient, Configuration

from finetune_api.contract import CONTAINER, MANAGER
from finetune_operator.cluster.recent import Recent
from finetune_operator.objects.kinds import Kind

Object = dict[str, Any]

TIMEOUT_SECONDS = 30
PAGE = 500  # objects of one LIST request
WARNINGS_SECONDS = 5.0  # the Events of a namespace are read again after so long, however many pods are asked about
NODES_SECONDS = 60.0
LONGEST_SENTENCE = 2000  # characters of an Event: anybody may write one
MERGE = "application/merge-patch+json"
APPLY = "application/apply-patch+yaml"


class KubeError(Exception):
    """The API server refused, or could not be asked.

    Attributes:
        status: HTTP status; 0 = no answer.
        reason: the server's word, such as Forbidden, AlreadyExists, Conflict.
    """

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason

    @property
    def not_found(self) -> bool:
        return self.status == 404

    @property
    def exists(self) -> bool:
        """An object of that name is there already, ours or not."""
        return self.status == 409 and self.reason == "AlreadyExists"

    @property
    def conflict(self) -> bool:
        """Another writer was first, or the object exists already, or is another one by now."""
        return self.status == 409

    @property
    def refused(self) -> bool:
        """Whether asking again gives the same answer: quota, permission, an invalid object."""
        return self.status in {400, 403, 405, 413, 422}


class Kube:
    """A client with a bound on requests in flight."""

    def __init__(self, configuration: Configuration, requests: int) -> None:
        self._client = ApiClient(configuration)
        self._configuration = configuration
        self._slots = asyncio.Semaphore(requests)
        self._warnings = Recent(self._read_warnings, WARNINGS_SECONDS)
        self._nodes = Recent(self._read_nodes, NODES_SECONDS)

    @classmethod
    async def connect(cls, requests: int) -> "Kube":
        """A client for the cluster this process runs in, or for the kubeconfig of the user.

        Raises:
            kubernetes.aio.config.ConfigException: there is neither.
        """
        configuration = Configuration()
        try:
            config.load_incluster_config(configuration)  # type: ignore[no-untyped-call]
        except config.ConfigException:
            await config.load_kube_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        return cls(configuration, requests)

    async def close(self) -> None:
        """Closes all connections."""
        await self._client.close()  # type: ignore[no-untyped-call]

    # ------------------------------------------------------------ objects

    async def get(self, kind: Kind, namespace: str, name: str) -> Object:
        """One object."""
        return await self._json("GET", _path(kind, namespace, name))

    async def node(self, name: str) -> Object:
        """One node."""
        return await self._json("GET", f"/api/v1/nodes/{quote(name)}")

    async def nodes(self, selector: str) -> list[Object]:
        """Labels and resources of the nodes that a label selector matches, as they were within the last minute."""
        return await self._nodes.get(selector)

    async def warnings(self, namespace: str, uid: str) -> list[Object]:
        """Reason, message and time of the Warning Events about an object, as they were within the last seconds.

        All of a namespace are read at once: the API server keeps no cache of Events and scans them all for each LIST.
        """
        return (await self._warnings.get(namespace)).get(uid, [])

    async def _read_warnings(self, namespace: str) -> dict[str, list[Object]]:
        found: dict[str, list[Object]] = {}
        async for item in self.each(Kind.EVENT, namespace, fieldSelector="type=Warning"):
            kept = {
                name: str(item.get(name) or "")[:LONGEST_SENTENCE] for name in ("reason", "message", "lastTimestamp")
            }
            found.setdefault(item["involvedObject"].get("uid", ""), []).append(kept)
        return found

    async def _read_nodes(self, selector: str) -> list[Object]:
        return [_abridged_node(item) async for item in self._pages("/api/v1/nodes", labelSelector=selector)]

    async def serves(self, kind: Kind) -> bool:
        """Whether the API server knows a kind: its CustomResourceDefinition may not be there yet."""
        folder, _, plural = kind.value.rpartition("/{}/")
        try:
            found = await self._json("GET", f"/{folder}")
        except KubeError as error:
            if error.not_found:
                return False
            raise
        return any(one["name"] == plural for one in found["resources"])

    async def namespace(self, name: str) -> Object:
        """One namespace."""
        return await self._json("GET", f"/api/v1/namespaces/{quote(name)}")

    async def _pages(self, path: str, **selectors: str) -> AsyncIterator[Object]:
        """All items of a list; one page at a time is in memory."""
        more = ""
        while True:
            query = {"limit": str(PAGE), **selectors, **({"continue": more} if more else {})}
            page = await self._json("GET", f"{path}?{urlencode(query)}")
            for item in page["items"]:
                yield item
            more = page["metadata"].get("continue") or ""
            if not more:
                return

    async def list(self, kind: Kind, namespace: str | None, **selectors: str) -> list[Object]:
        """All objects that the selectors (`labelSelector`, `fieldSelector`) match; None = anywhere."""
        return [item async for item in self.each(kind, namespace, **selectors)]

    def each(self, kind: Kind, namespace: str | None, **selectors: str) -> AsyncIterator[Object]:
        """The same objects one after another, for lists that may be long."""
        return self._pages(_path(kind, namespace), **selectors)

    async def create(self, kind: Kind, body: Object) -> Object:
        """A new object; a conflict when there is one of its name."""
        path = _path(kind, body["metadata"]["namespace"])
        return await self._json("POST", f"{path}?fieldManager={MANAGER}&fieldValidation=Strict", body)

    async def replace(self, kind: Kind, body: Object) -> Object:
        """The object as it is to be, if its resourceVersion is still the one given."""
        metadata = body["metadata"]
        return await self._json("PUT", _path(kind, metadata["namespace"], metadata["name"]), body)

    async def delete(
        self, kind: Kind, namespace: str, name: str, uid: str, *, grace_seconds: int | None = None
    ) -> None:
        """Deletes this very object, its children after it; nothing when it is gone or another one has its name."""
        body: Object = {"preconditions": {"uid": uid}, "propagationPolicy": "Background"}
        if grace_seconds is not None:
            body["gracePeriodSeconds"] = grace_seconds
        try:
            await self._json("DELETE", _path(kind, namespace, name), body)
        except KubeError as error:
            if not (error.not_found or error.conflict):
                raise

    async def fail_pod(self, namespace: str, name: str, uid: str, message: str) -> None:
        """Marks this very pod as failed, as its kubelet would; nothing when it is gone or another one has its name."""
        body = {"metadata": {"uid": uid}, "status": {"phase": "Failed", "reason": "NodeLost", "message": message}}
        try:
            await self._json("PATCH", f"{_path(Kind.POD, namespace, name)}/status", body, MERGE)
        except KubeError as error:
            if not (error.not_found or error.conflict):
                raise

    async def apply_status(self, body: Object) -> Object:
        """Writes a FineTuneJob's status whole; a conflict when it changed since its resourceVersion was read."""
        metadata = body["metadata"]
        path = f"{_path(Kind.FINETUNEJOB, metadata['namespace'], metadata['name'])}/status"
        return await self._json("PATCH", f"{path}?fieldManager={MANAGER}&force=true", body, APPLY)

    async def pod_log(self, namespace: str, name: str, *, lines: int, most_bytes: int) -> str:
        """The last lines of our container in a pod."""
        query = urlencode({"container": CONTAINER, "tailLines": lines, "limitBytes": most_bytes})
        return (await self._request("GET", f"{_path(Kind.POD, namespace, name)}/log?{query}")).decode(errors="replace")

    # ------------------------------------------------------------ requests

    async def _json(
        self, method: str, path: str, body: Object | None = None, content_type: str = "application/json"
    ) -> Object:
        answer: Object = json.loads(await self._request(method, path, body, content_type))
        return answer

    async def _request(
        self, method: str, path: str, body: Object | None = None, content_type: str = "application/json"
    ) -> bytes:
        headers = {"Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = content_type
        if bearer := await self._configuration.get_api_key_with_prefix("BearerToken"):
            headers["Authorization"] = bearer
        async with self._slots:
            try:
                answer = await self._client.rest_client.request(  # type: ignore[no-untyped-call]
                    method,
                    self._configuration.host + path,
                    headers=headers,
                    body=body,
                    _request_timeout=TIMEOUT_SECONDS,
                )
                content: bytes = await answer.read()
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                raise KubeError(0, "Unreachable", f"{method} {path}: {error or type(error).__name__}") from error
        if answer.status >= 400:
            raise _error(answer.status, content)
        return content


def _abridged_node(item: Object) -> Object:
    metadata, status = item["metadata"], item.get("status") or {}
    return {
        "metadata": {"name": metadata["name"], "labels": metadata.get("labels") or {}},
        "status": {name: status.get(name) or {} for name in ("capacity", "allocatable")},
    }


def _error(status: int, content: bytes) -> KubeError:
    try:
        told: Mapping[str, Any] = json.loads(content)
    except ValueError:
        told = {}
    message = told.get("message") or content.decode(errors="replace")[:500] or f"HTTP status {status}"
    return KubeError(status, told.get("reason") or "", message)


def _path(kind: Kind, namespace: str | None, name: str = "") -> str:
    folder = "/" + kind.value.format(f"namespaces/{quote(namespace)}" if namespace else "").replace("//", "/")
    return f"{folder}/{quote(name)}" if name else folder
