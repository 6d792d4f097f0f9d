"""`python -m finetune_trainer.prepare`: the prepare pod. SIGTERM stops it even before it imports anything."""

import os

from finetune_trainer.process.ties import exit_on_sigterm

if __name__ == "__main__":
    exit_on_sigterm()
    from finetune_trainer.prepare.prepare_program import main
    from finetune_trainer.process.stages import own_process

    own_process()
    raise SystemExit(main(os.environ))
