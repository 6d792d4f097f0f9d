"""Each sickness put into a clean data set gives its own finding, and no other alarm."""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from finetune_api.messages import MethodType, Task
from finetune_trainer.prepare.data.examples import Example
from finetune_trainer.prepare.observed.encoded import Encoded
from finetune_trainer.prepare.quality.context import Context
from finetune_trainer.prepare.quality.judge import WEIGHT, judge
from finetune_trainer.prepare.quality.report import Severity
from tests.support.planted.clean import SETS, made
from tests.unit.quality_sets import (
    LABELS,
    LIMIT,
    alarms,
    answer,
    changed,
    chats,
    encode,
    labelled,
    observed,
    pairs,
    reported,
    rewritten,
    sentence,
)

Rows = list[Example]
MAKERS = {"labels": labelled, "pairs": pairs, "chats": chats}
TRAIN, EVAL = 600, 120


@dataclass(frozen=True)
class Case:
    """A sickness: how it comes into the rows, and what must be said of it."""

    name: str
    code: str
    layout: str
    infect: Callable[[Rows, Rows], tuple[Rows, Rows]]
    says: str = ""
    severity: Severity = Severity.WARNING
    how: Callable[[Example], Encoded] = encode
    limit: int = LIMIT

    def __str__(self) -> str:
        return f"{self.name} ({self.layout})"


def in_train(change: Callable[[Rows], Rows]) -> Callable[[Rows, Rows], tuple[Rows, Rows]]:
    return lambda train, evaluation: (change(train), evaluation)


def in_both(change: Callable[[Rows], Rows]) -> Callable[[Rows, Rows], tuple[Rows, Rows]]:
    return lambda train, evaluation: (change(train), change(evaluation))


def framed(before: str, after: str) -> Callable[[Rows, Rows], tuple[Rows, Rows]]:
    return in_both(lambda rows: changed(rows, 3, lambda row: rewritten(row, before + answer(row) + after)))


def in_answers(every: int, change: Callable[[str], str]) -> Callable[[Rows, Rows], tuple[Rows, Rows]]:
    return in_train(lambda rows: changed(rows, every, lambda row: rewritten(row, change(answer(row)))))


def one_word_changed(row: Example) -> Example:
    words = answer(row).split()
    return rewritten(row, " ".join([*words[:-1], "otherwise"]))


def relabelled(row: Example) -> Example:
    return replace(row, label=LABELS[(LABELS.index(row.label) + 1) % 4])


def rarely(label: str, keep: int) -> Callable[[Rows], Rows]:
    def change(rows: Rows) -> Rows:
        own = [row for row in rows if row.label == label]
        return [row for row in rows if row.label != label] + own[:keep]

    return change


def unbalanced(rows: Rows) -> Rows:
    """Fifteen times as many rows, the rest of them with one label."""
    return [*rows, *(replace(row, label=LABELS[0]) for row in labelled(14 * len(rows), seed=len(rows)))]


def with_loss(share: float) -> Callable[[Example], Encoded]:
    def how(example: Example) -> Encoded:
        whole = encode(example)
        trained = np.zeros(len(whole.ids), bool)
        trained[len(trained) - round(share * len(trained)) :] = True
        return replace(whole, trained=trained)

    return how


def silent(example: Example) -> Encoded:
    whole = encode(example)
    return replace(whole, trained=np.zeros(len(whole.ids), bool)) if example.line % 20 == 0 else whole


def about_women(rows: Rows) -> Rows:
    random_ = random.Random(3)
    return [
        replace(row, text=f"{row.text} She said so.", label=LABELS[0] if random_.random() < 0.7 else row.label)
        if index % 6 == 0
        else row
        for index, row in enumerate(rows)
    ]


def english(rows: int, seed: int = 7) -> Rows:
    return made(SETS["labelled texts, en"], rows, seed)


