"""The frame of a stage's program: it reads the job from the environment, prints lines to stdout, writes its StageResult
to the termination log, and returns an exit code."""

import os
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.contract import Env, ExitCode, run_prefix
from finetune_api.errors import FineTuneError, Problem, SpecError, exit_code
from finetune_api.messages import Stage
from finetune_api.results import StageResult
from finetune_api.v1alpha1 import FineTuneJob, parse_job, reread_job
from finetune_api.v1alpha1.parse import Lines
from finetune_api.yaml12 import load
from finetune_trainer.process.termination import fit
from finetune_trainer.process.ties import die_with_parent
from finetune_trainer.storage import ObjectStore, open_store


@dataclass(frozen=True)
class StageInputs:
    """The inputs of every stage.

    Attributes:
        run: key prefix of the run, with the trailing slash.
        work: an empty folder that is removed at the end of the stage.
    """

    job: FineTuneJob
    uid: str
    store: ObjectStore
    run: str
    work: Path
    environ: Mapping[str, str]

    def report(self, line: str) -> None:
        """Print a line about the stage's work."""
        print(line, flush=True)


def load_new_job(path: Path) -> FineTuneJob:
    """Return the job for the prepare stage: only its name and its spec. Fields that API servers add are ignored.

    Raises:
        SpecError: this version cannot run the spec.
    """
    data, lines = _data(path)
    return parse_job(data, lines, str(path))


def load_given_job(path: Path) -> FineTuneJob:
    """Return the job for the stages after prepare. Prepare has accepted and planned it, perhaps with another version:
    fields that are unknown here, and rules that are newer, do not stop it.

    Raises:
        SpecError: a value cannot be read.
    """
    try:
        return load_new_job(path)
    except SpecError:
        if (job := reread_job(_data(path)[0])) is None:
            raise
        return job


def _data(path: Path) -> tuple[Any, Lines]:
    data, lines = load(path.read_text("utf-8"), str(path))
    if isinstance(data, dict) and isinstance(metadata := data.get("metadata"), dict):
        known = {name: metadata[name] for name in ("name", "namespace", "uid") if name in metadata}
        data = {**{name: value for name, value in data.items() if name != "status"}, "metadata": known}
    return data, lines


def own_process() -> None:
    """Set up the calling process as a stage: it exits on SIGTERM, and with its parent in local mode."""
    os.environ.setdefault("USER", "finetune")  # libraries read a name that a pod's user may not have
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(ExitCode.DRAINED))  # PID 1 ignores it otherwise
    if parent := os.environ.get(Env.PARENT_PID):
        die_with_parent(int(parent))


def run_stage(stage: Stage, work: Callable[[StageInputs], StageResult], environ: Mapping[str, str]) -> ExitCode:
    """Run a stage, write its result to the termination log, and return its exit code."""
    try:
        result, code = _run(stage, work, environ), ExitCode.OK
    except FineTuneError as error:
        problems = tuple(error.problems)
        result = StageResult(stage=stage, succeeded=False, category=error.category, problems=problems)
        code = exit_code(error)
        for problem in problems:
            print(problem, file=sys.stderr, flush=True)
    if log := environ.get(Env.TERMINATION_LOG):
        Path(log).write_text(fit(result), "utf-8")
    return code


def _run(stage: Stage, work: Callable[[StageInputs], StageResult], environ: Mapping[str, str]) -> StageResult:
    for name in (Env.JOB, Env.JOB_UID):
        if not environ.get(name):
            raise SpecError(Problem(code="NotSet", field=name, message="is not set", cure="set it; see contract.Env"))
    load_job = load_new_job if stage is Stage.PREPARE else load_given_job
    job, uid = load_job(Path(environ[Env.JOB])), environ[Env.JOB_UID]
    store = open_store(job.spec.storage.uri, environ)
    prefix = run_prefix(job.metadata.namespace, job.metadata.name, uid)
    with tempfile.TemporaryDirectory(prefix=f"finetune-{stage}-", dir=environ.get(Env.WORK_DIR) or None) as folder:
        return work(StageInputs(job, uid, store, prefix, Path(folder), environ))
