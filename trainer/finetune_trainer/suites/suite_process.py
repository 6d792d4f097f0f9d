"""Asks a process of its own for the values of a suite. It has no credentials, because tasks may bring code."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from finetune_trainer.judge.judge_process import MORE, WANTS_MEMORY
from finetune_trainer.suites.definitions import INSTALL, SuiteError, is_harness_installed
from finetune_trainer.suites.suite_records import SuiteAnswer, SuiteQuestion

INHERITED = ("PATH", "HOME", "LANG", "TZ", "TMPDIR", "USER", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
NETWORK = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
HUB = ("HF_HOME", "HF_ENDPOINT", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_DATASETS_CACHE", "HF_DATASETS_OFFLINE")
PREFIXES = ("LC_", "PYTHON", "XDG_", "OMP_", "KMP_", "MKL_", "OPENBLAS_")
OWN = {"CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"}
LONGEST = 300  # characters of a reason


def ask_suite(question: SuiteQuestion, work: Path, environ: Mapping[str, str] = os.environ) -> SuiteAnswer:
    """Return the answer of a process of its own. It begins in the folder of the definitions, so that they can name
    files beside them.

    Raises:
        SuiteError: it ended without an answer, or took too long.
    """
    if not is_harness_installed():
        raise SuiteError(f"lm-evaluation-harness is not installed here: {INSTALL}")
    with tempfile.TemporaryDirectory(prefix="finetune-suite-", dir=work) as folder:
        asked, answer, log = (Path(folder) / name for name in ("question.json", "answer.json", "log"))
        asked.write_text(question.model_dump_json(), "utf-8")
        program = [sys.executable, "-W", "ignore", "-m", "finetune_trainer.suites", str(os.getpid())]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*program, str(asked), str(answer)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=question.definitions or folder,
                env={**suite_environment(environ), "TMPDIR": folder},
                start_new_session=True,
            )
        minutes = question.settings.timeout_minutes
        try:
            code = process.wait(minutes * 60)
        except subprocess.TimeoutExpired:
            cure = "raise timeoutMinutes, lower limit, or give the stage more CPUs"
            raise SuiteError(f"it took more than {minutes:,} minutes: {cure}") from None
        finally:
            _end(process)
        if code != 0:
            raise SuiteError(_reason(code, log))
        try:
            return SuiteAnswer.model_validate_json(answer.read_text("utf-8"))
        except (OSError, ValidationError) as error:
            raise SuiteError(f"the answer of the process cannot be read: {error}") from error


def suite_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that the process of a suite gets: none with a credential."""
    named = {*INHERITED, *NETWORK, *(name.lower() for name in NETWORK), *HUB}
    return {name: value for name, value in environ.items() if name in named or name.startswith(PREFIXES)} | OWN


def _end(process: "subprocess.Popen[bytes]") -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        process.kill()
    process.wait()


def _reason(code: int, log: Path) -> str:
    """Return why the process ended: its signal or exit code, and the last line that it printed."""
    if code == -signal.SIGKILL:
        return f"the process was killed, probably for want of memory: {MORE}"
    lines = log.read_text("utf-8", errors="replace").strip().splitlines()
    if lines and any(sign in lines[-1] for sign in WANTS_MEMORY):
        return f"the process had too little memory: {MORE}"
    how = f"the process ended with {signal.Signals(-code).name if code < 0 else f'exit code {code}'}"
    return f"{how}: {lines[-1].strip()[:LONGEST]}" if lines else how
