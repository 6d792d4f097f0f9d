"""`python -m finetune_trainer.judge PARENT QUESTION ANSWER`: judges in a process of its own, which may be killed for
want of memory without harm to the export."""

import sys
from collections.abc import Callable

from finetune_trainer.process.answered_question import answer_question
from finetune_trainer.process.lean_imports import QUANTIZERS, imports_without, lean_model_imports


def judged(question: str, report: Callable[[str], None]) -> str:
    """Return the judgement as JSON."""
    with lean_model_imports():
        from finetune_trainer.judge.judge_question import JudgeQuestion
        from finetune_trainer.judge.judging import judge_models

    with imports_without(*QUANTIZERS):
        return judge_models(JudgeQuestion.model_validate_json(question), report).to_json()


if __name__ == "__main__":
    answer_question(sys.argv[1:], "judge: ", judged)
