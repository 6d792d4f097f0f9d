"""The prepare stage as a program, configured by environment variables, see `contract.Env`."""

from collections.abc import Mapping

from finetune_api.contract import ExitCode
from finetune_api.messages import Stage
from finetune_api.results import StageResult
from finetune_trainer.prepare.prepare_stage import prepare
from finetune_trainer.process.stages import StageInputs, run_stage


def prepare_work(given: StageInputs) -> StageResult:
    """Return the stage's result; raise what went wrong."""
    return prepare(given.job, given.store, given.uid, given.work, given.environ, given.report).result


def main(environ: Mapping[str, str]) -> ExitCode:
    """Run the stage; leave its StageResult in the termination log."""
    return run_stage(Stage.PREPARE, prepare_work, environ)
