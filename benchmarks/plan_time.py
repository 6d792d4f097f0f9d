"""Accuracy of a plan's time: small jobs on CPU, each prepared, planned and trained, in turns.

Every job goes through the programs of `finetune run`. The plan's time is its estimate, from a calibration just before
the training, since a busy machine slows both. The actual time is the wall time of the train stage, from the start of
its agents to their end. Jobs take turns, so that a change of the machine's load affects all of them.

    python benchmarks/plan_time.py [--rounds 2] [--only NAME ...]
"""

import argparse
import asyncio
import importlib.metadata
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import stdlib_tasks  # noqa: E402
from finetune_api.messages import Stage  # noqa: E402
from finetune_api.plan import Plan  # noqa: E402
from finetune_api.v1alpha1 import FineTuneJob  # noqa: E402
from tests.support.models import make_bert, make_gpt2, make_llama, make_t5  # noqa: E402

RECORD = Path(__file__).with_name("plan_time.json")
LIBRARIES = ("torch", "transformers", "deepspeed", "peft", "accelerate")
WITHIN = 1.5


@dataclass(frozen=True)
class Case:
    """One job.

    Attributes:
        task: task of `stdlib_tasks`, which has its rows.
        make: writes the base model.
        shape: values of its configuration.
    """

    name: str
    task: str
    method: str
    make: Callable[..., Path]
    shape: dict[str, Any]
    length: int
    steps: int
    nodes: int = 1
    training: dict[str, Any] | None = None


BERT = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
CASES = (
    Case("BERT, full", "classification", "full", make_bert, {**BERT, "max_position_embeddings": 128}, 64, 60),
    Case(
        "LLaMA, LoRA",
        "causal-lm",
        "lora",
        make_llama,
        {
            "hidden_size": 512,
            "num_hidden_layers": 8,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "intermediate_size": 1408,
        },
        160,
        30,
    ),
    Case("GPT-2, full", "causal-lm", "full", make_gpt2, {"n_embd": 384, "n_layer": 6, "n_head": 6}, 160, 30),
    Case(
        "T5, full",
        "seq2seq",
        "full",
        make_t5,
        {"d_model": 256, "d_ff": 1024, "d_kv": 64, "num_layers": 6, "num_heads": 4},
        128,
        40,
    ),
    Case(
        "BERT, LoRA, two nodes",
        "classification",
        "lora",
        make_bert,
        {**BERT, "max_position_embeddings": 128},
        64,
        60,
        nodes=2,
    ),
)


def main() -> None:
    """Run the jobs, print a table and one JSON line, and keep the samples beside this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", nargs="*", choices=[case.name for case in CASES], help="some; nothing is recorded")
    options = parser.parse_args()
    cases = [case for case in CASES if options.only is None or case.name in options.only]
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    samples: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="plan-time-") as name:
        places = {case.name: prepared(case, Path(name) / str(at)) for at, case in enumerate(cases)}
        for turn in range(options.rounds):
            for case in cases:
                samples.append(measured(case, places[case.name], turn))
                print(json.dumps(samples[-1]), file=sys.stderr, flush=True)
    result = summary(samples)
    show(result)
    if options.only is None:
        RECORD.write_text(json.dumps({"result": result, "samples": samples, **conditions()}, indent=1) + "\n")
    print(json.dumps(result))


def prepared(case: Case, place: Path) -> Path:
    """Write data and base model of a job below a folder."""
    stdlib_tasks.write(case.task, place / "data")
    rows = [json.loads(line) for line in (place / "data" / "train.jsonl").read_text().splitlines()]
    case.make(place / "model", [text for row in rows for text in texts(row)], **case.shape)
    return place


def texts(row: Any) -> Iterable[str]:
    """Yield every string of a row."""
    if isinstance(row, str):
        yield row
    elif isinstance(row, dict | list):
        for value in row.values() if isinstance(row, dict) else row:
            yield from texts(value)


def measured(case: Case, place: Path, turn: int) -> dict[str, Any]:
    """Run a job once and return its planned and actual seconds, with their parts."""
    from rich.console import Console

    from finetune_trainer.run import local
    from finetune_trainer.run.screen import Screen

    storage = place / f"store-{turn}"
    os.environ["XDG_CACHE_HOME"] = str(place / f"cache-{turn}")  # every run is calibrated anew
    job = FineTuneJob.model_validate_json(json.dumps(job_of(case, place, storage)))
    with (place / "log").open("a") as log:
        screen = Screen(Console(file=log, width=120))
        opened = local.LocalJob.open(job, place / f"work-{turn}")
        stages = local.LocalStages(opened, local.begin_run(opened, screen), screen)
        asyncio.run(stages.run(Stage.PREPARE))
        plan: Plan = stages.plan()
        load, began = os.getloadavg()[0], time.monotonic()
        asyncio.run(stages.train())
        taken = time.monotonic() - began
        progress = stages.final_progress()
    assert plan.prediction.estimate is not None
    shutil.rmtree(storage)
    return {
        "case": case.name,
        "turn": turn,
        "planned": round(plan.prediction.estimate.hours * 3600, 2),
        "taken": round(taken, 2),
        "planned_step": plan.prediction.estimate.step_seconds,
        "taken_step": round(progress.train_seconds / plan.schedule.max_steps, 4),
        "taken_beside": round(taken - progress.train_seconds, 2),
        "ranks": plan.world_size,
        "accumulation": plan.layout.gradient_accumulation,
        "steps": plan.schedule.max_steps,
        "micro_batch": plan.layout.micro_batch,
        "load": load,
        "how": plan.prediction.estimate.how,
    }


def job_of(case: Case, place: Path, storage: Path) -> dict[str, Any]:
    """Return the job of a case."""
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": "plan-time"},
        "spec": {
            "task": case.task,
            "model": {"uri": f"file://{place}/model"},
            "dataset": {
                "train": f"file://{place}/data/train.jsonl",
                "eval": f"file://{place}/data/eval.jsonl",
                "maxLength": case.length,
            },
            "method": {"type": case.method},
            "training": {"max_steps": case.steps, "eval_steps": 0.5, **(case.training or {})},
            "nodes": case.nodes,
            "storage": {"uri": f"file://{storage}"},
        },
    }


def summary(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Return planned over actual seconds: for each job the median of its runs."""
    names = list(dict.fromkeys(sample["case"] for sample in samples))
    ratios = {
        name: round(statistics.median(one["planned"] / one["taken"] for one in samples if one["case"] == name), 2)
        for name in names
    }
    worst = max(max(ratio, 1 / ratio) for ratio in ratios.values())
    return {"ratios": ratios, "worst_factor": round(worst, 2), "within": WITHIN, "kept": worst <= WITHIN}


def show(result: dict[str, Any]) -> None:
    """Print the table."""
    print(f"{'job':<26}{'planned / taken':>16}")
    for name, ratio in result["ratios"].items():
        print(f"{name:<26}{ratio:>16.2f}")


def conditions() -> dict[str, Any]:
    """Return versions, machine and settings of the runs."""
    return {
        "command": " ".join(["python", "benchmarks/plan_time.py", *sys.argv[1:]]),
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        **{name: importlib.metadata.version(name) for name in LIBRARIES},
    }


if __name__ == "__main__":
    main()
