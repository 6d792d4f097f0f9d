"""Memory of a training step on CPU, beside the prediction of the plan's memory model.

Each case is a fresh process, forked from one that has imported everything, as the node agent's zygote forks workers.
The baseline is the memory of the fork before it builds anything; the peak is the kernel's high-water mark (VmHWM, reset
at the baseline). Each rank does what a worker does (transformers' Trainer on DeepSpeed over gloo, two steps: at the
second the optimizer's states exist). The model has random weights made from a configuration, so no file's pages are
counted. The prediction is the model's peak without its margin and without the imports, which lie below the baseline.

    python benchmarks/memory.py [--only TEXT] [--phases]
    python benchmarks/memory.py --heap     # a few cases with the C library's own settings, against the whole prediction
    python benchmarks/memory.py --again    # predict the recorded cases again, with the current memory model
"""

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from measured_step import Case, imports, measure, predict_case, predicted

# glibc keeps freed blocks of up to 32 MiB in its heaps, as many as happened to be cut: here they go back at once, so
# that the figures are those of the tensors. A worker runs without these settings; --heap measures what that costs,
# which the plan's margin has to cover.
ALLOCATOR = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
LIBRARIES = ("torch", "transformers", "deepspeed", "peft")
RECORD = Path(__file__).with_name("memory.json")
MIB = 1 << 20
LEAST = 512 * MIB  # above the baseline; smaller cases would measure the libraries, not the model

GRID: tuple[Case, ...] = (
    Case("llama", "s", "full", 2, 4, 256),
    Case("gpt2", "s", "lora", 2, 4, 256),
    Case("bert", "s", "full", 2, 8, 256),
    Case("t5", "s", "full", 2, 4, 256),
    Case("llama", "s", "lora", 2, 4, 256),
    Case("gpt2", "m", "full", 1, 1, 64),
    Case("bert", "s", "lora", 1, 8, 256),
    Case("t5", "s", "lora", 2, 8, 128),
    Case("llama", "s", "full", 3, 4, 256),
    Case("gpt2", "s", "full", 3, 4, 128),
    Case("bert", "s", "full", 3, 8, 128),
    Case("t5", "s", "full", 3, 4, 128),
    Case("llama", "s", "full", 2, 8, 256, checkpointing=True),
    Case("gpt2", "s", "full", 2, 8, 256, checkpointing=True),
    Case("bert", "s", "full", 2, 16, 256, checkpointing=True),
    Case("t5", "s", "full", 2, 8, 256, checkpointing=True),
    Case("llama", "m", "full", 0, 1, 64),
    Case("bert", "m", "full", 0, 2, 128),
    Case("t5", "m", "full", 0, 2, 64),
    Case("llama", "m", "full", 2, 1, 64, ranks=2),
    Case("llama", "m", "full", 3, 1, 64, ranks=2),
    Case("llama", "s", "lora", 3, 4, 256, ranks=2),
    Case("llama", "s", "full", 2, 4, 256, bf16=True),
    Case("t5", "s", "full", 1, 8, 128, bf16=True),
    Case("llama", "s", "lora", 0, 8, 128, bf16=True),
    Case("llama", "m", "full", 3, 1, 64, bf16=True),
    Case("gpt2", "s", "lora", 1, 8, 128, bf16=True),
    Case("llama", "s", "full", 2, 4, 128, accumulation=2),
    Case("llama", "s", "lora", 2, 8, 512, checkpointing=True),
    Case("bert", "m", "lora", 2, 8, 128),
)


