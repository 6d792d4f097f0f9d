"""`python -m finetune_trainer.export`: the export pod. SIGTERM stops it even before it imports anything."""

import os
from collections.abc import Mapping

from finetune_trainer.process.ties import exit_on_sigterm


def main(environ: Mapping[str, str]) -> int:
    """Run the stage as `environ` configures it (`contract.Env`); leave its StageResult in the termination log."""
    from finetune_api.contract import File
    from finetune_api.messages import Stage
    from finetune_api.plan import Plan
    from finetune_api.results import StageResult
    from finetune_trainer.export.stage import export
    from finetune_trainer.process.stages import StageInputs, run_stage

    def work(given: StageInputs) -> StageResult:
        plan = Plan.model_validate_json(given.store.get(given.run + File.PLAN))
        return export(plan, given.store, given.run, given.work, given.report)

    return run_stage(Stage.EXPORT, work, environ)


if __name__ == "__main__":
    exit_on_sigterm()
    from finetune_trainer.process.stages import own_process

    own_process()
    raise SystemExit(main(os.environ))
