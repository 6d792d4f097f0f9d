"""The report on preferences: planted faults are named, and clean sets raise no warning."""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

from finetune_api.messages import Task
from finetune_api.plan import PlannedPreference
from finetune_api.preference_losses import PreferenceLoss
from finetune_trainer.prepare.data.examples import Example
from finetune_trainer.prepare.data.preferences import Completions
from finetune_trainer.prepare.observed.encoded import Encoded
from finetune_trainer.prepare.observed.observation import Observation
from finetune_trainer.prepare.quality.context import Context
from finetune_trainer.prepare.quality.judge import judge
from finetune_trainer.prepare.quality.report import Finding, QualityReport, Severity
from finetune_trainer.prepare.tokens.preferred import preferred
from tests.support.matrix import first_of
from tests.support.planted.run import UNKNOWN, encode
from tests.support.planted.texts import text

ROWS = 400
Rows = list[Example]


def pair(line: int, prompt: str, chosen: str, rejected: str) -> Example:
    return Example(line, prompt, completion=chosen, rejected=Example(line, prompt, completion=rejected))


def chat(line: int, prompt: str, chosen: str, rejected: str) -> Example:
    better, worse = (
        Example(line, "", messages=({"role": "user", "content": prompt}, {"role": "assistant", "content": answer}))
        for answer in (chosen, rejected)
    )
    return replace(better, rejected=worse)


def judged(line: int, prompt: str, completion: str, desirable: bool) -> Example:
    return Example(line, prompt, completion=completion, desirable=desirable)


def pairs(seed: int = 0, make: Callable[[int, str, str, str], Example] = pair, language: str = "en") -> Rows:
    draw = random.Random(seed)
    return [make(line, *(text(draw, language) for _ in range(3))) for line in range(1, ROWS + 1)]


def single(seed: int = 0, language: str = "en") -> Rows:
    draw = random.Random(seed)
    return [judged(line, text(draw, language), text(draw, language), line % 2 == 0) for line in range(1, ROWS + 1)]


def observed(rows: Rows, limit: int) -> Observation:
    seen = Observation(UNKNOWN, file="train.jsonl")
    made = []
    for row in rows:
        answers = [encode(each, limit) for each in row.completions]
        joined = preferred(row, answers, Completions.SINGLE if row.desirable is not None else Completions.PAIRED)
        assert isinstance(joined, Encoded)
        made.append(joined)
    seen.add(rows, made)
    return seen


def report_on(train: Rows, held: Rows, limit: int = 512, weights: tuple[float, float] = (1.0, 1.0)) -> QualityReport:
    loss = PlannedPreference(
        loss_type=PreferenceLoss.KTO, beta=0.1, reference="none", desirable_weight=weights[0],
        undesirable_weight=weights[1],
    )  # fmt: skip
    context = Context(Task.PREFERENCE, limit, preference=loss)
    return judge(observed(train, limit), observed(held, limit) if held else None, context)


def found(report: QualityReport, code: str) -> Finding:
    (finding,) = [one for one in report.findings if one.code == code]
    return finding


CLEAN: dict[str, Callable[[int], Rows]] = {
    "pairs": pairs,
    "pairs of conversations": lambda seed: pairs(seed, chat),
    "pairs, de": lambda seed: pairs(seed, language="de"),
    "single answers": single,
}


@pytest.mark.parametrize("name", CLEAN)
@pytest.mark.parametrize("seed", first_of(range(5), 2))
def test_clean_preferences_raise_no_warning(name: str, seed: int) -> None:
    rows = CLEAN[name](seed)
    report = report_on(rows[:-60], rows[-60:])
    assert [f"{one.code}: {one.message}" for one in report.findings if one.severity is not Severity.NOTE] == []
    codes = {one.code for one in report.findings}
    assert not codes & {"LengthBias", "IdenticalPairs", "ContradictoryPreferences", "UnbalancedVerdicts"}


def test_a_refusal_that_is_rejected_is_no_fault() -> None:
    """It is what the pair teaches not to say."""
    words = "As an AI language model, I cannot help with that."
    rows = [pair(row.line, row.text, row.completion, words + str(row.line)) for row in pairs()]
    assert "ModelTalksOfItself" not in {one.code for one in report_on(rows, []).findings}
    rows = [replace(row, completion=words + str(row.line)) if not row.desirable else row for row in single()]
    assert "ModelTalksOfItself" not in {one.code for one in report_on(rows, []).findings}
    rows = [replace(row, completion=words + str(row.line)) if row.desirable else row for row in single()]
    assert "ModelTalksOfItself" in {one.code for one in report_on(rows, []).findings}


def test_both_orders_of_two_answers_of_several_turns_contradict_each_other() -> None:
    """The two completions have questions of their own, and one prompt."""

    def turns(line: int, prompt: str, *answers: str) -> Example:
        rows = []
        for answer in answers:
            said = (prompt, answer, f"why {answer}", f"because of {answer}")
            roles = ("user", "assistant", "user", "assistant")
            messages = tuple({"role": role, "content": one} for role, one in zip(roles, said, strict=True))
            rows.append(Example(line, "", messages=messages))
        return replace(rows[0], rejected=rows[1])

    rows = pairs(make=turns)
    swapped = [replace(row.rejected, rejected=replace(row, rejected=None)) for row in rows[:40] if row.rejected]
    assert found(report_on([*rows, *swapped], []), "ContradictoryPreferences").count == 80


