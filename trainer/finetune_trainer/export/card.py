"""README.md of an artifact: what it was made from and how it is loaded. The code in it runs as it stands (tested)."""

import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from finetune_api.messages import MethodType, Plan, Task
from finetune_trainer.evaluations import Told
from finetune_trainer.export.evaluated import evaluated
from finetune_trainer.export.layout import Base

PACKAGES = ("finetune-operator", "torch", "transformers", "peft", "deepspeed")
HERE = 'artifact = "."'  # replaced by who prints the snippet elsewhere
NOTHING_TOLD = Told()
CLASSES = {Task.CLASSIFICATION: "AutoModelForSequenceClassification"}
PIPELINES = {Task.CLASSIFICATION: "text-classification", Task.SEQ2SEQ: "text2text-generation"}


def card(
    plan: Plan,
    base: Base,
    step: int,
    metrics: Mapping[str, float],
    versions: Mapping[str, str],
    evaluation: Told = NOTHING_TOLD,
) -> str:
    """The model card, Markdown with the YAML head that the Hugging Face hub reads.

    Args:
        step: the checkpoint's.
        metrics: its evaluation; empty if there was none.
        versions: package name -> version that made it.
        evaluation: what else is known of it: scores of each label, generated answers.
    """
    adapter = plan.method is not MethodType.FULL
    parts = [
        _head(plan, base, adapter),
        f"# {plan.model.name}, fine-tuned\n",
        f"{'A LoRA adapter' if adapter else 'All weights'} after step {step} of {plan.max_steps}, {_task(plan)}.\n",
        "## Load it\n",
        f"```python\n{snippet(plan, base)}```\n",
    ]
    if adapter and base.location.startswith("s3://"):
        parts.append(f"First copy the base model from `{base.location}` to a folder and write its path in its place.\n")
    if metrics:
        parts += ["## Evaluation\n", f"On {_rows(plan)} held-out rows:\n", _table(metrics, ".6g")]
        parts += evaluated(evaluation)
    parts += ["## Training\n", _table(_training(plan)), "## Made with\n", _table(versions)]
    return "\n".join(parts)


def snippet(plan: Plan, base: Base) -> str:
    """Python that loads the artifact with vanilla transformers and peft and uses it once."""
    classes = plan.task is Task.CLASSIFICATION
    auto = CLASSES.get(plan.task, "AutoModelForCausalLM")
    adapter = plan.method is not MethodType.FULL
    lines = [f"from transformers import {auto}, AutoTokenizer", "", HERE]
    if adapter:
        lines.insert(0, "from peft import PeftModel")
        source = json.dumps(base.location) + (f', revision="{base.revision}"' if base.revision else "")
        if classes:
            lines[:0] = ["import json", "from pathlib import Path", ""]
            lines.append('labels = json.loads(Path(artifact, "labels.json").read_text("utf-8"))')
            source += ", num_labels=len(labels), id2label=dict(enumerate(labels))"
        lines.append(f"base = {auto}.from_pretrained({source})")
        if plan.new_tokens:
            lines.append(
                "rows = max(len(AutoTokenizer.from_pretrained(artifact)), base.get_input_embeddings().num_embeddings)"
            )
            lines.append("base.resize_token_embeddings(rows, mean_resizing=False)  # the adapter holds the new rows")
        lines.append("model = PeftModel.from_pretrained(base, artifact).eval()")
    else:
        lines.append(f"model = {auto}.from_pretrained(artifact).eval()")
    lines.append("tokenizer = AutoTokenizer.from_pretrained(artifact)")
    cut = f'truncation=True, max_length={plan.max_length}, return_tensors="pt"'
    lines += ["", f'inputs = tokenizer("Some text.", {cut})']
    if classes:
        lines.append("print(model.config.id2label[int(model(**inputs).logits.argmax())])")
    else:
        lines.append("output = model.generate(**inputs, max_new_tokens=40)")
        lines.append("print(tokenizer.decode(output[0], skip_special_tokens=True))")
    return "\n".join(lines) + "\n"


def installed_versions() -> dict[str, str]:
    """Versions of the packages that matter for a result; those that are not installed are left out."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _head(plan: Plan, base: Base, adapter: bool) -> str:
    head = ["---"]
    if base.on_hub:
        head.append(f"base_model: {base.location}")
    head.append(f"library_name: {'peft' if adapter else 'transformers'}")
    head.append(f"pipeline_tag: {PIPELINES.get(plan.task, 'text-generation')}")
    return "\n".join([*head, "tags:", "- finetune-operator", *(["- lora"] if adapter else []), "---", ""])


def _task(plan: Plan) -> str:
    if plan.dataset.labels:
        return f"for classification into {len(plan.dataset.labels)} labels (`labels.json`)"
    return "for text generation"


def _rows(plan: Plan) -> str:
    return f"{plan.dataset.eval.rows:,}" if plan.dataset.eval else "no"


def _training(plan: Plan) -> dict[str, object]:
    facts: dict[str, object] = {
        "base model": plan.model.name,
        "base model's commit": plan.model.commit,
        "data, sha256": plan.dataset.sha256,
        "rows": f"{plan.dataset.train.rows:,}",
        "tokens": f"{plan.dataset.train.tokens:,}",
        "method": plan.method,
        "steps": plan.max_steps,
        "epochs": f"{plan.epochs:g}",
        "rows a step": plan.global_batch,
        "longest row, tokens": plan.max_length,
        "learning rate": f"{plan.learning_rate:g}, {plan.lr_scheduler_type}, {plan.warmup_steps} steps of warm-up",
        "seed": plan.seed,
        "ranks": f"{plan.world_size}, ZeRO-{plan.zero_stage}",
    }
    if plan.adapter:
        facts["began with the adapter"] = f"{plan.adapter.source}, sha256 {plan.adapter.commit}"
    if plan.freeze:
        facts["not trained"] = json.dumps(plan.freeze, ensure_ascii=False)
    if plan.new_tokens:
        facts["new tokens"] = json.dumps(plan.new_tokens, ensure_ascii=False)
    if plan.method is MethodType.QLORA:
        facts["base model's weights in training"] = "4 bits (NF4, bitsandbytes, constants quantized twice)"
    return facts | {name: json.dumps(value) for name, value in (plan.lora | plan.training).items()}


def _table(values: Mapping[str, object], numbers: str = "") -> str:
    rows = [f"| {name} | {value:{numbers}} |" for name, value in values.items()]
    return "\n".join(["| | |", "|---|---|", *rows, ""])
