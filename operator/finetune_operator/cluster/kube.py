"""The API server on plain dicts: the only importer of `kubernetes`. Every error is a `KubeError` with the server's
sentence.

Decoding into the client's typed objects costs ten times as much as JSON, and the operator does not need them.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any
from urllib.parse import urlencode

import aiohttp
from kubernetes.aio import config
from kubernetes.aio.client import ApiClient, Configuration

from finetune_api.contract import CONTAINER, MANAGER
from finetune_operator.cluster.recent import Recent
from finetune_operator.objects.kinds import Kind, Object

TIMEOUT_SECONDS = 30
PAGE = 500  # objects of one LIST request
WARNINGS_SECONDS = 5.0  # for this long all reconciles share one LIST of a namespace's Events
NODES_SECONDS = 60.0  # for this long all reconciles share one LIST of nodes
LONGEST_SENTENCE = 2000  # characters of an Event, because any program may write one
MERGE = "application/merge-patch+json"
APPLY = "application/apply-patch+yaml"


class KubeError(Exception):
    """A request that the API server refused, or that did not reach it.

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
        """Whether the object does not exist."""
        return self.status == 404

    @property
    def exists(self) -> bool:
        """Whether an object of that name exists already, ours or another's."""
        return self.status == 409 and self.reason == "AlreadyExists"

    @property
    def conflict(self) -> bool:
        """Whether another writer was faster, the object exists already, or it is another object by now."""
        return self.status == 409

    @property
    def refused(self) -> bool:
        """Whether the same request gets the same answer again: quota, permission, an invalid object."""
        return self.status in {400, 403, 405, 413, 422}


