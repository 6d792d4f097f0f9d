"""Suggestions for a field name, or a task name, that does not exist."""

import difflib
from collections.abc import Iterable

from finetune_api.v1alpha1.foreign import COMMON, NO_COUNTERPART, SENTENCES
from finetune_api.v1alpha1.library_names import LORA_LATER, LORA_OWNED, TRAINING_NO_COUNTERPART, TRAINING_OWNED
from finetune_api.v1alpha1.tree import Path, children, dotted, model_at, spec_fields

FAR = 0.85  # similarity from which the field of another object is suggested


_WORDS = "write token-classification"
_VECTORS = "write embedding"
_PREFERENCES = "write preference"
_REWARDS = "training on rewards is not supported; preference learns from pairs of answers, or from answers with a label"
# tasks by their names in other programs, and what to write here
TASKS = {
    "ner": _WORDS,
    "pos-tagging": _WORDS,
    "question-answering": "span extraction is not supported; causal-lm and seq2seq learn to write the answer",
    "multiple-choice": "write causal-lm and put the choices into the prompt",
    "feature-extraction": _VECTORS,
    "sentence-similarity": _VECTORS,
    "embeddings": _VECTORS,
    "text-ranking": "write classification (two texts a row, and a label), or embedding",
    "dpo": _PREFERENCES,
    "preference-tuning": _PREFERENCES,
    "preference-optimization": _PREFERENCES,
    **{loss: f"write preference, and spec.preference.loss_type: {loss}" for loss in ("ipo", "kto", "orpo", "simpo")},
    **dict.fromkeys(("reward-modeling", "rlhf", "rm", "ppo", "grpo", "rloo"), _REWARDS),
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
    "image-classification": "only text is supported",
    "automatic-speech-recognition": "only text is supported",
}


def task_elsewhere(value: str) -> str | None:
    """Return what to write for a task by its name in another program; None for an unknown name."""
    return {_plain(name): cure for name, cure in TASKS.items()}.get(_plain(value).replace(" ", ""))


def unknown_field(path: Path) -> tuple[str, str, str]:
    """Return code, message and cure for a path at which there is no field."""
    parent, name = path[:-1], str(path[-1])
    if parent == ("spec", "training") and name in TRAINING_OWNED:
        return _owned(TRAINING_OWNED[name])
    if parent == ("spec", "method", "lora") and name in LORA_OWNED:
        return _owned(LORA_OWNED[name])
    if parent == ("spec", "method", "lora") and name in LORA_LATER:
        return "NotSupportedYet", "is not supported yet: only plain LoRA adapters are trained", "leave it out"
    message = f"`{name}` is not a field of {dotted(parent) if parent else 'a FineTuneJob'}"
    if cure := _same_here(parent, name) or _known(name):
        return "UnknownField", message, cure
    if reason := _REASONS.get(_plain(name)):
        return "NoCounterpart", f"`{name}` has no counterpart here: {reason}", "leave it out"
    return "UnknownField", message, _alike(parent, name)


def closest(word: str, choices: Iterable[str], cutoff: float = 0.7) -> str | None:
    """Return the choice that is most similar to a word, or None; case, dashes and underscores do not count."""
    by_plain = {_plain(choice): choice for choice in choices}
    matches = difflib.get_close_matches(_plain(word), by_plain, n=1, cutoff=cutoff)
    return by_plain[matches[0]] if matches else None


def _owned(field: str) -> tuple[str, str, str]:
    return "OwnedElsewhere", f"is decided by {field}", f"leave it out and use {field}"


def _siblings(parent: Path) -> list[str]:
    model = model_at(parent)
    return list(children(model)) if model else []


def _same_here(parent: Path, name: str) -> str | None:
    """Suggest a field of the same object that is spelt with other case, dashes or underscores."""
    same = [key for key in _siblings(parent) if _plain(key) == _plain(name)]
    return f"did you mean `{same[0]}`?" if same else None


def _known(name: str) -> str | None:
    """Suggest a field of any object, by its own name or by its name in another trainer."""
    plain = _plain(name)
    if sentence := _SENTENCES.get(plain):
        return sentence
    if field := _FIELDS.get(plain):
        return f"did you mean {field}?"
    return next(
        (f"did you mean {branch.dotted}?" for branch in spec_fields() if _plain(branch.path[-1]) == plain), None
    )


def _alike(parent: Path, name: str) -> str:
    """Suggest a field with a similar name: of the same object, or else of any object."""
    siblings = _siblings(parent)
    if near := closest(name, siblings):
        return f"did you mean `{near}`?"
    tree = {branch.path[-1]: branch.dotted for branch in reversed(spec_fields())}
    if far := closest(name, tree, FAR):
        return f"did you mean {tree[far]}?"
    return f"leave it out; the fields here are {', '.join(siblings)}" if siblings else "leave it out"


def _plain(name: str) -> str:
    return name.replace("_", "").replace("-", "").lower()


_FIELDS = {_plain(name): field for name, field in {**LORA_OWNED, **TRAINING_OWNED, **COMMON}.items()}
_SENTENCES = {_plain(name): sentence for name, sentence in SENTENCES.items()}
_REASONS = {_plain(name): reason for name, reason in {**TRAINING_NO_COUNTERPART, **NO_COUNTERPART}.items()}
