"""Asks a process of its own for the values of a suite. It has no credentials, because tasks may bring code."""

import os
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from finetune_trainer.process.asked_program import AskedProgram, ProgramError
from finetune_trainer.suites.definitions import INSTALL, SuiteError, is_harness_installed
from finetune_trainer.suites.suite_records import SuiteAnswer, SuiteQuestion

OWN = {
    "CUDA_VISIBLE_DEVICES": "",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONSAFEPATH": "1",  # a file of the definitions, such as evaluate.py, must not take the place of a module
}
CURE = "raise timeoutMinutes, lower limit, or give the stage more CPUs"


def ask_suite(question: SuiteQuestion, work: Path, environ: Mapping[str, str] = os.environ) -> SuiteAnswer:
    """Return the answer of a process of its own. It begins in the folder of the definitions, so that they can name
    files beside them.

    Raises:
        SuiteError: it ended without an answer, or took too long.
    """
    if not is_harness_installed():
        raise SuiteError(f"lm-evaluation-harness is not installed here: {INSTALL}")
    seconds = question.settings.timeout_minutes * 60.0
    program = AskedProgram("finetune_trainer.suites", "", seconds, CURE, OWN)
    begins_in = question.definitions or str(work)
    try:
        answer = program.ask(question.model_dump_json(), work.absolute(), print, environ, begins_in)
        return SuiteAnswer.model_validate_json(answer)
    except ProgramError as error:
        raise SuiteError(str(error)) from error
    except ValidationError as error:
        raise SuiteError(f"the answer of the process cannot be read: {error}") from error
