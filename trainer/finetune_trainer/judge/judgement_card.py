"""A judgement for people: the section of a model card, and the warnings on the object. Pure."""

import re
from collections.abc import Iterator

from finetune_trainer.judge.judge_rules import interval
from finetune_trainer.judge.judgement_records import AnswerPair, JudgedMeasure, Judgement
from finetune_trainer.pages.short_texts import cut_to

LONGEST_WARNING = 400  # characters
LONGEST_ANSWER_SHOWN = 400


def judgement_section(judgement: Judgement) -> str:
    """Return a section of Markdown: findings, every measure with its interval, answers of both models."""
    rows = f"{judgement.rows:,} held-out rows"
    head = f"On {rows}, in one run on CPUs, beside the base model"
    if judgement.base:
        head += f" ({judgement.base})"
    parts = ["## Judged against the base model\n", f"{head}.\n"]
    parts += [f"* **{one.kind}** {one.sentence}" for one in judgement.findings]
    if not judgement.findings:
        parts.append("No finding.")
    parts += ["", "\n".join(_table(judgement)), ""]
    parts += [f"* Note: {note}" for note in judgement.notes]
    for pair in judgement.answers:
        parts += ["", *_pair(pair)]
    return "\n".join(parts) + "\n"


def warning_sentences(judgement: Judgement) -> tuple[str, ...]:
    """Return a short sentence for each finding of harm."""
    return tuple(cut_to(one.sentence, LONGEST_WARNING) for one in judgement.harms)


def _table(judgement: Judgement) -> Iterator[str]:
    yield "| measure | base | this model | references | 95 % interval | of |"
    yield "|---|---|---|---|---|---|"
    for one in judgement.measures:
        expected = "" if one.expected is None else f"{one.expected:.4g}"
        base = "" if one.base is None else f"{one.base:.4g}"
        yield f"| {one.name} | {base} | {one.tuned:.4g} | {expected} | {interval(one)} | {_of(one)} |"


def _of(one: JudgedMeasure) -> str:
    if one.low is None:
        return ""
    if one.expected is not None:
        return "difference to the references"
    return "the value" if one.base is None or one.name == "prompt_gain" else "difference to the base"


def _pair(pair: AnswerPair) -> Iterator[str]:
    named = {"prompt": pair.prompt, "right": pair.reference, "base model": pair.base, "this model": pair.tuned}
    for name, text in named.items():
        if text is not None:
            yield f"{name}:\n\n{_fence(cut_to(text, LONGEST_ANSWER_SHOWN))}\n"


def _fence(text: str) -> str:
    """Return a block of code whose fence is longer than every run of backticks in the text."""
    ticks = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, ticks + 1)
    return f"{fence}\n{text}\n{fence}"
