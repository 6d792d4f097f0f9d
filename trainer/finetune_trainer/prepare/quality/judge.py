"""From what was observed to the report: every question is asked once, here, in order."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from finetune_trainer.evaluations.records import EvalGroups
from finetune_trainer.prepare.observed.observation import Observation
from finetune_trainer.prepare.quality import (
    answer_findings,
    coverage,
    duplicates,
    groups,
    label_findings,
    languages,
    numbers,
    personal,
    preference_findings,
    remarks,
    scripts,
    size,
    text_findings,
)
from finetune_trainer.prepare.quality.asked_questions import report_questions
from finetune_trainer.prepare.quality.context import Context, ObservedSplit, percent
from finetune_trainer.prepare.quality.distances import distances
from finetune_trainer.prepare.quality.figures import bin_edges, split_figures
from finetune_trainer.prepare.quality.languages import RowLanguages
from finetune_trainer.prepare.quality.report import Distance, Finding, QualityReport, Severity

__all__ = ["Context", "Examined", "examine", "judge"]

# every code; within a severity, what spoils a run before what costs a little
WEIGHT = (
    "LearntTextDiffers",
    "NothingTrained",
    "EverythingTrained",
    "PositiveEqualsAnchor",
    "NegativeEqualsPositive",
    "EvalInTrain",
    "AnchorsInTrain",
    "EvalNearTrain",
    "HeldOutRowsTrained",
    "SystemColumnUnread",
    "ContextUnread",
    "OneVerdict",
    "ContradictoryPreferences",
    "IdenticalPairs",
    "ConflictingLabels",
    "LabelsAlike",
    "NamelessLabels",
    "ConflictingNumbers",
    "UnseenLabels",
    "LargeNumbers",
    "EmptyAnswers",
    "RowsWithoutLoss",
    "LittleTrained",
    "FieldNotWritten",
    "UntrainedTokens",
    "TemplateLeftovers",
    "UnfilledPlaceholders",
    "TruncatedRows",
    "TruncatedCompletions",
    "LengthBias",
    "UnbalancedVerdicts",
    "FewRows",
    "InconsistentTags",
    "RareLabels",
    "NumbersAsLabels",
    "UnbalancedLabels",
    "DuplicateRows",
    "RepeatedPositives",
    "PositivesInTrain",
    "NearDuplicates",
    "FarLabels",
    "FarNumbers",
    "FarLengths",
    "FarVocabulary",
    "SkewedMentions",
    "RepeatedFrame",
    "UnknownCharacters",
    "ModelTalksOfItself",
    "DummyText",
    "MarkupLeftovers",
    "OneWordAnswers",
    "OneLabelEach",
    "FewEvalRows",
    "NoEvaluation",
    "PersonalData",
    "MentionsOfGroups",
    "MixedLanguages",
    "MixedScripts",
    "VeryLongRows",
    "FewRowsForFull",
    "UnusedColumns",
    "ReasoningNotKept",
    "EmptyReasoning",
)
_SEVERITIES = list(Severity)


@dataclass(frozen=True)
class Examined:
    """The report on a data set, and what a later evaluation needs of it.

    Attributes:
        eval_groups: the groups that each evaluation row mentions; None where the worker cannot compare by them.
    """

    report: QualityReport
    eval_groups: EvalGroups | None


def judge(train: Observation, evaluation: Observation | None, context: Context) -> QualityReport:
    """Return the report on a data set; `train` has at least one row.

    The same observations give the same report, byte for byte.
    """
    return examine(train, evaluation, context).report


def examine(train: Observation, evaluation: Observation | None, context: Context) -> Examined:
    """Return the report on a data set, and what a later evaluation must know of its rows; as `judge`."""
    ours = ObservedSplit("train", train)
    theirs = ObservedSplit("eval", evaluation) if evaluation is not None and len(evaluation.table()) else None
    splits = [ours, theirs] if theirs else [ours]
    edges = bin_edges(*splits)
    apart = distances(ours, theirs) if theirs else ()
    speech = languages.speech(ours)
    eval_speech = languages.speech(theirs) if theirs else []
    people = groups.looked_at(ours, speech)
    eval_groups = _eval_groups(theirs, eval_speech, context) if theirs else None
    findings = [
        *_of_columns(ours, context),
        *chain.from_iterable(_of_rows(*one, context) for one in zip(splits, (speech, eval_speech), strict=False)),
        *duplicates.near_twins(ours, theirs),
        *size.size_findings(ours, context),
        *size.of_evaluation(ours, theirs),
        *(groups.skews if ours.seen.labels else groups.noted)(ours, people),
        *label_findings.label_findings(ours),
        *numbers.number_findings(ours),
        *remarks.untrained(ours, context),
        *preference_findings.of_training(ours, context),
    ]
    if theirs:
        findings += duplicates.equal_across(ours, theirs)
        findings += label_findings.unseen(ours, theirs)
        findings += text_findings.shared_texts(ours, theirs)
        findings += [_far(theirs, distance) for distance in apart if distance.is_far]
    report = QualityReport(
        name=context.name,
        task=context.task,
        max_length=context.max_length,
        train=split_figures(ours, context, edges, languages.shares(speech)),
        eval=split_figures(theirs, context, edges, languages.shares(eval_speech)) if theirs else None,
        distances=apart,
        groups=groups.mentions(people),
        questions=tuple(report_questions(ours, theirs, speech, context, eval_groups)),
        findings=tuple(sorted(findings, key=_weight)),
    )
    return Examined(report, eval_groups)


def _of_columns(train: ObservedSplit, context: Context) -> Iterator[Finding]:
    for notice in context.notices:
        severity = Severity(notice.severity)
        yield train.finding(severity, notice.code, notice.message, notice.cure, notice.rule, notice.count, notice.rows)


def _eval_groups(evaluation: ObservedSplit, speech: Sequence[RowLanguages], context: Context) -> EvalGroups | None:
    if not context.answered or len(evaluation.seen.numbers()) or (context.packed and not context.labelled):
        return None
    mentions = groups.eval_groups(evaluation, groups.looked_at(evaluation, speech))
    return mentions if mentions.rows else None


def _of_rows(split: ObservedSplit, speech: Sequence[RowLanguages], context: Context) -> Iterator[Finding]:
    yield from coverage.trained_findings(split, context)
    yield from remarks.remarks(split)
    yield from coverage.cut(split, context)
    yield from coverage.outliers(split)
    yield from coverage.unknown(split)
    yield from duplicates.repeated_rows(split)
    yield from answer_findings.short_answers(split)
    yield from answer_findings.frames(split)
    yield from answer_findings.leftovers(split)
    yield from personal.personal(split, speech)
    yield from languages.mixed(split, speech)
    yield from scripts.scripts(split)
    yield from label_findings.conflicts(split)
    yield from preference_findings.of_completions(split, context)
    yield from text_findings.repeated_positives(split)


_DIFFERENCES = {
    "labels": (
        "the labels of train and eval are spread differently",
        "stratify: hold out the same share of each label",
    ),
    "numbers": (
        "the numbers of train and eval are spread differently",
        "hold rows out at random",
    ),
    "lengths": ("rows of train and eval differ in length", "draw both from one source, or say why they differ"),
    "vocabulary": ("train and eval use different words", "draw both from one source, or say why they differ"),
}


def _far(evaluation: ObservedSplit, distance: Distance) -> Finding:
    what, cure = _DIFFERENCES[distance.name]
    return evaluation.finding(
        Severity.WARNING,
        f"Far{distance.name.title()}",
        f"{what}: {distance.measure} distance {distance.value:.3f}; random splits of these sizes stay below "
        f"{distance.usual:.3f} in {percent(0.95)} of cases",
        f"{cure}; as it is, the evaluation measures another task than the one trained",
        f"warning above {distance.far:.3f}: no random split comes that far",
    )


def _weight(finding: Finding) -> tuple[int, int, bool, float]:
    return _SEVERITIES.index(finding.severity), WEIGHT.index(finding.code), finding.split == "eval", -finding.share
