"""A run with an adapter of a tiny LLaMA that vLLM serves; its answers end with a token that does not end the base's."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from finetune_api.contract import dataset_prefix
from finetune_api.messages import DatasetFacts, MethodType, ModelFacts, SplitFacts, Task
from finetune_trainer.model.files import CHAT_TEMPLATE
from finetune_trainer.storage import upload_tree
from tests.local.exported_run import MIRROR, Run, scrambled
from tests.support.models.decoders import make_llama
from tests.support.prepared import IDS, IGNORED

SHAPE = {
    "hidden_size": 128,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 64,
}  # vLLM's kernels on CPUs
PROMPTS = ("Return a new list", "Where is the dog", "An iterator over all items")
TEMPLATE = (
    "{% for one in messages %}<s>user: {{ one.content }}{% endfor %}{% if add_generation_prompt %} it is:{% endif %}"
)
END_AT = 6  # tokens of the first answer before its end
LORA: dict[str, Any] = {"r": 4, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}


def served_run(folder: Path) -> Run:
    """Return a run with a committed checkpoint, three held-out rows, and a chat template that the base model lacks."""
    base = make_llama(folder / "llama", **SHAPE, initializer_range=0.3)
    tokenizer = AutoTokenizer.from_pretrained(base)
    prompts = [tokenizer(text)["input_ids"] for text in PROMPTS]
    model, end = _answering(base, prompts[0])
    split = SplitFacts(rows=len(prompts), tokens=100, trained_tokens=10, longest=40)
    data = DatasetFacts(sha256="e" * 64, train=split, eval=split, ends=(end,))
    facts = ModelFacts(
        name="tiny",
        commit="abc",
        prefix=MIRROR,
        source="file:///models/tiny",
        model_type="llama",
        parameters=1,
        size_bytes=1,
        max_positions=256,
    )
    run = Run.of(base, folder, Task.CAUSAL_LM, MethodType.LORA, dataset=data, model=facts, lora=LORA)
    rows = folder / "rows"
    rows.mkdir()
    for name in ("train", "eval"):
        _write(rows / f"{name}.arrow", prompts, end)
    (rows / CHAT_TEMPLATE).write_text(TEMPLATE)
    upload_tree(run.store, rows, dataset_prefix(data.sha256), "dataset")
    run.commit(20, model)
    return run


def _answering(base: Path, prompt: list[int]) -> tuple[Any, int]:
    """An adapted model, and the token of its answer at END_AT, which the answer has nowhere before."""
    for seed in range(50):
        torch.manual_seed(seed)  # of the adapter's A matrices
        model: Any = AutoModelForCausalLM.from_pretrained(base)
        model = scrambled(get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **LORA)), seed)
        ids = torch.tensor([prompt])
        answer = model.generate(input_ids=ids, max_new_tokens=12, do_sample=False, eos_token_id=None)
        tokens = answer[0, len(prompt) :].tolist()
        if tokens[END_AT] not in tokens[:END_AT]:
            return model, tokens[END_AT]
    raise AssertionError("no tiny model writes such an answer")


def _write(file: Path, prompts: list[list[int]], end: int) -> None:
    answer = [7, 8, end]
    ids = [[*prompt, *answer] for prompt in prompts]
    labels = [[IGNORED] * len(prompt) + answer for prompt in prompts]
    table = pa.table({"input_ids": pa.array(ids, IDS), "labels": pa.array(labels, IDS)})
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
