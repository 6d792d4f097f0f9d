"""Every field of `spec` carries its facts: what it does today, and whether the prepared data depends on it."""

import pytest

from finetune_api.v1alpha1 import FineTuneJobSpec
from finetune_api.v1alpha1 import field_facts as facts
from finetune_api.v1alpha1.markers import (
    Fixed,
    KeepsData,
    Later,
    Mutable,
    ShapesData,
    Supported,
    WithoutEffect,
)
from finetune_api.v1alpha1.tree import Branch, spec_fields, walk

STATUS = (Supported, WithoutEffect, Later)
DATA = (ShapesData, KeepsData)
FIELDS = spec_fields()
LEAVES = [branch for branch in FIELDS if branch.is_leaf]


def _markers(branch: Branch, kinds: tuple[type, ...]) -> list[object]:
    return [one for one in branch.info.metadata if isinstance(one, kinds)]


def _above(branch: Branch) -> list[Branch]:
    """The objects that a field lies in."""
    return [one for one in FIELDS if one.path == branch.path[: len(one.path)] and one.path != branch.path]


@pytest.mark.parametrize("branch", LEAVES, ids=lambda one: one.dotted)
def test_every_leaf_works_or_is_refused(branch: Branch) -> None:
    """On the leaf itself: an object that says "supported" would hide a field that nobody has decided about."""
    statuses = [*_markers(branch, STATUS), *(one for above in _above(branch) for one in _markers(above, (Later,)))]
    assert len(statuses) == 1, "add Supported(), WithoutEffect(...) or Later(...) to its annotation, one of them"


@pytest.mark.parametrize("branch", LEAVES, ids=lambda one: one.dotted)
def test_every_leaf_shapes_the_prepared_data_or_keeps_it(branch: Branch) -> None:
    """A field without an answer would let a job reuse data that another value has prepared."""
    assert len(_markers(branch, DATA)) == 1, "add ShapesData() or KeepsData() to its annotation, one of them"


def test_an_object_carries_only_what_holds_for_everything_below_it() -> None:
    for branch in FIELDS:
        if not branch.is_leaf and branch.dotted != "spec.dataset.eval":  # a URI, or an object
            assert not _markers(branch, (Supported, WithoutEffect, *DATA)), branch.dotted


def test_a_field_below_one_of_spec_is_mutable_at_any_time_or_not_at_all() -> None:
    """The rules of the API server compare the fields beside it one by one."""
    for branch in FIELDS:
        if len(branch.path) > 2:
            if marked := _markers(branch, (Mutable,)):
                assert (len(branch.path), marked) == (3, [Mutable()]), branch.dotted
                assert branch.path[1] not in facts.MUTABLE
        else:
            assert not _markers(branch, (Fixed,)), branch.dotted


def test_a_field_shapes_the_data_in_one_way() -> None:
    for path, shapes in facts.SHAPES_DATA.items():
        assert not (shapes.through and shapes.key), path
    keys = [shapes.key for shapes in facts.SHAPES_DATA.values() if shapes.key]
    assert len(keys) == len(set(keys))


def test_no_fact_is_lost() -> None:
    """pydantic must pass every marker of an annotation on, through aliases and defaults."""
    assert len(facts.LATER) + len(facts.WITHOUT_EFFECT) > 15
    assert {"spec.budget.maxGPUHours", "spec.resumeFrom", "spec.recovery.onDivergence"} <= facts.LATER.keys()


# What users and stored runs depend on: a change here is a change of behaviour.


def test_these_fields_may_change_after_a_job_was_created() -> None:
    assert {"suspend", "dryRun", "recovery", "budget", "export", "ttlSecondsAfterFinished"} == facts.SAME_RUN
    assert facts.MUTABLE.keys() == facts.SAME_RUN | {"nodes", "spares"}
    assert facts.MUTABLE_BELOW == ("spec.evaluation.suites",)
    assert set(facts.FIXED_BELOW) == {
        "spec.export.priorityClassName",
    }


def test_a_run_is_identified_by_what_may_not_change() -> None:
    older = {"model": {"name": "a"}, "evaluation": {"generate": 5}}
    assert facts.run_identity(older) == older
    suites = {"suites": [{"name": "a", "tasks": ["b"]}]}
    assert facts.run_identity({**older, "export": {}, "evaluation": {"generate": 5, **suites}}) == older
    assert facts.run_identity({"model": {"name": "a"}, "evaluation": suites}) == {"model": {"name": "a"}}


def test_these_fields_mean_something_on_a_cluster_only() -> None:
    assert facts.CLUSTER_ONLY == (
        "spec.evaluation.suites.command",
        "spec.evaluation.suites.image",
        "spec.evaluation.suites.resources",
        "spec.export.nodeSelector",
        "spec.export.priorityClassName",
        "spec.export.resources",
        "spec.export.serveTest.image",
        "spec.export.serveTest.resources",
        "spec.export.tolerations",
        "spec.image",
        "spec.podTemplate",
        "spec.prepare",
        "spec.priorityClassName",
        "spec.scratch",
        "spec.ttlSecondsAfterFinished",
    )


def test_a_field_without_markers_is_noticed() -> None:
    class WithForgottenField(FineTuneJobSpec):
        forgotten: int = 1

    [branch] = [one for one in walk(WithForgottenField, ("spec",)) if one.path[-1] == "forgotten"]
    assert _markers(branch, (*STATUS, *DATA)) == []
