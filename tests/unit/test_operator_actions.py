"""What the operator does to objects: and what it never does, whatever it sees."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from finetune_api.errors import FailureCategory, Problem
from finetune_api.messages import Stage
from finetune_api.v1alpha1 import ConditionType, FineTuneJobStatus, Phase
from finetune_operator.objects.facts import StageJob
from finetune_operator.objects.kinds import Kind
from finetune_operator.objects.machines import GpuNode
from finetune_operator.policy.conditions import condition, is_true
from finetune_operator.policy.decide import decide
from finetune_operator.policy.world import Create, Delete
from tests.unit.operator_worlds import (
    BROKEN,
    DRAINED,
    DRY,
    EVERYTHING_DONE,
    EXPORT,
    NOW,
    PREPARE,
    PREPARED,
    RUNNING,
    SETTINGS,
    TRAIN,
    acts,
    decided,
    ended,
    gang,
    pod,
    prepared_children,
    stage_job,
    world,
)


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


@pytest.mark.parametrize("without", [ConditionType.FAILED, None])
def test_what_is_terminal_never_flips_back_and_holds_no_pods(without: ConditionType | None) -> None:
    """Also if the terminal condition is of another version and cannot be read."""
    failed = decided(world(stage_job(PREPARE, 0, "Failed"), ended(PREPARE, BROKEN, code=65))).status
    known = [one for one in failed.conditions if one.type is not without]
    failed = failed.model_copy(update={"conditions": known})
    for seen in (world(status=failed), world(*prepared_children(), *gang(), status=failed)):
        assert decided(seen).status == failed
        assert acts(seen) == ["delete a-train-1"] * len(seen.jobs[1:])


@pytest.mark.parametrize("finished", [True, False])
def test_a_lost_pod_is_released_though_its_job_has_ended_or_is_being_deleted(finished: bool) -> None:
    gone = pod(TRAIN, 1, 1, deleted_at=NOW - timedelta(seconds=1), grace_seconds=75)
    seen = world(
        stage_job(TRAIN, 1, "Complete"),
        gone,
        status=decided(EVERYTHING_DONE).status if finished else RUNNING,
        deleting=not finished,
        lost_nodes=frozenset({"n2"}),
        leaving={gone.uid: 76.0},
    )
    assert acts(seen) == [f"release {gone.name} from n2"]
    earlier = replace(seen, leaving={gone.uid: 70.0})
    assert (acts(earlier), decided(earlier).wake_seconds) == ([], 5.0)


def test_time_to_live_deletes_the_job_itself() -> None:
    done = decided(EVERYTHING_DONE).status
    seen = world(status=done, spec_={"ttlSecondsAfterFinished": 60})
    early = decided(seen, NOW + timedelta(seconds=59))
    assert (early.actions, early.wake_seconds) == ((), 1.0)
    late = decided(replace(seen, job=None), NOW + timedelta(seconds=60))  # one whose spec was refused, too
    assert late.actions == (Delete(Kind.FINETUNEJOB, "a", seen.owner.uid),)


@pytest.mark.parametrize(
    ("grace", "deleted", "watched", "lost", "released"),
    [
        (75, -1, 76, True, True),  # past its grace, its node gone
        (75, -1, 76, False, False),  # its node lives: the kubelet ends it
        (75, 10, 65, True, False),  # within its grace
        (5, -1, 6, True, False),  # past a grace shorter than the agents' self-fence
        (5, -31, 36, True, True),
        (75, -80, 75, True, True),
        (75, -80, 1, True, False),  # our clock is ahead of the API server's
        (75, -80, None, True, False),  # or it is seen for the first time
    ],
)
def test_pods_on_dead_nodes_are_released_after_grace_and_fence_by_both_clocks(
    grace: int, deleted: int, watched: float | None, lost: bool, released: bool
) -> None:
    gone = pod(TRAIN, 1, 1, deleted_at=NOW + timedelta(seconds=deleted), grace_seconds=grace)
    seen = world(
        *prepared_children(),
        stage_job(TRAIN, 1),
        pod(TRAIN, 0, 1),
        gone,
        status=RUNNING,
        lost_nodes=frozenset({"n2"} if lost else ()),
        leaving={} if watched is None else {gone.uid: watched},
    )
    assert acts(seen) == ([f"release {gone.name} from n2"] if released else [])
    assert released or decided(seen).wake_seconds, "it is looked at again"


def test_pods_on_dead_nodes_are_left_alone_where_the_admin_says_so() -> None:
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


def test_prepare_is_told_of_the_smallest_gpu_that_nodes_tell_of() -> None:
    labels = {"nvidia.com/gpu.product": "A10", "nvidia.com/gpu.memory": "23028"}
    asked = {"resourcesPerNode": {"limits": {"nvidia.com/gpu": 1}}}
    [create] = decided(world(nodes=(GpuNode("n1", labels, {"nvidia.com/gpu": "1"}),), spec_=asked)).actions
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


# A train Job of an attempt, and the pods of one: None = there is none. Most of them live.
TRAIN_JOBS = st.sampled_from(
    [
        *(None, None, None, None),
        *({}, {}, {"suspended": True}),
        *({"deleting": True}, {"ends": "Complete"}, {"ends": "SuccessCriteriaMet"}),
        *({"ends": "Failed"}, {"ends": "FailureTarget"}),
    ]
)
TRAIN_PODS = st.sampled_from([None, None, {}, {"ready": False}, {"deleted_at": NOW}, DRAINED])
PREPARE_ENDS = st.sampled_from(["Complete", "Complete", "Complete", "Failed", "FailureTarget", ""])
EXPORT_ENDS = st.sampled_from([None, None, None, "", "Complete", "Failed"])
BEFORE = st.sampled_from([RUNNING, RUNNING, FineTuneJobStatus(), decided(EVERYTHING_DONE).status])


def ends_with(stage: Stage, attempt: int, ends: str = "", **more: Any) -> StageJob:
    """A Job of which one condition holds, or none."""
    return stage_job(stage, attempt, *([ends] if ends else []), **more)


@settings(max_examples=300)
@given(
    PREPARE_ENDS,
    st.tuples(TRAIN_JOBS, TRAIN_JOBS),
    st.tuples(TRAIN_PODS, TRAIN_PODS),
    EXPORT_ENDS,
    BEFORE,
    st.sampled_from([False, False, True]),
)
def test_no_two_attempts_ever_run_together(
    prepare: str,
    jobs: tuple[dict[str, Any] | None, ...],
    gangs: tuple[dict[str, Any] | None, ...],
    export: str | None,
    before: FineTuneJobStatus,
    suspend: bool,
) -> None:
    """Whatever is seen: a train Job is made only where no other is and no pod of one lives, and where two live, the
    decision leaves one of them at most, and none of a job that has ended."""
    trains = [ends_with(TRAIN, attempt, **how) for attempt, how in enumerate(jobs, 1) if how is not None]
    pods = [pod(TRAIN, 0, attempt, **how) for attempt, how in enumerate(gangs, 1) if how is not None]
    exports = [] if export is None else [ends_with(EXPORT, 0, export)]
    children = (ends_with(PREPARE, 0, prepare), ended(PREPARE, PREPARED), *trains, *pods, *exports)
    seen = world(*children, status=before, spec_={"suspend": suspend})
    decision = decided(seen)
    event(f"{sum(job.living for job in trains)} train Jobs live")
    made = [one for one in decision.actions if isinstance(one, Create) and "-train-" in one.body["metadata"]["name"]]
    assert not (made and (suspend or before.completion_time or trains or any(not pod.over for pod in pods)))
    deleted = {one.uid for one in decision.actions if isinstance(one, Delete)}
    left = [job for job in trains if job.living and job.uid not in deleted]
    over = decision.status.phase in {Phase.FAILED, Phase.SUCCEEDED, Phase.SUSPENDED}
    assert len(left) <= (0 if over else 1)
    conditions = decision.status.conditions
    assert len({one.type for one in conditions}) == len(conditions)
    assert condition(decision.status, ConditionType.ACCEPTED)
