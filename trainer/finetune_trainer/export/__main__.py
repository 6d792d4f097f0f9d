"""`python -m finetune_trainer.export`: the export pod. Configured by environment variables, see `contract.Env`."""

import os
from collections.abc import Mapping

from finetune_api.contract import ExitCode, File
from finetune_api.messages import Plan, Stage
from finetune_api.results import StageResult
from finetune_trainer.export.stage import export
from finetune_trainer.stages import StageInputs, own_process, run_stage


def work(given: StageInputs) -> StageResult:
    """The stage's result; raises what went wrong."""
    plan = Plan.model_validate_json(given.store.get(given.run + File.PLAN))
    return export(plan, given.store, given.run, given.work, given.report)


def main(environ: Mapping[str, str]) -> ExitCode:
    """Runs the stage; leaves its StageResult in the termination log."""
    return run_stage(Stage.EXPORT, work, environ)


if __name__ == "__main__":
    own_process()
    raise SystemExit(main(os.environ))
