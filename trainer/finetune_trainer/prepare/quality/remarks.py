"""What was noticed of rows while they were rendered and tokenised: texts that differ, fields that are not written."""

from collections.abc import Iterator

from finetune_trainer.prepare.observed.encoded import RemarkCode
from finetune_trainer.prepare.observed.observation import Remarked
from finetune_trainer.prepare.quality.context import Context, ObservedSplit, count_of, percent
from finetune_trainer.prepare.quality.report import Excerpt, Finding, Severity

CONTRADICTIONS = {  # of texts that are compared
    RemarkCode.SAME_POSITIVE: (
        "the positive is equal to the anchor: such a row teaches nothing",
        "remove these rows, or write another text for the same thing",
    ),
    RemarkCode.SAME_NEGATIVE: (
        "a negative is equal to the positive; the loss leaves this negative out",
        "correct these rows: a text is either near to the anchor or far from it",
    ),
}
MINOR = "'name'"  # names the speaker, or repeats the name of a call


def remarks(split: ObservedSplit) -> Iterator[Finding]:
    """Yield one finding for each remark of the tokenizer."""
    for (code, subject), seen in split.seen.remarks.items():
        rows = f"{count_of(seen.rows, 'row')} ({percent(seen.rows / split.rows)})"
        if code is RemarkCode.LEARNT_DIFFERS:
            yield _finding(
                split,
                seen,
                Severity.ERROR,
                f"the tokens that carry loss are not {subject}, in {count_of(seen.rows, 'row')} of those checked: "
                f"the model would learn {seen.first.found!r}, and the row has {seen.first.expected!r}",
                "name another chat template in spec.dataset.chatTemplate, or use the model's own tokenizer",
                "the first rows of each file and one in 200 are decoded and compared",
            )
        elif code is RemarkCode.NOT_WRITTEN:
            yield _finding(
                split,
                seen,
                Severity.NOTE if subject.startswith(MINOR) else Severity.WARNING,
                f"the chat template does not write {subject}: {rows} {_have(seen.rows)} it, and it is not learnt",
                "remove it from the rows, or name a template that writes it in spec.dataset.chatTemplate",
                "rows of each structure are rendered with a part changed; the text stays the same",
            )
        elif code in CONTRADICTIONS:
            what, cure = CONTRADICTIONS[code]
            rule = "any such row; white space at the ends is ignored"
            yield _finding(split, seen, Severity.WARNING, f"in {rows}, {what}", cure, rule)
        elif code is RemarkCode.INCONSISTENT_TAGS:
            yield _finding(
                split,
                seen,
                Severity.WARNING,
                f"{rows} {_have(seen.rows)} the tag {subject}: it continues an entity that does not begin before it",
                "begin each entity with B-; as it stands, the tag is learnt as written and scored as a beginning",
                "the first such tag of each row",
            )
        elif code is RemarkCode.REASONING_NOT_KEPT:
            yield _finding(
                split,
                seen,
                Severity.NOTE,
                f"{rows} {_have(seen.rows)} reasoning in earlier turns, which is learnt; with the trained model, the "
                "chat template leaves out the reasoning of earlier turns",
                "to learn what the model will see, make a row of each answer and leave out the reasoning before it",
                "the two versions of the template are compared",
            )
        else:
            yield _finding(
                split,
                seen,
                Severity.NOTE,
                f"{rows} {_have(seen.rows)} answers without reasoning, which the chat template writes as an empty "
                "<think> block: the model learns to answer so",
                "add reasoning_content to the answers of a model that should think, or leave the rows as they are",
                "looked for in what carries loss",
            )


def _have(rows: int) -> str:
    return "has" if rows == 1 else "have"


def _finding(split: ObservedSplit, seen: Remarked, severity: Severity, message: str, cure: str, rule: str) -> Finding:
    excerpt = Excerpt(place=seen.place, text=seen.first.found, other=seen.first.expected)
    code = str(seen.first.code)
    return split.finding(severity, code, message, cure, rule, seen.rows, split.rows, excerpts=(excerpt,))


def untrained(split: ObservedSplit, context: Context) -> Iterator[Finding]:
    """Yield a finding of tokens that the template writes and whose embeddings were never trained."""
    if not context.untrained.ids:
        return
    found = context.untrained
    named = ", ".join(f"{token} ({number})" for token, number in found.ids.items())
    cure = f"trainable_token_indices: [{', '.join(map(str, found.ids.values()))}]"
    if len(found.modules) > 1:  # PEFT's single rows are those of the input embedding: answers would not end
        cure = f"modules_to_save: [{', '.join(found.modules)}]"
    yield split.finding(
        Severity.WARNING,
        "UntrainedTokens",
        f"the chat template writes tokens with embeddings that were never trained, and LoRA does not train: {named}",
        f"set spec.method.lora.{cure}, or use a template whose marks the model knows",
        "rows of the input embedding that are zero, equal, or nearly parallel to those of several other added tokens",
    )
