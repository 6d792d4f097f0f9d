"""From what was observed to the report: every question is asked once, here, in order."""

from collections.abc import Iterator

from finetune_trainer.prepare.quality import (
    answers,
    coverage,
    duplicates,
    groups,
    labels,
    numbers,
    personal,
    remarks,
    size,
)
from finetune_trainer.prepare.quality.context import Context, Split, percent
from finetune_trainer.prepare.quality.distances import distances
from finetune_trainer.prepare.quality.figures import bin_edges, figures
from finetune_trainer.prepare.quality.observation import Observation
from finetune_trainer.prepare.quality.report import Distance, Finding, QualityReport, Severity

__all__ = ["Context", "judge"]

# every code; within a severity, what spoils a run before what costs a little
WEIGHT = (
    "LearntTextDiffers",
    "NothingTrained",
    "EverythingTrained",
    "EvalInTrain",
    "EvalNearTrain",
    "ConflictingLabels",
    "LabelsAlike",
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
    "FewRows",
    "RareLabels",
    "UnbalancedLabels",
    "DuplicateRows",
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
    "MixedScripts",
    "VeryLongRows",
    "FewRowsForFull",
    "ReasoningNotKept",
    "EmptyReasoning",
)
_SEVERITIES = list(Severity)


def judge(train: Observation, evaluation: Observation | None, context: Context) -> QualityReport:
    """What is to be said of a data set; `train` has at least one row.

    The same observations give the same report, byte for byte.
    """
    ours = Split("train", train)
    theirs = Split("eval", evaluation) if evaluation is not None and len(evaluation.table()) else None
    splits = [ours, theirs] if theirs else [ours]
    edges = bin_edges(*splits)
    apart = distances(ours, theirs) if theirs else ()
    people = groups.looked_at(ours)
    found = [
        *_of_rows(splits, context),
        *duplicates.near_twins(ours, theirs),
        *size.of_train(ours, context),
        *size.of_evaluation(ours, theirs),
        *(groups.skews if ours.seen.labels else groups.noted)(ours, people),
        *labels.of_train(ours),
        *numbers.of_train(ours),
        *remarks.untrained(ours, context),
    ]
    if theirs:
        found += duplicates.equal_across(ours, theirs)
        found += labels.unseen(ours, theirs)
        found += [_far(theirs, distance) for distance in apart if distance.is_far]
    return QualityReport(
        name=context.name,
        task=context.task,
        max_length=context.max_length,
        train=figures(ours, context, edges),
        eval=figures(theirs, context, edges) if theirs else None,
        distances=apart,
        groups=groups.mentions(people),
        findings=tuple(sorted(found, key=_weight)),
    )


def _of_rows(splits: list[Split], context: Context) -> Iterator[Finding]:
    for split in splits:
        yield from coverage.trained(split, context)
        yield from remarks.remarks(split)
        yield from coverage.cut(split, context)
        yield from coverage.outliers(split)
        yield from coverage.unknown(split)
        yield from duplicates.equal_rows(split)
        yield from answers.short_answers(split)
        yield from answers.frames(split)
        yield from answers.leftovers(split)
        yield from personal.personal(split)
        yield from personal.scripts(split)
        yield from labels.conflicts(split)


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


def _far(evaluation: Split, distance: Distance) -> Finding:
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
