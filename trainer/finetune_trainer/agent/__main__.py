"""`python -m finetune_trainer.agent`: one node of a training job. It can be told to stop before it imports anything."""

import os

from finetune_trainer.process.ties import end_when_told

if __name__ == "__main__":
    end_when_told()
    from finetune_trainer.agent.program import main

    code = main(os.environ)
    os._exit(code)  # an ordinary exit would wait for a download that nobody needs any more
