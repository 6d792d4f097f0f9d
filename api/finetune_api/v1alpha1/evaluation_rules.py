"""Rules about evaluation: it requires evaluation data, and only a metric that is measured can be used."""

from collections.abc import Callable, Mapping

from finetune_api.evaluation_metrics import ANSWERS, PREFIX, full_name, measured
from finetune_api.messages import ProblemType, Task
from finetune_api.preference_losses import PreferenceLoss
from finetune_api.tasks import TASKS, spec_of
from finetune_api.v1alpha1.given import Given, has, only_with, part, whole_number_of
from finetune_api.v1alpha1.rule import Rule
from finetune_api.v1alpha1.spec_base import shown


def _without_data(spec: Given) -> bool:
    dataset = spec.get("dataset")
    return isinstance(dataset, Mapping) and not has(dataset, "eval")


def unevaluated(name: str) -> Callable[[Given], str | None]:
    """Return a check that a field of spec.training is given only together with evaluation data."""

    def broken(spec: Given) -> str | None:
        value = part(spec, "training").get(name)
        if not isinstance(value, (int, str, float)) or isinstance(value, bool):
            return None
        if isinstance(value, float) and value > 1 and not value.is_integer():
            return None
        return f"is {shown(value)}, but there is no evaluation data" if _without_data(spec) else None

    return broken


def unanswered(spec: Given) -> str | None:
    """Check that answers are generated only with evaluation data, and only for a task that has answers."""
    rows, task = whole_number_of(part(spec, "evaluation"), "generate"), spec.get("task")
    if rows is None:
        return None
    if task in list(Task) and not spec_of(Task(task)).answers:
        answering = " and ".join(name for name, one in TASKS.items() if one.answers)
        return f"is {rows}, but the task is {task}; only {answering} generate answers"
    return f"is {rows}, but there is no evaluation data" if _without_data(spec) else None


def metric(spec: Given) -> str | None:
    """Check that the metric of the best checkpoint is one that the evaluation measures."""
    name = part(spec, "training").get("metric_for_best_model")
    if not isinstance(name, str) or not name:
        return None
    known = _known(spec)
    if name.removeprefix(PREFIX) in known:
        return None
    if name.removeprefix(PREFIX) in ANSWERS and _silent(spec):
        return f"is {shown(name)}, but spec.evaluation.generate is 0; the metric requires generated answers"
    return f"is {shown(name)}; the evaluation measures {', '.join(full_name(one) for one in known)}"


def _known(spec: Given) -> tuple[str, ...]:
    """Return the metrics of the task of the job; of all tasks where the job names none."""
    given, kind = spec.get("task"), spec.get("problemType")
    tasks = [Task(given)] if given in list(Task) else list(Task)
    problem = ProblemType(kind) if kind in list(ProblemType) else None
    asked = part(spec, "preference").get("loss_type")
    loss = PreferenceLoss(asked) if asked in list(PreferenceLoss) else None
    names = (name for task in tasks for name in measured(task, problem, loss, answers=not _silent(spec)))
    return tuple(dict.fromkeys(names))


def _silent(spec: Given) -> bool:
    asked = part(spec, "evaluation").get("generate")
    return asked == 0 and not isinstance(asked, bool)


_EVAL = "set spec.dataset.eval to a file or to {split: 0.05}, or leave it out"


def _needs_data(name: str) -> Rule:
    return Rule(
        at=("spec",),
        field=f"training.{name}",
        code="NeedsOther",
        broken=unevaluated(name),
        cure=_EVAL,
        cel=None,
        says=f"training.{name} requires dataset.eval",
    )


EVALUATION_RULES: tuple[Rule, ...] = (
    _needs_data("eval_steps"),
    _needs_data("metric_for_best_model"),
    _needs_data("early_stopping_patience"),
    Rule(
        at=("spec", "training"),
        field="early_stopping_threshold",
        code="NeedsOther",
        broken=only_with("early_stopping_threshold", "early_stopping_patience"),
        cure="set early_stopping_patience, such as 3 evaluations, or leave it out",
        cel="!has(self.early_stopping_threshold) || has(self.early_stopping_patience)",
        says="early_stopping_threshold requires early_stopping_patience",
    ),
    Rule(
        at=("spec",),
        field="evaluation.generate",
        code="NeedsOther",
        broken=unanswered,
        cure="leave it out, or set spec.dataset.eval and a task that has answers",
        cel=None,
        says="evaluation.generate requires dataset.eval and the task causal-lm or seq2seq",
    ),
    Rule(
        at=("spec",),
        field="training.metric_for_best_model",
        code="UnknownMetric",
        broken=metric,
        cure="write one of them, or leave it out; the plan then chooses a metric",
        cel=None,
        says="training.metric_for_best_model must be a metric of the task. Every task has eval_loss. Language models"
        " have eval_perplexity. Generated answers have eval_exact_match, eval_chrf, eval_rouge_1, eval_rouge_2 and"
        " eval_rouge_l. Labels have eval_accuracy, eval_macro_f1, eval_weighted_f1 and eval_micro_f1. Numbers have"
        " eval_mse, eval_mae, eval_r2, eval_pearson and eval_spearman. Preferences have eval_rewards/margins and"
        " eval_rewards/accuracies. Embeddings have eval_recall_at_1, eval_recall_at_10, eval_mrr_at_10,"
        " eval_ndcg_at_10 and eval_margin",
    ),
)
