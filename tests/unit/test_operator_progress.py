"""What a leader left when its pod ended is not lost, even if the pod is gone when the operator looks."""

from typing import Any

from finetune_api.beats import Progress
from finetune_api.messages import Stage
from finetune_api.results import StageResult
from finetune_operator.loop.pace import WritePace
from finetune_operator.loop.progress import Poller
from tests.unit.operator_worlds import UID, polled

KEY = ("team", "a")


def pod_object(step: int, *, index: int = 0, running: bool = False, uid: str = UID) -> dict[str, Any]:
    """A pod as the API server tells it."""
    progress = polled(step).progress
    assert progress
    left = StageResult(stage=Stage.TRAIN, succeeded=False, progress=progress).model_dump_json()
    ended = {"terminated": {"exitCode": 143, "reason": "Error", "message": left}}
    return {
        "metadata": {
            "name": f"a-train-1-{index}-x",
            "uid": "pod",
            "creationTimestamp": "2026-05-01T12:00:00Z",
            "labels": {"finetune.dev/stage": "train", "finetune.dev/attempt": "1", "finetune.dev/job-uid": uid},
            "annotations": {"batch.kubernetes.io/job-completion-index": str(index)},
        },
        "spec": {"nodeName": "n1"},
        "status": {
            "phase": "Running" if running else "Failed",
            "containerStatuses": [{"name": "trainer", "state": {"running": {}} if running else ended}],
        },
    }


def new_poller() -> Poller:
    poller = Poller(b"0123456789abcdef", 5, lambda key: None, WritePace(60))
    poller.expect(KEY, UID)
    return poller


def known(poller: Poller, uid: str = UID) -> Progress | None:
    found = poller.latest(KEY, uid)
    return found.progress if found else None


def test_the_leaders_last_words_are_the_newest_there_is_to_know() -> None:
    poller = new_poller()
    for pod in (pod_object(90, running=True), pod_object(91, index=1)):
        poller.record_final_message(KEY, pod)
        assert known(poller) is None, "only a leader that has ended tells"
    poller.record_final_message(KEY, pod_object(50))
    poller.record_final_message(KEY, pod_object(40))
    progress = known(poller)
    assert progress
    assert progress.step == 50, "an older pod does not take back what a newer one said"


def test_another_job_of_the_same_name_is_another_story() -> None:
    poller = new_poller()
    poller.record_final_message(KEY, pod_object(50))
    assert known(poller, "another") is None
    poller.expect(KEY, "another")
    poller.record_final_message(KEY, pod_object(3, uid="another"))
    progress = known(poller, "another")
    assert progress
    assert progress.step == 3
