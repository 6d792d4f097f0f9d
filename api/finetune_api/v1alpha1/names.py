"""What was meant by a field name that does not exist."""

import difflib
from collections.abc import Iterable

from finetune_api.v1alpha1.foreign import COMMON, NO_COUNTERPART, SENTENCES
from finetune_api.v1alpha1.training import LORA_LATER, LORA_OWNED, TRAINING_NO_COUNTERPART, TRAINING_OWNED
from finetune_api.v1alpha1.tree import Path, children, dotted, model_at, spec_fields

FAR = 0.85  # how like a name of another object must be, to be proposed


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
