"""`python -m tests.families`: docs/support.md and docs/architectures.md from their JSON files.

    python -m tests.families run [FAMILY ...] [--task T] [--method M] [--stage N]   the cases that have not passed
    python -m tests.families architectures [WORD ...]                               what the probe was not asked yet

Both go on where they were stopped. `run` ends with 1 if a case failed.
"""

import argparse
import os
import sys
from functools import partial

from finetune_trainer.model.families import FAMILIES
from tests.families import architectures, support
from tests.families.cases import METHODS, STAGES, matrix

say = partial(print, flush=True)


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.families")
    commands = parser.add_subparsers(dest="command")
    run = commands.add_parser("run", help="run the cases that have not passed")
    run.add_argument("families", nargs="*", metavar="FAMILY", help=f"all without one; of {', '.join(FAMILIES)}")
    run.add_argument("--task", action="append", default=[], choices=sorted({str(case.task) for case in matrix()}))
    run.add_argument("--method", action="append", default=[], choices=[str(method) for method in METHODS])
    run.add_argument("--stage", action="append", default=[], type=int, choices=STAGES)
    ask = commands.add_parser("architectures", help="ask the probe what it was not asked yet")
    ask.add_argument("words", nargs="*", metavar="WORD", help="of the name of a question, such as starcoder2-causal-lm")
    given = parser.parse_args()
    if unknown := sorted(set(vars(given).get("families", ())) - FAMILIES.keys()):
        run.error(f"no family {', '.join(unknown)}; there are {', '.join(FAMILIES)}")
    return given


def main() -> int:
    """Run what the command line names; write the pages."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    given, passed = parsed(), True
    if given.command == "run":
        passed = support.run(support.chosen(given.families, given.task, given.method, given.stage), say)
    if given.command == "architectures":
        os.environ |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}  # before anything imports torch
        architectures.run(architectures.chosen(given.words), say)
    support.PAGE.write_text(support.page(support.load()))
    architectures.write_page()
    return int(not passed)


if __name__ == "__main__":
    sys.exit(main())
