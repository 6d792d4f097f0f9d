"""A stage's result fits into a termination message, and says what was left out."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from finetune_api.beats import CheckpointFacts, EvalMetrics, Failure, Progress, Recovery, RecoveryCounts
from finetune_api.errors import FailureCategory, Problem
from finetune_api.messages import Artifact, DatasetFacts, MethodType, PushedCopy, SplitFacts, Stage, Task
from finetune_api.results import Approval, PlanSummary, ServeOutcome, StageResult, SuiteOutcome
from finetune_trainer.process.termination import LIMIT, fit

FACTS = DatasetFacts(sha256="0" * 64, train=SplitFacts(rows=1, tokens=1, trained_tokens=1, longest=1))


def problems(count: int, length: int) -> tuple[Problem, ...]:
    return tuple(
        Problem(code=f"Code{index}", field="spec.dataset.train", message="ä" * length, cure="c", lines=(1, 2, 3))
        for index in range(count)
    )


@pytest.mark.parametrize(("count", "length"), [(1, 10), (1, 10_000), (15, 200), (100, 10), (100, 10_000)])
def test_a_result_always_fits_and_counts_what_was_left_out(count: int, length: int) -> None:
    text = fit(StageResult(stage=Stage.PREPARE, succeeded=False, problems=problems(count, length)))
    assert len(text.encode()) <= LIMIT
    result = StageResult.model_validate_json(text)
    assert result.problems[0].code == "Code0"
    left = count - len(result.problems)
    assert result.note == (f"{left} more problems in the log" if left else "")


def test_a_small_result_is_left_as_it_is() -> None:
    result = StageResult(stage=Stage.PREPARE, succeeded=False, problems=problems(3, 20), note="n")
    assert StageResult.model_validate_json(fit(result)) == result


def test_artifacts_are_kept_where_their_copies_do_not_fit() -> None:
    copies = tuple(PushedCopy(uri=f"s3://{'bucket' * 30}/{number}", digest="0" * 200) for number in range(8))
    artifacts = tuple(
        Artifact(kind="model", uri=f"s3://runs/{number}", step=3, digest="sha256:1", pushed=copies)
        for number in range(2)
    )
    text = fit(StageResult(stage=Stage.EXPORT, succeeded=True, artifacts=artifacts))
    assert len(text.encode()) <= LIMIT
    kept = StageResult.model_validate_json(text).artifacts
    assert kept == tuple(one.model_copy(update={"pushed": ()}) for one in artifacts)


def test_values_of_suites_are_left_out_from_the_end() -> None:
    values = {f"a_task_with_a_long_name_{number}.acc_norm": number / 7 for number in range(12)}
    suites = tuple(SuiteOutcome(name=f"suite-{number}", values=values) for number in range(8))
    text = fit(StageResult(stage=Stage.EXPORT, succeeded=True, suites=suites, note="kept"))
    assert len(text.encode()) <= LIMIT
    result = StageResult.model_validate_json(text)
    kept = [len(one.values) for one in result.suites]
    assert (len(kept), result.note) == (8, "kept")
    assert 3 < min(kept) == max(kept) < 12
    assert list(result.suites[0].values) == list(values)[: kept[0]]


def test_the_reasons_of_failed_suites_are_shortened_and_cost_no_artifact() -> None:
    artifact = Artifact(kind="model", uri="s3://runs/1", step=3, warnings=("SuiteFailed: suite-0: " + "p" * 378,))
    suites = tuple(SuiteOutcome(name=f"suite-{number}", problem="p" * 400) for number in range(8))
    result = StageResult(stage=Stage.EXPORT, succeeded=True, artifacts=(artifact,), suites=suites)
    text = fit(result.model_copy(update={"approval": Approval(approved=False, message="g" * 900)}))
    assert len(text.encode()) <= LIMIT
    seen = StageResult.model_validate_json(text)
    assert seen.artifacts == (artifact,)
    assert seen.approval == Approval(approved=False, message="g" * 900)
    assert [(one.name, one.problem) for one in seen.suites] == [(one.name, "p" * 117 + "...") for one in suites]


def test_many_labels_are_left_out_before_facts() -> None:
    facts = FACTS.model_copy(update={"labels": tuple(f"label number {index}" for index in range(1000))})
    text = fit(StageResult(stage=Stage.PREPARE, succeeded=True, dataset=facts, note="kept"))
    result = StageResult.model_validate_json(text)
    assert len(text.encode()) <= LIMIT
    assert result.dataset is not None
    assert (result.dataset.train, result.dataset.labels) == (facts.train, ())
    assert result.note == "1000 labels omitted; kept"


def recovery(number: int) -> Recovery:
    return Recovery(generation=number, time="2026-01-01T00:00:00.000+00:00", reason=f"reason {number} " + "r" * 90)


PROGRESS = Progress(
    phase="train",
    generation=30,
    step=900,
    max_steps=1000,
    evals=tuple(EvalMetrics(step=step, values={"eval_loss": 0.123, "eval_accuracy": 0.9}) for step in range(50)),
    checkpoints=tuple(
        CheckpointFacts(step=step, saved="2026-01-01T00:00:00+00:00", size_bytes=10**9, best=step == 1)
        for step in range(9)
    ),
    checkpoint_count=90,
    recoveries=tuple(recovery(number) for number in range(20)),
    recovery_totals=RecoveryCounts(count=29, restarts=29),
)


def test_a_leaders_result_keeps_the_last_of_each_and_all_figures() -> None:
    text = fit(StageResult(stage=Stage.TRAIN, succeeded=False, progress=PROGRESS))
    seen = StageResult.model_validate_json(text).progress
    assert seen is not None
    assert (seen.step, seen.checkpoint_count, seen.recovery_totals) == (900, 90, PROGRESS.recovery_totals)
    assert seen.evals == PROGRESS.evals[-1:]
    assert seen.recoveries == PROGRESS.recoveries[-5:]
    assert seen.checkpoints == PROGRESS.checkpoints


def test_the_end_of_a_log_stays() -> None:
    tail = "\n".join(f"line {number}" for number in range(1000))
    failure = Failure(category=FailureCategory.UNKNOWN, node=0, message="m", log_tail=tail)
    progress = PROGRESS.model_copy(update={"failure": failure})
    seen = StageResult.model_validate_json(fit(StageResult(stage=Stage.TRAIN, succeeded=False, progress=progress)))
    assert seen.progress is not None
    assert seen.progress.failure is not None
    assert seen.progress.failure.log_tail.endswith("line 998\nline 999")


PLAN = PlanSummary(
    task=Task.CAUSAL_LM,
    method=MethodType.LORA,
    model="m",
    commit="c",
    parameters=1,
    size_bytes=1,
    nodes=2,
    processes_per_node=8,
    zero_stage=2,
    micro_batch=1,
    gradient_accumulation=1,
    global_batch=16,
    max_steps=1,
    learning_rate=1e-4,
    checkpoint_every_steps=1,
    checkpoint_bytes=1,
    grace_seconds=60,
    scratch_bytes=1,
    choices=tuple(f"choice {number} " + "c" * 100 for number in range(40)),
)


def prepared(**more: object) -> StageResult:
    """A prepare stage that ended well, with more choices than fit."""
    return StageResult(stage=Stage.PREPARE, succeeded=True, plan=PLAN, dataset=FACTS).model_copy(update=more)


def test_the_last_choices_go_first() -> None:
    result = prepared(note="n" * 500, warnings=("2 rows stand twice",))
    seen = StageResult.model_validate_json(fit(result))
    assert seen.plan
    kept = len(seen.plan.choices)
    assert 10 < kept < 40
    assert seen == result.model_copy(update={"plan": PLAN.model_copy(update={"choices": PLAN.choices[:kept]})})


@pytest.mark.parametrize(
    ("count", "length", "kept"), [(5, 100, 5), (5, 2000, 5), (60, 100, 15), (60, 5000, 5), (1, 9000, 1)]
)
def test_of_many_warnings_the_weightiest_stay_and_the_rest_is_counted(count: int, length: int, kept: int) -> None:
    warnings = tuple(f"{number} " + "ä" * length for number in range(count))
    text = fit(prepared(warnings=warnings, note="kept"))
    assert len(text.encode()) <= LIMIT
    seen = StageResult.model_validate_json(text)
    assert seen.plan is not None
    assert len(seen.warnings) >= kept
    assert [one.split()[0] for one in seen.warnings] == [str(number) for number in range(len(seen.warnings))]
    left = count - len(seen.warnings)
    assert seen.note == (f"{left} more warnings in the report; kept" if left else "kept")


def test_problems_stay_where_warnings_go() -> None:
    result = StageResult(
        stage=Stage.PREPARE, succeeded=False, problems=problems(3, 400), warnings=("w" * 299,) * 20, note=""
    )
    seen = StageResult.model_validate_json(fit(result))
    assert seen.problems == result.problems
    assert seen.note == f"{20 - len(seen.warnings)} more warnings in the report"


TEXTS = st.builds(str.__mul__, st.text(max_size=30), st.sampled_from([1, 10, 100]))
SUITES = st.builds(
    lambda count, values, problem: tuple(
        SuiteOutcome(name="s" * 30, values={f"{'task' * 25}{n}.acc": n / 7 for n in range(values)}, problem=problem)
        for _ in range(count)
    ),
    st.integers(0, 8),
    st.integers(0, 12),
    TEXTS,
)
RESULTS = st.builds(
    StageResult,
    stage=st.sampled_from(Stage),
    succeeded=st.booleans(),
    problems=st.lists(
        st.builds(Problem, code=TEXTS, field=TEXTS, message=TEXTS, cure=TEXTS, file=TEXTS | st.none()), max_size=8
    ).map(tuple),
    warnings=st.lists(TEXTS, max_size=8).map(tuple),
    dataset=st.none() | st.builds(lambda names: FACTS.model_copy(update={"labels": tuple(names)}), st.lists(TEXTS)),
    progress=st.none()
    | st.builds(
        lambda note, tail, many: PROGRESS.model_copy(
            update={
                "note": note,
                "failure": Failure(category=FailureCategory.UNKNOWN, node=0, message=note, log_tail=tail),
                "recoveries": PROGRESS.recoveries[:many],
                "checkpoints": PROGRESS.checkpoints * many,
            }
        ),
        TEXTS,
        TEXTS,
        st.integers(0, 20),
    ),
    artifacts=st.lists(st.builds(Artifact, kind=st.just("adapter"), uri=TEXTS, step=st.integers()), max_size=3).map(
        tuple
    ),
    approval=st.none() | st.builds(Approval, approved=st.booleans(), message=TEXTS),
    serving=st.none() | st.builds(ServeOutcome, served=st.booleans(), reason=st.just("SameAnswers"), message=TEXTS),
    suites=SUITES,
    note=TEXTS,
)
REAL_ARTIFACTS = st.builds(
    lambda place, metrics, warning, copies: Artifact(
        kind="model",
        uri="s3://" + "p" * place,
        step=900_000,
        digest="sha256:" + "d" * 64,
        metrics={f"eval_metric_{number}": number / 7 for number in range(metrics)},
        warnings=(warning,) * 3,
        pushed=(PushedCopy(uri="u" * place, digest="d" * 71),) * copies,
        approved=True,
    ),
    st.integers(0, 300),
    st.integers(0, 20),
    TEXTS,
    st.integers(0, 8),
)
EXPORTED = st.builds(
    lambda result, artifacts: result.model_copy(
        update={"stage": Stage.EXPORT, "progress": None, "dataset": None, "problems": (), "artifacts": artifacts}
    ),
    RESULTS,
    st.lists(REAL_ARTIFACTS, min_size=1, max_size=3).map(tuple),
)
LARGEST = StageResult(
    stage=Stage.EXPORT,
    succeeded=True,
    artifacts=(
        Artifact(kind="model", uri="s3://" + "p" * 300, step=1, digest="sha256:" + "d" * 64, warnings=("w" * 400,) * 3),
    )
    * 3,
    suites=tuple(SuiteOutcome(name="s" * 30, problem="p" * 400) for _ in range(8)),
    approval=Approval(approved=True, message="g" * 900),
    serving=ServeOutcome(served=False, reason="OtherAnswers", message="o" * 900),
)


@given(RESULTS)
def test_any_result_fits_and_still_says_how_it_ended(result: StageResult) -> None:
    text = fit(result)
    assert len(text.encode()) <= LIMIT
    seen = StageResult.model_validate_json(text)
    assert (seen.stage, seen.succeeded, seen.category) == (result.stage, result.succeeded, result.category)
    assert bool(seen.problems) == bool(result.problems)


@given(EXPORTED)
@example(LARGEST)
def test_the_places_of_artifacts_survive_whatever_is_said_of_them(result: StageResult) -> None:
    text = fit(result)
    assert len(text.encode()) <= LIMIT
    seen = StageResult.model_validate_json(text)
    told = [(one.uri, one.digest, one.step, one.approved) for one in seen.artifacts]
    assert told == [(one.uri, one.digest, one.step, one.approved) for one in result.artifacts]
    assert (seen.approval and seen.approval.approved) == (result.approval and result.approval.approved)
    assert (seen.serving and seen.serving.served) == (result.serving and result.serving.served)
