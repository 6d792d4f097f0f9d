"""The evaluation in a model card: scores of the labels, groups of people, samples of generated answers."""

import re

from finetune_trainer.evaluations.records import EvaluationRecord, LabelScore, Sample
from finetune_trainer.evaluations.stored import StoredEvaluation

LONGEST = 600  # characters of each text of a sample


def evaluation_sections(evaluation: StoredEvaluation) -> list[str]:
    """Return sections of Markdown; none without a stored evaluation."""
    parts = []
    record = evaluation.record
    if record and record.per_class:
        parts.append(_labels(record.per_class))
    if record and record.generated:
        parts.append(f"Exact match, chrF and ROUGE are of {record.generated} generated answers.\n")
    if record and record.groups:
        parts.append(_amplified(record))
    if evaluation.samples:
        generated = ", generated greedily" if record and record.generated else ""
        parts += ["## Samples\n", f"Answers of this very model to held-out rows{generated}:\n"]
        parts += [_sample(sample) for sample in evaluation.samples]
    return parts


def _labels(scores: tuple[LabelScore, ...]) -> str:
    rows = [
        f"| {_cell(one.label)} | {one.precision:.3f} | {one.recall:.3f} | {one.f1:.3f} | {one.support} |"
        for one in scores
    ]
    return "\n".join(["| label | precision | recall | F1 | rows |", "|---|---|---|---|---|", *rows, ""])


def _amplified(record: EvaluationRecord) -> str:
    """Return a section on groups of people: every skew that grew, else the groups without one."""
    head = "## Groups of people\n\n"
    rule = (
        "Shares of predictions among rows that mention a group, beside those of the data (Zhao et al. 2017); the gap "
        "to the other rows must grow by 5 points, with a bootstrap interval above 0.\n"
    )
    amplified = [one for one in record.amplification if one.amplified]
    if not amplified:
        return f"{head}{rule}\nNo skew of the data is larger in the predictions, for {', '.join(record.groups)}.\n"
    rows = [
        f"| {one.group} | {_cell(one.label)} | {one.rows} | {one.truth:.0%} | {one.predicted:.0%} "
        f"| {one.truth_elsewhere:.0%} | {one.predicted_elsewhere:.0%} | {100 * one.value:.0f} "
        f"({100 * one.low:.0f} to {100 * one.high:.0f}) |"
        for one in amplified
    ]
    columns = "| group | label | rows | data | predicted | others, data | others, predicted | points |"
    table = "\n".join([columns, "|---|---|---|---|---|---|---|---|", *rows])
    return f"{head}{rule}\nThis model makes a skew of the data larger:\n\n{table}\n"


def _sample(sample: Sample) -> str:
    named = {"prompt": sample.prompt, "right": sample.reference, "answer": sample.answer}
    return "\n".join(f"{name}:\n\n{_fenced(_cut(text))}\n" for name, text in named.items())


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} [...]"


def _fenced(text: str) -> str:
    """Return a block of code whose fence is longer than every run of backticks in the text."""
    ticks = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, ticks + 1)
    return f"{fence}\n{text}\n{fence}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
