"""Suites whose program is the user's own: in a container beside the export, or on this machine in place of it.

The program sees the model in folders, and writes its values to a file. It has no key.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune_api.contract import Env, suite_variable
from finetune_api.v1alpha1.suite_spec import SuiteSpec
from finetune_trainer.process.asked_program import MORE
from finetune_trainer.process.container_order import (
    HOME,
    KILLED,
    LOG,
    MISSING,
    TAKEN_SECONDS,
    ContainerOrder,
    holds_within,
    read_plain,
)
from finetune_trainer.process.control_group import usable_memory
from finetune_trainer.process.keyless import keyless_environment
from finetune_trainer.suites.container_values import RESULTS, clear_results, read_results
from finetune_trainer.suites.definitions import SuiteError
from finetune_trainer.suites.suite_records import SuiteAnswer, SuiteSettings

SECONDS_OF_A_MINUTE = 60.0
MEMORY_SHARE = 0.9  # of what the stage has, for a program of this machine
SEE_POD = "`kubectl describe pod` of the export shows why"
LONGEST_LINE = 200  # characters of a log in a reason


@dataclass(frozen=True)
class ShownModel:
    """What the program of a suite is shown.

    Attributes:
        artifact: folder of the exported model.
        base: folder of the base model; None if the artifact is a whole model.
        rows: file with held-out rows; None if there are none.
    """

    artifact: Path
    base: Path | None = None
    rows: Path | None = None

    def variables(self, results: Path) -> dict[str, str]:
        """Return the environment variables that name the model and the file for the values."""
        named = {"ARTIFACT": self.artifact, "BASE_MODEL": self.base, "EVAL_ROWS": self.rows, "RESULTS": results}
        return {name: str(path.absolute()) for name, path in named.items() if path}


def runnable_suites(suites: Sequence[SuiteSpec], environ: Mapping[str, str]) -> list[SuiteSettings]:
    """Return the settings of the suites that run here: all of them on a cluster. On a machine without containers, a
    suite with an image runs only if the environment names a program in its place."""
    here = Env.SUITES_FOLDER in environ
    asked = [one for one in suites if one.image is None or here or environ.get(suite_variable(one.name))]
    return [SuiteSettings.of(one) for one in asked]


def not_run_here(suites: Sequence[SuiteSpec], environ: Mapping[str, str]) -> list[str]:
    """Return a sentence for each suite that does not run on this machine."""
    run = {one.name for one in runnable_suites(suites, environ)}
    return [
        f"suite {one.name}: not run on this machine, which has no container of {one.image};"
        f" to run a program in its place, set {suite_variable(one.name)} to its path"
        for one in suites
        if one.name not in run
    ]


def run_in_words(settings: SuiteSettings, environ: Mapping[str, str]) -> str:
    """Return which program is run, and where."""
    if Env.SUITES_FOLDER in environ:
        return f"{' '.join([*settings.command, *settings.args])} in a container of {settings.image}"
    program = [environ.get(suite_variable(settings.name), ""), *settings.args]
    return f"{' '.join(program)} on this machine, in place of a container of {settings.image}"


def ask_container(settings: SuiteSettings, model: ShownModel, work: Path, environ: Mapping[str, str]) -> SuiteAnswer:
    """Run the program of a suite once, and return its values.

    Args:
        work: empty folder, for a program of this machine.
        environ: names the folder that the container shares, or the program of this machine.

    Raises:
        SuiteError: there are no values; the text is the reason.
        OSError: a folder cannot be read or written.
    """
    if shared := environ.get(Env.SUITES_FOLDER):
        folder = Path(shared) / settings.name
        clear_results(folder)
        model.artifact.parent.chmod(0o755)  # the container may read as another user
        _run_in_container(settings, model.variables(folder / RESULTS), ContainerOrder(folder))
    else:
        folder = work
        _run_here(settings, {**model.variables(folder / RESULTS), "TMPDIR": str(work.absolute())}, folder, environ)
    return read_results(folder)


def local_program(name: str, environ: Mapping[str, str]) -> str:
    """Return the program of this machine that takes the place of a suite's container.

    Raises:
        SuiteError: it is no program.
    """
    given = environ.get(suite_variable(name), "")
    found = shutil.which(given, path=environ.get("PATH"))
    if not found:
        raise SuiteError(f"{suite_variable(name)} is {given!r}, which is no program of this machine")
    return found


def _run_in_container(settings: SuiteSettings, variables: Mapping[str, str], order: ContainerOrder) -> None:
    command = [*settings.command, *settings.args]
    order.place(command, variables, f'"${{{HOME}:-.}}"')
    try:
        _wait(order.taken, TAKEN_SECONDS, f"its container did not begin within {TAKEN_SECONDS:g} seconds: {SEE_POD}")
        _wait(order.ended, settings.timeout_minutes * SECONDS_OF_A_MINUTE, _too_long(settings))
        code = order.code()
    finally:
        order.withdraw()
    if code in MISSING:
        line = _last_line(order.folder / LOG)
        raise SuiteError(f"{command[0]} cannot be run in {settings.image} ({line}): correct command of the suite")
    _check_end(code, order.folder / LOG, "raise resources.limits.memory of the suite")


def _run_here(settings: SuiteSettings, variables: Mapping[str, str], work: Path, environ: Mapping[str, str]) -> None:
    log, ended = work / LOG, work / "ended"
    seconds, memory = settings.timeout_minutes * SECONDS_OF_A_MINUTE, int(usable_memory() * MEMORY_SHARE)
    keeper = [sys.executable, "-m", "finetune_trainer.process.server_keeper", str(os.getpid()), str(memory)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*keeper, str(seconds), str(ended), local_program(settings.name, environ), *settings.args],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**keyless_environment(environ), **variables},
        )
    try:
        code = process.wait()
    finally:
        process.terminate()  # its programs end with it
        process.wait()
    if ended.exists():
        reason = ended.read_text("utf-8")
        too_long = "took too long" in reason
        raise SuiteError(_too_long(settings) if too_long else f"{reason}: {MORE}")
    _check_end(code, log, MORE)


def _wait(holds: Callable[[], bool], seconds: float, otherwise: str) -> None:
    """Wait until something holds.

    Raises:
        SuiteError: it does not hold in time; `otherwise` is the reason.
    """
    if not holds_within(holds, seconds):
        raise SuiteError(otherwise)


def _too_long(settings: SuiteSettings) -> str:
    minutes = f"{settings.timeout_minutes:,} minute{'' if settings.timeout_minutes == 1 else 's'}"
    return f"it took more than {minutes}: raise timeoutMinutes of the suite, or evaluate fewer rows"


def _check_end(code: int, log: Path, more: str) -> None:
    """Refuse a program that did not end with success. `more`: how it gets more memory."""
    if code in KILLED:
        raise SuiteError(f"its program was killed, probably for want of memory: {more}")
    if code:
        raise SuiteError(
            f"its program ended with exit code {code} ({_last_line(log)}): correct the program or its args"
        )


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in read_plain(log).splitlines() if line.strip()]
    return lines[-1][-LONGEST_LINE:] if lines else "it printed nothing"
