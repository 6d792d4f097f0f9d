"""`python -m finetune_trainer.suites PARENT QUESTION ANSWER`: runs one suite in a process of its own, which may be
killed for want of memory or time without harm to the export."""

import sys
from collections.abc import Callable

from finetune_trainer.process.answered_question import answer_question
from finetune_trainer.process.lean_imports import QUANTIZERS, imports_without


def evaluated_suite(question: str, report: Callable[[str], None]) -> str:
    """Return the values of a suite as JSON."""
    with imports_without(*QUANTIZERS):  # the harness uses the others
        from finetune_trainer.suites.harness import run_suite
        from finetune_trainer.suites.suite_records import SuiteQuestion

        return run_suite(SuiteQuestion.model_validate_json(question)).to_json()


if __name__ == "__main__":
    answer_question(sys.argv[1:], "", evaluated_suite)
