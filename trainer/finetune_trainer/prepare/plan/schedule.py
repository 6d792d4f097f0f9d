"""The schedule of a run: steps, learning rate, and when it evaluates and saves. Pure.

Steps are counted over a virtual data set (row k of the run is row k mod n of the k div n-th permutation), so every
batch is full and the last epoch may be a fraction.
"""

import math
from dataclasses import dataclass

from finetune_api.messages import Task
from finetune_api.plan import PlannedSchedule
from finetune_api.tasks import spec_of
from finetune_trainer.model.learning_rates import Size
from finetune_trainer.prepare.plan.checkpoint_cost import best_interval, save_seconds
from finetune_trainer.prepare.plan.choice_log import ChoiceLog
from finetune_trainer.prepare.plan.draft import Draft
from finetune_trainer.prepare.plan.optimizer_choice import rated
from finetune_trainer.prepare.plan.preference_choice import preference_loss
from finetune_trainer.prepare.plan.rates import learning_rate

SEED = 42
KEEP_LAST = 3
EVALUATIONS = 10  # over the run
HEAD_ROWS, HEAD_PASSES = 6000, 20
PREFERRED_ROWS, PREFERRED_PASSES = 1000, 3
HIDDEN = 0.15  # BERT paper, arXiv 1810.04805


@dataclass(frozen=True)
class Rhythm:
    """When a run does what, in optimizer steps.

    Attributes:
        eval_every: steps between evaluations; 0 without evaluation rows.
        save_every: steps between checkpoints.
    """

    steps: int
    epochs: float
    warmup: int
    eval_every: int
    save_every: int

    @property
    def evaluations(self) -> int:
        """Evaluations in the whole run."""
        return math.ceil(self.steps / self.eval_every) if self.eval_every else 0

    @property
    def saves(self) -> int:
        """Checkpoints in the whole run."""
        return math.ceil(self.steps / self.save_every)


def rhythm_of(draft: Draft, timed: Draft, log: ChoiceLog) -> Rhythm:
    """Choose how many steps a run has, and when it evaluates and saves.

    Args:
        timed: the draft with the speed that was measured; it decides how often a checkpoint is worth its time.
    """
    task, dataset = draft.setting.task, draft.workload.dataset
    steps, epochs = steps_of(log, task, dataset.train.rows, draft.request.rows)
    warmup = warmup_of(log, task, steps)
    eval_every = evaluated_every(log, steps, dataset.eval is not None)
    return Rhythm(steps, epochs, warmup, eval_every, _saved_every(log, timed, steps, eval_every))


def schedule_of(draft: Draft, rhythm: Rhythm, log: ChoiceLog) -> PlannedSchedule:
    """Choose the learning rate, its schedule and the seed of a run with this rhythm."""
    task, model = draft.setting.task, draft.workload.model
    size = Size(model.parameters, draft.workload.architecture.hidden)
    loss = preference_loss(draft.setting, draft.workload.dataset)
    rate, reason = learning_rate(task, draft.setting.method, model.model_type, size, draft.request.rows, loss)
    rate, reason = rated(draft.setting.optimizer, rate, reason)
    scheduler, why = str(spec_of(task).scheduler.value), spec_of(task).scheduler.source
    if own := draft.setting.optimizer.spec.scheduler:
        scheduler, why = own, f"{draft.setting.optimizer.spec.title} averages the weights in place of a decaying rate"
    keep_last = draft.spec.checkpoint.keep_last
    return PlannedSchedule(
        epochs=rhythm.epochs,
        max_steps=rhythm.steps,
        learning_rate=log.take("learning_rate", rate, reason),
        warmup_steps=rhythm.warmup,
        lr_scheduler_type=log.take("lr_scheduler_type", scheduler, why),
        eval_every_steps=rhythm.eval_every,
        checkpoint_every_steps=rhythm.save_every,
        keep_last=log.settle("spec.checkpoint.keepLast", KEEP_LAST, "beside the best one", keep_last),
        seed=log.take("seed", SEED, "any fixed number makes the run repeatable"),
    )


