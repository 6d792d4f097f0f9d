"""Time of a recovery after a worker is killed: from `kill -9` to the first step of the next generation.

Two real agents on this machine, DeepSpeed ZeRO-2 over gloo, LoRA on a tiny LLaMA; the workers of node 0 and node 1 are
killed in turn. A real model would add the loading of weights and checkpoint. The leader is polled every 20 ms. The same
run measures a cold start: the cost of every restart without the warm zygote.

    python benchmarks/recovery.py [--trials 10]
"""

import argparse
import importlib.metadata
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from finetune_api.messages import MethodType, Task

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.local.agents import Agents, wait_for  # noqa: E402
from tests.local.harness import make_plan, write_dataset  # noqa: E402
from tests.support.models import make_llama  # noqa: E402

LIBRARIES = ("torch", "transformers", "deepspeed", "peft")


def main() -> None:
    """Measure, print a table and one JSON line, and keep the samples beside this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        warm, cold = measure(Path(folder), options.trials)
    table = Table("start of workers", "n", "min s", "median s", "max s")
    for name, samples in (("warm zygote: kill -9 to next step", warm), ("imports of a cold worker alone", cold)):
        table.add_row(name, str(len(samples)), *(f"{value:.2f}" for value in summary(samples)))
    Console().print(table)
    result = {
        "recovery_seconds_median": round(statistics.median(warm), 3),
        "cold_import_seconds_median": round(statistics.median(cold), 3),
        "ratio": round(statistics.median(cold) / statistics.median(warm), 1),
    }
    record = {
        **result,
        "recovery_seconds": [round(value, 3) for value in warm],
        "cold_import_seconds": [round(value, 3) for value in cold],
        "command": f"python benchmarks/recovery.py --trials {options.trials}",
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)),
    }
    (ROOT / "benchmarks" / "recovery.json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(result))


def measure(folder: Path, trials: int) -> tuple[list[float], list[float]]:
    """Return the seconds of each recovery, and of a cold start's imports after every second one."""
    plan = make_plan(
        Task.CAUSAL_LM, MethodType.LORA, max_steps=100_000, checkpoint_every_steps=10, keep_last=2, learning_rate=1e-4
    )
    model, data = make_llama(folder / "llama"), write_dataset(folder / "data", Task.CAUSAL_LM)
    job = {"recovery": {"maxRestarts": 10 * trials}}
    warm, cold = [], []
    with Agents.prepared(folder, plan, model, data, job=job) as agents:
        agents.start()
        for trial in range(trials):
            before = agents.wait_for_step(30 * (trial + 1))
            began = time.monotonic()
            os.kill(agents.workers()[trial % 2], signal.SIGKILL)
            wait_for("the next generation's first step", lambda g=before.generation: stepped(agents, g))
            warm.append(time.monotonic() - began)
            if trial % 2:
                cold.append(cold_import(agents))
    return warm, cold


def stepped(agents: Agents, generation: int) -> bool | None:
    """Return True once a generation after `generation` has made a step of its own."""
    progress = agents.progress()
    if progress is None or progress.generation <= generation or not progress.recoveries:
        return None
    resumed = progress.recoveries[-1].resumed_step
    return True if resumed is not None and progress.step > resumed else None


def cold_import(agents: Agents) -> float:
    """Return the seconds that a new process needs for a worker's imports, while the gang's workers are paused."""
    workers = list(agents.workers().values())
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", "import finetune_trainer.worker.rank_run"], check=True, capture_output=True)
    seconds = time.monotonic() - began
    for pid in workers:
        os.kill(pid, signal.SIGCONT)
    return seconds


def summary(samples: list[float]) -> tuple[float, float, float]:
    """Return minimum, median, maximum."""
    return min(samples), statistics.median(samples), max(samples)


if __name__ == "__main__":
    main()
