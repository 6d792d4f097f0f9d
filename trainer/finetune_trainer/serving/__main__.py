"""`python -m finetune_trainer.serving PARENT QUESTION ANSWER`: answers with transformers in a process of its own."""

import sys
from collections.abc import Callable

from finetune_trainer.process.answered_question import answer_question
from finetune_trainer.process.lean_imports import QUANTIZERS, imports_without, lean_model_imports


def transformers_answers(question: str, report: Callable[[str], None]) -> str:
    """Return the answers as JSON."""
    with lean_model_imports():
        from finetune_trainer.serving.expecting import expected_answers
        from finetune_trainer.serving.serve_records import ServeQuestion

    with imports_without(*QUANTIZERS):
        return expected_answers(ServeQuestion.model_validate_json(question), report).model_dump_json()


if __name__ == "__main__":
    answer_question(sys.argv[1:], "serve: ", transformers_answers)
