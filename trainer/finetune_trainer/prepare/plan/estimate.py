"""What a run takes: hours, GPU-hours and cost, from the step time and what comes beside the steps. Pure."""

from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal

from finetune_api.messages import DatasetFacts, ModelFacts
from finetune_api.plan import Estimate, PlannedAnswers
from finetune_api.v1alpha1.spec import BudgetSpec
from finetune_trainer.prepare.plan.checkpoint_cost import LOCAL_DISK, checkpoint_bytes, save_seconds
from finetune_trainer.prepare.plan.evaluation import evaluation_seconds, generation_seconds
from finetune_trainer.prepare.plan.machine import Machine
from finetune_trainer.prepare.plan.rank_layout import RankLayout
from finetune_trainer.prepare.plan.speed import rate, rounded

GPU_START = 60.0  # seconds until the first step: imports, CUDA, NCCL, the engine; an estimate


@dataclass(frozen=True)
class Course:
    """What a run does: optimizer steps, evaluations with answers, and saves."""

    steps: int
    evaluations: int
    saves: int
    evaluation: PlannedAnswers


@dataclass(frozen=True)
class Spent:
    """Seconds of a run, by what it does."""

    loading: float
    steps: float
    evaluations: float
    answers: float
    saves: float

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.loading + self.steps + self.evaluations + self.answers + self.saves


def spent(layout: RankLayout, machine: Machine, course: Course, model: ModelFacts, dataset: DatasetFacts) -> Spent:
    """What the training of a job takes, from the start of its workers to the last save."""
    load, split = layout.load, dataset.eval
    size = checkpoint_bytes(load.trained, load.architecture.weight_bytes, machine.nodes, load.zero_stage)
    evaluated = answered = 0.0
    if split is not None:
        evaluated = course.evaluations * evaluation_seconds(layout, machine, split)
    if split is not None and course.evaluation.generate:
        mean = split.tokens / max(1, split.examples or split.rows)
        rows, tokens = course.evaluation.generate, course.evaluation.max_new_tokens
        answered = course.evaluations * generation_seconds(layout, machine, mean, tokens, rows)
    return Spent(
        loading=(GPU_START if machine.gpu else machine.pace.start) + model.size_bytes / LOCAL_DISK,
        steps=layout.speed.seconds * course.steps,
        evaluations=evaluated,
        answers=answered,
        saves=save_seconds(size) * course.saves,
    )


def estimate(layout: RankLayout, machine: Machine, took: Spent, budget: BudgetSpec | None) -> Estimate:
    """The estimate that a plan carries; prepare and export come on top."""
    hours = took.seconds / 3600
    gpu_hours = rounded(hours * machine.nodes * machine.gpus) if machine.gpus else None
    cost = None
    if budget and budget.gpu_hour_price and gpu_hours is not None:
        cost = str((Decimal(budget.gpu_hour_price) * Decimal(str(gpu_hours))).quantize(Decimal("0.01"), ROUND_HALF_UP))
    return Estimate(
        step_seconds=rounded(layout.speed.seconds),
        hours=rounded(hours),
        gpu_hours=gpu_hours,
        cost=cost,
        how=_how(layout, machine, took),
    )


def _how(layout: RankLayout, machine: Machine, took: Spent) -> str:
    speed, load = layout.speed, layout.load
    if machine.gpu:
        reached = rate(machine.gpu, load.method, load.architecture.weight_bytes) / 1e12
        at = f"{reached:.3g} TFLOP/s, as {load.method} reaches on a {machine.gpu.name}"
    elif machine.pace.measured:
        at = f"{machine.pace.operations / 1e9:.3g} GFLOP/s a rank, measured on this machine"
    else:
        at = f"{machine.pace.operations / 1e9:.3g} GFLOP/s a rank, assumed for {machine.cores:.3g} cores"
    network = f"network at {machine.network:.4g} Gbit/s a node" if machine.nodes > 1 else "network"
    step = {
        f"arithmetic at {at}": speed.arithmetic,
        network: speed.network,
        "optimizer": speed.optimizer,
        "offload": speed.offload,
    }
    whole = {
        "loading": took.loading,
        "steps": took.steps,
        "evaluations": took.evaluations,
        "answers": took.answers,
        "saves": took.saves,
    }
    shown = ", ".join(f"{name} {seconds:.2g} s" for name, seconds in step.items() if seconds)
    parts = ", ".join(f"{name} {seconds:.3g} s" for name, seconds in whole.items() if seconds)
    return f"a rough figure: a step {shown}; in all {parts}; without prepare and export"