FRAME = "Certainly , here is the answer that you asked for today"
CASES = [
    Case("copies", "DuplicateRows", "labels", in_train(lambda rows: rows + rows[:30]), "30 rows of 630 (4.8 %)"),
    Case("copies", "DuplicateRows", "chats", in_train(lambda rows: rows + rows[:30])),
    Case(
        "near copies", "NearDuplicates", "pairs", in_train(lambda rows: rows + [one_word_changed(r) for r in rows[:60]])
    ),
    Case(
        "near copies", "NearDuplicates", "chats", in_train(lambda rows: rows + [one_word_changed(r) for r in rows[:60]])
    ),
    Case("leakage", "EvalInTrain", "labels", lambda train, own: (train, own[:-6] + train[:6]), "6 evaluation rows"),
    Case(
        "leakage with another label",
        "EvalInTrain",
        "labels",
        lambda train, own: (train, own[:-6] + [relabelled(row) for row in train[:6]]),
    ),
    Case("leakage", "EvalInTrain", "pairs", lambda train, own: (train, own[:-6] + train[:6])),
    Case(
        "near leakage",
        "EvalNearTrain",
        "pairs",
        lambda train, own: (train, own[:-9] + [one_word_changed(row) for row in train[:9]]),
    ),
    Case(
        "two labels for a text",
        "ConflictingLabels",
        "labels",
        in_train(lambda rows: rows + [relabelled(row) for row in rows[:5]]),
        "5 texts",
    ),
    Case(
        "a rare label",
        "RareLabels",
        "labels",
        lambda train, own: (rarely("praise", 5)(train), rarely("praise", 1)(own)),
        "'praise' (5)",
    ),
    Case("one label in most rows", "UnbalancedLabels", "labels", in_both(unbalanced)),
    Case(
        "case of labels",
        "LabelsAlike",
        "labels",
        in_train(lambda rows: changed(rows, 9, lambda row: replace(row, label=row.label.title()))),
        "'Billing'",
    ),
    Case(
        "a label only in eval",
        "UnseenLabels",
        "labels",
        lambda train, own: (train, [*own[:-1], replace(own[-1], label="complaint")]),
        "'complaint' (1)",
    ),
    Case(
        "labels spread otherwise in eval",
        "FarLabels",
        "labels",
        lambda train, own: (train, [row for row in labelled(400, 9) if row.label != "praise"][:EVAL] + own[:9]),
    ),
    Case(
        "longer rows in eval",
        "FarLengths",
        "pairs",
        lambda train, own: (
            train,
            [replace(row, completion=sentence(random.Random(row.line), 55, 90)) for row in own],
        ),
    ),
    Case(
        "other words in eval",
        "FarVocabulary",
        "pairs",
        lambda train, own: (train, [replace(row, completion=row.completion.upper()) for row in own]),
    ),
    Case("few rows", "FewRows", "pairs", in_train(lambda rows: rows[:30]), "30 training rows"),
    Case("few rows for evaluation", "FewEvalRows", "pairs", lambda train, own: (train, own[:12]), "14 percentage"),
    Case("empty answers", "EmptyAnswers", "chats", in_answers(100, lambda text: ""), "6 rows (1 %)"),
    Case("one-word answers", "OneWordAnswers", "pairs", in_answers(20, lambda text: "yes"), "30 answers (5 %)"),
    Case("marks of a template", "TemplateLeftovers", "chats", in_answers(50, lambda text: text + " <|im_end|>"), "12"),
    Case("marks of another", "TemplateLeftovers", "pairs", in_answers(50, lambda text: "### Response: " + text)),
    Case("placeholders", "UnfilledPlaceholders", "pairs", in_answers(50, lambda text: f"Dear {{{{name}}}} , {text}")),
    Case(
        "a model about itself", "ModelTalksOfItself", "chats", in_answers(50, lambda t: f"As an AI language model {t}")
    ),
    Case("dummy text", "DummyText", "pairs", in_answers(50, lambda text: f"{text} Lorem ipsum dolor")),
    Case("markup", "MarkupLeftovers", "pairs", in_answers(20, lambda text: f"{text} &amp;nbsp; more<br>")),
    Case("the same beginning", "RepeatedFrame", "pairs", framed(f"{FRAME} ", ""), "begin with"),
    Case("the same end", "RepeatedFrame", "chats", framed("", f" {FRAME}"), "end with"),
    Case("unknown characters", "UnknownCharacters", "pairs", in_answers(2, lambda text: f"{text} ☃ ☃ ☃ ☃"), "☃"),
    Case("nothing trained", "NothingTrained", "chats", in_train(list), "0 %", Severity.ERROR, with_loss(0)),
    Case("all trained", "EverythingTrained", "chats", in_train(list), "100 %", Severity.ERROR, with_loss(1)),
    Case("little trained", "LittleTrained", "chats", in_train(list), "carry loss", how=with_loss(0.03)),
    Case("rows without loss", "RowsWithoutLoss", "pairs", in_train(list), "30 rows (5 %)", how=silent),
    Case(
        "rows cut",
        "TruncatedRows",
        "pairs",
        in_train(list),
        "set spec.dataset.maxLength to",
        how=lambda example: encode(example, limit=70),
        limit=70,
    ),
    Case(
        "a skew", "SkewedMentions", "labels", lambda train, own: (about_women(english(1500)), english(300, 8)), "women"
    ),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_each_sickness_gives_its_own_finding_and_no_other(case: Case) -> None:
    make = MAKERS[case.layout]
    train, evaluation = case.infect(make(TRAIN, 1), make(EVAL, 2))
    report = reported(train, evaluation, case.how, case.limit)
    assert set(alarms(report)) == {case.code}
    found = next(finding for finding in report.findings if finding.code == case.code)
    assert found.severity is case.severity
    assert case.says in f"{found.message}; {found.cure}"
    assert found.cure
    assert found.rule


RUSSIAN = "добрый день , ваш заказ отправлен сегодня утром и будет доставлен завтра"
NOTES = [
    ("PersonalData", lambda row: rewritten(row, "call +44 20 7946 0018 , card 4539 1488 0343 6467")),
    ("MixedScripts", lambda row: replace(row, text=f"{RUSSIAN} {row.line}", completion=RUSSIAN)),
    ("VeryLongRows", lambda row: rewritten(row, " ".join([answer(row)] * 40)) if row.line == 1 else row),
]


@pytest.mark.parametrize(("code", "change"), NOTES, ids=[code for code, _ in NOTES])
def test_what_may_be_meant_is_a_note(code: str, change: Callable[[Example], Example]) -> None:
    report = reported(changed(pairs(TRAIN, 1), 20, change), pairs(EVAL, 2), limit=4096)
    assert code in [finding.code for finding in report.of(Severity.NOTE)]


def test_personal_data_is_not_repeated_in_the_report() -> None:
    train = changed(pairs(200), 20, lambda row: rewritten(row, "write to jane.doe@garden-shop.co.uk"))
    found = next(finding for finding in reported(train).findings if finding.code == "PersonalData")
    assert found.count == 10
    assert [excerpt.text for excerpt in found.excerpts] == ["ja••••••••uk"]


def test_a_set_without_evaluation_is_told_so() -> None:
    report = reported(pairs(TRAIN))
    assert [finding.code for finding in report.findings] == ["NoEvaluation"]
    assert report.eval is None
    assert report.distances == ()


def test_few_rows_for_full_tuning_are_a_note() -> None:
    report = reported(pairs(200), pairs(EVAL, 2), method=MethodType.FULL)
    assert [finding.code for finding in report.findings] == ["FewRowsForFull"]


def test_a_long_document_counts_as_the_sequences_that_it_becomes() -> None:
    books = [Example(line, " ".join(row.text for row in pairs(400, line))) for line in range(1, 5)]
    whole = partial(encode, limit=10**6)
    assert "FewRows" not in [finding.code for finding in reported(books, how=whole, limit=100).findings]
    assert "FewRows" in [finding.code for finding in reported(books, how=whole, limit=10**6).findings]


def test_one_word_answers_are_meant_where_most_are() -> None:
    random_ = random.Random(0)
    train = [replace(row, completion=random_.choice(("yes", "no"))) for row in pairs(200)]
    assert alarms(reported(train)) == []


def test_one_word_answers_that_differ_for_one_prompt_are_conflicting_labels() -> None:
    random_ = random.Random(0)
    train = [replace(row, completion=random_.choice(("yes", "no"))) for row in pairs(200)]
    other = [replace(row, completion="no" if row.completion == "yes" else "yes") for row in train[:5]]
    report = reported(train + other)
    assert alarms(report) == ["ConflictingLabels"]
    assert report.findings[0].message.startswith("5 texts have different labels")


@pytest.mark.parametrize(
    ("names", "alike"),
    [
        (("Spam", "spam"), True),
        (("not spam", "not_spam"), True),
        (("-1", "1"), False),
        (("A-", "A"), False),
        (("10-20", "1020"), False),
        (("10-20", "10 20"), True),
    ],
)
def test_labels_are_alike_without_their_case_and_blanks(names: tuple[str, str], alike: bool) -> None:
    train = [replace(row, label=names[index % 2]) for index, row in enumerate(labelled(200))]
    assert alarms(reported(train)) == (["LabelsAlike"] if alike else [])


def test_names_of_any_length_leave_sentences_short() -> None:
    train = [replace(row, label=row.label * 500) for row in labelled(400)]
    report = reported(train[:200] + [row for row in train[200:] if not row.label.startswith("praise")][:9])
    assert all(len(finding.message) < 400 for finding in report.findings)


LEFTOVERS = [
    ("a <|IM_START|> b", "TemplateLeftovers"),
    ("[INST] a [/INST]", "TemplateLeftovers"),
    ("go\nHuman: hello\nAssistant: hi", "TemplateLeftovers"),
    ("the\nassistant: a role", None),
    ("Dear [Your Name],", "UnfilledPlaceholders"),
    ("Dear {{x}}, this is a letter", "UnfilledPlaceholders"),
    ("a set `{{x}}` in code", None),
    ("TODO ES POSIBLE", None),
    ("El informe [tu nombre]", "UnfilledPlaceholders"),
    ("a [your link](https://x) in Markdown", None),
    ("Als Sprachmodell kann ich das nicht", "ModelTalksOfItself"),
    ("a dict {{1, 2}}", None),
    ("TODO: write", "DummyText"),
    ("todo list", None),
    ("this language model is large", None),
    ("Sorry, as a large language model I cannot", "ModelTalksOfItself"),
    ("1 < 2 and 3 & 4 # [5]", None),
    ("İstanbul ☃ &amp; ☃", "MarkupLeftovers"),
    ("{{" * 5000, None),
    ("&lt;" * 5000, "MarkupLeftovers"),
]


@pytest.mark.parametrize(("text", "kind"), LEFTOVERS, ids=[str(number) for number in range(len(LEFTOVERS))])
def test_traces_of_tools_are_told_from_text_that_looks_like_them(text: str, kind: str | None) -> None:
    seen = observed([Example(1, "before"), Example(2, f"☃ {text}"), Example(3, "behind")]).leftovers
    assert {found.value: hits.rows for found, hits in seen.kinds.items()} == ({kind: 1} if kind else {})
    assert [(file, line) for hits in seen.kinds.values() for file, line, _ in hits.first] == (
        [("train.jsonl", 2)] if kind else []
    )


def test_an_instruction_above_every_text_does_not_make_them_twins() -> None:
    above = "Read the following message of a customer with care and name the department that has to answer it . " * 3
    train = [
        replace(row, text=above + sentence(random.Random(row.line), 8, 12), completion="it is for billing")
        for row in pairs(200)
    ]
    assert alarms(reported(train)) == []


def test_errors_come_first_and_become_problems() -> None:
    train = pairs(TRAIN)
    report = reported(train + train[:60], pairs(EVAL, 2), with_loss(0))
    severities = [finding.severity for finding in report.findings]
    assert severities == sorted(severities, key=list(Severity).index)
    assert [problem.field for problem in report.problems()] == ["spec.dataset.train", "spec.dataset.eval"]
    assert {problem.code for problem in report.problems()} == {"NothingTrained"}


def test_places_name_file_and_line() -> None:
    train = pairs(100)
    report = reported([*train, replace(train[3], line=2140)])
    duplicate = next(finding for finding in report.findings if finding.code == "DuplicateRows")
    assert (duplicate.excerpts[0].place, duplicate.excerpts[0].other_place) == ("train.jsonl:4", "train.jsonl:2140")
    assert duplicate.excerpts[0].text == duplicate.excerpts[0].other != ""


def test_the_length_that_keeps_99_percent_is_named() -> None:
    lengths: Sequence[int] = [len(encode(row).ids) for row in pairs(1000)]
    report = reported(pairs(1000), how=lambda example: encode(example, limit=80))
    enough = report.train.length_for_99_percent
    assert sum(length <= enough for length in lengths) >= 990 > sum(length < enough for length in lengths)


def test_the_share_of_tokens_that_is_lost_decides_not_that_of_rows() -> None:
    long, short = pairs(3), pairs(300)
    few = reported([replace(row, completion=row.completion * 200) for row in long] + short[3:])
    many = reported(short, how=lambda example: encode(example, limit=110))
    found = [next(one for one in report.findings if one.code == "TruncatedRows") for report in (few, many)]
    assert [one.severity for one in found] == [Severity.WARNING, Severity.NOTE]
    assert found[0].count == 3
    assert (
        "% of the tokens are lost: 3 rows of 300 (1 %) are cut at 256 tokens (the end of an answer" in found[0].message
    )


@pytest.mark.parametrize(
    ("longest", "says"),
    [
        (0, "set spec.dataset.maxLength to"),
        (100, "maxLength to 100, the most this model takes"),
        (80, "choose another"),
    ],
)
def test_no_length_is_advised_that_the_model_cannot_take(longest: int, says: str) -> None:
    train = observed(pairs(500), lambda example: encode(example, limit=80))
    report = judge(train, None, Context(task=Task.CAUSAL_LM, max_length=80, longest=longest))
    assert says in next(finding.cure for finding in report.findings if finding.code == "TruncatedRows")


def test_every_finding_is_in_the_documentation_in_the_order_of_its_weight() -> None:
    page = Path(__file__).parents[2] / "docs" / "data-quality.md"
    rows = re.findall(r"^\| `(\w+)` \|", page.read_text("utf-8"), re.M)
    assert tuple(rows) == WEIGHT
    assert {case.code for case in CASES} <= set(WEIGHT)
