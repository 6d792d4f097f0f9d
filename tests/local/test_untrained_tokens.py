"""Chat marks that the base model was never trained on are reported before training, by prepare itself."""

import json
import os
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from finetune_api.v1alpha1 import FineTuneJob, parse_job
from finetune_trainer.prepare.prepare_stage import inspect, prepare
from finetune_trainer.prepare.quality.report import QualityReport
from finetune_trainer.prepare.quality.warning_lines import warning_lines
from finetune_trainer.storage import open_store

MARKS = ["<|im_start|>", "<|im_end|>"]


@pytest.fixture
def base(tmp_path: Path, llama: Path) -> Path:
    """A model whose tokenizer has the marks of ChatML, with embeddings of zeros, as Qwen's and Llama's bases have."""
    tokenizer = AutoTokenizer.from_pretrained(llama)
    tokenizer.add_special_tokens({"additional_special_tokens": MARKS})
    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.bfloat16)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():
        model.get_input_embeddings().weight[-len(MARKS) :] = 0
    folder = tmp_path / "base"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def job(base: Path, folder: Path, name: str, method: str = "lora") -> FineTuneJob:
    rows = folder / f"{name}.jsonl"
    turns = [{"role": "user", "content": f"{name} 1?"}, {"role": "assistant", "content": "Two."}]
    rows.write_text((json.dumps({"messages": turns}) + "\n") * 40)
    spec = {
        "model": {"uri": f"file://{base}"},
        "dataset": {"train": f"file://{rows}", "chatTemplate": "chatml"},
        "method": {"type": method},
        "storage": {"uri": f"file://{folder}/store"},
    }
    head = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "marks"}}
    return parse_job({**head, "spec": spec})


def reported(report: QualityReport) -> list[str]:
    return [one.message for one in report.findings if one.code == "UntrainedTokens"]


def test_marks_with_untrained_embeddings_are_reported_unless_the_job_trains_them(base: Path, tmp_path: Path) -> None:
    report = inspect(job(base, tmp_path, "first")).report
    (message,) = reported(report)
    assert all(mark in message for mark in MARKS)
    (line,) = (line for line in warning_lines(report) if "UntrainedTokens" in line)
    assert "set spec.method.lora.modules_to_save: [embed_tokens, lm_head]" in line, (
        "LLaMA's head is a matrix of its own"
    )
    assert not reported(inspect(job(base, tmp_path, "first", "full")).report)


def test_a_model_that_an_earlier_job_mirrored_is_looked_at_too(base: Path, tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}/store", os.environ)
    for name in ("first", "second"):
        made = prepare(job(base, tmp_path, name), store, name, tmp_path / name, os.environ, report=lambda line: None)
        assert any("UntrainedTokens" in warning or MARKS[0] in warning for warning in made.result.warnings), name
