"""`python -m tests.families`: docs/support.md and docs/architectures.md from their JSON files. `... run [word ...]`:
runs the cases that have not passed. `... architectures [word ...]`: asks the probe what it was not asked yet."""

import os
import sys

from tests.families import architectures, support

if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    command, *words = sys.argv[1:] or ["page"]
    if command == "run":
        support.run(support.chosen(words))
    if command == "architectures":
        os.environ |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}  # before anything imports torch
        architectures.run(architectures.chosen(words))
    support.PAGE.write_text(support.page(support.load()))
    architectures.write_page()
