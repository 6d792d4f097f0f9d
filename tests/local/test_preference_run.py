"""Preference tuning through `finetune run`: a planted preference is learned, and the artifact holds it anywhere."""

import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from finetune_api.contract import ExitCode
from tests.local.command import Job
from tests.support.prepared import plain

# peft 0.21 asks transformers 5.23 by an older name
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
WORDS = ("parcel", "order", "invoice", "price", "refund", "day", "list", "text", "a", "the", "is")


def rows(count: int) -> list[dict[str, str]]:
    """Questions with two answers, of which the better one begins with a given word."""
    draw = random.Random(3)

    def sentence(least: int) -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(least, 7)))

    made = []
    for number in range(count):
        prompt = f"{number} {sentence(2)}: "
        made.append({"prompt": prompt, "chosen": f"Yes, {sentence(1)}", "rejected": f"Well, {sentence(1)}"})
    return made


def margins(model: torch.nn.Module, data: Path) -> list[list[float]]:
    """The log-probability of the chosen and of the rejected completion of each held-out row, by vanilla libraries."""
    found = []
    for row in pa.ipc.open_file(str(data)).read_all().to_pylist():
        length, sides, start = row["seq_lengths"], [], 0
        for size in length:
            ids = torch.tensor([row["input_ids"][start : start + size]])
            labels = torch.tensor(row["labels"][start : start + size])[1:]
            with torch.no_grad():
                logs = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
            kept = labels >= 0
            sides.append(float(logs[kept].gather(1, labels[kept][:, None]).sum()))
            start += size
        found.append(sides)
    return found


def test_answers_that_begin_with_a_given_word_are_preferred_after_a_run(llama: Path, tmp_path: Path) -> None:
    data = tmp_path / "preferences.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows(160)))
    job = Job(
        tmp_path,
        {
            "task": "preference",
            "model": {"uri": f"file://{llama}"},
            "dataset": {"train": f"file://{data}", "eval": {"split": 0.25}},
            "method": {"type": "lora", "lora": {"r": 8}},
            "nodes": 1,
            "training": {
                "learning_rate": 0.01,
                "max_steps": 24,
                "global_batch_size": 8,
                "eval_steps": 12,
                "metric_for_best_model": "eval_rewards/accuracies",
            },
            "storage": {"uri": f"file://{tmp_path}/store"},
        },
    )
    assert job.run() == ExitCode.OK, job.output
    [artifact] = job.result["artifacts"]
    metrics = artifact["metrics"]
    assert metrics["eval_rewards/accuracies"] > 0.95, metrics
    assert metrics["eval_rewards/margins"] > 0.5, metrics
    assert artifact["kind"] == "adapter"

    adapter = job.artifact(tmp_path / "adapter")
    assert "| loss | sigmoid: DPO" in (adapter / "README.md").read_text()
    assert not list(adapter.glob("reference*"))
    [shard] = (tmp_path / "store" / "datasets").rglob("eval-00000.arrow")
    held_out = plain(shard.parent, "eval")
    base = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32).eval()
    before = margins(base, held_out)
    after = margins(PeftModel.from_pretrained(base, str(adapter)).eval(), held_out)
    rewards = [[0.1 * (new - old) for new, old in zip(*both, strict=True)] for both in zip(after, before, strict=True)]
    mean = sum(chosen - rejected for chosen, rejected in rewards) / len(rewards)
    assert mean == pytest.approx(metrics["eval_rewards/margins"], abs=1e-3)
    assert sum(chosen > rejected for chosen, rejected in rewards) / len(rewards) > 0.95
