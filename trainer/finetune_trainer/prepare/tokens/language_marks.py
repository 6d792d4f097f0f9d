"""The marks of languages that tokenizers of translation models have, and what a job has to know of them."""

import re

from finetune_api.messages import Task
from finetune_api.tasks import spec_of
from finetune_trainer.prepare.tokens.tokenizer import LoadedTokenizer, added_tokens

# marks of languages among the tokens of mBART, NLLB and M2M100
LANGUAGE_MARK = re.compile(r"[a-z]{2,3}_[A-Z]{2}|[a-z]{3}_[A-Z][a-z]{3}|__[a-z]{2,3}__")


def language_note(task: Task, tokenizer: LoadedTokenizer) -> tuple[str, ...]:
    """Return the note on a tokenizer with marks of languages, for a task that writes targets; empty for any other."""
    marks = sorted(token for token in added_tokens(tokenizer) if LANGUAGE_MARK.fullmatch(token))
    if not spec_of(task).has_target or len(marks) < 2:
        return ()
    return (
        f"the tokenizer has marks of {len(marks)} languages, such as {marks[0]}; no mark is added to the targets, so "
        f"begin each completion with that of its language ('{marks[0]} ...'), and prompts with theirs if they differ",
    )
