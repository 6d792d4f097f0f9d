"""What changes the cross entropy of a run: weights of the labels, and smoothing of the targets. Pure."""

from collections.abc import Mapping, Sequence

from finetune_api.errors import SpecError
from finetune_api.messages import DatasetFacts, ProblemType, Task
from finetune_api.plan import PlannedLoss
from finetune_api.tasks import spec_of
from finetune_trainer.prepare.plan.choice_log import ChoiceLog, problem

WEIGHTS_FIELD = "spec.training.class_weights"
SMOOTHING_FIELD = "spec.training.label_smoothing_factor"
SHOWN = 8  # labels in a message


def cross_entropy_of(log: ChoiceLog, task: Task, dataset: DatasetFacts) -> PlannedLoss:
    """Return what the job gives of it.

    Raises:
        SpecError: the task has no such loss, or a weight is for a label that the data lacks.
    """
    weights, smoothing = log.given.get("class_weights"), float(log.given.get("label_smoothing_factor", 0.0))
    single = dataset.problem_type in (None, ProblemType.SINGLE_LABEL)
    kind = str(task) if single else f"{task} ({dataset.problem_type})"
    if smoothing:
        if not (single and spec_of(task).smooths):
            message = f"is {smoothing:g}, and the loss of {kind} is not a cross entropy over classes or tokens"
            raise SpecError(problem("LossNotForTask", SMOOTHING_FIELD, message, "leave it out"))
        log.note(SMOOTHING_FIELD, smoothing, "given", True)
    if weights is None:
        return PlannedLoss(label_smoothing=smoothing)
    if not (single and spec_of(task).named):
        message = f"are given, and {kind} does not choose one of several labels"
        raise SpecError(problem("LossNotForTask", WEIGHTS_FIELD, message, "leave them out"))
    chosen = balanced(dataset) if weights == "balanced" else _given(weights, dataset.labels)
    shown = {label: float(f"{weight:.4g}") for label, weight in zip(dataset.labels, chosen, strict=True)}
    reason = "given"
    if weights == "balanced":
        reason = "rows / (labels x rows of the label), as scikit-learn's balanced; each label then weighs the same"
    log.note(WEIGHTS_FIELD, shown, reason, True)
    return PlannedLoss(class_weights=chosen, label_smoothing=smoothing)


def balanced(dataset: DatasetFacts) -> tuple[float, ...]:
    """Return weights by which each label counts the same: n / (k x n_label), with k labels that have items.

    Source: scikit-learn, `compute_class_weight`, after King and Zeng 2001, "Logistic Regression in Rare Events Data".
    """
    counts = [*dataset.train.label_counts, *[0] * (len(dataset.labels) - len(dataset.train.label_counts))]
    seen = sum(count > 0 for count in counts)
    return tuple(sum(counts) / (seen * count) if count else 1.0 for count in counts)


def _given(weights: Mapping[str, float], labels: Sequence[str]) -> tuple[float, ...]:
    unknown = sorted(weights.keys() - set(labels))
    if unknown:
        listed = ", ".join(map(repr, labels[:SHOWN])) + (", ..." if len(labels) > SHOWN else "")
        message = f"names {unknown[0]!r}, and the labels of the data are {listed}"
        raise SpecError(problem("NoSuchLabel", WEIGHTS_FIELD, message, "name labels of the data"))
    chosen = tuple(float(weights.get(label, 1.0)) for label in labels)
    if not any(chosen):
        raise SpecError(problem("OutOfRange", WEIGHTS_FIELD, "are all 0: nothing is learnt", "raise one of them"))
    return chosen
