"""A job that was accepted is never failed by its spec: what is wrong with a new one is told, the last one goes on."""

import json
from dataclasses import replace
from typing import Any

import pytest

from finetune_api.v1alpha1 import ConditionType, FineTuneJobStatus, Phase
from finetune_operator.policy.accepted import read_spec
from finetune_operator.policy.conditions import condition, is_true
from finetune_operator.policy.world import Create, ObservedJob
from tests.unit.operator_worlds import (
    EVERYTHING_DONE,
    PREPARE,
    RUNNING,
    UID,
    acts,
    decided,
    gang,
    prepared_children,
    spec,
    stage_job,
    world,
)

NEW = FineTuneJobStatus()
MADE_FROM = spec(recovery={"maxRestarts": 3})
JOBS = (stage_job(PREPARE, 0, "Complete", written=json.dumps({"spec": MADE_FROM})),)


def raw(**changes: Any) -> dict[str, Any]:
    """The object as the API server has it."""
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": "a", "namespace": "team", "uid": UID},
        "spec": {**MADE_FROM, **changes},
    }


@pytest.mark.parametrize(
    ("changes", "code", "counts"),
    [
        ({}, None, {}),
        ({"budget": {"maxGPUHours": 10}}, "NotSupportedYet", {"budget": ...}),
        ({"recovery": {"onDivergence": "RollBack"}}, "NotSupportedYet", {"recovery": {"maxRestarts": 3}}),
        (
            {"recovery": {"maxRestarts": -1}, "suspend": True},
            "OutOfRange",
            {"recovery": {"maxRestarts": 3}, "suspend": True},
        ),
        ({"news": {"of": "a newer version"}}, "UnknownField", {"news": ...}),
        ({"export": {"attempt": 2, "news": 1}}, "UnknownField", {"export": ...}),
    ],
)
def test_what_is_wrong_with_a_new_spec_leaves_the_accepted_one(
    changes: dict[str, Any], code: str | None, counts: dict[str, Any]
) -> None:
    reading = read_spec(raw(**changes), RUNNING, JOBS)
    assert [one.code for one in reading.problems] == ([code] if code else [])
    expected = {name: value for name, value in {**raw(**changes)["spec"], **counts}.items() if value is not ...}
    assert reading.written == expected
    assert reading.job
    assert reading.job.spec.suspend == changes.get("suspend", False)


def test_a_rule_that_a_newer_version_added_does_not_count_for_a_job_that_was_accepted() -> None:
    broken = {"checkpoint": {"everySteps": 5, "everyMinutes": 5}}
    jobs = (stage_job(PREPARE, 0, "Complete", written=json.dumps({"spec": {**MADE_FROM, **broken}})),)
    reading = read_spec(raw(**broken), RUNNING, jobs)
    assert [one.code for one in reading.problems] == ["Conflict"]
    assert reading.job
    assert reading.job.spec.checkpoint.every_steps == 5


def test_without_a_job_that_tells_the_accepted_spec_what_can_be_read_counts() -> None:
    assert read_spec(raw(news=1), RUNNING, ()).job
    assert read_spec(raw(nodes=10**6), RUNNING, ()).job is None
    assert read_spec(raw(nodes=10**6), RUNNING, (stage_job(PREPARE, written="gibberish"),)).job is None


def test_a_new_job_is_refused() -> None:
    assert read_spec(raw(news=1), NEW, ()).job is None


def patched(*children: Any, status: FineTuneJobStatus = RUNNING, **changes: Any) -> ObservedJob:
    """A job whose spec was changed when it had these children."""
    reading = read_spec(raw(**changes), status, JOBS)
    seen = world(*children, status=status, generation=2, job=reading.job, problems=reading.problems)
    return replace(seen, ttl_seconds=reading.written.get("ttlSecondsAfterFinished"))


@pytest.mark.parametrize(
    "changes", [{"budget": {"maxGPUHours": 10}}, {"news": 1}, {"recovery": {"onDivergence": "Pray"}}]
)
def test_a_running_job_with_a_bad_spec_is_degraded_and_runs_on(changes: dict[str, Any]) -> None:
    decision = decided(patched(*prepared_children(), *gang(), **changes))
    status = decision.status
    assert (status.phase, decision.actions) == (Phase.RUNNING, ())
    assert is_true(status, ConditionType.ACCEPTED)
    degraded = condition(status, ConditionType.DEGRADED)
    assert degraded
    assert (degraded.status.value, degraded.reason) == ("True", "SpecRefused")
    assert next(iter(changes)) in degraded.message
    assert degraded.message.endswith("the job continues with the last accepted spec")
    assert [one.reason for one in decision.milestones if one.warning] == ["SpecRefused"]
    again = decided(patched(*prepared_children(), *gang(), status=status, **changes))
    assert (again.status, again.milestones) == (status, ())
    mended = decided(world(*prepared_children(), *gang(), status=status)).status
    assert not is_true(mended, ConditionType.DEGRADED)


