"""A decoder and its adapter as any user has them: plain transformers and peft, and none of our code.

python vanilla_decoder.py ORDERS         # a JSON file: base, adapter, rows, code, questions; JSON on stdout
"""

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

MOST = 48  # tokens of an answer


def main() -> None:
    """Print the base model's losses and answers, then those of the model with its adapter."""
    orders = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    adapter = orders["adapter"]
    model: Any = AutoModelForCausalLM.from_pretrained(orders["base"], dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    rows = pa.ipc.open_file(orders["rows"]).read_all().to_pylist()
    ends = GenerationConfig.from_pretrained(adapter)
    found: dict[str, Any] = {
        "code_loss": code_loss(model, tokenizer, orders["code"]),
        "base_loss": token_loss(model, rows),
        "base_answers": [answer(model, tokenizer, question, ends) for question in orders["questions"]],
    }
    tuned: Any = PeftModel.from_pretrained(model, adapter).eval()
    found |= {
        "tuned_loss": token_loss(tuned, rows),
        "answers": [answer(tuned, tokenizer, question, ends) for question in orders["questions"]],
        "eos_token_id": ends.eos_token_id,
    }
    print("\n" + json.dumps(found))


def code_loss(model: Any, tokenizer: Any, text: str) -> float:
    """Return the mean loss of a text's tokens, at most 512."""
    ids = tokenizer(text, return_tensors="pt").input_ids[:, :512]
    with torch.no_grad():
        return float(model(input_ids=ids, labels=ids).loss)


def token_loss(model: Any, rows: list[dict[str, Any]]) -> float:
    """Return the mean loss of the tokens with labels, a row at a time."""
    total, tokens = 0.0, 0
    for row in rows:
        labels = torch.tensor([row["labels"]])
        count = int((labels[:, 1:] != -100).sum())
        with torch.no_grad():
            total += float(model(input_ids=torch.tensor([row["input_ids"]]), labels=labels).loss) * count
        tokens += count
    return total / tokens


def answer(model: Any, tokenizer: Any, question: str, ends: GenerationConfig) -> dict[str, Any]:
    """Return the likeliest answer to a question as text, and its last token."""
    asked = [{"role": "user", "content": question}]
    inputs = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    with torch.no_grad():
        made = model.generate(**inputs, generation_config=ends, max_new_tokens=MOST, do_sample=False)
    said = made[0, inputs["input_ids"].shape[1] :]
    return {"text": tokenizer.decode(said, skip_special_tokens=True), "last": int(said[-1])}


if __name__ == "__main__":
    main()
