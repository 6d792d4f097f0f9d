"""Time of one of our steps beyond a bare DeepSpeed loop, for a model whose steps consist of many small operations.

A LLaMA of 12 layers, 64 wide, 8 rows of 32 tokens, one thread: hundreds of small operations with little arithmetic.
Ours is the whole worker: transformers' loop, a report of every step, TensorBoard's events, the agreement on stopping.
The bare loop has the same batches, loss, optimizer and engine: forward, backward, step, schedule, and it reads the
loss. Both take turns in processes of their own. CPU seconds are recorded beside wall time, because other load on the
machine disturbs them less.

    python benchmarks/step_overhead.py [--rounds 5] [--steps 150]
"""

import argparse
import importlib.metadata
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from measured_step import fork, imports, result

from finetune_api.messages import MethodType, Task
from finetune_api.plan import Plan
from finetune_trainer.prepare.plan.engine import deepspeed_config
from finetune_trainer.process.orders import WorkerOrder
from tests.local.harness import make_plan, orders
from tests.support.plans import revised

UNTIMED = 10
BATCH, LENGTH, ROWS = 8, 32, 256
SHAPE = {
    "vocab_size": 512,
    "hidden_size": 64,
    "num_hidden_layers": 12,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
RECORD = Path(__file__).with_name("step_overhead.json")
LIBRARIES = ("torch", "transformers", "deepspeed", "accelerate")


def main() -> None:
    """Measure, print one JSON line, and keep the samples beside this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=150)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    imports()
    samples: dict[str, list[dict[str, float]]] = {"bare": [], "ours": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder)
        for turn in range(options.rounds):
            for way in ("bare", "ours") if turn % 2 == 0 else ("ours", "bare"):
                path = folder / f"{way}-{turn}"
                pid = fork(path, lambda way=way, path=path: timed(way, folder, path, options.steps))  # type: ignore[misc]
                samples[way].append(result(pid, path))
                print(way, samples[way][-1], file=sys.stderr, flush=True)
    made = {
        "ratio": ratio(samples, "seconds"),
        "ratio_cpu": ratio(samples, "cpu_seconds"),
        "bare_ms": round(1000 * statistics.median(one["seconds"] for one in samples["bare"]), 3),
        "loss_difference": abs(samples["ours"][0]["loss"] - samples["bare"][0]["loss"]),
    }
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    command = f"python benchmarks/step_overhead.py --rounds {options.rounds} --steps {options.steps}"
    record = {"result": made, "samples": samples, "command": command, "versions": versions}
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(made))


def ratio(samples: dict[str, list[dict[str, float]]], clock: str) -> float:
    """Return ours over the bare loop, by the median of the rounds."""
    ours, bare = (statistics.median(one[clock] for one in samples[way]) for way in ("ours", "bare"))
    return round(ours / bare, 4)


def write(folder: Path) -> None:
    """Write model and rows."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    from tests.support.models.tokenizers import fast, word_piece

    logging.disable_progress_bar()
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SHAPE)).save_pretrained(folder / "model")
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    fast(word_piece(["a b c"], specials, "$A", "$A $B"), pad_token="[PAD]").save_pretrained(folder / "model")
    (folder / "data").mkdir()
    draw = np.random.default_rng(0)
    ids = pa.array([draw.integers(5, 511, LENGTH).tolist() for _ in range(ROWS)], pa.list_(pa.int32()))
    table = pa.table({"input_ids": ids, "labels": ids})
    with pa.OSFile(str(folder / "data" / "train.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def plan_of(steps: int) -> Plan:
    """Return a plan of one rank with ZeRO-2, as the planner chooses it."""
    plan = make_plan(Task.CAUSAL_LM, MethodType.FULL, world=1, stage=2, max_steps=steps, warmup_steps=0)
    facts = plan.dataset.model_copy(update={"eval": None})
    changes = {"checkpoint_every_steps": steps + 1, "dataset": facts, "deepspeed": deepspeed_config(2, None, {})}
    return revised(plan, **changes)


def timed(way: str, folder: Path, path: Path, steps: int) -> dict[str, float]:
    """Return the seconds of a step, by the clock and by the processor, and the last loss; in the child."""
    order = orders(plan_of(steps), folder / "model", folder / "data", Path(f"{path}-run"))[0]
    clock: list[tuple[float, float]] = []
    loss = (worker if way == "ours" else bare)(order, clock)
    (began, used), (end, at_end) = clock[UNTIMED], clock[-1]
    count = len(clock) - 1 - UNTIMED
    return {"seconds": (end - began) / count, "cpu_seconds": (at_end - used) / count, "loss": loss}


def tick(clock: list[tuple[float, float]]) -> None:
    """Record the start of a step, or the end of the last one."""
    clock.append((time.perf_counter(), time.process_time()))


def worker(order: WorkerOrder, clock: list[tuple[float, float]]) -> float:
    """Run a whole worker, timed from the moment it begins to fetch the batches of a step."""
    from finetune_trainer.worker.rank_run import run_rank
    from finetune_trainer.worker.trainer import FineTuneTrainer

    fetch, losses = FineTuneTrainer.get_batch_samples, []

    def fetched(self: Any, *arguments: Any) -> Any:
        tick(clock)
        return fetch(self, *arguments)

    log = FineTuneTrainer.log

    def logged(self: Any, logs: dict[str, float], *arguments: Any) -> None:
        if "loss" in logs:
            losses.append(float(logs["loss"]))
        log(self, logs, *arguments)

    FineTuneTrainer.get_batch_samples = fetched  # type: ignore[method-assign]
    FineTuneTrainer.log = logged  # type: ignore[method-assign]
    if code := run_rank(order, os.open(os.devnull, os.O_WRONLY)):
        raise SystemExit(f"the worker ended with {code}")
    return losses[-1]


def bare(order: WorkerOrder, clock: list[tuple[float, float]]) -> float:
    """Train with a hand-written loop."""
    import deepspeed
    import torch

    from finetune_trainer.worker import rank_run as parts
    from finetune_trainer.worker.tasks import task_of

    plan = order.plan
    torch.set_num_threads(order.threads)
    parts.join(order)
    model = parts.load_model(task_of(plan), Path(order.model), torch.float32, 0)
    batching = task_of(plan).batching(model, 0)
    rows = parts.load_split(order, "train")
    items = task_of(plan).items(rows)
    data = parts.VirtualDataset(
        rows, plan.schedule.seed, plan.schedule.max_steps, BATCH, items=items, dealt=batching.dealt
    )
    head = task_of(plan).loss(model)
    rate = {"lr": plan.schedule.learning_rate, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}
    engine, optimizer, _, _ = deepspeed.initialize(model=model, config=filled(plan, rate))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer.optimizer, lambda step: (plan.schedule.max_steps - step) / plan.schedule.max_steps
    )
    loader = iter(torch.utils.data.DataLoader(data, batch_size=BATCH, collate_fn=batching.collate))
    engine.train()
    last_loss = 0.0
    for step in range(1, plan.schedule.max_steps + 1):
        tick(clock)
        loss = head(engine, next(loader)).total / data.step_items(step)
        engine.backward(loss)
        engine.step()
        schedule.step()
        last_loss = loss.item()
    tick(clock)
    return last_loss


def filled(plan: Plan, rate: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration with the values that transformers would fill in."""
    optimizer = {"type": "AdamW", "params": {**rate, "torch_adam": True}}
    sizes = {"train_micro_batch_size_per_gpu": BATCH, "train_batch_size": BATCH, "gradient_accumulation_steps": 1}
    return {**plan.engine.deepspeed, **sizes, "gradient_clipping": 1.0, "optimizer": optimizer}


if __name__ == "__main__":
    main()
