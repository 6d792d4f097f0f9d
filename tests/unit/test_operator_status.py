"""What stands on the object, and the story that its Events tell."""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from finetune_api.beats import CheckpointFacts, EvalMetrics, Outage, Recovery
from finetune_api.errors import FailureCategory
from finetune_api.messages import Artifact, PushedCopy
from finetune_api.results import Approval, ServeOutcome, SuiteOutcome
from finetune_api.v1alpha1 import ConditionType, FineTuneJobStatus, Phase
from finetune_operator.cluster.act import stored
from finetune_operator.policy.conditions import condition
from tests.unit.operator_worlds import (
    DRAINED,
    EVERYTHING_DONE,
    EXPORT,
    EXPORTED,
    NOW,
    PLAN,
    PREPARE,
    PREPARED,
    RUNNING,
    SUSPEND,
    TRAIN,
    UID,
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


def test_the_metrics_of_the_last_step_are_on_the_object_until_newer_ones_come() -> None:
    children = (*prepared_children(), *gang())
    margin = {"rewards/margins": 0.5}
    told = decided(world(*children, status=RUNNING, polled=polled(metrics=margin))).status
    assert told.progress
    assert told.progress.metrics == margin
    recovering = decided(world(*children, status=told, polled=polled(metrics={}))).status
    assert recovering.progress
    assert recovering.progress.metrics == margin


def test_an_outage_of_storage_is_told_with_the_last_commit_until_it_is_over() -> None:
    outage = Outage(since="2026-05-01T11:50:00+00:00", message="SlowDown", last_commit="2026-05-01T11:49:00+00:00")
    children = (*prepared_children(), *gang())
    before = decided(world(*children, status=RUNNING, polled=polled()))
    during = decided(world(*children, status=before.status, polled=polled(step=60, outage=outage)))
    told = condition(during.status, ConditionType.CHECKPOINTED)
    assert told
    assert (told.status, told.reason) == ("False", "StorageRefuses")
    for part in ("since 2026-05-01T11:50", "SlowDown", "committed at 2026-05-01T11:49", "Training continues"):
        assert part in told.message
    assert [one.reason for one in during.milestones if one.warning] == ["StorageRefuses"]
    still = decided(world(*children, status=during.status, polled=polled(step=70, outage=outage)))
    assert not still.milestones, "it is told once"
    after = decided(world(*children, status=still.status, polled=polled(step=80)))
    assert [one.reason for one in after.milestones] == ["Committed"]


@pytest.mark.parametrize(
    "odd",
    [
        {"stopped_early": "x" * 9000},
        {"phase": "x" * 9000, "recoveries": [Recovery(generation=2, time="yesterday", reason="x" * 9000)]},
        {"recoveries": [Recovery(generation=2, time=NOW.isoformat(), reason="x" * 9000)] * 50},
        {"evals": [EvalMetrics(step=1, values={f"m{number}": 1.0 for number in range(70)})]},
        {"evals": [EvalMetrics(step=1, values={"m" * 9000: float("nan")})]},
        {"checkpoints": [CheckpointFacts(step=1, saved="", size_bytes=10**40)]},
        {"step": 10**40, "max_steps": 10**40, "checkpoint_count": 10**40, "generation": -(10**40)},
        *(
            {name: odd}
            for name in ("loss", "epoch", "tokens_per_second", "eta_seconds", "train_seconds", "mfu", "data_wait")
            for odd in (float("nan"), float("inf"), -1e300)
        ),
    ],
    ids=lambda odd: next(iter(odd)),
)
def test_whatever_a_pod_says_of_its_progress_the_job_can_still_be_suspended(odd: dict[str, Any]) -> None:
    for children in (gang(), (stage_job(TRAIN, 1, "Complete"),)):
        seen = world(*prepared_children(), *children, status=RUNNING, polled=polled(**odd), **SUSPEND)
        decision = decided(seen)
        plain = stored(decision.status)
        json.dumps(plain, allow_nan=False)
        assert all(-(2**63) <= one < 2**63 for one in numbers(plain) if isinstance(one, int))
        assert "a-train-1" in [one.name for one in decision.actions] or children[0].complete  # type: ignore[union-attr]


def numbers(value: Any) -> Iterator[Any]:
    """Every leaf of JSON."""
    if isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from numbers(one)
    else:
        yield value


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


def test_what_the_evaluation_of_an_artifact_warns_of_stands_on_it_and_is_told_once() -> None:
    said = "BiasAmplified: the gap is 34 points larger than in the data"
    artifact = Artifact(kind="adapter", uri="s3://b/p/a", step=9, warnings=(said,))
    seen = world(
        *prepared_children(),
        stage_job(TRAIN, 1, "Complete"),
        stage_job(EXPORT, 0, "Complete"),
        ended(EXPORT, EXPORTED.model_copy(update={"artifacts": (artifact,)})),
        status=RUNNING,
    )
    first = decided(seen)
    assert [one.warnings for one in first.status.artifacts] == [[said]]
    assert [one.message for one in first.milestones if one.reason == "EvaluationWarning" and one.warning] == [said]
    again = decided(replace(seen, status=first.status))
    assert "EvaluationWarning" not in [one.reason for one in again.milestones]


def test_copies_in_other_places_stand_on_the_artifact_and_each_is_told_once() -> None:
    copy = PushedCopy(uri="https://huggingface.co/team/a", digest="c0ffee")
    artifact = Artifact(kind="model", uri="s3://b/p/a", step=9, pushed=(copy,))
    seen = world(
        *prepared_children(),
        stage_job(TRAIN, 1, "Complete"),
        stage_job(EXPORT, 0, "Complete"),
        ended(EXPORT, EXPORTED.model_copy(update={"artifacts": (artifact,)})),
        status=RUNNING,
    )
    first = decided(seen)
    [[status]] = [one.pushed for one in first.status.artifacts]
    assert (status.uri, status.digest) == (copy.uri, copy.digest)
    told = [one.message for one in first.milestones if one.reason == "Pushed" and not one.warning]
    assert told == ["merged: https://huggingface.co/team/a (c0ffee)"]
    assert copy.uri in next(one.message for one in first.status.conditions if one.type == "Exported")
    again = decided(replace(seen, status=first.status))
    assert "Pushed" not in [one.reason for one in again.milestones]
    without = artifact.model_copy(update={"pushed": ()})
    assert "pushed" not in without.model_dump(mode="json"), "readers of 0.1.0 refuse fields that they do not know"


def test_gates_become_a_condition_that_follows_each_export_and_fails_no_job() -> None:
    failed = Approval(approved=False, message="1 of 1 gate failed: loss 2.1 fails < base (base 2)")
    passed = Approval(approved=True, message="1 gate passed: loss 1.9 passes < base (base 2)")
    broken = Approval(approved=False, message="the model could not be judged: killed", judged=False)
    told = []
    status = RUNNING
    for approval in (None, failed, passed, broken, None):
        seen = world(
            *prepared_children(),
            stage_job(TRAIN, 1, "Complete"),
            stage_job(EXPORT, 0, "Complete"),
            ended(EXPORT, EXPORTED.model_copy(update={"approval": approval})),
            status=status.model_copy(update={"phase": RUNNING.phase}),
        )
        decision = decided(seen)
        assert decision.status.phase == Phase.SUCCEEDED
        one = condition(decision.status, ConditionType.APPROVED)
        events = [event.warning for event in decision.milestones if event.reason in ("GatesFailed", "NotJudged")]
        told.append((one and (one.status.value, one.reason, one.message), events))
        kept = [kind for kind in decision.status.conditions if kind.type is ConditionType.APPROVED]
        status = RUNNING.model_copy(update={"conditions": [*RUNNING.conditions, *kept]})
    assert told == [
        (None, []),
        (("False", "GatesFailed", failed.message), [True]),
        (("True", "GatesPassed", passed.message), []),
        (("False", "NotJudged", broken.message), [True]),
        (("False", "NoGates", "the last export had no gates"), []),
    ]


def test_an_artifact_says_whether_it_passed_the_gates() -> None:
    [plain] = EXPORTED.artifacts
    made = [plain.model_copy(update={"approved": approved}) for approved in (None, False, True)]
    assert "approved" not in plain.to_json(), "an operator of 0.1.0 knows no such field"
    exported = ended(EXPORT, EXPORTED.model_copy(update={"artifacts": tuple(made)}))
    children = (*prepared_children(), stage_job(TRAIN, 1, "Complete"), stage_job(EXPORT, 0, "Complete"), exported)
    assert [one.approved for one in decided(world(*children, status=RUNNING)).status.artifacts] == [None, False, True]
    older = EXPORTED.model_copy(update={"approval": Approval(approved=False, message="1 of 1 gate failed")})
    children = (*children[:-1], ended(EXPORT, older))
    assert [one.approved for one in decided(world(*children, status=RUNNING)).status.artifacts] == [False]


def test_the_values_of_suites_are_on_the_object_until_the_next_export() -> None:
    assert "suites" not in EXPORTED.to_json(), "an operator of 0.1.0 knows no such field"
    suites = (
        SuiteOutcome(name="own", values={"colours.acc": 0.5, "colours.nan": float("nan")}),
        SuiteOutcome(name="lost", problem="no such task"),
    )
    trained = (*prepared_children(), stage_job(TRAIN, 1, "Complete"))
    exported = ended(EXPORT, EXPORTED.model_copy(update={"suites": suites}))
    status = decided(world(*trained, stage_job(EXPORT, 0, "Complete"), exported, status=RUNNING)).status
    told = [(one.name, one.values, one.message) for one in status.suites]
    assert told == [("own", {"colours.acc": 0.5}, ""), ("lost", {}, "no such task")]
    again = RUNNING.model_copy(update={"suites": status.suites})
    assert decided(world(*trained, status=again)).status.suites == status.suites
    plain = decided(world(*trained, stage_job(EXPORT, 0, "Complete"), ended(EXPORT, EXPORTED), status=again))
    assert plain.status.suites == []


@pytest.mark.parametrize(("children", "reason"), [((), "Exporting"), ((stage_job(EXPORT, 1, "Failed"),), "Failed")])
def test_an_approval_does_not_outlast_the_export_that_it_is_of(children: tuple[Any, ...], reason: str) -> None:
    trained = (*prepared_children(), stage_job(TRAIN, 1, "Complete"))
    approval = Approval(approved=True, message="1 gate passed: loss 1.9 passes < base (base 2)")
    exported = ended(EXPORT, EXPORTED.model_copy(update={"approval": approval}))
    approved = decided(world(*trained, stage_job(EXPORT, 0, "Complete"), exported, status=RUNNING)).status
    kept = [one for one in approved.conditions if one.type is ConditionType.APPROVED]
    status = RUNNING.model_copy(update={"conditions": [*RUNNING.conditions, *kept]})
    found = condition(decided(world(*trained, *children, status=status)).status, ConditionType.APPROVED)
    assert [one.status.value for one in kept] == ["True"]
    assert found
    assert (found.status.value, found.reason) == ("False", reason)


def test_a_test_on_a_server_becomes_a_condition_that_follows_each_export_and_fails_no_job() -> None:
    same = ServeOutcome(served=True, reason="SameAnswers", message="adapter: all tokens")
    other = ServeOutcome(served=False, reason="OtherAnswers", message="adapter: 12.0% of 90 tokens")
    unknown = ServeOutcome(served=None, reason="NotTested", message="there is no vllm on PATH")
    told = []
    status = RUNNING
    for serving in (None, other, same, unknown, None):
        exported = EXPORTED.model_copy(update={"serving": serving})
        seen = world(
            *prepared_children(),
            stage_job(TRAIN, 1, "Complete"),
            stage_job(EXPORT, 0, "Complete"),
            ended(EXPORT, exported),
            status=status.model_copy(update={"phase": RUNNING.phase}),
        )
        decision = decided(seen)
        assert decision.status.phase == Phase.SUCCEEDED
        one = condition(decision.status, ConditionType.SERVED)
        events = [event.warning for event in decision.milestones if serving and event.reason == serving.reason]
        told.append((one and (one.status.value, one.reason, one.message), events))
        kept = [kind for kind in decision.status.conditions if kind.type is ConditionType.SERVED]
        status = RUNNING.model_copy(update={"conditions": [*RUNNING.conditions, *kept]})
    assert told == [
        (None, []),
        (("False", "OtherAnswers", other.message), [True]),
        (("True", "SameAnswers", same.message), [False]),
        (("Unknown", "NotTested", unknown.message), [True]),
        (("Unknown", "NoServeTest", "the last export has no serveTest"), []),
    ]


@pytest.mark.parametrize("served", [True, False, None])
def test_an_artifact_says_whether_a_server_answers_with_it(served: bool | None) -> None:
    artifact = Artifact(kind="adapter", uri="s3://b/p/a", step=9, served=served)
    seen = world(
        *prepared_children(),
        stage_job(TRAIN, 1, "Complete"),
        stage_job(EXPORT, 0, "Complete"),
        ended(EXPORT, EXPORTED.model_copy(update={"artifacts": (artifact,)})),
        status=RUNNING,
    )
    assert [one.served for one in decided(seen).status.artifacts] == [served]
    assert ("served" in artifact.to_json()) is (served is not None)  # older operators refuse a field they do not know


def test_overfitting_is_a_warning_with_the_step_where_it_turned_until_it_is_over() -> None:
    evals = [EvalMetrics(step=40, values={"eval_loss": 1.5})]
    status, told = RUNNING, []
    for since in (None, 20, 20, None):
        seen = polled(40, evals=evals, overfitting_since=since)
        decision = decided(world(*prepared_children(), *gang(), status=status, polled=seen))
        status = decision.status
        found = condition(status, ConditionType.OVERFITTING)
        told.append(
            (found and found.status.value, [one.warning for one in decision.milestones if "Eval" in one.reason])
        )
        assert since is None or (found and f"since step {since} " in found.message)
    assert told == [(None, []), ("True", [True]), ("True", []), ("False", [])]


def test_a_run_that_stopped_early_says_so_and_is_whole() -> None:
    sentence = "stopped early at step 40: eval_loss did not improve for 3 evaluations"
    seen = polled(40, stopped_early=sentence)
    done = world(*prepared_children(), stage_job(TRAIN, 1, "Complete"), status=RUNNING, polled=seen)
    status = decided(done).status
    found = condition(status, ConditionType.RUNNING)
    assert found
    assert (found.reason, found.message) == ("Trained", sentence)
    assert status.progress
    assert (status.progress.percent_text, status.progress.step_text) == ("100%", "40/100")


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
        EVERYTHING_DONE,
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
