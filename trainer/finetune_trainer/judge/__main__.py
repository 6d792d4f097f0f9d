"""`python -m finetune_trainer.judge PARENT QUESTION ANSWER`: judges in a process of its own, which may be killed for
want of memory without harm to the export. Lines that begin with `judge: ` are for people."""

import os
import sys
from pathlib import Path

from finetune_trainer.process.ties import die_with_parent


def main(parent: str, question: str, answer: str) -> None:
    """Write the judgement to a file."""
    die_with_parent(int(parent))
    from finetune_trainer.judge.judge_question import JudgeQuestion
    from finetune_trainer.judge.judging import judge_models

    def report(line: str) -> None:
        print(f"judge: {line}", flush=True)

    asked = JudgeQuestion.model_validate_json(Path(question).read_text("utf-8"))
    judged = judge_models(asked, report)
    Path(answer).write_text(judged.to_json(), "utf-8")
    sys.stdout.flush()
    os._exit(0)  # destructors of libraries may block


if __name__ == "__main__":
    main(*sys.argv[1:])
