"""Errors arrive whole where they are needed."""

import pickle

import pytest

from finetune_api.contract import ExitCode
from finetune_api.errors import (
    FINAL_EXIT_CODES,
    HANDLING,
    VERDICTS,
    DataError,
    FailureCategory,
    FineTuneError,
    Problem,
    Restart,
    RunError,
    category_of,
)

PROBLEM = Problem(code="EmptyText", field="spec.dataset.train", message="'text' is empty", cure="fill it", lines=(3,))


@pytest.mark.parametrize(
    "error", [DataError(PROBLEM), DataError([PROBLEM, PROBLEM]), RunError(PROBLEM, FailureCategory.HANG)]
)
def test_an_error_of_another_process_has_its_problems_and_words(error: FineTuneError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), list(again.problems), str(again)) == (type(error), list(error.problems), str(error))
    assert again.category == error.category


def test_every_failure_category_says_what_follows_from_it() -> None:
    assert HANDLING.keys() == set(FailureCategory), "give the new category its Handling: restart, cures, exit code"
    codes = [one.exit_code for one in HANDLING.values() if one.exit_code is not None]
    assert len(codes) == len(set(codes))
    for category, handling in HANDLING.items():
        assert handling.cure, category
        assert category_of(handling.exit_code) is category or handling.exit_code is None


def test_only_a_failure_that_comes_again_has_an_exit_code_of_its_own() -> None:
    """The Job of a stage fails at once on such a code: it must not be one that a restart may cure."""
    for category, handling in HANDLING.items():
        assert (handling.exit_code is not None) == (handling.restart is Restart.NEVER), category


def test_these_exit_codes_end_a_job_and_a_node() -> None:
    assert {64, 65, 77, 78, 79} <= VERDICTS
    of_commands = {ExitCode.NOT_REPRODUCED}  # no program of a job ends with it
    others = {ExitCode.UNKNOWN, ExitCode.STORAGE_ERROR, ExitCode.DISTRIBUTED} | of_commands
    assert set(ExitCode) - others == FINAL_EXIT_CODES


@pytest.mark.parametrize(
    ("category", "restart"),
    [
        (FailureCategory.PREEMPTED, Restart.FREE),
        (FailureCategory.NODE_FAULT, Restart.COUNTED),
        (FailureCategory.HANG, Restart.COUNTED),
        (FailureCategory.UNKNOWN, Restart.COUNTED),
        (FailureCategory.USER_ERROR, Restart.NEVER),
        (FailureCategory.DATA_ERROR, Restart.NEVER),
        (FailureCategory.OUT_OF_MEMORY, Restart.NEVER),
        (FailureCategory.DIVERGED, Restart.NEVER),
    ],
)
def test_what_a_failure_costs_of_the_restart_budget(category: FailureCategory, restart: Restart) -> None:
    assert HANDLING[category].restart is restart
