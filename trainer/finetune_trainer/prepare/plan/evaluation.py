"""What is evaluated, what chooses the best checkpoint, and when a run ends early. Pure.

Generating an answer takes a pass of the model for each of its tokens, so how many rows are answered depends on what
that costs beside the training itself.
"""

import math

from finetune_api.errors import SpecError
from finetune_api.evaluation_metrics import ANSWERS, full_name, greater_is_better, measured
from finetune_api.messages import DatasetFacts, ProblemType, SplitFacts, Task
from finetune_api.plan import PlannedAnswers, PlannedEvaluation
from finetune_api.preference_losses import PreferenceLoss
from finetune_api.tasks import spec_of
from finetune_trainer.prepare.plan.choice_log import ChoiceLog, problem
from finetune_trainer.prepare.plan.draft import Draft
from finetune_trainer.prepare.plan.machine import Machine
from finetune_trainer.prepare.plan.memory import EVALUATED
from finetune_trainer.prepare.plan.preference_choice import preference_loss
from finetune_trainer.prepare.plan.rank_layout import RankLayout
from finetune_trainer.prepare.plan.schedule import Rhythm
from finetune_trainer.prepare.plan.speed import bandwidth, forward_rate

ROWS = (64, 32, 16, 8, 4)  # to be answered: as many of these as may be afforded
SHARE = 0.1  # of the training's time, for all answers of all evaluations
SAMPLES = 4
BATCH_ROWS = 32  # the worker's, where their tokens fit
BATCH_TOKENS = 8192
LAYER_SECONDS = 1e-3  # Python and launches, per layer and token: 32 layers generate some 30 tokens a second
SHORTEST, LONGEST = 16, 256  # answers, tokens
METRIC_FIELD = "spec.training.metric_for_best_model"
BEST: dict[ProblemType, tuple[str, str]] = {
    ProblemType.SINGLE_LABEL: ("eval_macro_f1", "every label counts the same"),
    ProblemType.MULTI_LABEL: ("eval_micro_f1", "every decision counts the same; scores of rare labels alone vary much"),
    ProblemType.REGRESSION: ("eval_loss", "the mean squared error, on unseen rows"),
}


def evaluation_of(draft: Draft, rhythm: Rhythm, log: ChoiceLog) -> PlannedEvaluation:
    """Choose what an evaluation generates, which checkpoint is best, and when a run ends early.

    Raises:
        SpecError: evaluation of this task does not measure the given metric, or there is nothing to answer.
    """
    dataset = draft.workload.dataset
    answers = _answers(draft, rhythm, log)
    loss = preference_loss(draft.setting, dataset)
    metric, greater = best_by(log, draft.setting.task, dataset, answers.generate > 0, loss)
    patience = int(log.given.get("early_stopping_patience", 0))
    threshold = float(log.given.get("early_stopping_threshold", 0.0))
    if dataset.eval is not None:
        reason = "given" if patience else "the run goes to its end; the best checkpoint is kept in any case"
        log.note("spec.training.early_stopping_patience", patience, reason, patience > 0)
    if threshold:
        log.note("spec.training.early_stopping_threshold", threshold, "given", True)
    return PlannedEvaluation(
        answers=answers,
        best_metric=metric,
        greater_is_better=greater,
        early_stopping_patience=patience,
        early_stopping_threshold=threshold,
    )


def best_by(
    log: ChoiceLog, task: Task, dataset: DatasetFacts, answers: bool, loss: PreferenceLoss | None = None
) -> tuple[str, bool]:
    """Choose the metric that decides which checkpoint is best; return also whether more of it is better.

    Raises:
        SpecError: evaluation of this task does not measure the given one.
    """
    if dataset.eval is None:
        log.note(METRIC_FIELD, "last", "without evaluation rows the last one is kept", False)
        return "last", True
    problem_type = dataset.problem_type or ProblemType.SINGLE_LABEL
    rule, reason = "eval_loss", "the loss that training minimises, on unseen rows"
    if spec_of(task).labelled:
        rule, reason = BEST[problem_type]
    if best := spec_of(task).best:
        rule, reason = full_name(str(best.value)), best.source
    metric = full_name(str(log.take("metric_for_best_model", rule, reason)))
    known = [full_name(name) for name in measured(task, problem_type, loss, answers=answers)]
    if metric not in known:  # a job without a task: only now is the task known
        kind = f"{task} ({problem_type if loss is None else loss})" if spec_of(task).labelled or loss else str(task)
        message = f"is {metric!r}; evaluation of {kind} measures {', '.join(known)}"
        if metric in [full_name(name) for name in ANSWERS]:
            message += ", and no answers are generated"
        raise SpecError(problem("UnknownMetric", METRIC_FIELD, message, "write one of them"))
    return metric, bool(log.take("greater_is_better", greater_is_better(metric), f"follows from {metric}"))


