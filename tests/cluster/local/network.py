"""Addresses of a cluster. They lie in a network of its own: two clusters on one machine use the same and never meet."""

from dataclasses import dataclass

GATEWAY = "10.200.0.1"  # the fabric: API server, DNS and S3; default route of the nodes
API_PORT = 6443
S3_PORT = 7070
POD_CIDR = "10.244.0.0/16"
SERVICE_CIDR = "10.96.0.0/16"
API_SERVICE_IP = "10.96.0.1"  # the first of SERVICE_CIDR is the API server's
DNS_DOMAIN = "cluster.local"


@dataclass(frozen=True)
class Node:
    """A node by its name; the number in it gives its addresses."""

    name: str

    @property
    def number(self) -> int:
        return int(self.name.removeprefix("n"))

    @property
    def address(self) -> str:
        return f"10.200.0.{10 + self.number}"

    @property
    def pod_cidr(self) -> str:
        return f"10.244.{self.number}.0/24"


NODES = (Node("n1"), Node("n2"))
