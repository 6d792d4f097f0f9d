"""Prove the product on this machine's GPU, case by case, and write down every figure. `tests/gpu/run` calls this.

Prints a JSON object for each case, then a table, then one JSON object with the counts. Ends with 0 if every case
passed, 1 if one did not, 2 without a GPU.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from finetune_trainer.agent.security import worker_environment
from tests.gpu.case import Case, Runner
from tests.gpu.record import NO_CARD, ROOT, Machine, Record, machine, unmet

SECONDS = 480  # the whole check
PATIENCE = 4  # times the deadlines, in a rehearsal: it shares two cores with whatever else they do
NO_GPU = 2  # exit code


def main() -> int:
    """Run the cases that were asked for."""
    began = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu-rehearsal", action="store_true", help="tiny shapes on a CPU: proves the check itself")
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="cases whose name contains one of these, a comma apart"
    )
    parser.add_argument("--list", action="store_true", help="print the cases and what is expected of them")
    parser.add_argument("--seconds", type=float, help=f"of the whole check; {SECONDS} on a GPU")
    parser.add_argument(
        "--results", type=Path, help="folder for the record; benchmarks/gpu, of a rehearsal build/gpu-kit"
    )
    parser.add_argument("--scratch", type=Path, help="folder for models and checkpoints, 50 GiB on a GPU")
    options = parser.parse_args()
    here = Machine(NO_CARD, "", 0) if options.cpu_rehearsal else machine()
    if here is None and not options.list:
        print("no NVIDIA GPU on this machine: nothing was run (--cpu-rehearsal runs tiny shapes)", file=sys.stderr)
        return NO_GPU
    prepare_environment(options.cpu_rehearsal)

    from tests.gpu.cases import chosen  # with the libraries' environment set

    cases = chosen(options.only, tiny=options.cpu_rehearsal)
    if options.list or here is None:
        for case in cases:
            print(f"{case.name:<34} {case.seconds:4.0f} s  {case.expects}")
        return 0
    for sentence in unmet():
        print(f"warning: {sentence}", file=sys.stderr)
    warm_up()
    print(f"warm after {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    results = options.results or ROOT / ("build/gpu-kit/rehearsal" if options.cpu_rehearsal else "benchmarks/gpu")
    record = Record(results, here)
    seconds = options.seconds or SECONDS * (PATIENCE if options.cpu_rehearsal else 1)
    run(cases, record, options.scratch or scratch(), tiny=options.cpu_rehearsal, until=began + seconds)
    record.table(Console(width=160))
    summary = record.summary() | {"wall_seconds": round(time.monotonic() - began, 1), "record": str(record.path)}
    print(json.dumps(summary))
    return int(summary["passed"] < len(cases))


def run(cases: list[Case], record: Record, scratch: Path, *, tiny: bool, until: float) -> None:
    """Run the cases in a scratch folder that is gone afterwards."""
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(dir=scratch, prefix="gpu-check-") as folder:
        patient = [replace(case, seconds=case.seconds * PATIENCE) for case in cases] if tiny else cases
        Runner(Path(folder), tiny=tiny, until=until, beside=max(2, cores // 4), on_result=record.add).run(patient)


def prepare_environment(tiny: bool) -> None:
    """Set what the zygote's environment has, before any library is imported."""
    sys.path.insert(0, str(ROOT / "benchmarks"))  # its programs import their neighbours
    if tiny:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ |= {**worker_environment(os.environ), "TRL_EXPERIMENTAL_SILENCE": "1"}


def warm_up() -> None:
    """Import everything as the zygote does, by the zygote's own function."""
    from finetune_trainer.agent import zygote

    zygote.warm_up()
    import torch

    if torch.cuda.is_initialized():
        raise SystemExit("CUDA was started before the first case: no case could use it")


def scratch() -> Path:
    """Return memory, where there is enough, else the disk."""
    memory = Path("/dev/shm")
    enough = memory.is_dir() and shutil.disk_usage(memory).free > 50 * 2**30
    return memory if enough else Path(tempfile.gettempdir())


if __name__ == "__main__":
    sys.exit(main())