def test_the_next_attempt_of_a_degraded_job_is_made_from_the_accepted_spec() -> None:
    made = [one for one in decided(patched(*prepared_children(), news=1)).actions if isinstance(one, Create)]
    annotations = made[-1].body["spec"]["template"]["metadata"]["annotations"]
    assert json.loads(annotations["finetune.dev/job"])["spec"] == MADE_FROM


def test_a_job_whose_spec_cannot_be_read_at_all_keeps_what_runs_and_begins_nothing() -> None:
    for children in ((*prepared_children(), *gang()), prepared_children()):
        seen = patched(*children, nodes=10**6)
        assert seen.job, "the Job tells what was accepted"
        seen = replace(seen, job=None)
        status = decided(seen).status
        assert acts(seen) == []
        assert (status.phase, status.observed_generation) == (Phase.RUNNING, 2)
        assert is_true(status, ConditionType.DEGRADED)
        assert not is_true(status, ConditionType.FAILED)


SUCCEEDED, FAILED = decided(EVERYTHING_DONE).status, decided(world(stage_job(PREPARE, 0, "Failed"))).status


@pytest.mark.parametrize(
    ("status", "changes", "reason"),
    [
        (SUCCEEDED, {"export": {"attempt": 2, "news": 1}}, "SpecRefused"),
        (SUCCEEDED, {"export": {"attempt": 2, "resources": {"limits": {"memory": "much"}}}}, "SpecRefused"),
        (SUCCEEDED, {"nodes": 10**6}, "SpecRefused"),
        (FAILED, {"export": {"attempt": 2}}, "NothingToExport"),
        (FAILED, {"ttlSecondsAfterFinished": 99}, None),
    ],
)
def test_a_patch_that_does_nothing_to_a_job_that_has_ended_is_told(
    status: FineTuneJobStatus, changes: dict[str, Any], reason: str | None
) -> None:
    seen = patched(status=status, **changes)
    decision = decided(seen)
    told = condition(decision.status, ConditionType.DEGRADED)
    assert (told and told.reason) == reason
    assert (decision.status.phase, decision.actions) == (status.phase, ())
    assert [one.reason for one in decision.milestones if one.warning] == ([reason] if reason else [])
    assert decision.status.observed_generation == 2, "it was looked at"
    again = decided(replace(seen, status=decision.status))
    assert (again.status, again.milestones) == (decision.status, ()), "and told once"
    mended = decided(replace(patched(status=decision.status), generation=3)).status
    assert not is_true(mended, ConditionType.DEGRADED)
    assert mended.phase is status.phase


def test_a_job_that_has_ended_is_not_judged_again_by_another_version() -> None:
    reading = read_spec(raw(news=1), SUCCEEDED, JOBS)
    assert decided(world(status=SUCCEEDED, job=reading.job, problems=reading.problems)).status == SUCCEEDED


@pytest.mark.parametrize(
    ("dataset", "field"),
    [
        ({"train": "file://data/train.jsonl"}, "spec.dataset.train"),
        ({"train": "data/train.jsonl"}, "spec.dataset.train"),
        ({"train": "./x.csv"}, "spec.dataset.train"),
        ({"mix": [{"uri": "~/x"}]}, "spec.dataset.mix[0].uri"),
        ({"train": "team/rows", "eval": "x.csv"}, "spec.dataset.eval"),
        ({"train": "team/rows?split=train", "eval": "hf://datasets/team/rows?split=test"}, None),
        ({"train": "file:///data/a b.csv", "eval": {"split": 0.1}}, None),
    ],
)
def test_a_path_of_the_users_machine_is_refused_on_a_cluster(dataset: dict[str, Any], field: str | None) -> None:
    problems = read_spec(raw(dataset=dataset), NEW, ()).problems
    assert [(one.code, one.field) for one in problems] == ([("RelativePath", field)] if field else [])
    assert all("no files of the machine where the job was written" in one.message for one in problems)


@pytest.mark.parametrize(
    ("uri", "code"),
    [
        ("file://copies", "RelativePath"),
        ("file:///scratch/copies", "FolderOfPod"),
        ("file:///mnt/shared-not", "FolderOfPod"),
        ("file:///mnt/shared/copies", None),
        ("s3://copies/bot", None),
    ],
)
def test_a_push_to_a_folder_that_ends_with_the_pod_is_refused(uri: str, code: str | None) -> None:
    volumes = [{"name": "shared", "persistentVolumeClaim": {"claimName": "shared"}}]
    template = {"volumes": volumes, "volumeMounts": [{"name": "shared", "mountPath": "/mnt/shared/"}]}
    export = {"merge": True, "push": [{"storage": {"uri": uri}}]}
    problems = read_spec(raw(export=export, podTemplate=template), NEW, ()).problems
    assert [(one.code, one.field) for one in problems] == ([(code, "spec.export.push[0].storage.uri")] if code else [])
