"""`python -m finetune_trainer.export`: the export pod. Configured by environment variables, see `contract.Env`."""

import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from finetune_api.contract import Env, ExitCode, File, run_prefix
from finetune_api.errors import FineTuneError, Problem, SpecError, StorageError
from finetune_api.messages import Plan, Stage, StageResult
from finetune_api.yaml12 import load_job
from finetune_trainer.export.stage import export
from finetune_trainer.prepare.termination import fit
from finetune_trainer.storage import open_store


def main(environ: Mapping[str, str]) -> ExitCode:
    """Run the stage; leaves its StageResult in the termination log, and its phases on stdout."""
    try:
        result, code = run(environ), ExitCode.OK
    except FineTuneError as error:
        problems = tuple(error.problems)
        result = StageResult(stage=Stage.EXPORT, succeeded=False, category=error.category, problems=problems)
        code = ExitCode.STORAGE_ERROR if isinstance(error, StorageError) else ExitCode.USER_ERROR
        for problem in problems:
            print(problem, file=sys.stderr, flush=True)
    if log := environ.get(Env.TERMINATION_LOG):
        Path(log).write_text(fit(result), "utf-8")
    return code


def run(environ: Mapping[str, str]) -> StageResult:
    """The stage itself; raises what went wrong."""
    for name in (Env.JOB, Env.JOB_UID):
        if not environ.get(name):
            raise SpecError(Problem(code="NotSet", field=name, message="is not set", cure="set it; see contract.Env"))
    job = load_job(Path(environ[Env.JOB]))
    store = open_store(job.spec.storage.uri, environ)
    prefix = run_prefix(job.metadata.namespace, job.metadata.name, environ[Env.JOB_UID])
    plan = Plan.model_validate_json(store.get(prefix + File.PLAN))
    with tempfile.TemporaryDirectory(prefix="finetune-export-", dir=environ.get(Env.WORK_DIR) or None) as work:
        return export(plan, store, prefix, Path(work), _report)


def _report(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    raise SystemExit(main(os.environ))