def main() -> None:
    """Measure, print a table and one JSON line, and keep the samples beside this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases whose name contains this; nothing is written")
    parser.add_argument("--phases", action="store_true", help="print the peak of each phase")
    parser.add_argument("--again", action="store_true", help="measure nothing: predict the recorded cases again")
    parser.add_argument("--heap", action="store_true", help="a few cases with the C library's own settings")
    options = parser.parse_args()
    if options.heap:
        heap()
        return
    if any(os.environ.get(name) != value for name, value in ALLOCATOR.items()):  # read when a process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ALLOCATOR})
    imports()
    samples = []
    print(f"{'case':<48}{'measured':>9}{'predicted':>10}{'error':>8}  peak at   (MiB)", flush=True)
    for case in recorded() if options.again else ():
        samples.append(compared(case, phases_of(case), predicted(case)))
        print(line(case, samples[-1], 0), flush=True)
    if options.again:
        write(samples)
    for case in () if options.again else GRID:
        if options.only in str(case):
            began = time.monotonic()
            samples.append(sample(case))
            print(line(case, samples[-1], time.monotonic() - began), flush=True)
            if options.phases:
                print(f"    {samples[-1]['phases_mib']}", flush=True)
            if not options.only:
                write(samples)
    print(json.dumps(summary(samples)))


HEAP_CASES = {
    "llama-s full ZeRO-2 4x256",
    "llama-s lora ZeRO-2 4x256",
    "bert-s full ZeRO-2 8x256",
    "t5-s lora ZeRO-2 8x128",
    "gpt2-s lora ZeRO-2 4x256",
    "llama-m full ZeRO-2 1x64 on 2 ranks",
}


def heap() -> None:
    """Measure some cases with the allocator of a worker; the record has them beside the prediction with its margin."""
    imports()
    samples = []
    for case in GRID:
        if str(case) in HEAP_CASES:
            peak = max(measure(case).values())
            with_margin, _ = predict_case(case, with_margin=True)
            figures = {"measured_mib": round(peak / MIB, 1), "predicted_with_margin_mib": round(with_margin / MIB, 1)}
            samples.append({"case": str(case), **figures})
            print(f"{case!s:<48}{peak / MIB:9.0f}{with_margin / MIB:10.0f}", flush=True)
    record = json.loads(RECORD.read_text())
    RECORD.write_text(json.dumps({**record, "default_allocator": samples}, indent=2) + "\n")


def sample(case: Case) -> dict[str, Any]:
    """Return a case with its measured and predicted figures."""
    return compared(case, measure(case), predicted(case))


def recorded() -> list[Case]:
    """Return the cases of the record beside this file."""
    names = [one.name for one in fields(Case)]
    return [Case(**{name: sample[name] for name in names}) for sample in json.loads(RECORD.read_text())["samples"]]


def phases_of(case: Case) -> dict[str, int]:
    """Return the measured figures of a recorded case, in bytes."""
    (found,) = [one for one in json.loads(RECORD.read_text())["samples"] if one["case"] == str(case)]
    return {name: round(size * MIB) for name, size in found["phases_mib"].items()}


def compared(case: Case, phases: dict[str, int], prediction: tuple[int, str]) -> dict[str, Any]:
    """Return a line of the record."""
    guess, moment = prediction
    peak = max(phases.values())
    return {
        "case": str(case),
        **asdict(case),
        "measured_mib": round(peak / MIB, 1),
        "predicted_mib": round(guess / MIB, 1),
        "error": round(guess / peak - 1, 4),
        "counts": peak >= LEAST,
        "predicted_at": moment,
        "phases_mib": {name: round(size / MIB, 1) for name, size in phases.items()},
    }


def line(case: Case, made: dict[str, Any], seconds: float) -> str:
    """Return a row of the table."""
    small = "" if made["counts"] else "  too small to count"
    figures = f"{made['measured_mib']:9.0f}{made['predicted_mib']:10.0f}{made['error']:+8.1%}"
    return f"{case!s:<48}{figures}  {made['predicted_at']:<9}{seconds:4.0f} s{small}"


def summary(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of the last line."""
    errors = [one["error"] for one in samples if one["counts"]]
    return {
        "cases": len(errors),
        "median_error": round(statistics.median(abs(error) for error in errors), 4) if errors else None,
        "worst_underprediction": round(max(0.0, *(-error for error in errors)), 4) if errors else None,
    }


def write(samples: list[dict[str, Any]]) -> None:
    """Write the record beside this file, after every case."""
    before = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    record = {
        **before,
        **summary(samples),
        "samples": samples,
        "command": "python benchmarks/memory.py",
        "allocator": ALLOCATOR,
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)),
    }
    RECORD.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
