"""Asks a process of its own for the values of a suite. It has no credentials, because tasks may bring code."""

import os
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from finetune_trainer.process.asked_program import AskedProgram, ProgramError
from finetune_trainer.suites.definitions import INSTALL, SuiteError, is_harness_installed
from finetune_trainer.suites.suite_records import SuiteAnswer, SuiteQuestion

INHERITED = ("PATH", "HOME", "LANG", "TZ", "TMPDIR", "USER", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
NETWORK = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
HUB = ("HF_HOME", "HF_ENDPOINT", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_DATASETS_CACHE", "HF_DATASETS_OFFLINE")
PREFIXES = ("LC_", "PYTHON", "XDG_", "OMP_", "KMP_", "MKL_", "OPENBLAS_")
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
    given, begins_in = suite_environment(environ), question.definitions or str(work)
    try:
        answer = program.ask(question.model_dump_json(), work.absolute(), print, given, begins_in)
        return SuiteAnswer.model_validate_json(answer)
    except ProgramError as error:
        raise SuiteError(str(error)) from error
    except ValidationError as error:
        raise SuiteError(f"the answer of the process cannot be read: {error}") from error


def suite_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that the process of a suite gets: none with a credential."""
    named = {*INHERITED, *NETWORK, *(name.lower() for name in NETWORK), *HUB}
    return {name: value for name, value in environ.items() if name in named or name.startswith(PREFIXES)} | OWN
