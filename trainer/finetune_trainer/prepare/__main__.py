"""`python -m finetune_trainer.prepare`: the prepare pod. SIGTERM stops it even before it imports anything."""

import os
from collections.abc import Mapping

from finetune_trainer.process.ties import exit_on_sigterm


def main(environ: Mapping[str, str]) -> int:
    """Run the stage as `environ` configures it (`contract.Env`); leave its StageResult in the termination log."""
    from finetune_api.messages import Stage
    from finetune_api.results import StageResult
    from finetune_trainer.prepare.stage import prepare
    from finetune_trainer.process.stages import StageInputs, run_stage

    def work(given: StageInputs) -> StageResult:
        return prepare(given.job, given.store, given.uid, given.work, given.environ, given.report).result

    return run_stage(Stage.PREPARE, work, environ)


if __name__ == "__main__":
    exit_on_sigterm()
    from finetune_trainer.process.stages import own_process

    own_process()
    raise SystemExit(main(os.environ))
