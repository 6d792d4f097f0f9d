"""Errors arrive whole where they are needed."""

import pickle

import pytest

from finetune_api.errors import DataError, FailureCategory, FineTuneError, Problem, RunError

PROBLEM = Problem(code="EmptyText", field="spec.dataset.train", message="'text' is empty", cure="fill it", lines=(3,))


@pytest.mark.parametrize(
    "error", [DataError(PROBLEM), DataError([PROBLEM, PROBLEM]), RunError(PROBLEM, FailureCategory.HANG)]
)
def test_an_error_of_another_process_has_its_problems_and_words(error: FineTuneError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), list(again.problems), str(again)) == (type(error), list(error.problems), str(error))
    assert again.category == error.category
