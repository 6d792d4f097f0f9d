"""The other side of an `AskedProgram`: a process that answers one question, within the memory and cores of its
container."""

import os
import resource
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from finetune_trainer.process.control_group import limited_memory, usable_cores
from finetune_trainer.process.ties import die_with_parent

MEMORY_SHARE = 0.9  # of the control group's limit; the export that waits for the answer needs the rest


def answer_question(arguments: Sequence[str], line: str, answered: Callable[[str, Callable[[str], None]], str]) -> None:
    """Write the answer to a file, and end the process.

    Args:
        arguments: the id of the parent, the file of the question, and the file for the answer.
        line: beginning of the lines for people.
        answered: given the question and a function that shows a line, returns the answer. It imports what it needs
            itself, so that the limits hold for that as well.
    """
    parent, question, answer = arguments
    die_with_parent(int(parent))
    if memory := limited_memory():  # beyond the limit the kernel would end the whole container, and the export with it
        resource.setrlimit(resource.RLIMIT_DATA, (int(memory * MEMORY_SHARE),) * 2)
    os.environ["OMP_NUM_THREADS"] = str(max(1, int(usable_cores())))  # torch would count the cores of the machine
    found = answered(Path(question).read_text("utf-8"), lambda text: print(f"{line}{text}", flush=True))
    Path(answer).write_text(found, "utf-8")
    sys.stdout.flush()
    os._exit(0)  # destructors of libraries may block
