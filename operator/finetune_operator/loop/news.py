"""What an event of a watch means: which job to look at, what a leader left behind, what nobody need remember any more.

A standby hears the same events as the leader, so that it knows what the leader's pods said when it takes over.
"""

import json

from finetune_api.contract import Label
from finetune_api.v1alpha1 import ConditionType
from finetune_operator.loop.progress import Key, Poller
from finetune_operator.loop.queue import WorkQueue
from finetune_operator.objects.facts import Object

FIGURES = ("accounting", "checkpoints", "checkpointCount", "lastCheckpoint")  # of a status, besides its progress
FINISHED = frozenset({ConditionType.COMPLETE, ConditionType.FAILED})


class News:
    """Takes events, as a watch tells them."""

    def __init__(self, queue: WorkQueue[Key], poller: Poller) -> None:
        self._queue = queue
        self._poller = poller
        self._heard: dict[Key, int] = {}  # what an unfinished job was like at its last event, as a hash

    def job(self, kind: str | None, item: Object) -> None:
        """A FineTuneJob was listed (None), ADDED, MODIFIED or DELETED."""
        key = _key(item, item["metadata"]["name"])
        before = self._heard.pop(key, None)
        if kind == "DELETED" or is_finished(item):
            self._poller.forget(key)
        else:
            self._poller.expect(key, item["metadata"]["uid"])
            self._heard[key] = _essence(item)
        if kind != "MODIFIED" or before is None or before != self._heard.get(key):
            self._queue.add(key)  # else figures have changed, which we have written

    def child(self, item: Object) -> None:
        """A Job of ours was seen."""
        if name := item["metadata"].get("labels", {}).get(Label.JOB.value):
            self._queue.add(_key(item, name))

    def pod(self, item: Object) -> None:
        """A pod of ours was seen. One whose Job was deleted is gone as soon as it has ended, and with it what it left,
        unless a watch has told."""
        if name := item["metadata"].get("labels", {}).get(Label.JOB.value):
            self._queue.add(_key(item, name))  # only queues: what follows is known before anybody looks
            self._poller.hear_last_words(_key(item, name), item)


def is_finished(item: Object) -> bool:
    """Whether a FineTuneJob has succeeded or failed, for good."""
    conditions = (item.get("status") or {}).get("conditions") or ()
    return any(one["type"] in FINISHED and one["status"] == "True" for one in conditions)


def at_rest(item: Object) -> bool:
    """Whether time alone changes nothing of a FineTuneJob any more: it is finished, and stays until somebody deletes
    it."""
    waits = item["spec"].get("ttlSecondsAfterFinished") is not None
    return is_finished(item) and not waits and "deletionTimestamp" not in item["metadata"]


def without_figures(status: Object) -> Object:
    """A stored status without what changes while all goes its way."""
    kept = {name: value for name, value in status.items() if name not in FIGURES}
    generation = kept.pop("progress", {}).get("generation")
    prepared_in = status.get("accounting", {}).get("preparingSeconds")  # known once, perhaps after all other news
    kept["conditions"] = [
        {name: value for name, value in one.items() if name != "message"}  # it names the newest
        if one["type"] == ConditionType.CHECKPOINTED
        else one
        for one in status.get("conditions") or ()
    ]
    return {**kept, "generation": generation, "preparingSeconds": prepared_in}


def _essence(item: Object) -> int:
    metadata = item["metadata"]
    identity = [metadata.get(name) for name in ("uid", "generation", "deletionTimestamp")]
    return hash(json.dumps([identity, without_figures(item.get("status") or {})], sort_keys=True))


def _key(item: Object, name: str) -> Key:
    return item["metadata"]["namespace"], name
