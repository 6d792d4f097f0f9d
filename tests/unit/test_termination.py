"""A stage's result fits into a termination message, and says what was left out."""

import pytest

from finetune_api.errors import Problem
from finetune_api.messages import DatasetFacts, SplitFacts, Stage
from finetune_api.results import StageResult
from finetune_trainer.termination import LIMIT, fit


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


def test_many_labels_are_left_out_before_facts() -> None:
    facts = DatasetFacts(
        sha256="0" * 64,
        train=SplitFacts(rows=1, tokens=1, trained_tokens=1, longest=1),
        labels=tuple(f"label number {index}" for index in range(1000)),
    )
    text = fit(StageResult(stage=Stage.PREPARE, succeeded=True, dataset=facts, note="kept"))
    result = StageResult.model_validate_json(text)
    assert len(text.encode()) <= LIMIT
    assert result.dataset is not None
    assert (result.dataset.train, result.dataset.labels) == (facts.train, ())
    assert result.note == "1000 labels left out; kept"
