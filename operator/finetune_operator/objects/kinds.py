"""The kinds of object that the operator works with, and where the API server keeps them. Pure."""

from dataclasses import dataclass
from enum import Enum
from typing import Any
from urllib.parse import quote

from finetune_api.contract import API_VERSION, PLURAL

Object = dict[str, Any]  # a Kubernetes object, or a part of one, as JSON


@dataclass(frozen=True)
class Resource:
    """A collection of the API server.

    Attributes:
        group_version: such as `batch/v1`; the core group has none: `v1`.
        plural: name of the collection in a URL.
    """

    group_version: str
    plural: str

    @property
    def root(self) -> str:
        """Path under which the API server lists the resources of the group."""
        return f"/{'apis' if '/' in self.group_version else 'api'}/{self.group_version}"

    def path(self, namespace: str | None = None, name: str = "") -> str:
        """Return the path of the collection, or of one object in it.

        Args:
            namespace: None for all namespaces, and for kinds without a namespace.
        """
        parts = [self.root, *(["namespaces", quote(namespace)] if namespace else []), self.plural]
        return "/".join([*parts, quote(name)] if name else parts)


class Kind(Enum):
    """A kind of object."""

    FINETUNEJOB = Resource(API_VERSION, PLURAL)
    JOB = Resource("batch/v1", "jobs")
    POD = Resource("v1", "pods")
    SECRET = Resource("v1", "secrets")
    EVENT = Resource("v1", "events")
    LEASE = Resource("coordination.k8s.io/v1", "leases")
    NODE = Resource("v1", "nodes")
    NAMESPACE = Resource("v1", "namespaces")
