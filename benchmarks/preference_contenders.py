"""DPO in the throughput benchmark: ours through the worker, and TRL's DPOTrainer, each with LoRA and with all weights.

A pair has the prompt of a conversation, its first answer as the chosen completion, and the answer of another
conversation as the rejected one. With LoRA both compute the reference in each step, with the adapter switched off. With
all weights TRL runs a second model in each step, and ours computes the reference once, before the first step; the
benchmark counts that time.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.chat_rows import LONGEST, ChatRow
from benchmarks.contenders import BATCH, RATE, SEED, Work, run_worker, settings
from finetune_api.messages import MethodType, Task
from finetune_api.preference_losses import PREFERENCE_LOSSES, PreferenceLoss
from finetune_trainer.worker.batches.padded import IGNORED
from tests.support.preferences import Pair, plan_of, write_pairs

LOSS = PreferenceLoss.SIGMOID
LORA = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": "all-linear"}
PREFERENCE_RATE = RATE / 10


@dataclass(frozen=True)
class PairWork:
    """The input of every contender.

    Attributes:
        pairs: pairs of all steps, in the order of our worker.
    """

    work: Work
    pairs: list[Pair]

    @property
    def tokens(self) -> list[int]:
        """Return the tokens of each step, of both sequences of a pair."""
        sizes = [2 * len(one.prompt) + len(one.chosen) + len(one.rejected) for one in self.pairs]
        return [sum(sizes[at : at + BATCH]) for at in range(0, len(sizes), BATCH)]


def pairs_of(rows: list[ChatRow]) -> list[Pair]:
    """Return a pair for each conversation."""
    split = [(row.input_ids, int(np.argmax(np.array(row.labels) != IGNORED))) for row in rows]
    return [
        Pair(ids[:at], ids[at:], rejected[start:][: LONGEST - at])
        for (ids, at), (rejected, start) in zip(split, split[1:] + split[:1], strict=True)
        if 0 < at < LONGEST and start
    ]


def pair_work(work: Work, rows: list[ChatRow], order: Callable[[int], list[int]]) -> PairWork:
    """Write the pairs beside the model, and return the input.

    Args:
        order: from a number of rows to their order in our run.
    """
    pairs = pairs_of(rows)
    write_pairs(work.dataset / "train.arrow", pairs)
    return PairWork(work, [pairs[row] for row in order(len(pairs))[: work.steps * BATCH]])


def ours(method: MethodType, given: PairWork, scratch: Path, pipe: int) -> None:
    """Train with the product's worker; see `contenders.run_worker`."""
    reference = "adapter-off" if method is MethodType.LORA else "cached"
    changes: dict[str, Any] = {"lora": LORA} if method is MethodType.LORA else {}
    changes |= {"learning_rate": PREFERENCE_RATE, "preference": plan_of(LOSS, reference)}
    run_worker(given.work, scratch, pipe, Task.PREFERENCE, method, **changes)


def trl(method: MethodType, given: PairWork, scratch: Path, pipe: int) -> None:
    """Train with TRL's DPOTrainer, without DeepSpeed; its own defaults, but no recomputation and no bfloat16."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback, set_seed
    from trl import DPOConfig, DPOTrainer

    work = given.work
    torch.set_num_threads(work.threads)
    set_seed(SEED)
    model: Any = AutoModelForCausalLM.from_pretrained(work.model, dtype=torch.float32)
    model.config.use_cache = False
    # of a model that is wrapped already, TRL copies the adapter: its reference would be a second adapter, not the base
    adapter = LoraConfig(task_type="CAUSAL_LM", **LORA) if method is MethodType.LORA else None
    rows = [{"prompt_ids": one.prompt, "chosen_ids": one.chosen, "rejected_ids": one.rejected} for one in given.pairs]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=work.tokenizer, pad_token="<pad>", eos_token="<|im_end|>")

    class Told(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "loss" in logs:
                line = {"event": "step", "step": state.global_step, "values": {"loss": float(logs["loss"])}}
                os.write(pipe, (json.dumps(line) + "\n").encode())

    class Tokenised(DPOTrainer):
        """TRL's trainer for rows that are tokenised, so that it trains the same tokens."""

        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

    changes = {"learning_rate": PREFERENCE_RATE, "max_length": LONGEST, "beta": PREFERENCE_LOSSES[LOSS].beta}
    trainer = Tokenised(
        model=model,
        args=DPOConfig(**settings(scratch, work.steps, **changes)),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=adapter,
        callbacks=[Told()],
    )
    trainer.train()


PREFERENCE_CONTENDERS: dict[str, Callable[[PairWork, Path, int], None]] = {
    f"{who}_{method}": lambda given, scratch, pipe, train=train, method=method: train(method, given, scratch, pipe)  # type: ignore[misc]
    for method in (MethodType.LORA, MethodType.FULL)
    for who, train in (("ours", ours), ("trl", trl))
}