class Kube:
    """A client of the API server with a bound on its concurrent requests.

    All methods that send a request raise KubeError.
    """

    def __init__(self, configuration: Configuration, requests: int) -> None:
        self._client = ApiClient(configuration)
        self._configuration = configuration
        self._slots = asyncio.Semaphore(requests)
        self._warnings = Recent(self._read_warnings, WARNINGS_SECONDS)
        self._nodes = Recent(self._read_nodes, NODES_SECONDS)

    @classmethod
    async def connect(cls, requests: int) -> "Kube":
        """Return a client for the cluster that this process runs in, or for the user's kubeconfig.

        Raises:
            kubernetes.aio.config.ConfigException: neither exists.
        """
        configuration = Configuration()
        try:
            config.load_incluster_config(configuration)  # type: ignore[no-untyped-call]
        except config.ConfigException:
            await config.load_kube_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        return cls(configuration, requests)

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()  # type: ignore[no-untyped-call]

    # ------------------------------------------------------------ reading

    async def get(self, kind: Kind, namespace: str | None, name: str) -> Object:
        """Return one object; `namespace` is None for kinds without a namespace."""
        return await self._json("GET", kind.value.path(namespace, name))

    async def node(self, name: str) -> Object:
        """Return one node."""
        return await self.get(Kind.NODE, None, name)

    async def namespace(self, name: str) -> Object:
        """Return one namespace."""
        return await self.get(Kind.NAMESPACE, None, name)

    async def nodes(self, selector: str) -> list[Object]:
        """Return labels and resources of the nodes that a label selector matches, at most NODES_SECONDS old."""
        return await self._nodes.get(selector)

    async def warnings(self, namespace: str, uid: str) -> list[Object]:
        """Return reason, message and time of the Warning Events about an object, at most WARNINGS_SECONDS old.

        One LIST reads all Events of a namespace: the API server has no cache of Events and scans them for each LIST.
        """
        return (await self._warnings.get(namespace)).get(uid, [])

    async def serves(self, kind: Kind) -> bool:
        """Return whether the API server serves a kind; its CustomResourceDefinition may be missing."""
        try:
            group = await self._json("GET", kind.value.root)
        except KubeError as error:
            if error.not_found:
                return False
            raise
        return any(one["name"] == kind.value.plural for one in group["resources"])

    async def _read_warnings(self, namespace: str) -> dict[str, list[Object]]:
        warnings: dict[str, list[Object]] = {}
        async for item in self.each(Kind.EVENT, namespace, fieldSelector="type=Warning"):
            kept = {
                name: str(item.get(name) or "")[:LONGEST_SENTENCE] for name in ("reason", "message", "lastTimestamp")
            }
            warnings.setdefault(item["involvedObject"].get("uid", ""), []).append(kept)
        return warnings

    async def _read_nodes(self, selector: str) -> list[Object]:
        return [_abridged_node(item) async for item in self.each(Kind.NODE, None, labelSelector=selector)]

    async def list(self, kind: Kind, namespace: str | None, **selectors: str) -> list[Object]:
        """Return all objects that the selectors match.

        Args:
            namespace: None = all namespaces.
            selectors: `labelSelector` and `fieldSelector`.
        """
        return [item async for item in self.each(kind, namespace, **selectors)]

    async def each(self, kind: Kind, namespace: str | None, **selectors: str) -> AsyncIterator[Object]:
        """Yield the objects of `list` one by one, with one page at a time in memory."""
        token = ""
        while True:
            query = {"limit": str(PAGE), **selectors, **({"continue": token} if token else {})}
            page = await self._json("GET", f"{kind.value.path(namespace)}?{urlencode(query)}")
            for item in page["items"]:
                yield item
            token = page["metadata"].get("continue") or ""
            if not token:
                return

    async def pod_log(self, namespace: str, name: str, *, lines: int, most_bytes: int) -> str:
        """Return the last lines of the trainer container of a pod."""
        query = urlencode({"container": CONTAINER, "tailLines": lines, "limitBytes": most_bytes})
        path = f"{Kind.POD.value.path(namespace, name)}/log?{query}"
        return (await self._request("GET", path)).decode(errors="replace")

    # ------------------------------------------------------------ writing

    async def create(self, kind: Kind, body: Object) -> Object:
        """Create an object; a conflict if one of its name exists."""
        path = kind.value.path(body["metadata"]["namespace"])
        return await self._json("POST", f"{path}?fieldManager={MANAGER}&fieldValidation=Strict", body)

    async def replace(self, kind: Kind, body: Object) -> Object:
        """Replace an object; a conflict if its resourceVersion has changed."""
        metadata = body["metadata"]
        return await self._json("PUT", kind.value.path(metadata["namespace"], metadata["name"]), body)

    async def delete(
        self, kind: Kind, namespace: str, name: str, uid: str, *, grace_seconds: int | None = None
    ) -> None:
        """Delete the object with this uid, and its children after it. Nothing happens if it no longer exists."""
        body: Object = {"preconditions": {"uid": uid}, "propagationPolicy": "Background"}
        if grace_seconds is not None:
            body["gracePeriodSeconds"] = grace_seconds
        try:
            await self._json("DELETE", kind.value.path(namespace, name), body)
        except KubeError as error:
            if not (error.not_found or error.conflict):
                raise

    async def fail_pod(self, namespace: str, name: str, uid: str, message: str) -> None:
        """Mark the pod with this uid as failed, as its kubelet would. Nothing happens if it no longer exists."""
        body = {"metadata": {"uid": uid}, "status": {"phase": "Failed", "reason": "NodeLost", "message": message}}
        try:
            await self._json("PATCH", f"{Kind.POD.value.path(namespace, name)}/status", body, MERGE)
        except KubeError as error:
            if not (error.not_found or error.conflict):
                raise

    async def apply_status(self, body: Object) -> Object:
        """Write the whole status of a FineTuneJob; a conflict if the object has changed since it was read."""
        metadata = body["metadata"]
        path = f"{Kind.FINETUNEJOB.value.path(metadata['namespace'], metadata['name'])}/status"
        return await self._json("PATCH", f"{path}?fieldManager={MANAGER}&force=true", body, APPLY)

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
    """Return the parts of a node that GPU discovery needs."""
    metadata, status = item["metadata"], item.get("status") or {}
    return {
        "metadata": {"name": metadata["name"], "labels": metadata.get("labels") or {}},
        "status": {name: status.get(name) or {} for name in ("capacity", "allocatable")},
    }


def _error(status: int, content: bytes) -> KubeError:
    try:
        answer: Mapping[str, Any] = json.loads(content)
    except ValueError:
        answer = {}
    message = answer.get("message") or content.decode(errors="replace")[:500] or f"HTTP status {status}"
    return KubeError(status, answer.get("reason") or "", message)