def epochs_for(rows: int, task: Task) -> tuple[float, str]:
    """Return the passes where the job gives none, and why.

    3, but at least 100 and at most 25,000 rows seen in all, and 1 to 25 passes: the rule of OpenAI's cookbook ("Data
    preparation and analysis for chat model fine-tuning"). A classifier's head is new, and learns nothing in so few
    steps: it sees 6,000 rows, in at most 20 passes. Preference tuning sees every pair once, and few pairs up to three
    times: models learn to tell pairs apart in one pass, and further ones overfit.
    """
    if spec_of(task).named and rows * 3 < HEAD_ROWS:
        reason = (
            f"{rows} rows: at least {HEAD_ROWS:,} seen in all, in at most {HEAD_PASSES} passes; three leave a new head "
            "untrained on small data (Zhang et al. 2021, arXiv 2006.05987; Mosbach et al. 2021, arXiv 2006.04884)"
        )
        return float(min(HEAD_PASSES, math.ceil(HEAD_ROWS / rows))), reason
    if spec_of(task).prefers:
        reason = (
            f"{rows} rows: one pass, and more, up to {PREFERRED_PASSES}, until {PREFERRED_ROWS:,} are seen (Tulu 3 and "
            "SimPO take one pass, Zephyr up to three; arXiv 2411.15124, 2405.14734, 2310.16944)"
        )
        return float(min(PREFERRED_PASSES, max(1, math.ceil(PREFERRED_ROWS / rows)))), reason
    reason = f"{rows} rows: 3 passes, at least 100 and at most 25,000 rows in all (OpenAI cookbook)"
    if rows * 3 < 100:
        return float(min(25, math.ceil(100 / rows))), reason
    if rows * 3 > 25_000:
        return float(max(1, 25_000 // rows)), reason
    return 3.0, reason


def steps_of(log: ChoiceLog, task: Task, rows: int, batch: int) -> tuple[int, float]:
    """Choose the optimizer steps of the run, and the passes over `rows` rows at `batch` rows a step."""
    if "max_steps" in log.given:
        steps = int(log.given["max_steps"])
        epochs = steps * batch / rows
        log.note("spec.training.max_steps", steps, "given", True)
        log.note("spec.training.num_train_epochs", round(epochs, 4), "max_steps x global batch / rows", False)
        return steps, epochs
    rule, reason = epochs_for(rows, task)
    epochs = float(log.take("num_train_epochs", rule, reason))
    steps = max(1, math.ceil(round(epochs * rows / batch, 9)))
    log.note("spec.training.max_steps", steps, f"{epochs:g} epochs x {rows} rows / {batch} rows a step", False)
    return steps, epochs


def warmup_of(log: ChoiceLog, task: Task, steps: int) -> int:
    """Choose the steps until the learning rate is at its peak."""
    warmup = spec_of(task).warmup
    share = float(warmup.value)
    given = log.given.get("warmup_steps")
    if isinstance(given, float) and given < 1:
        log.note("spec.training.warmup_steps", round(given * steps), f"{given:g} of {steps} steps, as given", True)
        return round(given * steps)
    return int(log.take("warmup_steps", round(share * steps), f"{share:.0%} of {steps} steps ({warmup.source})"))


def hidden_share(log: ChoiceLog, task: Task) -> float:
    """Choose the share of tokens that masked language modelling hides; unused elsewhere."""
    if not spec_of(task).hides_tokens:
        return HIDDEN
    reason = "BERT paper (arXiv 1810.04805); up to 0.4 serves large models (Wettig et al. 2023, arXiv 2202.08005)"
    return float(log.take("mlm_probability", HIDDEN, reason))


def evaluated_every(log: ChoiceLog, steps: int, evaluated: bool) -> int:
    """Choose the steps between two evaluations; 0 without evaluation rows."""
    if not evaluated:
        return 0
    given = log.given.get("eval_steps")
    if isinstance(given, float) and given < 1:
        every = max(1, math.ceil(given * steps))  # rounded down, the last one would come twice
        log.note("spec.training.eval_steps", every, f"{given:g} of {steps} steps, as given", True)
        return every
    rule = max(1, math.ceil(steps / EVALUATIONS))
    return int(log.take("eval_steps", rule, f"{EVALUATIONS} evaluations over the run, and one at the end"))


def _saved_every(log: ChoiceLog, timed: Draft, steps: int, eval_every: int) -> int:
    """Choose the steps between checkpoints: as given, with the evaluations, or more often where failures cost more."""
    spec, seconds, nodes = timed.spec.checkpoint, max(timed.layout.speed.seconds, 1e-6), timed.machine.nodes
    if spec.every_minutes is not None:
        every = max(1, min(steps, int(spec.every_minutes * 60 / seconds)))
        reason = f"{spec.every_minutes} minutes at {seconds:.3g} s a step, as given"
        log.note("spec.checkpoint.everySteps", every, reason, True)
        return every
    rule = eval_every or max(1, math.ceil(steps / EVALUATIONS))
    reason = "with each evaluation, so that the best is kept" if eval_every else f"{EVALUATIONS} over the run"
    interval = best_interval(timed.checkpoint_bytes, nodes)
    often = max(1, int(interval / seconds))
    if often < rule:
        rule = often
        reason = (
            f"{interval / 60:.0f} minutes: saves of {save_seconds(timed.checkpoint_bytes):.0f} s and failures of "
            f"{nodes} nodes cost least together (Young and Daly; a node fails every 264 days, Llama 3 paper)"
        )
    return log.settle("spec.checkpoint.everySteps", rule, reason, spec.every_steps)
