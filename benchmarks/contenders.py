"""One run of the throughput benchmark for each way to train: ours through the worker, TRL's and transformers' trainers.

Every run writes its loss to a pipe, one line a step; the reader of the pipe measures the time.
"""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finetune_api.messages import DatasetFacts, MethodType, SplitFacts, Task
from finetune_api.plan import Plan

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.chat_rows import LONGEST, PAD, ChatRow  # noqa: E402
from finetune_trainer.prepare.plan.engine import deepspeed_config  # noqa: E402
from tests.local.harness import make_plan, orders  # noqa: E402

BATCH = 8
SEED = 42
RATE = 1e-3
PACKS = 2  # sequences of 512 tokens a step: 8 rows hold 1,216 tokens on average
SHAPE = {
    "model_type": "llama",
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 688,
    "max_position_embeddings": 1024,
    "pad_token_id": PAD,
}


@dataclass(frozen=True)
class Work:
    """The input of every contender.

    Attributes:
        rows: rows of all steps, in the order of our worker.
        steps: optimizer steps of BATCH rows.
        threads: threads of each run.
    """

    model: Path
    dataset: Path
    tokenizer: Any
    rows: list[ChatRow]
    steps: int
    threads: int


def ours(work: Work, scratch: Path, pipe: int) -> None:
    """Train all weights on chats; see `run_worker`."""
    run_worker(work, scratch, pipe, Task.CAUSAL_LM, MethodType.FULL, learning_rate=RATE)


def run_worker(work: Work, scratch: Path, pipe: int, task: Task, method: MethodType, **changes: Any) -> None:
    """Train as an agent runs a worker: DeepSpeed over gloo, a report of every step.

    Args:
        changes: further values of the plan.
    """
    from finetune_trainer.worker.rank_run import run_rank

    split = SplitFacts(rows=2000, tokens=0, trained_tokens=0, longest=LONGEST)
    plan: Plan = make_plan(
        task,
        method,
        world=1,
        stage=0,
        dataset=DatasetFacts(sha256="0" * 64, train=split),
        micro_batch=BATCH,
        gradient_accumulation=1,
        global_batch=BATCH,
        max_length=LONGEST,
        max_steps=work.steps,
        warmup_steps=0,
        lr_scheduler_type="constant",
        seed=SEED,
        checkpoint_every_steps=work.steps + 1,
        deepspeed=deepspeed_config(0, None, {}),
        **changes,
    )
    order = orders(plan, work.model, work.dataset, scratch)[0].model_copy(update={"threads": work.threads})
    sys.exit(int(run_rank(order, pipe)))


def settings(scratch: Path, steps: int, **changes: Any) -> dict[str, Any]:
    """Return the common settings of TRL's and transformers' runs; all others keep their defaults."""
    return {
        "output_dir": str(scratch),
        "per_device_train_batch_size": BATCH,
        "max_steps": steps,
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "seed": SEED,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,  # TRL's default is True: it would compute every activation twice
        "train_sampling_strategy": "sequential",
        "logging_steps": 1,
        "report_to": [],
        "disable_tqdm": True,
        "save_strategy": "no",
        **changes,
    }


PEERS: dict[str, dict[str, Any]] = {
    "trl_packed": {"packing": True, "max_length": LONGEST, "per_device_train_batch_size": PACKS},
    "trl_packed_8": {
        "packing": True,
        "max_length": LONGEST,
    },  # as for a user who turns packing on and keeps the batch size
    "trl_padded": {"max_length": LONGEST},
    "trl_grouped": {"max_length": LONGEST, "train_sampling_strategy": "group_by_length"},
    "trainer_padded": {},
    "trainer_grouped": {"train_sampling_strategy": "group_by_length"},
}


def peer(name: str, work: Work, scratch: Path, pipe: int) -> None:
    """Train with TRL's SFTTrainer, or with transformers' own Trainer and its model's loss, both without DeepSpeed."""
    import torch
    from datasets import Dataset
    from transformers import (
        AutoModelForCausalLM,
        PreTrainedTokenizerFast,
        Trainer,
        TrainerCallback,
        TrainingArguments,
        set_seed,
    )
    from trl import SFTConfig, SFTTrainer

    torch.set_num_threads(work.threads)
    set_seed(SEED)
    model = AutoModelForCausalLM.from_pretrained(work.model, dtype=torch.float32)
    model.config.use_cache = False
    data = Dataset.from_list([{"input_ids": row.input_ids, "labels": row.labels} for row in work.rows])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=work.tokenizer, pad_token="<pad>", eos_token="<|im_end|>")
    changes = PEERS[name]
    steps = work.steps

    class Told(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "loss" in logs:
                line = {"event": "step", "step": state.global_step, "values": {"loss": float(logs["loss"])}}
                os.write(pipe, (json.dumps(line) + "\n").encode())

    trainer: Any
    if name.startswith("trl"):
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(**settings(scratch, steps, **changes)),
            train_dataset=data,
            processing_class=tokenizer,
            callbacks=[Told()],
        )
        if changes.get("packing"):  # one pass over the same rows
            sequences = trainer.args.per_device_train_batch_size
            trainer.args.max_steps = len(trainer.train_dataset) // sequences
    else:
        trainer = Trainer(
            model=model,
            args=TrainingArguments(**settings(scratch, steps, **changes)),
            train_dataset=data,
            data_collator=padded,
            callbacks=[Told()],
        )
    trainer.data_collator = counted(trainer.data_collator, scratch)
    trainer.train()


def padded(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the same batch as DataCollatorForSeq2Seq, which is slower."""
    import torch

    longest = max(len(row["input_ids"]) for row in rows)
    made = {name: np.full((len(rows), longest), fill) for name, fill in (("input_ids", PAD), ("labels", -100))}
    mask = np.zeros((len(rows), longest), dtype=np.int64)
    for index, row in enumerate(rows):
        length = len(row["input_ids"])
        mask[index, :length] = 1
        for name in made:
            made[name][index, :length] = row[name]
    return {**{name: torch.from_numpy(value) for name, value in made.items()}, "attention_mask": torch.from_numpy(mask)}


def counted(collate: Callable[[Any], Any], scratch: Path) -> Callable[[Any], Any]:
    """Wrap a collator so that it records the tokens of each batch, before padding."""
    tokens: list[int] = []

    def call(rows: Any) -> Any:
        tokens.append(sum(len(row["input_ids"]) for row in rows))
        (scratch / "tokens.json").write_text(json.dumps(tokens))
        return collate(rows)

    return call


CONTENDERS: dict[str, Callable[[Work, Path, int], None]] = {
    "ours": ours,
    **{name: lambda work, scratch, pipe, name=name: peer(name, work, scratch, pipe) for name in PEERS},  # type: ignore[misc]
}
