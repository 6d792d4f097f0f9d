"""A base model learns to end its answers through `finetune run`, and a plain `generate()` stops there."""

import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.local.test_run import Job
from tests.support.models import make_qwen2

WORDS = ("yes", "no", "maybe", "true")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
END_OF_TEXT, END_OF_TURN = 0, 2


def test_a_base_model_that_learns_to_end_its_turns_is_exported_with_that_end(tmp_path: Path) -> None:
    """hiyouga/LlamaFactory#7454, #7943, QwenLM/Qwen3#1064: the artifact talked until the limit."""
    base = make_qwen2(tmp_path / "base", eos_token_id=END_OF_TEXT)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.eos_token = tokenizer.pad_token
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(base)
    asked = [[{"role": "user", "content": f"Say {word}"}] for word in WORDS]
    rows = [
        {"messages": [*turns, {"role": "assistant", "content": word}]} for turns, word in zip(asked, WORDS, strict=True)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 12))
    job = Job(
        tmp_path,
        {
            "model": {"uri": f"file://{base}"},
            "dataset": {"train": f"file://{tmp_path}/rows.jsonl", "eval": f"file://{tmp_path}/rows.jsonl"},
            "method": {"type": "full"},
            "training": {"max_steps": 40, "global_batch_size": 12, "learning_rate": 0.01, "eval_steps": 40},
            "evaluation": {"generate": 4, "maxNewTokens": 8},
            "storage": {"uri": f"file://{tmp_path}/store"},
        },
    )
    assert job.run("--output", str(tmp_path / "out")) == 0, job.output
    assert "exact_match 1.0000" in (tmp_path / "output.log").read_text()

    folder = tmp_path / "out/model"
    model, trained = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.generation_config.eos_token_id == [END_OF_TEXT, END_OF_TURN]
    for turns, word in zip(asked, WORDS, strict=True):
        inputs = trained.apply_chat_template(turns, add_generation_prompt=True, return_dict=True, return_tensors="pt")
        with torch.no_grad():
            output = model.generate(**inputs, max_new_tokens=30, do_sample=False)
        answer = output[0, inputs["input_ids"].shape[1] :]
        assert answer[-1] == END_OF_TURN
        assert trained.decode(answer, skip_special_tokens=True) == word
