"""The two models, loaded as a stranger would: plain transformers and peft, on a CPU, one at a time.

An adapter is put onto the base model after that was measured, so that memory holds one model.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import transformers
from peft import PeftModel
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from finetune_api.messages import ProblemType
from finetune_api.plan import Plan
from finetune_api.tasks import spec_of
from finetune_trainer.judge.judge_question import JudgeQuestion

ADAPTER_CONFIG = "adapter_config.json"


def tokenizer_of(question: JudgeQuestion) -> PreTrainedTokenizerBase:
    """Return the tokenizer of the artifact, which has the new tokens and the chat template of the data."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(question.artifact)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def base_answers_rows(question: JudgeQuestion) -> bool:
    """Return whether the base model can answer the rows: a classifier only if it has a head for these labels."""
    plan = question.plan
    if not spec_of(plan.task).labelled:
        return True
    config = json.loads((Path(question.base) / "config.json").read_text("utf-8"))
    headed = any("ForSequenceClassification" in str(name) for name in config.get("architectures") or ())
    labels = config.get("id2label") or {}
    known = tuple(str(labels[key]) for key in sorted(labels, key=int))
    return headed and (known == plan.dataset.labels or plan.dataset.problem_type is ProblemType.REGRESSION)


def models_of(question: JudgeQuestion, tokens: int) -> Iterator[tuple[str, Any]]:
    """Yield the base model, if it can answer the rows, then the tuned one; each is valid until the next is asked for.

    Args:
        tokens: of the tokenizer, for a job with new tokens.
    """
    plan = question.plan
    adapter = (Path(question.artifact) / ADAPTER_CONFIG).exists()
    auto = getattr(transformers, spec_of(plan.task).auto_class)
    asked = base_answers_rows(question)
    model: Any = None
    if asked or adapter:
        model = auto.from_pretrained(question.base, **_head(plan))
        if plan.new_tokens and tokens > model.get_input_embeddings().num_embeddings:
            model.resize_token_embeddings(tokens, mean_resizing=False)
        if spec_of(plan.task).labelled and model.config.pad_token_id is None:
            model.config.pad_token_id = _pad(question)
        model.eval()
    if asked:
        yield "base", model
    if adapter:
        if spec_of(plan.task).writes and plan.dataset.ends:
            model.generation_config = GenerationConfig.from_pretrained(question.artifact)
        model = PeftModel.from_pretrained(model, question.artifact)
    else:
        model = None  # frees the base model first
        model = auto.from_pretrained(question.artifact)
    yield "tuned", model.eval()


def _head(plan: Plan) -> dict[str, Any]:
    """Return the options of a classification's head, as on the card of an adapter."""
    if not spec_of(plan.task).labelled:
        return {}
    options: dict[str, Any] = {"num_labels": len(plan.dataset.labels) or 1}
    if plan.dataset.problem_type not in (None, ProblemType.SINGLE_LABEL):
        options["problem_type"] = str(plan.dataset.problem_type)
    return options


def _pad(question: JudgeQuestion) -> int | None:
    pad = tokenizer_of(question).pad_token_id
    return int(pad) if isinstance(pad, int) else None
