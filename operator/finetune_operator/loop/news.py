"""The meaning of a watch event: the job to look at, the last message of a leader, and what can be forgotten.

A standby gets the same events as the leader. When it takes over, it knows what the leaders of the gangs reported.
"""

import json

from finetune_api.contract import Label
from finetune_api.v1alpha1 import ConditionType
from finetune_operator.loop.progress import Poller
from finetune_operator.loop.queue import WorkQueue
from finetune_operator.objects.job_identity import JobKey
from finetune_operator.objects.kinds import Object

FIGURES = ("accounting", "checkpoints", "checkpointCount", "lastCheckpoint")  # of a status, besides its progress
TERMINAL = frozenset({ConditionType.COMPLETE, ConditionType.FAILED})


class News:
    """The receiver of watch events."""

    def __init__(self, queue: WorkQueue[JobKey], poller: Poller) -> None:
        self._queue = queue
        self._poller = poller
        self._essences: dict[JobKey, int] = {}  # of unfinished jobs at their last event

    def job(self, kind: str | None, item: Object) -> None:
        """Take an event of a FineTuneJob.

        Args:
            kind: None (listed), ADDED, MODIFIED or DELETED.
        """
        key = _key(item, item["metadata"]["name"])
        before = self._essences.pop(key, None)
        if kind == "DELETED" or is_finished(item):
            self._poller.forget(key)
        else:
            self._poller.expect(key, item["metadata"]["uid"])
            self._essences[key] = _essence(item)
        # A change of figures alone is our own write.
        if kind != "MODIFIED" or before is None or before != self._essences.get(key):
            self._queue.add(key)

    def child(self, item: Object) -> None:
        """Take an event of a Job that the operator created."""
        if name := item["metadata"].get("labels", {}).get(Label.JOB.value):
            self._queue.add(_key(item, name))

    def pod(self, item: Object) -> None:
        """Take an event of a pod that the operator's Job created.

        If its Job was deleted, the pod disappears as soon as it ends, with its termination message. Only this event
        has the message then.
        """
        if name := item["metadata"].get("labels", {}).get(Label.JOB.value):
            self._queue.add(_key(item, name))  # only enqueues; the message is recorded before a worker runs
            self._poller.record_final_message(_key(item, name), item)


def is_finished(item: Object) -> bool:
    """Return whether a FineTuneJob has succeeded or failed for good."""
    conditions = (item.get("status") or {}).get("conditions") or ()
    return any(one["type"] in TERMINAL and one["status"] == "True" for one in conditions)


def at_rest(item: Object) -> bool:
    """Return whether a FineTuneJob changes only by an event: it is finished, and has no time to live."""
    expires = item["spec"].get("ttlSecondsAfterFinished") is not None
    return is_finished(item) and not expires and "deletionTimestamp" not in item["metadata"]


def without_figures(status: Object) -> Object:
    """Return a stored status without the parts that change while a job makes normal progress."""
    kept = {name: value for name, value in status.items() if name not in FIGURES}
    generation = kept.pop("progress", {}).get("generation")
    # This figure becomes known once, perhaps after all other news.
    preparing_seconds = status.get("accounting", {}).get("preparingSeconds")
    kept["conditions"] = [
        {name: value for name, value in one.items() if name != "message"}  # the message names the newest checkpoint
        if one["type"] == ConditionType.CHECKPOINTED
        else one
        for one in status.get("conditions") or ()
    ]
    return {**kept, "generation": generation, "preparingSeconds": preparing_seconds}


def _essence(item: Object) -> int:
    """Return a hash of everything in a FineTuneJob that is worth a reconcile."""
    metadata = item["metadata"]
    identity = [metadata.get(name) for name in ("uid", "generation", "deletionTimestamp")]
    return hash(json.dumps([identity, without_figures(item.get("status") or {})], sort_keys=True))


def _key(item: Object, name: str) -> JobKey:
    return JobKey(item["metadata"]["namespace"], name)