def _answers(draft: Draft, rhythm: Rhythm, log: ChoiceLog) -> PlannedAnswers:
    """Choose how many rows of an evaluation are answered, and at what length."""
    task, spec, split = draft.setting.task, draft.spec.evaluation, draft.workload.dataset.eval
    if split is None or not spec_of(task).answers:
        if spec.generate:
            _refuse(spec.generate, f"the task is {task}" if split else "there are no evaluation data")
        if split is None or not spec_of(task).labels_words:
            return PlannedAnswers()
        return PlannedAnswers(samples=int(log.settle("spec.evaluation.samples", SAMPLES, "to be read", spec.samples)))
    examples = split.examples or split.rows
    if spec_of(task).continues and split.trained_tokens >= split.tokens - examples:  # all but the first of each row
        if spec.generate:
            _refuse(spec.generate, "the rows have no prompts: every token of them is trained")
        log.note("spec.evaluation.generate", 0, "the rows have no prompts to answer", False)
        return PlannedAnswers()
    target = split.trained_tokens / examples
    rule = min(LONGEST, max(SHORTEST, 8 * math.ceil(2 * target / 8)))
    tokens = int(
        log.settle(
            "spec.evaluation.maxNewTokens",
            rule,
            f"twice the mean of {target:.0f}; never more than the longest right answer",
            spec.max_new_tokens,
        )
    )
    rows, reason = _affordable(draft, rhythm, split.tokens / examples, tokens)
    generate = int(log.settle("spec.evaluation.generate", min(rows, examples), reason, spec.generate))
    generate = min(generate, examples)
    samples = int(log.settle("spec.evaluation.samples", SAMPLES, "to be read", spec.samples))
    return PlannedAnswers(generate=generate, max_new_tokens=tokens, samples=min(samples, generate))


def _affordable(draft: Draft, rhythm: Rhythm, mean: float, tokens: int) -> tuple[int, str]:
    """Return the most rows whose answers take at most a tenth of the training's time, and why."""
    evaluations, seconds_in_all = rhythm.evaluations or 1, rhythm.steps * draft.layout.speed.seconds
    for rows in ROWS:
        seconds = evaluations * generation_seconds(draft.layout, draft.machine, mean, tokens, rows)
        if seconds <= SHARE * seconds_in_all or rows == ROWS[-1]:
            break
    took = f"{evaluations} x {rows} answers take about {seconds:.2g} s of {seconds_in_all:.2g} s"
    return rows, took if rows == ROWS[0] else f"{took}: more would take over a tenth of the run"


def generation_seconds(layout: RankLayout, machine: Machine, mean: float, tokens: int, rows: int) -> float:
    """Return roughly how many seconds all ranks together take to answer some rows.

    Each token of a batch is a pass through the model, which reads all weights, and under ZeRO-3 gathers them.

    Args:
        mean: tokens of a row.
        tokens: of an answer.
    """
    load = layout.load
    shape = load.architecture
    batch = max(1, min(BATCH_ROWS, math.ceil(rows / load.world_size), int(BATCH_TOKENS / (mean + tokens))))
    batches = math.ceil(rows / batch / load.world_size)
    width = load.parameters * shape.weight_bytes
    arithmetic, memory = (
        forward_rate(load, machine),
        machine.gpu.bandwidth * 1e9 if machine.gpu else machine.pace.memory,
    )
    gathered = width / bandwidth(machine) if load.zero_stage == 3 and load.world_size > 1 else 0.0
    layer = LAYER_SECONDS if machine.gpu else machine.pace.token_layer
    a_pass = max(width / memory, 2 * load.parameters * batch / arithmetic) + gathered + layer * shape.layers
    prompt = 2 * load.parameters * batch * mean / arithmetic
    return batches * (prompt + tokens * a_pass)


def evaluation_seconds(layout: RankLayout, machine: Machine, split: SplitFacts) -> float:
    """Return how long one evaluation's forward passes over all rows take, roughly, without generated answers.

    Preference tuning makes as many passes without gradients as a step makes in all: those of its reference too.
    """
    load = layout.load
    shape = load.architecture
    tokens = split.tokens / load.world_size
    scores = 4 * shape.layers * shape.hidden * split.tokens / max(1, split.rows * load.sequences)
    batches = split.rows / load.world_size / max(1, load.evaluated or load.micro * EVALUATED)
    layer = LAYER_SECONDS if machine.gpu else machine.pace.token_layer
    gathered = 0.0
    if load.zero_stage == 3 and load.world_size > 1:
        gathered = load.parameters * shape.weight_bytes / bandwidth(machine)
    operations = tokens * (2 * (shape.matrices or shape.parameters) + scores)
    a_pass = operations / forward_rate(load, machine) + batches * (shape.layers * layer + gathered)
    return (1 + load.beside) * a_pass


def _refuse(rows: int, why: str) -> None:
    message = f"is {rows}, and {why}"
    cure = "leave it out, or evaluate rows with a prompt and an answer"
    raise SpecError(problem("NothingToAnswer", "spec.evaluation.generate", message, cure))