def test_several_pairs_of_one_prompt_are_no_copies() -> None:
    rows = pairs()
    many = [pair(line, rows[line // 4].text, rows[line // 4].completion, rows[line].completion) for line in range(ROWS)]
    many = [row for row in many if row.rejected and row.completion != row.rejected.completion]
    assert not {"NearDuplicates", "DuplicateRows", "ConflictingLabels"} & {
        one.code for one in report_on(many, []).findings if one.severity is not Severity.NOTE
    }


@dataclass(frozen=True)
class Planted:
    """A fault, and what the report says of it."""

    name: str
    code: str
    rows: Rows
    held: Rows
    severity: Severity
    says: tuple[str, ...]
    limit: int = 512

    def __str__(self) -> str:
        return self.name


def every(number: int, change: Callable[[Example], Example], rows: Rows) -> Rows:
    return [change(row) if place % number == 0 else row for place, row in enumerate(rows)]


def swapped(row: Example) -> Example:
    assert row.rejected
    return pair(row.line, row.text, row.rejected.completion, row.completion)


def longer(row: Example) -> Example:
    return pair(row.line, row.text, f"{row.completion} {row.rejected.completion if row.rejected else ''}", "No.")


BASE, ALONE = pairs(), single()
PLANTED = [
    Planted(
        "equal completions", "IdenticalPairs",
        every(20, lambda row: pair(row.line, row.text, row.completion, row.completion), BASE), [],
        Severity.WARNING, ("20 pairs of 400", "the same chosen and rejected completion"),
    ),
    Planted(
        "pairs in both orders", "ContradictoryPreferences", [*BASE, *map(swapped, BASE[:20])], [],
        Severity.WARNING, ("40 of 420 rows", "stand in both orders"),
    ),
    Planted(
        "both labels for one answer", "ContradictoryPreferences",
        [*ALONE, *(replace(row, desirable=not row.desirable) for row in ALONE[:10])], [],
        Severity.WARNING, ("20 of 410 rows", "both labels"),
    ),
    Planted(
        "long answers are chosen", "LengthBias", every(1, longer, BASE), [],
        Severity.WARNING, ("is the longer one in 100 % of 400 pairs", "sigmoid_norm or simpo"),
    ),
    Planted(
        "short answers are chosen", "LengthBias", [swapped(longer(row)) for row in BASE], [],
        Severity.WARNING, ("is the shorter one",),
    ),
    Planted(
        "one label", "OneVerdict", [replace(row, desirable=True) for row in ALONE], [],
        Severity.ERROR, ("every row is desirable",),
    ),
    Planted(
        "few desirable rows", "UnbalancedVerdicts",
        [replace(row, desirable=row.line % 8 == 0) for row in ALONE], [],
        Severity.WARNING, ("50 desirable and 350 undesirable", "spec.preference.desirable_weight to 7"),
    ),
    Planted(
        "prompts of the evaluation are trained", "EvalInTrain", BASE[:340],
        [*BASE[340:], *(replace(row, completion=f"Another. {row.completion}") for row in BASE[:6])],
        Severity.WARNING, ("6 evaluation rows of 66", "have a prompt that stands in the training data"),
    ),
    Planted(
        "one completion is cut", "TruncatedCompletions",
        every(10, lambda row: pair(row.line, row.text, row.completion + " more" * 400, row.completion), BASE), [],
        Severity.WARNING, ("40 completions in 40 rows of 400", "in 40 of these rows one of the two keeps its end"), 300,
    ),
]  # fmt: skip


@pytest.mark.parametrize("case", PLANTED, ids=str)
def test_a_planted_fault_of_preferences_is_named(case: Planted) -> None:
    finding = found(report_on(case.rows, case.held, case.limit), case.code)
    assert finding.severity is case.severity
    assert finding.rule
    for words in case.says:
        assert words in f"{finding.message} {finding.cure}"


def test_the_report_does_not_depend_on_how_the_rows_were_cut_or_kept() -> None:
    """Parts of a split merge, and an interrupted stage gives the rows back that it has kept."""
    rows = [*BASE, *map(swapped, BASE[:20])]
    context = Context(Task.PREFERENCE, 512)
    whole = observed(rows, 512)
    expected = judge(whole, None, context).to_json()
    merged = observed(rows[:100], 512)
    merged.merge(observed(rows[100:], 512))
    assert judge(merged, None, context).to_json() == expected
    kept = whole.without_rows()
    kept.take_rows(whole.rows_since({}))
    assert judge(kept, None, context).to_json() == expected


def test_weights_that_balance_the_labels_are_no_fault() -> None:
    rows = [replace(row, desirable=row.line % 8 == 0) for row in ALONE]
    assert "UnbalancedVerdicts" not in {one.code for one in report_on(rows, [], weights=(7.0, 1.0)).findings}
    finding = found(report_on(rows, [], weights=(1.0, 0.5)), "UnbalancedVerdicts")
    assert "desirable_weight to 3.5" in finding.cure


def test_the_length_that_keeps_rows_whole_is_that_of_a_sequence() -> None:
    rows = every(10, lambda row: pair(row.line, row.text, row.completion + " more" * 400, row.completion), BASE)
    report = report_on(rows, [], 300)
    longest = max(len(encode(row, 9999).ids) for row in rows)
    assert 300 < report.train.length_for_99_percent <= longest
