"""Asks a process of its own for the values of a suite. It has no credentials, because tasks may bring code."""

import os
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from finetune_trainer.process.asked_program import AskedProgram, ProgramError
from finetune_trainer.process.trial_circumstances import MODEL_PACKAGES, trial_circumstances
from finetune_trainer.suites.definitions import INSTALL, SuiteError, is_harness_installed
from finetune_trainer.suites.suite_records import SuiteAnswer, SuiteQuestion, SuiteSettings

OWN = {
    "CUDA_VISIBLE_DEVICES": "",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONSAFEPATH": "1",  # a file of the definitions, such as evaluate.py, must not take the place of a module
}
CURE = "raise timeoutMinutes, lower limit, or give the stage more CPUs"
PACKAGES_OF_SUITES = (*MODEL_PACKAGES, "lm_eval", "datasets")


def suite_circumstances(settings: SuiteSettings, definitions: str, asked: str, environ: Mapping[str, str]) -> str:
    """Return the circumstances of a suite, with its time and the content of its tasks.

    Args:
        definitions: digest of the user's own tasks.
        asked: what the job says of the stage, see `asked_of_stage`.
    """
    beside = (str(settings.timeout_minutes), definitions)
    return trial_circumstances(asked, PACKAGES_OF_SUITES, beside, environ)


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
