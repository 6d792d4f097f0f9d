"""The election of the replica that works, over one Lease. Clocks of other machines are not trusted: a lease has expired
when it has not changed for its whole duration on our own monotonic clock. A replica that loses the lease exits."""

import asyncio
import logging
import random
import time
from datetime import UTC, datetime
from typing import Any

from finetune_operator.cluster.kube import Kube, KubeError
from finetune_operator.objects.kinds import Kind, Object

log = logging.getLogger("operator.leader")

NAME = "finetune-operator"
RENEW_SHARE = 1 / 5  # time between two renewals, as a share of the lease's duration
GIVE_UP_SHARE = 2 / 3  # age of the last renewal at which a leader stops, as a share of the lease's duration
JITTER = 0.2


class LostLeaseError(RuntimeError):
    """The loss of the lease: another replica leads, or may lead soon."""


class Elector:
    """A candidate for the Lease: it waits for the lease, then renews it.

    Args:
        identity: of this replica.
        seconds: duration of the lease.
    """

    def __init__(self, kube: Kube, namespace: str, identity: str, seconds: float) -> None:
        self._kube = kube
        self._namespace = namespace
        self._identity = identity
        self._seconds = seconds
        self._renewed = float("-inf")  # monotonic, taken before the request
        self._seen: tuple[str, float] = ("", 0.0)  # resourceVersion of the lease, and monotonic time of its first sight
        self.elected = asyncio.Event()

    @property
    def leads(self) -> bool:
        """Whether this replica may write: its lease is fresh enough that no other replica can be elected."""
        return self.elected.is_set() and time.monotonic() - self._renewed < self._seconds * GIVE_UP_SHARE

    async def run(self) -> None:
        """Wait for the lease, then renew it until this task is cancelled.

        Raises:
            LostLeaseError: the lease was lost.
        """
        pause = self._seconds * RENEW_SHARE
        while True:
            began = time.monotonic()
            try:
                held = await asyncio.wait_for(self._try(), pause * 2)
            except (KubeError, TimeoutError) as error:
                log.warning("the lease cannot be read or renewed: %s", error or type(error).__name__)
                held = None
            if held:
                self._renewed = began
                if not self.elected.is_set():
                    log.info("%s leads", self._identity)
                    self.elected.set()
            elif self.elected.is_set() and (held is False or not self.leads):
                raise LostLeaseError(f"{self._identity} no longer holds the lease")
            await asyncio.sleep(pause * (1 + random.uniform(-JITTER, JITTER)))

    async def release(self) -> None:
        """Release the lease, so that another replica need not wait for its end."""
        if not self.elected.is_set():
            return
        try:
            lease = await self._kube.get(Kind.LEASE, self._namespace, NAME)
            if lease["spec"].get("holderIdentity") == self._identity:
                lease["spec"] |= {"holderIdentity": "", "leaseDurationSeconds": 1}
                await self._kube.replace(Kind.LEASE, lease)
        except KubeError as error:
            log.info("the lease cannot be released: %s", error)

    async def _try(self) -> bool:
        """Take or renew the lease, and return whether this replica holds it. After a conflict another replica does."""
        try:
            lease = await self._kube.get(Kind.LEASE, self._namespace, NAME)
        except KubeError as error:
            if not error.not_found:
                raise
            return await self._succeeds(self._kube.create(Kind.LEASE, self._lease({}, transitions=0)))
        spec = lease["spec"]
        holder = spec.get("holderIdentity") or ""
        version = lease["metadata"]["resourceVersion"]
        if version != self._seen[0]:
            self._seen = (version, time.monotonic())
        if holder not in {"", self._identity}:
            duration = float(spec.get("leaseDurationSeconds") or self._seconds)
            if time.monotonic() - self._seen[1] < duration:
                return False
        transitions = int(spec.get("leaseTransitions") or 0) + (holder != self._identity)
        return await self._succeeds(self._kube.replace(Kind.LEASE, self._lease(lease, transitions)))

    async def _succeeds(self, request: Any) -> bool:
        try:
            await request
        except KubeError as error:
            if error.conflict:
                return False
            raise
        return True

    def _lease(self, last: Object, transitions: int) -> Object:
        now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        before = last.get("spec", {})
        acquired = before.get("acquireTime") if before.get("holderIdentity") == self._identity else now
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": last.get("metadata") or {"name": NAME, "namespace": self._namespace},
            "spec": {
                "holderIdentity": self._identity,
                "leaseDurationSeconds": max(1, round(self._seconds)),
                "acquireTime": acquired,
                "renewTime": now,
                "leaseTransitions": transitions,
            },
        }
