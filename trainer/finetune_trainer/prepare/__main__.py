"""`python -m finetune_trainer.prepare`: the prepare pod. It can be told to stop before it imports anything."""

import os

from finetune_trainer.process.ties import end_when_told

if __name__ == "__main__":
    end_when_told()
    from finetune_trainer.prepare.prepare_program import main
    from finetune_trainer.process.stages import own_process

    own_process()
    raise SystemExit(main(os.environ))
