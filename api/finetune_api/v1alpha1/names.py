"""What was meant by a field name that does not exist."""

import difflib
from collections.abc import Iterable

from finetune_api.v1alpha1.foreign import COMMON, NO_COUNTERPART, SENTENCES
from finetune_api.v1alpha1.library_names import LORA_LATER, LORA_OWNED, TRAINING_NO_COUNTERPART, TRAINING_OWNED
from finetune_api.v1alpha1.tree import Path, children, dotted, model_at, spec_fields

FAR = 0.85  # how like a name of another object must be, to be proposed


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
    """Return code, message and cure for a name at a path where no such field exists."""
    parent, name = path[:-1], str(path[-1])
    if parent == ("spec", "training") and name in TRAINING_OWNED:
        return _owned(TRAINING_OWNED[name])
    if parent == ("spec", "method", "lora") and name in LORA_OWNED:
        return _owned(LORA_OWNED[name])
    if parent == ("spec", "method", "lora") and name in LORA_LATER:
        return "NotSupportedYet", "is not supported yet: only plain LoRA adapters are trained", "leave it out"
    message = f"`{name}` is no field of {dotted(parent) if parent else 'a FineTuneJob'}"
    if cure := _same_here(parent, name) or _known(name):
        return "UnknownField", message, cure
    if reason := _REASONS.get(_plain(name)):
        return "NoCounterpart", f"`{name}` has no counterpart here: {reason}", "leave it out"
    return "UnknownField", message, _alike(parent, name)


def closest(word: str, choices: Iterable[str], cutoff: float = 0.7) -> str | None:
    """Return the choice most like a word, or None if none is like it; case, dashes and underscores do not count."""
    by_plain = {_plain(choice): choice for choice in choices}
    found = difflib.get_close_matches(_plain(word), by_plain, n=1, cutoff=cutoff)
    return by_plain[found[0]] if found else None


def _owned(field: str) -> tuple[str, str, str]:
    return "OwnedElsewhere", f"is decided by {field}", f"leave it out and use {field}"


def _siblings(parent: Path) -> list[str]:
    model = model_at(parent)
    return list(children(model)) if model else []


def _same_here(parent: Path, name: str) -> str | None:
    """A field of the same object that is written in another way."""
    same = [key for key in _siblings(parent) if _plain(key) == _plain(name)]
    return f"did you mean `{same[0]}`?" if same else None


def _known(name: str) -> str | None:
    """A field of any object, by its own name or by the one that another trainer has for it."""
    plain = _plain(name)
    if sentence := _SENTENCES.get(plain):
        return sentence
    if field := _FIELDS.get(plain):
        return f"did you mean {field}?"
    return next(
        (f"did you mean {branch.dotted}?" for branch in spec_fields() if _plain(branch.path[-1]) == plain), None
    )


def _alike(parent: Path, name: str) -> str:
    """A field that is spelt much like it: first of the same object, then of any."""
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
