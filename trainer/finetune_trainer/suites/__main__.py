"""`python -m finetune_trainer.suites PARENT QUESTION ANSWER`: runs one suite in a process of its own, which may be
killed for want of memory or time without harm to the export."""

import os
import resource
import sys
from pathlib import Path

from finetune_trainer.process.control_group import limited_memory, usable_cores
from finetune_trainer.process.ties import die_with_parent

MEMORY_SHARE = 0.9  # of the control group's limit; the export that waits for the answer needs the rest


def main(parent: str, question: str, answer: str) -> None:
    """Write the values of a suite to a file."""
    die_with_parent(int(parent))
    if memory := limited_memory():  # beyond the limit the kernel would end the whole container, and the export with it
        resource.setrlimit(resource.RLIMIT_DATA, (int(memory * MEMORY_SHARE),) * 2)
    import torch

    torch.set_num_threads(max(1, int(usable_cores())))  # torch counts the cores of the machine
    from finetune_trainer.suites.harness import run_suite
    from finetune_trainer.suites.suite_records import SuiteQuestion

    asked = SuiteQuestion.model_validate_json(Path(question).read_text("utf-8"))
    Path(answer).write_text(run_suite(asked).to_json(), "utf-8")
    sys.stdout.flush()
    os._exit(0)  # destructors of libraries may block


if __name__ == "__main__":
    main(*sys.argv[1:])
