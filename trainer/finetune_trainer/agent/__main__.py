"""`python -m finetune_trainer.agent`: one node of a training job. SIGTERM stops it even before it imports anything."""

import os

from finetune_trainer.process.ties import exit_on_sigterm

if __name__ == "__main__":
    exit_on_sigterm()
    from finetune_trainer.agent.node_program import main

    code = main(os.environ)
    os._exit(code)  # sys.exit would wait for threads, such as a download that is not needed any more
