"""What a run needs: memory, hours, GPU-hours and cost, from the step time and from the work beside the steps. Pure."""

from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal

from finetune_api.plan import Estimate, MemoryPart, PlannedAnswers, PlannedMemory, Prediction
from finetune_trainer.prepare.plan.checkpoint_cost import LOCAL_DISK, save_seconds
from finetune_trainer.prepare.plan.draft import Draft
from finetune_trainer.prepare.plan.evaluation import evaluation_seconds, generation_seconds
from finetune_trainer.prepare.plan.machine import Machine
from finetune_trainer.prepare.plan.preference_choice import caches
from finetune_trainer.prepare.plan.rank_layout import RankLayout
from finetune_trainer.prepare.plan.schedule import Rhythm
from finetune_trainer.prepare.plan.speed import flops_per_token, peak_flops, rate, rounded

GPU_START = 60.0  # seconds until the first step: imports, CUDA, NCCL, the engine; an estimate


@dataclass(frozen=True)
class Spent:
    """Seconds of a run, by what it does."""

    loading: float
    steps: float
    evaluations: float
    answers: float
    saves: float
    reference: float = 0.0

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.loading + self.steps + self.evaluations + self.answers + self.saves + self.reference


def prediction_of(timed: Draft, rhythm: Rhythm, answers: PlannedAnswers) -> Prediction:
    """Predict what a run needs: memory, arithmetic, time and cost.

    Args:
        timed: the draft with the speed that was measured, if it was.
    """
    load, train = timed.layout.load, timed.workload.dataset.train
    labelled = train.trained_tokens / max(1, train.tokens)
    return Prediction(
        trained=load.trained,
        flops_per_token=flops_per_token(load, train.tokens / max(1, train.rows * load.sequences), labelled),
        peak_flops=peak_flops(load, timed.machine),
        memory=_memory(timed.layout, timed.machine),
        estimate=_estimate(timed, _spent(timed, rhythm, answers)),
    )


def _memory(layout: RankLayout, machine: Machine) -> PlannedMemory:
    memory = layout.memory
    return PlannedMemory(
        unit="GPU" if machine.device == "gpu" else "rank",
        limit=machine.memory_bytes,
        source=machine.source,
        moment=memory.moment,
        parts=tuple(MemoryPart(name=one.name, bytes=one.bytes, why=one.why) for one in memory.components),
        host=tuple(MemoryPart(name=one.name, bytes=one.bytes, why=one.why) for one in memory.host),
    )


def _spent(timed: Draft, rhythm: Rhythm, answers: PlannedAnswers) -> Spent:
    """Return the seconds of the training, from the start of its workers to the last save."""
    layout, machine, split = timed.layout, timed.machine, timed.workload.dataset.eval
    evaluated = answered = 0.0
    if split is not None:
        evaluated = rhythm.evaluations * evaluation_seconds(layout, machine, split)
    if split is not None and answers.generate:
        mean = split.tokens / max(1, split.examples or split.rows)
        one = generation_seconds(layout, machine, mean, answers.max_new_tokens, answers.generate)
        answered = rhythm.evaluations * one
    start = GPU_START if machine.gpu else machine.pace.start
    return Spent(
        loading=start + timed.workload.model.size_bytes / LOCAL_DISK,
        steps=layout.speed.seconds * rhythm.steps,
        evaluations=evaluated,
        answers=answered,
        saves=save_seconds(timed.checkpoint_bytes) * rhythm.saves,
        reference=_reference(timed, rhythm),
    )


def _reference(timed: Draft, rhythm: Rhythm) -> float:
    """Return the seconds of the passes that compute the log-probabilities of a reference once, of all rows that the run
    reads."""
    dataset = timed.workload.dataset
    if not caches(timed.setting, dataset):
        return 0.0
    read = min(1.0, rhythm.steps * timed.request.rows / max(1, dataset.train.rows))
    splits = [(read, dataset.train), *([(1.0, dataset.eval)] if dataset.eval is not None else [])]
    return sum(share * evaluation_seconds(timed.layout, timed.machine, split) for share, split in splits)


def _estimate(timed: Draft, took: Spent) -> Estimate:
    """Return hours and cost of the training, without prepare and export."""
    machine, budget = timed.machine, timed.spec.budget
    hours = took.seconds / 3600
    gpu_hours = rounded(hours * machine.nodes * machine.gpus) if machine.gpus else None
    cost = None
    if budget and budget.gpu_hour_price and gpu_hours is not None:
        cost = str((Decimal(budget.gpu_hour_price) * Decimal(str(gpu_hours))).quantize(Decimal("0.01"), ROUND_HALF_UP))
    return Estimate(
        step_seconds=rounded(timed.layout.speed.seconds),
        hours=rounded(hours),
        gpu_hours=gpu_hours,
        cost=cost,
        how=_how(timed.layout, machine, took),
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
        "reference": took.reference,
    }
    shown = ", ".join(f"{name} {seconds:.2g} s" for name, seconds in step.items() if seconds)
    parts = ", ".join(f"{name} {seconds:.3g} s" for name, seconds in whole.items() if seconds)
    return f"a rough estimate: a step {shown}; in all {parts}; without prepare and export"
