"""What the operator does to objects: and what it never does, whatever it sees."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.errors import FailureCategory, Problem
from finetune_api.v1alpha1 import ConditionType, FineTuneJobStatus, Phase
from finetune_operator.conditions import condition, is_true
from finetune_operator.decide import decide
from finetune_operator.kinds import Kind
from finetune_operator.machines import Node
from finetune_operator.world import Create, Delete
from tests.unit.operator_worlds import (
    BROKEN,
    DRAINED,
    DRY,
    EVERYTHING_DONE,
    EXPORT,
    NOW,
    PREPARE,
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


def test_what_is_terminal_never_flips_back() -> None:
    failed = decided(world(stage_job(PREPARE, 0, "Failed"), ended(PREPARE, BROKEN, code=65))).status
    for seen in (world(status=failed), world(*prepared_children(), *gang(), status=failed)):
        assert decided(seen).status == failed
        assert decided(seen).actions == ()


def test_time_to_live_deletes_the_job_itself() -> None:
    done = decided(EVERYTHING_DONE).status
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
