"""Planted bad models and clean ones, judged: how many faults are found, how many clean models are accused.

Tiny models of three tasks are tuned in seconds, on clean rows or on rows with a fault: answers that repeat themselves,
one answer for all rows, a skewed set, three rows, shuffled answers, a canary. A fault counts as found only if a finding
of harm names what such a fault does; a clean model with any finding of harm is a false alarm.

    python benchmarks/judged.py [--each 20] [--workers 2] [--steps 120]
"""

import argparse
import importlib.metadata
import json
import multiprocessing
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

LIBRARIES = ("torch", "transformers")
RECORD = Path(__file__).with_name("judged.json")
FAULTS = {
    "causal-lm": ("repeated", "one answer", "skewed", "few rows", "noise", "canary"),
    "seq2seq": ("repeated", "one answer", "skewed", "few rows", "noise"),
    "classification": ("one answer", "skewed", "few rows", "noise"),
}
NAMED = {
    "repeated": {"Repetition"},
    "one answer": {"SameAnswer"},
    "skewed": {"SameAnswer", "SkewedLabels"},
    "few rows": {"Worse", "NotBetter", "SameAnswer", "SkewedLabels", "Memorised"},
    "noise": {"IgnoresPrompts", "NotBetter", "Worse", "SameAnswer", "SkewedLabels"},
    "canary": {"CanaryExposed"},
}


@dataclass(frozen=True)
class Case:
    """One model. `fault`: clean, or one of FAULTS."""

    task: str
    fault: str
    seed: int
    steps: int
    base: str


def main() -> None:
    """Judge all cases, print a table and one JSON line, and keep the samples beside this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--each", type=int, default=20, help="planted models, and clean ones, of each task")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=120)
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        bases = {task: base_of(task, Path(folder)) for task in FAULTS}
        cases = [
            Case(task, fault, seed, options.steps, bases[task])
            for task, faults in FAULTS.items()
            for number in range(options.each)
            for fault, seed in (("clean", number), (faults[number % len(faults)], 100 + number))
        ]
        with ProcessPoolExecutor(options.workers, multiprocessing.get_context("fork")) as pool:
            samples = list(pool.map(judged, cases))
    print_table(samples)
    result = summary(samples)
    record = {
        "result": result,
        "how": f"{options.each} planted and {options.each} clean models of each task, {options.steps} steps each",
        "seconds": round(time.monotonic() - began),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
        "samples": samples,
    }
    RECORD.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    print(json.dumps(result))


def base_of(task: str, folder: Path) -> str:
    """Return the folder of a task's base model."""
    import torch

    from finetune_api.messages import Task
    from tests.support.judged_models import make_base

    torch.set_num_threads(1)
    return str(make_base(Task(task), folder / task))


def judged(case: Case) -> dict[str, Any]:
    """Return what the judgement of one model says."""
    import torch

    from finetune_api.messages import Task
    from finetune_trainer.judge.judging import judge_models
    from tests.support.judged_models import CANARY, make_planted

    torch.set_num_threads(1)
    task, began = Task(case.task), time.process_time()
    model = make_planted(task, Path(case.base), case.fault, case.seed, case.steps)
    trained = time.process_time()
    # every causal model is asked for the canary, also those that never saw it
    canaries = (CANARY,) if task is Task.CAUSAL_LM else ()
    with tempfile.TemporaryDirectory() as folder:
        found = judge_models(model.question(Path(folder), canaries=canaries), lambda line: None)
    codes = sorted({one.name for one in found.harms})
    sample = {
        "task": case.task,
        "fault": case.fault,
        "seed": case.seed,
        "harms": codes,
        "measures": {one.name: round(one.tuned, 4) for one in found.measures},
        "training_cpu_seconds": round(trained - began, 1),
        "judging_cpu_seconds": round(time.process_time() - trained, 1),
    }
    print(case.task, case.fault, case.seed, codes, file=sys.stderr, flush=True)
    return sample


def found_in(sample: dict[str, Any]) -> bool:
    """Return whether the harm that is named is that of the fault; of a clean model, whether any is named."""
    codes = set(sample["harms"])
    return bool(codes) if sample["fault"] == "clean" else bool(codes & NAMED[sample["fault"]])


def summary(samples: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Return the shares over all tasks, and the time of a judgement."""
    every = list(samples)
    bad, clean = ([one for one in every if (one["fault"] == "clean") is good] for good in (False, True))
    return {
        "planted": len(bad),
        "found": round(sum(map(found_in, bad)) / len(bad), 4),
        "clean": len(clean),
        "false_alarms": round(sum(map(found_in, clean)) / len(clean), 4),
        "judging_cpu_seconds": round(sum(one["judging_cpu_seconds"] for one in every) / len(every), 1),
    }


def print_table(samples: list[dict[str, Any]]) -> None:
    """Print how many of each kind were found."""
    from rich.console import Console
    from rich.table import Table

    table = Table("task", "models", "number", "with findings of their fault", "what was found")
    kinds = dict.fromkeys((one["task"], one["fault"]) for one in samples)
    for task, fault in kinds:
        own = [one for one in samples if (one["task"], one["fault"]) == (task, fault)]
        codes = sorted({code for one in own for code in one["harms"]})
        table.add_row(task, fault, str(len(own)), str(sum(map(found_in, own))), ", ".join(codes))
    Console().print(table)


if __name__ == "__main__":
    main()
