"""`finetune run` on two texts a row, as for natural language inference: plain libraries load and use the result."""

import json
import random
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from finetune_api.contract import ExitCode
from tests.local.command import Job
from tests.unit.test_text_pairs import typed_bert

# peft 0.21 asks transformers 5.23 by an older name
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
STATES = {"works": ["great", "lovely", "best"], "broken": ["awful", "poor", "worst"]}


def write_pairs(path: Path, rows: int, seed: int) -> list[dict[str, str]]:
    """Pairs whose second text tells the label; the first has words of both labels."""
    source, made = random.Random(seed), []
    for row in range(rows):
        label = source.choice(list(STATES))
        words = [word for state in STATES.values() for word in state]
        made.append(
            {
                "premise": f"{row} {' '.join(source.choices(words, k=3))}",
                "hypothesis": " ".join(source.choices(STATES[label] + ["the", "a"], k=5)) + f" {STATES[label][0]}",
                "label": label,
            }
        )
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return made


def test_pairs_are_tuned_and_the_exported_model_scores_them_as_reported(tmp_path: Path) -> None:
    model = typed_bert(tmp_path / "bert")
    write_pairs(tmp_path / "train.jsonl", 160, seed=1)
    held_out = write_pairs(tmp_path / "eval.jsonl", 40, seed=2)
    spec = {
        "model": {"uri": f"file://{model}"},
        "dataset": {"train": f"file://{tmp_path / 'train.jsonl'}", "eval": f"file://{tmp_path / 'eval.jsonl'}"},
        "method": {"type": "lora"},
        "training": {"learning_rate": 0.003, "num_train_epochs": 3, "global_batch_size": 8},
        "storage": {"uri": f"file://{tmp_path / 'storage'}"},
    }
    job = Job(tmp_path, spec)
    assert job.run() == ExitCode.OK, job.output
    adapter = job.artifact(tmp_path / "adapter")
    labels = json.loads((adapter / "labels.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    base = AutoModelForSequenceClassification.from_pretrained(model, num_labels=len(labels))
    loaded = PeftModel.from_pretrained(base, adapter).eval()
    right = 0
    for row in held_out:
        inputs = tokenizer(row["premise"], row["hypothesis"], return_tensors="pt")
        assert inputs["token_type_ids"].max() == 1
        with torch.no_grad():
            right += labels[int(loaded(**inputs).logits.argmax())] == row["label"]
    metrics = job.result["artifacts"][0]["metrics"]
    assert right / len(held_out) == pytest.approx(metrics["eval_accuracy"], abs=1.5 / len(held_out))
    assert metrics["eval_accuracy"] > 0.8, "the second text alone has the answer"
    assert 'tokenizer("A text.", "A second text."' in (adapter / "README.md").read_text()
