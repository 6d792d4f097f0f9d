"""What was asked of the data, of how many rows, and what was not asked and why: a report claims nothing else."""

from collections.abc import Iterator, Sequence

from finetune_trainer.evaluations.records import EvalGroups
from finetune_trainer.prepare.quality import groups, personal
from finetune_trainer.prepare.quality.context import Context, ObservedSplit, count_of
from finetune_trainer.prepare.quality.duplicates import affordable
from finetune_trainer.prepare.quality.languages import NAMES, RowLanguages
from finetune_trainer.prepare.quality.people import known
from finetune_trainer.prepare.quality.report import AskedQuestion

ALL = "all rows"
NO_CLASSIFIER = (
    "no kept library answers it offline with a model of a few MB; look at rows yourself, or score them before"
)


def report_questions(
    train: ObservedSplit,
    evaluation: ObservedSplit | None,
    rows: Sequence[RowLanguages],
    context: Context,
    measured: EvalGroups | None,
) -> Iterator[AskedQuestion]:
    """Yield every question of the report, in its order.

    Args:
        rows: the training rows whose languages were looked at.
        measured: the groups of the evaluation rows; None where amplification will not be measured.
    """
    sampled = f"a sample of {len(rows):,} rows" if train.sampled(len(rows)) else ALL
    yield AskedQuestion(name="copies, empty and one-word answers, traces of tools, rows that are cut", asked=ALL)
    near = affordable(train.kept)
    yield AskedQuestion(
        name="near duplicates", asked=f"a sample of {len(near):,} rows" if train.sampled(len(near)) else ALL
    )
    if train.seen.labels:
        yield AskedQuestion(name="labels: conflicts, balance, names", asked=ALL)
    if len(train.verdicts):
        yield AskedQuestion(name="completions: equal, in both orders, cut, of unequal lengths or numbers", asked=ALL)
    if len(train.seen.numbers()):
        yield AskedQuestion(name="numbers to be predicted: conflicts, size", asked=ALL)
    if evaluation:
        yield AskedQuestion(name="leakage from train to eval, and how far they differ", asked=ALL)
    else:
        yield AskedQuestion(
            name="leakage from train to eval, and how far they differ", not_asked="there is no eval split"
        )
    yield from _of_languages(train, rows, sampled)
    yield from _of_people(train, rows, sampled)
    yield _amplification(train, evaluation, context, measured)
    yield from _of_persons(rows, sampled)
    yield AskedQuestion(name="toxic or unsafe content", not_asked=NO_CLASSIFIER)
    yield AskedQuestion(
        name="whether answers are right, and whether they can be learnt",
        not_asked="it needs a model's losses on the rows; the evaluation of the tuned model shows some of it",
    )


def _of_languages(train: ObservedSplit, rows: Sequence[RowLanguages], sampled: str) -> Iterator[AskedQuestion]:
    silent = sum(not one.language for one in rows)
    name = "languages and scripts"
    if silent == len(rows):
        yield AskedQuestion(
            name=name, not_asked="no language was recognised: the rows hold code, numbers or made-up words"
        )
    else:
        part = f"; {count_of(silent, 'row')} without a recognised language" if silent else ""
        yield AskedQuestion(name=name, asked=f"{sampled}{part}")


def _of_people(train: ObservedSplit, rows: Sequence[RowLanguages], sampled: str) -> Iterator[AskedQuestion]:
    name = "mentions of groups of people" + (", and their labels" if train.seen.labels else "")
    asked = sorted({language for one in rows for language in one.languages} & known().keys())
    if asked:
        heard = sum(bool(one.languages & known().keys()) for one in rows)
        yield AskedQuestion(name=name, asked=f"{heard:,} rows, in {', '.join(NAMES[code] for code in asked)}")
    for language in groups.without_lists(rows):
        yield AskedQuestion(name=f"{name}, in {language}", not_asked="there are no lists of groups for this language")
    if not asked and not groups.without_lists(rows):
        yield AskedQuestion(name=name, not_asked="no language was recognised, and every list is one of a language")


def _amplification(
    train: ObservedSplit, evaluation: ObservedSplit | None, context: Context, measured: EvalGroups | None
) -> AskedQuestion:
    name = "amplification: whether the tuned model makes a skew of the data larger"
    if measured is not None:
        return AskedQuestion(name=name, asked=f"after training, of {len(measured.rows):,} evaluation rows")
    if evaluation is None:
        reason = "there is no eval split"
    elif context.packed:
        reason = "with spec.dataset.packing the evaluation rows stand in another order"
    elif not context.answered:
        reason = "the task predicts neither labels nor answers"
    else:
        reason = "no evaluation row is in a language with lists of groups"
    return AskedQuestion(name=name, not_asked=reason)


def _of_persons(rows: Sequence[RowLanguages], sampled: str) -> Iterator[AskedQuestion]:
    yield AskedQuestion(
        name="personal data: e-mail and IP addresses, IBANs, card numbers, international numbers", asked=sampled
    )
    regions = personal.regions(rows)
    named = f"of {', '.join(regions)}" if regions else "of no country"
    yield AskedQuestion(
        name="personal data: telephone numbers and personal numbers as one country writes them",
        asked=f"{sampled}, {named}" if regions else "",
        not_asked="" if regions else "no language was recognised that shows whose numbers to look for",
    )
    yield AskedQuestion(
        name="personal data: names and postal addresses", not_asked="they need a model that recognises names"
    )
