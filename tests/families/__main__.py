"""`python -m tests.families`: docs/support.md from support.json. `... run [word ...]`: runs what has not passed."""

import os
import sys

from tests.families import support

if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    command, *words = sys.argv[1:] or ["page"]
    if command == "run":
        support.run(support.chosen(words))
    support.PAGE.write_text(support.page(support.load()))
