"""`python -m finetune_trainer.probe PARENT QUESTION ANSWERS`: answers a question in a process of its own.

It may crash, hang or be killed: the file of answers names the stage that was entered last, a line each, and then holds
the answer. What libraries print goes to the log of the process.
"""

import os
import sys
from pathlib import Path

from finetune_trainer.process.lean_imports import QUANTIZERS, imports_without, lean_model_imports
from finetune_trainer.process.ties import die_with_parent


def main(parent: str, question: str, answers: str) -> None:
    """Answer the question in a file."""
    die_with_parent(int(parent))
    from finetune_trainer.worker.late_compilation import compilation_at_first_call

    with lean_model_imports(), compilation_at_first_call():
        from finetune_trainer.probe.attempt import answer
        from finetune_trainer.probe.question import ProbeQuestion, ProbeStage

    with Path(answers).open("a", encoding="utf-8") as file:

        def enter(stage: ProbeStage) -> None:
            print(stage.name, file=file, flush=True)

        with imports_without(*QUANTIZERS):
            found = answer(ProbeQuestion.model_validate_json(Path(question).read_text("utf-8")), enter)
        print(found.model_dump_json(), file=file, flush=True)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # destructors of a process group may block


if __name__ == "__main__":
    main(*sys.argv[1:])
