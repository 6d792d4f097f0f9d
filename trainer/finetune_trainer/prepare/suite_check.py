"""The suites that a job names: the image must have the harness, the harness the tasks, and this machine the programs
that take the place of containers. A misspelt name would be found only after the training."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from finetune_api.contract import Env, suite_variable
from finetune_api.errors import Problem, SpecError
from finetune_api.v1alpha1.suite_spec import SuiteSpec
from finetune_trainer.prepare.plan.choice_log import problem
from finetune_trainer.suites.container_suites import local_program, not_run_here
from finetune_trainer.suites.definitions import (
    INSTALL,
    SuiteError,
    fetch_definitions,
    is_harness_installed,
    unknown_tasks,
)

FIELD = "spec.evaluation.suites"


def check_suites(
    suites: Sequence[SuiteSpec], work: Path, environ: Mapping[str, str], report: Callable[[str], None] = print
) -> None:
    """Refuse suites that cannot be run, and report those that run on a cluster alone.

    Args:
        work: folder for the definitions of tasks.
        environ: of the stage; a local run is known by it.

    Raises:
        SpecError: all that is wrong.
        StorageError: definitions cannot be fetched.
    """
    if environ.get(Env.LOCAL):
        for sentence in not_run_here(suites, environ):
            report(sentence)
    if any(one.tasks for one in suites) and not is_harness_installed():
        message = "is given, and this image has no lm-evaluation-harness"
        cure = f"{INSTALL} as spec.image, or leave suites out"
        raise SpecError(problem("NotInstalled", FIELD, message, cure))
    found: list[Problem] = []
    for number, suite in enumerate(suites):
        found += _wrong(suite, f"{FIELD}[{number}]", work / f"suite-{number}", environ)
    if found:
        raise SpecError(found)


def _wrong(suite: SuiteSpec, field: str, folder: Path, environ: Mapping[str, str]) -> list[Problem]:
    if suite.image is not None:
        return _wrong_program(suite, field, environ)
    if suite.definitions:
        try:
            fetch_definitions(suite.definitions, folder, environ)
        except SuiteError as error:
            message = f"is {suite.definitions!r}: {error}"
            cure = "name the folder that holds the YAML files of your tasks"
            return [problem("NoDefinitions", f"{field}.definitions", message, cure)]
    unknown, known = unknown_tasks(suite.tasks or (), folder if suite.definitions else None)
    return [_unknown(name, known, f"{field}.tasks") for name in unknown]


def _wrong_program(suite: SuiteSpec, field: str, environ: Mapping[str, str]) -> list[Problem]:
    """Return what is wrong with the program of this machine that takes the place of a container, if one is named."""
    if not (environ.get(Env.LOCAL) and environ.get(suite_variable(suite.name))):
        return []
    try:
        local_program(suite.name, environ)
    except SuiteError as error:
        cure = f"set {suite_variable(suite.name)} to the path of an executable file, or unset it"
        return [problem("NoSuiteProgram", f"{field}.image", f"does not run on this machine: {error}", cure)]
    return []


def _unknown(name: str, known: Sequence[str], field: str) -> Problem:
    near = difflib.get_close_matches(name, known, n=1)
    message = f"has {name!r}; lm-evaluation-harness and the definitions have no task or group of this name"
    cure = f"did you mean {near[0]}?" if near else "`lm_eval ls tasks` lists the names"
    return problem("UnknownBenchmark", field, message, cure)
