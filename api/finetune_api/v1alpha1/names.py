"""What was meant by a field name that does not exist."""

import difflib
from collections.abc import Iterable

from finetune_api.v1alpha1.training import LORA_LATER, LORA_OWNED, TRAINING_OWNED
from finetune_api.v1alpha1.tree import Path, children, dotted, model_at, spec_fields

# What people call things in notebooks, in other trainers and in Kubernetes.
COMMON = {
    "accumulation": "spec.training.gradient_accumulation_steps",
    "alpha": "spec.method.lora.lora_alpha",
    "batch_size": "spec.training.global_batch_size",
    "train_batch_size": "spec.training.global_batch_size",
    "micro_batch": "spec.training.per_device_train_batch_size",
    "micro_batch_size": "spec.training.per_device_train_batch_size",
    "betas": "spec.training.adam_beta1",
    "base_model": "spec.model.name",
    "model_name": "spec.model.name",
    "model_name_or_path": "spec.model.name",
    "bucket": "spec.storage.uri",
    "cutoff_len": "spec.dataset.maxLength",
    "max_seq_length": "spec.dataset.maxLength",
    "sequence_len": "spec.dataset.maxLength",
    "data": "spec.dataset.train",
    "datasets": "spec.dataset.mix",
    "interleave": "spec.dataset.mix",
    "sep": "spec.dataset.delimiter",
    "dropout": "spec.method.lora.lora_dropout",
    "epochs": "spec.training.num_train_epochs",
    "num_epochs": "spec.training.num_train_epochs",
    "gpus": "spec.resourcesPerNode.limits",
    "resources": "spec.resourcesPerNode",
    "grad_accum": "spec.training.gradient_accumulation_steps",
    "lr": "spec.training.learning_rate",
    "lora_r": "spec.method.lora.r",
    "rank": "spec.method.lora.r",
    "replicas": "spec.nodes",
    "num_nodes": "spec.nodes",
    "nproc_per_node": "spec.processesPerNode",
    "restart_policy": "spec.recovery.maxRestarts",
    "save_steps": "spec.checkpoint.everySteps",
    "scheduler": "spec.training.lr_scheduler_type",
    "split": "spec.dataset.eval.split",
    "steps": "spec.training.max_steps",
    "zero_stage": "spec.deepspeed.stage",
}


_WORDS = "labels for each word are not supported; a classification has one label for the whole text"
_VECTORS = "vectors of texts are not learnt; a classification has one label for a text"
_PREFERENCES = "preference data cannot be trained on yet: keep the chosen answers as prompt and completion (causal-lm)"
# tasks as other programs name them, and what stands in their place here
TASKS = {
    "token-classification": _WORDS,
    "ner": _WORDS,
    "pos-tagging": _WORDS,
    "question-answering": "spans are not extracted; causal-lm and seq2seq learn to write the answer",
    "multiple-choice": "write causal-lm, with the choices in the prompt",
    "feature-extraction": _VECTORS,
    "sentence-similarity": _VECTORS,
    "embedding": _VECTORS,
    "text-ranking": _VECTORS,
    "dpo": _PREFERENCES,
    "reward-modeling": _PREFERENCES,
    "preference": _PREFERENCES,
    "rlhf": _PREFERENCES,
    "text-classification": "write classification",
    "sequence-classification": "write classification",
    "text-regression": "write classification, and spec.problemType: regression",
    "regression": "write classification, and spec.problemType: regression",
    "multi-label-classification": "write classification, and spec.problemType: multi_label_classification",
    "text-generation": "write causal-lm",
    "sft": "write causal-lm",
    "chat": "write causal-lm",
    "instruction-tuning": "write causal-lm",
    "summarization": "write seq2seq, or causal-lm for a decoder",
    "translation": "write seq2seq, or causal-lm for a decoder",
    "text2text-generation": "write seq2seq",
    "fill-mask": "write masked-lm",
    "image-classification": "only text is learnt",
    "automatic-speech-recognition": "only text is learnt",
}


def task_elsewhere(value: str) -> str | None:
    """Return what to do about a task of another program's name; None for a name that nobody has."""
    return {_plain(name): cure for name, cure in TASKS.items()}.get(_plain(value).replace(" ", ""))


def unknown_field(path: Path) -> tuple[str, str, str]:
    """Code, message and cure for a name at a path where no such field exists."""
    parent, name = path[:-1], str(path[-1])
    if parent == ("spec", "training") and name in TRAINING_OWNED:
        return _owned(TRAINING_OWNED[name])
    if parent == ("spec", "method", "lora") and name in LORA_OWNED:
        return _owned(LORA_OWNED[name])
    if parent == ("spec", "method", "lora") and name in LORA_LATER:
        return "NotSupportedYet", "is not supported yet: only plain LoRA adapters are trained", "leave it out"
    message = f"`{name}` is no field of {dotted(parent) if parent else 'a FineTuneJob'}"
    return "UnknownField", message, _meant(parent, name)


def closest(word: str, choices: Iterable[str]) -> str | None:
    """The choice most like a word, or None if none is like it; case, dashes and underscores do not count."""
    by_plain = {_plain(choice): choice for choice in choices}
    found = difflib.get_close_matches(_plain(word), by_plain, n=1, cutoff=0.7)
    return by_plain[found[0]] if found else None


def _owned(field: str) -> tuple[str, str, str]:
    return "OwnedElsewhere", f"is decided by {field}", f"leave it out and use {field}"


def _meant(parent: Path, name: str) -> str:
    model = model_at(parent)
    siblings = list(children(model)) if model else []
    tree = {branch.dotted: branch.path[-1] for branch in spec_fields()}
    same = [key for key in siblings if _plain(key) == _plain(name)]
    common = {_plain(word): path for word, path in COMMON.items()}.get(_plain(name))
    if not same and not common:
        elsewhere = [path for path, key in tree.items() if _plain(key) == _plain(name)]
        near = closest(name, siblings)
        if near is None and not elsewhere and (far := closest(name, tree.values())):
            elsewhere = [path for path, key in tree.items() if key == far]
        same = [near] if near and not elsewhere else []
        common = elsewhere[0] if elsewhere else None
    if same:
        return f"did you mean `{same[0]}`?"
    if common:
        return f"did you mean {common}?"
    return f"leave it out; the fields here are {', '.join(siblings)}" if siblings else "leave it out"


def _plain(name: str) -> str:
    return name.replace("_", "").replace("-", "").lower()
