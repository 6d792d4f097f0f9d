"""What a plan evaluates: how many answers, what chooses the best checkpoint, and when a run ends early."""

from dataclasses import dataclass
from typing import Any

import pytest

from finetune_api.errors import SpecError
from finetune_api.messages import DatasetFacts, ProblemType, SplitFacts, Task
from finetune_api.plan import Plan, PlannedAnswers
from tests.unit.plan_models import decoder
from tests.unit.test_planner import choice, planned

SMALL = decoder(256, 4, 512, 4096, 4)


def pairs(rows: int = 2000, held_out: int = 200, answer: int = 10, prompt: int = 40) -> DatasetFacts:
    def split(count: int) -> SplitFacts:
        tokens, trained = count * (prompt + answer), count * answer
        return SplitFacts(rows=count, examples=count, tokens=tokens, trained_tokens=trained, longest=prompt + answer)

    return DatasetFacts(sha256="d", train=split(rows), eval=split(held_out) if held_out else None)


def kind(problem: ProblemType) -> DatasetFacts:
    split = SplitFacts(rows=500, examples=500, tokens=25_000, trained_tokens=500, longest=60)
    labels = () if problem is ProblemType.REGRESSION else ("a", "b")
    return DatasetFacts(sha256="d", train=split, eval=split, labels=labels, problem_type=problem)


def plan_of(data: DatasetFacts, task: Task = Task.CAUSAL_LM, **spec: Any) -> Plan:
    return planned(task, data, SMALL, **spec)


def test_prompts_are_answered_as_long_as_answers_are_and_some_are_kept() -> None:
    plan = plan_of(pairs(rows=8000))
    assert plan.evaluation.answers == PlannedAnswers(generate=64, max_new_tokens=24, samples=4)
    assert "twice the mean of 10" in choice(plan, "spec.evaluation.maxNewTokens").reason


def test_answers_that_would_take_more_than_a_tenth_of_the_run_are_fewer() -> None:
    short = plan_of(pairs(), training={"max_steps": 20, "eval_steps": 2})
    assert short.evaluation.answers.generate == 4
    assert "over a tenth" in choice(short, "spec.evaluation.generate").reason


def test_no_more_rows_are_answered_than_there_are() -> None:
    assert plan_of(pairs(held_out=7), evaluation={"generate": 50}).evaluation.answers.generate == 7
    assert plan_of(pairs(held_out=3)).evaluation.answers == PlannedAnswers(generate=3, max_new_tokens=24, samples=3)


def test_what_the_job_says_of_answers_is_taken() -> None:
    plan = plan_of(pairs(), Task.SEQ2SEQ, evaluation={"generate": 20, "maxNewTokens": 5, "samples": 0})
    assert plan.evaluation.answers == PlannedAnswers(generate=20, max_new_tokens=5, samples=0)
    assert choice(plan, "spec.evaluation.generate").origin == "user"


@pytest.mark.parametrize(("answer", "tokens"), [(1, 16), (20, 40), (1000, 256)])
def test_the_longest_answer_follows_from_the_right_ones(answer: int, tokens: int) -> None:
    assert plan_of(pairs(answer=answer)).evaluation.answers.max_new_tokens == tokens


TEXT = pairs(answer=49, prompt=1)  # the first token of a row is never predicted, all others are


@pytest.mark.parametrize(
    ("data", "task"),
    [(pairs(held_out=0), Task.CAUSAL_LM), (TEXT, Task.CAUSAL_LM), (pairs(), Task.MASKED_LM)],
    ids=["no evaluation rows", "text without prompts", "masked tokens"],
)
def test_where_nothing_asks_nothing_is_answered(data: DatasetFacts, task: Task) -> None:
    assert plan_of(data, task).evaluation.answers == PlannedAnswers()
    with pytest.raises(SpecError) as refused:
        plan_of(data, task, evaluation={"generate": 8})
    (problem,) = refused.value.problems
    assert (problem.code, problem.field) == ("NothingToAnswer", "spec.evaluation.generate")


@dataclass(frozen=True)
class Best:
    name: str
    data: DatasetFacts
    task: Task
    metric: str
    greater: bool
    given: str | None = None

    def __str__(self) -> str:
        return self.name


ROWS = Task.CLASSIFICATION


@pytest.mark.parametrize(
    "case",
    [
        Best("one label", kind(ProblemType.SINGLE_LABEL), ROWS, "eval_macro_f1", True),
        Best("several labels", kind(ProblemType.MULTI_LABEL), ROWS, "eval_micro_f1", True),
        Best("a number", kind(ProblemType.REGRESSION), ROWS, "eval_loss", False),
        Best("a causal model", pairs(), Task.CAUSAL_LM, "eval_loss", False),
        Best("without rows held out the last one", pairs(held_out=0), Task.CAUSAL_LM, "last", True),
        Best("answers, where they are asked for", pairs(), Task.SEQ2SEQ, "eval_rouge_l", True, "rouge_l"),
        Best("less perplexity is better", pairs(), Task.CAUSAL_LM, "eval_perplexity", False, "eval_perplexity"),
        Best("a smaller distance is better", kind(ProblemType.REGRESSION), ROWS, "eval_mae", False, "mae"),
        Best("more correlation is better", kind(ProblemType.REGRESSION), ROWS, "eval_spearman", True, "spearman"),
        Best("masked tokens found again", pairs(), Task.MASKED_LM, "eval_accuracy", True, "accuracy"),
    ],
    ids=str,
)
def test_the_best_checkpoint_is_chosen_by(case: Best) -> None:
    training = {"metric_for_best_model": case.given} if case.given else {}
    plan = plan_of(case.data, case.task, training=training)
    assert (plan.evaluation.best_metric, plan.evaluation.greater_is_better) == (case.metric, case.greater)


@pytest.mark.parametrize(
    ("data", "task", "metric", "says"),
    [
        (kind(ProblemType.SINGLE_LABEL), ROWS, "micro_f1", "eval_loss, eval_accuracy, eval_macro_f1, eval_weighted_f1"),
        (kind(ProblemType.REGRESSION), ROWS, "accuracy", "measures eval_loss, eval_mse, eval_mae"),
        (TEXT, Task.CAUSAL_LM, "chrf", "measures eval_loss, eval_perplexity, and no answers are generated"),
    ],
)
def test_a_metric_that_is_not_measured_is_refused_with_those_that_are(
    data: DatasetFacts, task: Task, metric: str, says: str
) -> None:
    with pytest.raises(SpecError) as refused:
        plan_of(data, task, training={"metric_for_best_model": metric})
    (problem,) = refused.value.problems
    assert (problem.code, problem.field) == ("UnknownMetric", "spec.training.metric_for_best_model")
    assert says in problem.message


def test_a_run_ends_early_only_if_it_is_asked_to() -> None:
    assert plan_of(pairs()).evaluation.early_stopping_patience == 0
    plan = plan_of(pairs(), training={"early_stopping_patience": 3, "early_stopping_threshold": 0.01})
    assert (plan.evaluation.early_stopping_patience, plan.evaluation.early_stopping_threshold) == (3, 0.01)
    assert not {"early_stopping_patience", "early_stopping_threshold"} & plan.engine.training.keys()
    assert choice(plan, "spec.training.early_stopping_patience").origin == "user"
