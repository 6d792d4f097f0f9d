"""Metrics of an evaluation by task: the names for training.metric_for_best_model, with or without `eval_`."""

from finetune_api.messages import ProblemType, Task
from finetune_api.preference_losses import PREFERENCE_LOSSES, PreferenceLoss
from finetune_api.tasks import spec_of

PREFIX = "eval_"
ANSWERS = ("exact_match", "chrf", "rouge_1", "rouge_2", "rouge_l")  # of generated answers
ROWS: dict[ProblemType, tuple[str, ...]] = {
    ProblemType.SINGLE_LABEL: ("loss", "accuracy", "macro_f1", "weighted_f1"),
    ProblemType.MULTI_LABEL: ("loss", "micro_f1", "macro_f1", "weighted_f1", "exact_match"),
    ProblemType.REGRESSION: ("loss", "mse", "mae", "r2", "pearson", "spearman"),
}
LOWER_IS_BETTER = frozenset({"loss", "perplexity", "mse", "mae", "kl", "rewards/rejected"})


def measured(
    task: Task, problem: ProblemType | None = None, loss: PreferenceLoss | None = None, *, answers: bool = True
) -> tuple[str, ...]:
    """Return the names of the metrics of a task; of all problem types and losses, if that of the job is unknown.

    Args:
        loss: the loss of preference tuning.
        answers: whether answers are generated.
    """
    spec = spec_of(task)
    scored = [ROWS[problem]] if problem else list(ROWS.values())
    scores = tuple(name for names in scored for name in names) if spec.labelled else ()
    always = PREFERENCE_LOSSES[loss].metrics if loss is not None and spec.prefers else spec.metrics
    return tuple(dict.fromkeys((*always, *scores, *(ANSWERS if spec.answers and answers else ()))))


def full_name(metric: str) -> str:
    """Return the name with `eval_`: `eval_loss` for `loss`."""
    return metric if metric.startswith(PREFIX) else f"{PREFIX}{metric}"


def greater_is_better(metric: str) -> bool:
    """Return whether a greater value of a metric is better."""
    return metric.removeprefix(PREFIX) not in LOWER_IS_BETTER
