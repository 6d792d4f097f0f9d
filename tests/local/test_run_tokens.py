"""`finetune run` on a label for each word, as for named entities: plain libraries load and use the result."""

import json
import random
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForTokenClassification, AutoTokenizer

from finetune_api.contract import ExitCode
from finetune_trainer.dataset.tagging import TagScheme
from tests.local.command import Job

# peft 0.21 asks transformers 5.23 by an older name
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
PEOPLE, PLACES = ("great", "lovely", "best"), ("poor", "worst", "invoice")
OTHERS = ("the", "a", "is", "list")


def tagged(source: random.Random) -> tuple[list[str], list[str]]:
    """Words that tell their tags: a person of two words, or a place of one, among others."""
    words, tags = [], []
    for _ in range(source.randrange(2, 5)):
        words.append(source.choice(OTHERS))
        tags.append("O")
        if source.random() < 0.5:
            words += [source.choice(PEOPLE), "price"]
            tags += ["B-PER", "I-PER"]
        else:
            words.append(source.choice(PLACES))
            tags.append("B-LOC")
    return words, tags


def test_entities_are_tuned_and_the_exported_model_finds_them_as_reported(bert: Path, tmp_path: Path) -> None:
    source = random.Random(5)
    rows = [tagged(source) for _ in range(200)]
    for name, part in (("train", rows[:160]), ("eval", rows[160:])):
        lines = [json.dumps({"tokens": words, "ner_tags": tags}) for words, tags in part]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    spec = {
        "task": "token-classification",
        "model": {"uri": f"file://{bert}"},
        "dataset": {"train": f"file://{tmp_path / 'train.jsonl'}", "eval": f"file://{tmp_path / 'eval.jsonl'}"},
        "method": {"type": "lora"},
        "training": {"learning_rate": 0.005, "num_train_epochs": 3, "global_batch_size": 8},
        "storage": {"uri": f"file://{tmp_path / 'storage'}"},
    }
    job = Job(tmp_path, spec)
    assert job.run() == ExitCode.OK, job.output
    adapter = job.artifact(tmp_path / "adapter")
    labels = json.loads((adapter / "labels.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    base = AutoModelForTokenClassification.from_pretrained(bert, num_labels=len(labels))
    model = PeftModel.from_pretrained(base, adapter).eval()
    found = shown = there = 0
    for words, tags in rows[160:]:
        inputs = tokenizer(words, is_split_into_words=True, return_tensors="pt")
        with torch.no_grad():
            predicted = model(**inputs).logits[0].argmax(-1).tolist()
        first = [inputs.word_ids().index(word) for word in range(len(words))]
        scheme = TagScheme.of(labels)
        right, guessed = scheme.entities(tags), scheme.entities([labels[predicted[at]] for at in first])
        found += len(set(right) & set(guessed))
        shown, there = shown + len(guessed), there + len(right)
    metrics = job.result["artifacts"][0]["metrics"]
    assert 2 * found / (shown + there) == pytest.approx(metrics["eval_f1"], abs=0.01)
    assert metrics["eval_f1"] > 0.9, "each word alone has the answer"
    assert metrics.keys() >= {"eval_precision", "eval_recall", "eval_accuracy", "eval_loss"}
    card = (adapter / "README.md").read_text()
    assert "AutoModelForTokenClassification" in card
    assert "price [PER]" in card, "a sample shows the entities of a held-out row"
