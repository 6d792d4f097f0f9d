"""The operator's policy, as a table: what it sees, what it says, what it does."""

from dataclasses import replace
from datetime import timedelta

import pytest

from finetune_api.beats import Recovery
from finetune_api.v1alpha1 import ConditionType, Phase
from finetune_operator.objects.facts import Obstacle
from finetune_operator.policy.conditions import is_true
from tests.unit.operator_worlds import (
    BROKEN,
    DRAINED,
    DRY,
    EVERYTHING_DONE,
    NOW,
    PREPARE,
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
    stage_job,
    world,
)

CASES = [
    Case("a new job is prepared first", world(), Phase.PREPARING, "Preparing", ["create a-prepare"]),
    Case(
        "a prepare pod that cannot be pulled says so",
        world(
            stage_job(PREPARE),
            pod(PREPARE, phase="Pending", ready=False, waiting=Obstacle("ErrImagePull", "no such image t:1")),
        ),
        Phase.PREPARING,
        "ErrImagePull",
        says="no such image t:1",
    ),
    Case(
        "a quota that keeps pods out is told",
        world(stage_job(PREPARE), pods_refused={"a-prepare": 'pods "a-prepare-x" is forbidden: exceeded quota: tight'}),
        Phase.PREPARING,
        "QuotaExceeded",
        says="exceeded quota: tight",
    ),
    Case(
        "a Job that may not be created is told",
        world(create_refused=Obstacle("CreateRefused", "jobs.batch is forbidden")),
        Phase.PREPARING,
        "CreateRefused",
        ["create a-prepare"],
        says="forbidden",
    ),
    Case(
        "what is prepared is trained: the token first",
        world(*prepared_children()),
        Phase.STARTING,
        "WaitingForNodes",
        [f"create {TOKEN_SECRET}", "create a-train-1"],
    ),
    Case(
        "a dry run ends with its plan",
        world(*prepared_children(), **DRY),
        Phase.PLANNED,
        "DryRun",
        says="set spec.dryRun to false to train",
    ),
    Case(
        "a dry run whose prepare Job is gone stays planned",
        world(status=decided(world(*prepared_children(), **DRY)).status, **DRY),
        Phase.PLANNED,
        "DryRun",
    ),
    Case(
        "a dry run that is no longer one is trained from the plan it has",
        world(status=decided(world(*prepared_children(), **DRY)).status),
        Phase.STARTING,
        "WaitingForNodes",
        [f"create {TOKEN_SECRET}", "create a-train-1"],
    ),
    Case(
        "a run that goes on is not undone by dryRun",
        world(*prepared_children(), *gang(), status=RUNNING, **DRY),
        Phase.RUNNING,
        "AllNodesReady",
    ),
    Case(
        "no further attempt is made while dryRun is true",
        world(*prepared_children(), status=RUNNING, **DRY),
        Phase.PLANNED,
        "DryRun",
    ),
    Case(
        "a prepare result that is lost is made again",
        world(stage_job(PREPARE, 0, "Complete")),
        Phase.PREPARING,
        "Preparing",
        ["delete a-prepare"],
    ),
    Case(
        "a prepare Job that is gone is not missed once its result is on the status",
        world(status=decided(world(*prepared_children())).status),
        Phase.STARTING,
        "WaitingForNodes",
        [f"create {TOKEN_SECRET}", "create a-train-1"],
    ),
    Case(
        "pods that find no node are told",
        world(
            *prepared_children(),
            stage_job(TRAIN, 1),
            pod(TRAIN, 0, 1, phase="Pending", ready=False, unschedulable="0/2 nodes: Insufficient nvidia.com/gpu"),
        ),
        Phase.STARTING,
        "Unschedulable",
        says="Insufficient nvidia.com/gpu",
    ),
    Case(
        "a queue that holds the Job back is told",
        world(*prepared_children(), stage_job(TRAIN, 1, suspended=True)),
        Phase.QUEUED,
        "Queued",
    ),
    Case(
        "one of two nodes is not enough",
        world(*prepared_children(), *gang(ready=[0])),
        Phase.STARTING,
        "WaitingForNodes",
    ),
    Case("all nodes beat", world(*prepared_children(), *gang()), Phase.RUNNING, "AllNodesReady"),
    Case(
        "nodes that have left in good order are not missed",
        world(*prepared_children(), stage_job(TRAIN, 1), pod(TRAIN, 0, 1), ended(TRAIN, "", 1, 1), status=RUNNING),
        Phase.RUNNING,
        "AllNodesReady",
    ),
    Case(
        "a spare stands in for a pod that is not ready",
        world(*prepared_children(), *gang(ready=[0, 2], nodes=3)),
        Phase.RUNNING,
        "AllNodesReady",
    ),
    Case(
        "a gang without its leader does not run",
        world(*prepared_children(), *gang(ready=[1, 2], nodes=3), status=RUNNING),
        Phase.RECOVERING,
        "Recovering",
    ),
    Case(
        "a pod that is deleted while the gang runs is a recovery",
        world(
            *prepared_children(),
            stage_job(TRAIN, 1),
            pod(TRAIN, 0, 1),
            pod(TRAIN, 1, 1, deleted_at=NOW + timedelta(seconds=60), grace_seconds=75),
            status=RUNNING,
        ),
        Phase.RECOVERING,
        "Recovering",
        says="pod a-train-1-1-x on n2 is ending",
    ),
    Case(
        "a worker that died is known from the leader only",
        world(
            *prepared_children(),
            *gang(),
            status=RUNNING,
            polled=polled(
                phase="recovering", recoveries=[Recovery(generation=2, time=NOW.isoformat(), reason="rank 1 died")]
            ),
        ),
        Phase.RECOVERING,
        "Recovering",
        says="rank 1 died",
    ),
    Case(
        "a leader that does not answer is a warning, not a failure",
        world(*prepared_children(), *gang(), status=RUNNING, polled=replace(polled(), error="timed out")),
        Phase.RUNNING,
        "AllNodesReady",
    ),
    Case(
        "suspending deletes the train Job: its pods save on SIGTERM",
        world(*prepared_children(), *gang(), status=RUNNING, **SUSPEND),
        Phase.SUSPENDED,
        "Suspending",
        ["delete a-train-1"],
    ),
    Case(
        "suspending waits for pods that still save",
        world(*prepared_children(), pod(TRAIN, 0, 1), status=RUNNING, **SUSPEND),
        Phase.SUSPENDED,
        "Suspending",
    ),
    Case(
        "suspended once nothing runs",
        world(*prepared_children(), pod(TRAIN, 0, 1, **DRAINED), status=RUNNING, **SUSPEND),
        Phase.SUSPENDED,
        "Suspended",
    ),
    Case("a new job may be suspended from the start", world(**SUSPEND), Phase.SUSPENDED, "Suspended"),
    Case(
        "suspending stops a prepare stage too",
        world(stage_job(PREPARE), pod(PREPARE), **SUSPEND),
        Phase.SUSPENDED,
        "Suspending",
        ["delete a-prepare"],
    ),
    Case(
        "resuming waits for the pods of the attempt before",
        world(*prepared_children(), pod(TRAIN, 1, 1), status=RUNNING),
        Phase.STARTING,
        "Ending",
        says="1 pods",
    ),
    Case(
        "resuming waits for a Job that is being deleted",
        world(*prepared_children(), stage_job(TRAIN, 1, deleting=True), status=RUNNING),
        Phase.STARTING,
        "Ending",
    ),
    Case(
        "resuming is the next attempt",
        world(*prepared_children(), status=RUNNING),
        Phase.STARTING,
        "WaitingForNodes",
        [f"create {TOKEN_SECRET}", "create a-train-2"],
    ),
    Case(
        "another number of nodes is refused before any pod is made",
        world(*prepared_children(), status=RUNNING, spec_={"nodes": 3}),
        Phase.SUSPENDED,
        "NotSupportedYet",
        says="and then spec.nodes to 2",
    ),
    Case(
        "what is trained is exported",
        world(*prepared_children(), stage_job(TRAIN, 1, "SuccessCriteriaMet"), status=RUNNING),
        Phase.EXPORTING,
        "Exporting",
        ["create a-export"],
    ),
    Case(
        "a pod that was lost early does not spoil a success",
        world(*prepared_children(), stage_job(TRAIN, 1, "Complete"), pod(TRAIN, 1, 1, **DRAINED), status=RUNNING),
        Phase.EXPORTING,
        "Exporting",
        ["create a-export"],
    ),
    Case(
        "exported is succeeded",
        EVERYTHING_DONE,
        Phase.SUCCEEDED,
        "Succeeded",
        says="artifacts/adapter",
    ),
    Case(
        "a broken row fails the job before any training pod",
        world(stage_job(PREPARE, 0, "Failed"), ended(PREPARE, BROKEN, code=65)),
        Phase.FAILED,
        "InvalidRow",
        says="line 214",
    ),
    Case(
        "a result in another language is told, not made again and again",
        world(stage_job(PREPARE, 0, "Complete"), ended(PREPARE, '{"stage": "prepare", "news": 1}')),
        Phase.FAILED,
        "ResultUnreadable",
        says="cannot read its result",
    ),
    Case(
        "a gang that failed says why",
        world(
            *prepared_children(),
            stage_job(TRAIN, 1, "Failed"),
            ended(TRAIN, gang_failure(), 0, 1, code=78),
            status=RUNNING,
        ),
        Phase.FAILED,
        "Diverged",
        says="the loss is NaN",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_decide(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_status_follows_from_the_world_alone(case: Case) -> None:
    check_again(case)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_conditions_are_those_that_helm_waits_on(case: Case) -> None:
    status = decided(case.seen).status
    settled = {Phase.PLANNED, Phase.RUNNING, Phase.EXPORTING, Phase.SUSPENDED, Phase.SUCCEEDED, Phase.FAILED}
    assert is_true(status, ConditionType.RECONCILING) == (status.phase not in settled or status.reason == "Suspending")
    assert is_true(status, ConditionType.STALLED) == (status.phase is Phase.FAILED)
    assert status.observed_generation == 1
