"""The operator's policy, as a table: what it sees, what it says, what it does."""

from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.beats import Recovery
from finetune_api.errors import FailureCategory, Problem
from finetune_api.messages import Stage
from finetune_api.v1alpha1 import ConditionType, FineTuneJobStatus, Phase
from finetune_operator.conditions import condition, is_true
from finetune_operator.kinds import Kind
from finetune_operator.machines import Node
from finetune_operator.resources import secret_name
from finetune_operator.world import Create, Delete, Observed, Release
from tests.unit.operator_worlds import (
    BROKEN,
    EXPORTED,
    NOW,
    PLAN,
    PREPARED,
    SETTINGS,
    UID,
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

TOKEN_SECRET = secret_name(world().owner, SETTINGS)
PREPARE, TRAIN, EXPORT = Stage.PREPARE, Stage.TRAIN, Stage.EXPORT


def acts(seen: Observed) -> list[str]:
    """The actions of a decision, in words."""
    words = []
    for action in decided(seen).actions:
        match action:
            case Create(kind, body):
                words.append(f"create {body['metadata']['name']}")
                assert kind in {Kind.JOB, Kind.SECRET}
            case Delete(_, name, _):
                words.append(f"delete {name}")
            case Release(name, _, node):
                words.append(f"release {name} from {node}")
    return words


@dataclass(frozen=True)
class Case:
    """One world: its name, what is seen, the phase and reason it gets, and what is done."""

    name: str
    seen: Observed
    phase: Phase
    reason: str
    acts: list[str] = field(default_factory=list)
    says: str = ""

    def __str__(self) -> str:
        return self.name


RUNNING = running_status()
SUSPEND = {"spec_": {"suspend": True}}
DRY = {"spec_": {"dryRun": True}}
DRAINED = {"phase": "Failed", "ready": False, "exit_code": 143, "ended": "Error"}

CASES = [
    Case("a new job is prepared first", world(), Phase.PREPARING, "Preparing", ["create a-prepare"]),
    Case(
        "a prepare pod that cannot be pulled says so",
        world(
            stage_job(PREPARE),
            pod(PREPARE, phase="Pending", ready=False, waiting=("ErrImagePull", "no such image t:1")),
        ),
        Phase.PREPARING,
        "ErrImagePull",
        says="no such image t:1",
    ),
    Case(
        "a quota that keeps pods out is told",
        world(stage_job(PREPARE), held_up={"a-prepare": 'pods "a-prepare-x" is forbidden: exceeded quota: tight'}),
        Phase.PREPARING,
        "QuotaExceeded",
        says="exceeded quota: tight",
    ),
    Case(
        "a Job that may not be created is told",
        world(refused="jobs.batch is forbidden"),
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
        says="set it back to 2",
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
        world(
            *prepared_children(),
            stage_job(TRAIN, 1, "Complete"),
            stage_job(EXPORT, 0, "Complete"),
            ended(EXPORT, EXPORTED),
            status=RUNNING,
        ),
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
        says="cannot be read",
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
    decision = decided(case.seen)
    assert (decision.status.phase, decision.status.reason) == (case.phase, case.reason)
    assert acts(case.seen) == case.acts
    said = " ".join(one.message for one in decision.status.conditions)
    assert case.says in said


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_status_follows_from_the_world_alone(case: Case) -> None:
    """Decided again from its own status, later, a world without news gives the same status: nothing is written."""
    first = decided(case.seen).status
    again = decided(replace(case.seen, status=first), NOW + timedelta(seconds=90)).status
    same = FineTuneJobStatus.model_validate_json(first.model_dump_json(by_alias=True))
    assert same == first, "a status survives its way through JSON"
    if first.phase is not Phase.STARTING or not case.acts:
        assert again == first


@pytest.mark.parametrize("case", CASES, ids=str)
def test_conditions_are_those_that_helm_waits_on(case: Case) -> None:
    status = decided(case.seen).status
    settled = {Phase.PLANNED, Phase.RUNNING, Phase.EXPORTING, Phase.SUSPENDED, Phase.SUCCEEDED, Phase.FAILED}
    assert is_true(status, ConditionType.RECONCILING) == (status.phase not in settled or status.reason == "Suspending")
    assert is_true(status, ConditionType.STALLED) == (status.phase is Phase.FAILED)
    assert status.observed_generation == 1


def test_a_refused_spec_is_final_and_has_no_children() -> None:
    problem = Problem(code="UnknownField", field="spec.epochs", message="is unknown", cure="did you mean training?")
    seen = world(job=None, problems=(problem,))
    decision = decided(seen)
    assert decision.status.phase is Phase.FAILED
    assert decision.actions == ()
    assert not is_true(decision.status, ConditionType.ACCEPTED)
    assert decision.status.failure
    assert decision.status.failure.category is FailureCategory.USER_ERROR
    assert decision.status.failure.hint == "did you mean training?"
    later = decided(replace(seen, status=decision.status, job=world().job, problems=()))
    assert later.status == decision.status


def test_what_is_terminal_never_flips_back() -> None:
    failed = decided(world(stage_job(PREPARE, 0, "Failed"), ended(PREPARE, BROKEN, code=65))).status
    for seen in (world(status=failed), world(*prepared_children(), *gang(), status=failed)):
        assert decided(seen).status == failed
        assert decided(seen).actions == ()


def test_a_failure_tells_rank_node_code_and_log() -> None:
    seen = world(
        *prepared_children(),
        stage_job(TRAIN, 1, "Failed"),
        ended(TRAIN, gang_failure(), 0, 1, code=78),
        pod(TRAIN, 1, 1, **DRAINED),
        status=RUNNING,
    )
    failure = decided(seen).status.failure
    assert failure
    assert (failure.category, failure.rank, failure.exit_code) == (FailureCategory.DIVERGED, 1, 78)
    assert (failure.node, failure.pod, failure.log_tail) == ("n2", "a-train-1-1-x", "step 41")


@pytest.mark.parametrize(
    ("more", "category", "code"),
    [
        ({"ended": "OOMKilled", "exit_code": 137}, FailureCategory.OUT_OF_MEMORY, "OOMKilled"),
        ({"ended": "StartError", "exit_code": 128}, FailureCategory.USER_ERROR, "StartError"),
        ({"ended": "Error", "exit_code": 69}, FailureCategory.UNKNOWN, "StorageUnavailable"),
        ({"ended": "", "exit_code": None, "reason": "Evicted"}, FailureCategory.NODE_FAULT, "Evicted"),
        ({"ended": "Error", "exit_code": 1}, FailureCategory.UNKNOWN, "Error"),
    ],
)
def test_a_pod_that_left_no_result_is_explained_by_its_end(
    more: dict[str, Any], category: FailureCategory, code: str
) -> None:
    dead = pod(PREPARE, phase="Failed", ready=False, message="Traceback: boom", **more)
    failure = decided(world(stage_job(PREPARE, 0, "Failed"), dead, log_tail="boom")).status.failure
    assert failure
    assert (failure.category, failure.code) == (category, code)
    assert failure.pod == dead.name
    assert "boom" in (failure.log_tail or "")


def test_columns_are_filled_from_the_leader() -> None:
    status = decided(world(*prepared_children(), *gang(), status=RUNNING, polled=polled())).status
    assert status.progress
    shown = status.progress
    assert (shown.percent_text, shown.step_text, shown.loss_text) == ("40%", "40/100", "1.25")
    assert (shown.eta_text, shown.speed_text) == ("2m10s", "12.4k")
    assert status.last_checkpoint == "step-00000030"
    assert status.checkpoints[0].uri == f"s3://b/p/jobs/team/a/{world().owner.uid}/checkpoints/step-00000030"


def test_progress_that_is_not_known_any_more_stays() -> None:
    status = decided(world(*prepared_children(), *gang(), status=RUNNING, polled=polled())).status
    again = decided(world(*prepared_children(), *gang(), status=status)).status
    assert again.progress == status.progress
    assert again.checkpoints == status.checkpoints


def test_recoveries_keep_the_node_they_happened_on() -> None:
    recovery = Recovery(generation=2, time=NOW.isoformat(), reason="node 1 was lost", node=1)
    there = world(*prepared_children(), *gang(), status=RUNNING, polled=polled(recoveries=[recovery]))
    status = decided(there).status
    assert [one.node for one in status.recoveries] == ["n2"]
    moved = [pod(TRAIN, 0, 1), pod(TRAIN, 1, 1, node="n9")]
    again = decided(replace(there, status=status, pods=(*prepared_children()[1:], *moved))).status  # type: ignore[arg-type]
    assert [one.node for one in again.recoveries] == ["n2"]
    assert again.restarts == 1


def test_time_to_live_deletes_the_job_itself() -> None:
    done = decided(CASES[[case.name for case in CASES].index("exported is succeeded")].seen).status
    seen = world(status=done, spec_={"ttlSecondsAfterFinished": 60})
    early = decided(seen, NOW + timedelta(seconds=59))
    assert (early.actions, early.wake_seconds) == ((), 1.0)
    late = decided(replace(seen, job=None), NOW + timedelta(seconds=60))  # one whose spec was refused, too
    assert late.actions == (Delete(Kind.FINETUNEJOB, "a", seen.owner.uid),)


@pytest.mark.parametrize(
    ("grace", "deleted", "lost", "released"),
    [
        (75, -1, True, True),  # past its grace, its node gone
        (75, -1, False, False),  # its node lives: the kubelet ends it
        (75, 10, True, False),  # within its grace
        (5, -1, True, False),  # past a grace shorter than the agents' self-fence
        (5, -31, True, True),
    ],
)
def test_pods_on_dead_nodes_are_released_after_grace_and_fence(
    grace: int, deleted: int, lost: bool, released: bool
) -> None:
    gone = pod(TRAIN, 1, 1, deleted_at=NOW + timedelta(seconds=deleted), grace_seconds=grace)
    seen = world(
        *prepared_children(),
        stage_job(TRAIN, 1),
        pod(TRAIN, 0, 1),
        gone,
        status=RUNNING,
        lost_nodes=frozenset({"n2"} if lost else ()),
    )
    assert acts(seen) == ([f"release {gone.name} from n2"] if released else [])
    assert released or decided(seen).wake_seconds, "it is looked at again"


def test_pods_on_dead_nodes_are_left_alone_where_the_admin_says_so() -> None:
    from finetune_operator.decide import decide

    gone = pod(TRAIN, 1, 1, deleted_at=NOW - timedelta(minutes=9), grace_seconds=60)
    seen = world(*prepared_children(), stage_job(TRAIN, 1), gone, status=RUNNING, lost_nodes=frozenset({"n2"}))
    assert decide(seen, NOW, replace(SETTINGS, force_delete=False)).actions == ()


def test_a_deleted_job_is_left_to_the_garbage_collector() -> None:
    decision = decided(world(*prepared_children(), deleting=True))
    assert (decision.actions, decision.milestones) == ((), ())


def test_a_namespace_that_is_deleted_is_not_held_up_by_jobs_that_cannot_replace_their_pods() -> None:
    """The Job controller keeps an ended pod until it has made the next one; in such a namespace it never can."""
    kept = pod(TRAIN, 1, 1, **DRAINED, deleted_at=NOW)
    seen = world(*prepared_children(), stage_job(TRAIN, 1), kept, status=RUNNING, namespace_ends=True)
    assert acts(seen) == ["delete a-prepare", "delete a-train-1"]


def test_the_story_is_told_in_events() -> None:
    told = []
    status = FineTuneJobStatus()
    recovery = Recovery(
        generation=2, time=NOW.isoformat(), reason="rank 1 was killed", category=FailureCategory.UNKNOWN
    )
    for seen in (
        world(),
        world(*prepared_children()),
        world(*prepared_children(), *gang()),
        world(*prepared_children(), *gang(), polled=polled(20, recoveries=[recovery])),
        world(*prepared_children(), stage_job(TRAIN, 1, "Complete")),
        CASES[[case.name for case in CASES].index("exported is succeeded")].seen,
    ):
        decision = decided(replace(seen, status=status))
        told += [(one.warning, one.reason) for one in decision.milestones]
        status = decision.status
    assert told == [
        (False, "Preparing"),
        (False, "Prepared"),
        (False, "WaitingForNodes"),
        (False, "AllNodesReady"),
        (True, "Unknown"),
        (False, "Committed"),
        (False, "Exporting"),
        (False, "Succeeded"),
    ]


def test_prepare_is_told_of_the_smallest_gpu_that_nodes_tell_of() -> None:
    labels = {"nvidia.com/gpu.product": "A10", "nvidia.com/gpu.memory": "23028"}
    asked = {"resourcesPerNode": {"limits": {"nvidia.com/gpu": 1}}}
    [create] = decided(world(nodes=(Node("n1", labels, {"nvidia.com/gpu": "1"}),), spec_=asked)).actions
    assert isinstance(create, Create)
    [container] = create.body["spec"]["template"]["spec"]["containers"]
    assert {"name": "FINETUNE_GPU_MEMORY_MIB", "value": "23028"} in container["env"]


def test_a_dry_run_is_settled_but_not_finished() -> None:
    """Helm and GitOps tools stop waiting; nothing terminal is said, so that dryRun: false can go on."""
    status = decided(world(*prepared_children(), **DRY)).status
    assert is_true(status, ConditionType.PREPARED)
    assert not any(is_true(status, kind) for kind in (ConditionType.RECONCILING, ConditionType.STALLED))
    assert condition(status, ConditionType.COMPLETE) is None
    assert status.completion_time is None
    assert decided(world(status=status, spec_={"dryRun": True, "ttlSecondsAfterFinished": 0})).actions == ()


def test_what_the_plan_will_take_stands_on_the_object() -> None:
    plan = PLAN.model_copy(
        update={
            "estimated_hours": 2.5,
            "estimated_gpu_hours": 20.0,
            "estimated_cost": "50.00",
            "bytes_per_gpu": 61 << 30,
            "memory": "weights 14.0 GiB",
        }
    )
    result = PREPARED.model_copy(update={"plan": plan})
    status = decided(world(stage_job(PREPARE, 0, "Complete"), ended(PREPARE, result))).status
    written = status.model_dump(mode="json", by_alias=True)["plan"]
    assert [written[name] for name in ("estimatedHours", "estimatedGPUHours", "estimatedCost")] == [2.5, 20.0, "50.00"]
    assert (written["bytesPerGPU"], written["memory"]) == (61 << 30, "weights 14.0 GiB")
    told = condition(status, ConditionType.PREPARED)
    assert told
    assert told.message.endswith("about 2h30m, 20 GPU hours, cost 50.00")


def test_what_the_report_warns_of_is_told_once_each_and_stays() -> None:
    result = PREPARED.model_copy(update={"warnings": ("3 rows stand twice", "2 rows of eval stand in train")})
    seen = world(stage_job(PREPARE, 0, "Complete"), ended(PREPARE, result))
    first = decided(seen)
    assert first.status.dataset
    assert first.status.dataset.warnings == list(result.warnings)
    assert first.status.dataset.report == f"s3://b/p/jobs/team/a/{UID}/dataset-report.html"
    told = [one.message for one in first.milestones if one.reason == "DatasetWarning" and one.warning]
    assert told == list(result.warnings)
    for later in (replace(seen, status=first.status), world(*gang(), status=first.status)):
        again = decided(later)
        assert "DatasetWarning" not in [one.reason for one in again.milestones]
        assert again.status.dataset == first.status.dataset


@given(
    st.lists(st.sampled_from([None, "Complete", "Failed", "FailureTarget"]), min_size=3, max_size=3),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.sampled_from([FineTuneJobStatus(), RUNNING]),
)
def test_no_two_attempts_ever_run_together(
    ends: list[str | None], suspend: bool, deleting: bool, pods: bool, status: FineTuneJobStatus
) -> None:
    """Whatever is seen: a train Job is made only where no other is and no pod of one lives."""
    children: list[Any] = [stage_job(PREPARE, 0, *filter(None, ends[:1]))]
    if ends[1]:
        children.append(stage_job(TRAIN, 1, ends[1], deleting=deleting))
    if pods:
        children.append(pod(TRAIN, 0, 1))
    if ends[2]:
        children.append(stage_job(EXPORT, 0, ends[2]))
    seen = world(*children, ended(PREPARE, BROKEN, code=65), status=status, spec_={"suspend": suspend})
    made = [
        one for one in decided(seen).actions if isinstance(one, Create) and "-train-" in one.body["metadata"]["name"]
    ]
    assert not (made and (pods or suspend or any(job.stage is TRAIN for job in seen.jobs)))
    conditions = decided(seen).status.conditions
    assert len({one.type for one in conditions}) == len(conditions)
    assert condition(decided(seen).status, ConditionType.ACCEPTED)
