"""The course of a run: epochs, steps, warm-up, how much is hidden, and how often is evaluated. Pure."""

import math

from finetune_api.messages import Task
from finetune_api.tasks import spec_of
from finetune_trainer.prepare.plan.choice_log import ChoiceLog

EVALUATIONS = 10  # over the run
HEAD_ROWS, HEAD_PASSES = 6000, 20
HIDDEN = 0.15  # BERT paper, arXiv 1810.04805


def epochs_for(rows: int, task: Task) -> tuple[float, str]:
    """Passes when none are given, and why.

    3, but at least 100 and at most 25,000 rows seen in all, and 1 to 25 passes: the rule of OpenAI's cookbook ("Data
    preparation and analysis for chat model fine-tuning"). A classifier's head is new, and learns nothing in so few
    steps: it sees 6,000 rows, in at most 20 passes.
    """
    if spec_of(task).labelled and rows * 3 < HEAD_ROWS:
        reason = (
            f"{rows} rows: at least {HEAD_ROWS:,} seen in all, in at most {HEAD_PASSES} passes; three leave a new head "
            "untrained on small data (Zhang et al. 2021, arXiv 2006.05987; Mosbach et al. 2021, arXiv 2006.04884)"
        )
        return float(min(HEAD_PASSES, math.ceil(HEAD_ROWS / rows))), reason
    reason = f"{rows} rows: 3 passes, at least 100 and at most 25,000 rows in all (OpenAI cookbook)"
    if rows * 3 < 100:
        return float(min(25, math.ceil(100 / rows))), reason
    if rows * 3 > 25_000:
        return float(max(1, 25_000 // rows)), reason
    return 3.0, reason


def steps_of(log: ChoiceLog, task: Task, rows: int, batch: int) -> tuple[int, float]:
    """Optimizer steps of the run, and passes over `rows` rows at `batch` rows a step."""
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
    """Steps until the learning rate is at its peak."""
    warmup = spec_of(task).warmup
    share = float(warmup.value)
    given = log.given.get("warmup_steps")
    if isinstance(given, float) and given < 1:
        log.note("spec.training.warmup_steps", round(given * steps), f"{given:g} of {steps} steps, as given", True)
        return round(given * steps)
    return int(log.take("warmup_steps", round(share * steps), f"{share:.0%} of {steps} steps ({warmup.source})"))


def hidden_share(log: ChoiceLog, task: Task) -> float:
    """The share of tokens that masked language modelling hides; of no meaning elsewhere."""
    if not spec_of(task).hides_tokens:
        return HIDDEN
    reason = "BERT paper (arXiv 1810.04805); up to 0.4 serves large models (Wettig et al. 2023, arXiv 2202.08005)"
    return float(log.take("mlm_probability", HIDDEN, reason))


def evaluated_every(log: ChoiceLog, steps: int, evaluated: bool) -> int:
    """Steps between two evaluations; 0 without evaluation rows."""
    if not evaluated:
        return 0
    given = log.given.get("eval_steps")
    if isinstance(given, float) and given < 1:
        every = max(1, math.ceil(given * steps))  # rounded down, the last one would come twice
        log.note("spec.training.eval_steps", every, f"{given:g} of {steps} steps, as given", True)
        return every
    rule = max(1, math.ceil(steps / EVALUATIONS))
    return int(log.take("eval_steps", rule, f"{EVALUATIONS} evaluations over the run, and one at the end"))
