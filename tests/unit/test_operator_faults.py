"""The operator's policy where something goes wrong, as a table: what it sees, what it says, what it does."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from finetune_api.messages import Stage
from finetune_api.v1alpha1 import Phase
from finetune_operator.objects.facts import Obstacle, StagePod
from finetune_operator.policy.decide import START_SECONDS
from finetune_operator.policy.world import Delete
from tests.unit.operator_worlds import (
    BROKEN,
    EVERYTHING_DONE,
    EXPORT,
    EXPORTED,
    NOW,
    PREPARE,
    PREPARED,
    RUNNING,
    SUSPEND,
    TOKEN_SECRET,
    TRAIN,
    Case,
    check,
    check_again,
    decided,
    ended,
    gang,
    gang_failure,
    pod,
    polled,
    prepared_children,
    running_status,
    stage_job,
    world,
)

MORE_MEMORY: dict[str, Any] = {"spec_": {"export": {"resources": {"limits": {"memory": "64Gi"}}}}}
AGAIN: dict[str, Any] = {"spec_": {"export": {"attempt": 2}}}
CONTAINER = {"name": "a", "image": "team/eval:1", "command": ["evaluate"]}
HARNESS = {"name": "b", "tasks": ["arc_easy"]}
TRAINED = (*prepared_children(), stage_job(TRAIN, 1, "Complete"))
FAILED_EXPORT = decided(world(*TRAINED, stage_job(EXPORT, 0, "Failed"), status=RUNNING)).status
RECOVERING = decided(world(*prepared_children(), *gang(ready=[1]), status=RUNNING)).status
LATER = NOW + timedelta(minutes=1)


def lacking_a_secret(secret: str) -> StagePod:
    """A pod that takes the place of one of a gang, and cannot start."""
    waiting = Obstacle("CreateContainerConfigError", f'secret "{secret}" not found')
    return pod(TRAIN, 1, 1, phase="Pending", ready=False, waiting=waiting)


def beside_a_sidecar(done: StagePod) -> StagePod:
    """A pod whose container ended well, and which a container of somebody else keeps running."""
    return replace(done, phase="Running", sidecar_runs=True)


def crashes(count: int, stage: Stage = TRAIN, **how: Any) -> list[StagePod]:
    """Pods of one node that ended badly, one after another."""
    end: dict[str, Any] = {"phase": "Failed", "ready": False, "exit_code": 1, "ended": "Error", **how}
    return [pod(stage, 0, 1 if stage is TRAIN else 0, name=f"crash-{number:02}", **end) for number in range(count)]


def starting(*pods: StagePod, **more: Any) -> Any:
    """A gang that has never run."""
    return world(*prepared_children(), stage_job(TRAIN, 1), *pods, **more)


def exporting(*children: Any, **more: Any) -> Any:
    """A run that is trained."""
    return world(*TRAINED, *children, status=RUNNING, **more)


CASES = [
    Case(
        "a child whose name somebody else has is told",
        world(create_refused=Obstacle("NameTaken", "the Job a-prepare does not belong to this FineTuneJob")),
        Phase.PREPARING,
        "NameTaken",
        ["create a-prepare"],
        says="does not belong to this FineTuneJob",
    ),
    Case(
        "a queue that holds the prepare Job back is told",
        world(stage_job(PREPARE, suspended=True)),
        Phase.PREPARING,
        "Queued",
        says="the Job a-prepare waits in its queue",
    ),
    Case(
        "a stage whose result is on the status is not asked again",
        world(stage_job(PREPARE, 0, "Complete"), ended(PREPARE, "gibberish"), *gang(), status=RUNNING),
        Phase.RUNNING,
        "AllNodesReady",
    ),
    Case(
        "a verdict of prepare is told once, with the failure of its Job",
        world(stage_job(PREPARE), ended(PREPARE, BROKEN, code=65)),
        Phase.PREPARING,
        "Preparing",
    ),
    Case(
        "a token that was deleted by hand is made again",
        world(*prepared_children(), *gang()[:2], lacking_a_secret(TOKEN_SECRET), status=RUNNING),
        Phase.RECOVERING,
        "CreateContainerConfigError",
        [f"create {TOKEN_SECRET}"],
    ),
    Case(
        "a Secret of the user's is not ours to make",
        world(*prepared_children(), *gang()[:2], lacking_a_secret("s3"), status=RUNNING),
        Phase.RECOVERING,
        "CreateContainerConfigError",
        says='secret "s3" not found',
    ),
    Case(
        "a pod that ends as soon as it runs is told with its last lines",
        starting(*crashes(1, message="ImportError: no torch")),
        Phase.STARTING,
        "PodFailed",
        says="ended with exit code 1 and reported no reason: ImportError: no torch",
    ),
    Case(
        "a pod that takes the place of one that failed is waited for in its own words",
        starting(*crashes(1), pod(TRAIN, 0, 1, phase="Pending", ready=False, unschedulable="0/2 nodes")),
        Phase.STARTING,
        "Unschedulable",
    ),
    Case("ten pods of a node that failed are within the budget", starting(*crashes(10)), Phase.STARTING, "PodFailed"),
    Case(
        "a gang that never forms fails, and holds no pods",
        starting(*crashes(11, message="ImportError: no torch")),
        Phase.FAILED,
        "StartFailed",
        ["delete a-train-1"],
        says="11 pods of node 0 ended one after another before the gang ran",
    ),
    Case(
        "maxRestarts is the budget of a start, too",
        starting(*crashes(3), spec_={"recovery": {"maxRestarts": 2}}),
        Phase.FAILED,
        "StartFailed",
        ["delete a-train-1"],
    ),
    *(
        Case(f"{name} costs nothing of a start's budget", starting(*crashes(11, **how)), Phase.STARTING, reason)
        for name, reason, how in [
            ("an announced stop", "WaitingForNodes", {"exit_code": 143}),
            ("an outage of storage", "StorageUnavailable", {"exit_code": 69}),
            ("a peer that was lost", "PodFailed", {"exit_code": 70}),
            ("a node that was lost", "DeletionByTaintManager", {"disruption": "DeletionByTaintManager"}),
        ]
    ),
    Case(
        "a verdict of the gang is waited for, not overtaken",
        starting(ended(TRAIN, gang_failure(), 0, 1, code=78), polled=polled(), spec_={"recovery": {"maxRestarts": 0}}),
        Phase.STARTING,
        "WaitingForNodes",
    ),
    Case(
        "the leader, not the operator, judges a pod that a running gang loses",
        world(
            *prepared_children(), *gang(ready=[1]), *crashes(1), status=RUNNING, spec_={"recovery": {"maxRestarts": 0}}
        ),
        Phase.RECOVERING,
        "Recovering",
    ),
    Case(
        "pods that failed before the gang ran are forgotten",
        world(*prepared_children(), *gang(), *crashes(11), status=RUNNING),
        Phase.RUNNING,
        "AllNodesReady",
    ),
    Case(
        "pods that failed before the gang stopped running do not count",
        world(*prepared_children(), *gang(ready=[1]), *crashes(11), status=RECOVERING),
        Phase.RECOVERING,
        "Recovering",
    ),
    Case(
        "a gang that ran and cannot form again fails at last",
        world(*prepared_children(), *gang(ready=[1]), *crashes(11, created=LATER), status=RECOVERING),
        Phase.FAILED,
        "StartFailed",
        ["delete a-train-1"],
    ),
    Case(
        "a Job of an earlier attempt is deleted: a frozen leader made it",
        world(*prepared_children(), *gang(2), *gang(1), status=running_status(2)),
        Phase.RUNNING,
        "AllNodesReady",
        ["delete a-train-1"],
    ),
    Case(
        "a verdict that is being carried out is not undone by suspending",
        world(
            *prepared_children(),
            stage_job(TRAIN, 1, "FailureTarget"),
            ended(TRAIN, gang_failure(), 0, 1, code=78),
            pod(TRAIN, 1, 1),
            status=RUNNING,
            polled=polled(),
            **SUSPEND,
        ),
        Phase.SUSPENDED,
        "Suspending",
    ),
    Case(
        "a prepare stage that is done beside a sidecar is done",
        world(stage_job(PREPARE), beside_a_sidecar(ended(PREPARE, PREPARED))),
        Phase.STARTING,
        "WaitingForNodes",
        [f"create {TOKEN_SECRET}", "create a-train-1"],
    ),
    Case(
        "a sidecar is ended once the result of its stage is on the status",
        world(stage_job(PREPARE), beside_a_sidecar(ended(PREPARE, PREPARED)), *gang(), status=RUNNING),
        Phase.RUNNING,
        "AllNodesReady",
        ["delete a-prepare"],
    ),
    Case(
        "a training that is done beside sidecars is done",
        starting(beside_a_sidecar(ended(TRAIN, "", 0, 1)), pod(TRAIN, 1, 1)),
        Phase.EXPORTING,
        "Exporting",
        ["create a-export"],
    ),
    Case(
        "an export that is done beside a sidecar is done",
        exporting(stage_job(EXPORT), beside_a_sidecar(ended(EXPORT, EXPORTED))),
        Phase.SUCCEEDED,
        "Succeeded",
    ),
    Case(
        "a container that ended a moment before its pod is not taken for one beside a sidecar",
        exporting(stage_job(EXPORT), replace(ended(EXPORT, EXPORTED), phase="Running")),
        Phase.EXPORTING,
        "Exporting",
    ),
    Case(
        "a sidecar does not outlive its job",
        world(*TRAINED, stage_job(EXPORT), status=decided(EVERYTHING_DONE).status),
        Phase.SUCCEEDED,
        "Succeeded",
        ["delete a-export"],
    ),
    Case(
        "an export is tried again through an outage",
        exporting(stage_job(EXPORT), *crashes(40, EXPORT, exit_code=69)),
        Phase.EXPORTING,
        "StorageUnavailable",
    ),
    Case(
        "an export that needs more memory waits for it",
        exporting(stage_job(EXPORT), *crashes(40, EXPORT, exit_code=137, ended="OOMKilled")),
        Phase.EXPORTING,
        "OOMKilled",
    ),
    Case(
        "an export gets the resources that its job has by now",
        exporting(stage_job(EXPORT, written='{"spec": {}}'), **MORE_MEMORY),
        Phase.EXPORTING,
        "Ending",
        ["delete a-export"],
    ),
    Case(
        "an export gets the containers of the suites that its job has by now",
        exporting(stage_job(EXPORT, written='{"spec": {}}'), spec_={"evaluation": {"suites": [CONTAINER]}}),
        Phase.EXPORTING,
        "Ending",
        ["delete a-export"],
    ),
    Case(
        "an export goes on while suites without a container change",
        exporting(stage_job(EXPORT, written='{"spec": {}}'), pod(EXPORT), spec_={"evaluation": {"suites": [HARNESS]}}),
        Phase.EXPORTING,
        "Exporting",
    ),
    Case("two exports never run together", exporting(pod(EXPORT), **MORE_MEMORY), Phase.EXPORTING, "Ending"),
    Case(
        "an export fails by its own faults",
        exporting(stage_job(EXPORT), *crashes(4, EXPORT, message="KeyError: weights")),
        Phase.FAILED,
        "Error",
        ["delete a-export"],
    ),
    Case(
        "an export that failed is made again when the job asks for another",
        world(*TRAINED, stage_job(EXPORT, 0, "Failed"), status=FAILED_EXPORT, **AGAIN),
        Phase.EXPORTING,
        "Exporting",
        ["create a-export-2"],
    ),
    Case(
        "a job that has succeeded is exported again when it asks for another",
        world(status=decided(EVERYTHING_DONE).status, **AGAIN),
        Phase.EXPORTING,
        "Exporting",
        ["create a-export-2"],
    ),
    Case(
        "another export while one runs ends that one first",
        exporting(stage_job(EXPORT), pod(EXPORT), **AGAIN),
        Phase.EXPORTING,
        "Ending",
        ["delete a-export"],
    ),
    Case(
        "the second export ends as the first did",
        world(
            *TRAINED,
            stage_job(EXPORT, 0, "Failed"),
            stage_job(EXPORT, 2, "Complete"),
            ended(EXPORT, EXPORTED, 0, 2),
            status=FAILED_EXPORT,
            **AGAIN,
        ),
        Phase.SUCCEEDED,
        "Succeeded",
        says="artifacts/adapter",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_goes_wrong_is_told_and_answered(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_is_told_of_a_fault_follows_from_the_world_alone(case: Case) -> None:
    check_again(case)


@pytest.mark.parametrize("job", [stage_job(PREPARE), stage_job(TRAIN, 1)], ids=["prepare", "train"])
def test_a_job_that_lacks_pods_is_looked_at_again_as_only_events_tell_why(job: Any) -> None:
    """A quota or a policy that refuses pods makes Events, and no change that a watch tells."""
    children = (job,) if job.stage is PREPARE else (*prepared_children(), job)
    assert decided(world(*children)).wake_seconds == START_SECONDS


def test_last_words_that_cannot_be_read_hold_up_nothing() -> None:
    dead = pod(TRAIN, 0, 1, phase="Failed", ready=False, exit_code=1, ended="Error", message="[" * 1500)
    seen = world(*prepared_children(), stage_job(TRAIN, 1), dead, status=RUNNING, **SUSPEND)
    assert any(isinstance(action, Delete) for action in decided(seen).actions), "it can be suspended"
