"""The two models, loaded as a stranger would: plain transformers and peft, on a CPU, one at a time.

An adapter is put onto the base model after that was measured, so that memory holds one model.
"""

import gc
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
from finetune_trainer.model.files import ADAPTER_CONFIG
from finetune_trainer.prepare.data.label_values import matched
from finetune_trainer.prepare.weights import trained_labels
from finetune_trainer.worker.models.new_token_rows import add_rows, new_ids


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
    known = trained_labels(json.loads((Path(question.base) / "config.json").read_text("utf-8")), plan.task)
    if plan.dataset.problem_type is ProblemType.REGRESSION:
        return len(known) == 1
    return matched(known, plan.dataset.labels) == plan.dataset.labels


def models_of(question: JudgeQuestion, tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[str, Any]]:
    """Yield the base model, if it can answer the rows, then the tuned one; each is valid until the next is asked for.

    Args:
        tokenizer: of the artifact.
    """
    adapter = (Path(question.artifact) / ADAPTER_CONFIG).exists()
    asked = base_answers_rows(question)
    model = _base(question, tokenizer) if asked or adapter else None
    if asked:
        yield "base", model
    if adapter:
        model = _adapted(question, model)
    else:
        model = None
        gc.collect()  # frees the base model first
        model = _whole(question)
    yield "tuned", model


def tuned_model(question: JudgeQuestion, tokenizer: PreTrainedTokenizerBase) -> Any:
    """Return the tuned model alone.

    Args:
        tokenizer: of the artifact.
    """
    adapter = (Path(question.artifact) / ADAPTER_CONFIG).exists()
    return _adapted(question, _base(question, tokenizer)) if adapter else _whole(question)


def _base(question: JudgeQuestion, tokenizer: PreTrainedTokenizerBase) -> Any:
    plan = question.plan
    model = getattr(transformers, spec_of(plan.task).auto_class).from_pretrained(question.base, **_head(plan))
    if plan.new_tokens:
        add_rows(model, new_ids(plan, tokenizer))  # as training began
    if spec_of(plan.task).labelled and model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    return model.eval()


def _adapted(question: JudgeQuestion, base: Any) -> Any:
    if spec_of(question.plan.task).writes and question.plan.dataset.ends:
        base.generation_config = GenerationConfig.from_pretrained(question.artifact)
    return PeftModel.from_pretrained(base, question.artifact).eval()


def _whole(question: JudgeQuestion) -> Any:
    return getattr(transformers, spec_of(question.plan.task).auto_class).from_pretrained(question.artifact).eval()


def _head(plan: Plan) -> dict[str, Any]:
    """Return the options of a classification's head, as on the card of an adapter."""
    if not spec_of(plan.task).labelled:
        return {}
    options: dict[str, Any] = {"num_labels": len(plan.dataset.labels) or 1}
    if plan.dataset.problem_type not in (None, ProblemType.SINGLE_LABEL):
        options["problem_type"] = str(plan.dataset.problem_type)
    return options
