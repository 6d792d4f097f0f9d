"""What a run takes: hours, GPU-hours and cost, from the step time. Pure."""

from decimal import ROUND_HALF_UP, Decimal

from finetune_api.messages import Estimate
from finetune_api.v1alpha1.spec import BudgetSpec
from finetune_trainer.prepare.plan.layout import Layout
from finetune_trainer.prepare.plan.machine import Machine
from finetune_trainer.prepare.plan.saving import checkpoint_bytes, save_seconds
from finetune_trainer.prepare.plan.speed import UTILISATION, rounded


def estimate(layout: Layout, machine: Machine, steps: int, saves: int, budget: BudgetSpec | None) -> Estimate:
    """Steps and saves at their predicted times; evaluation, start and export come on top.

    Args:
        saves: checkpoints over the run.
    """
    load, speed = layout.load, layout.speed
    size = checkpoint_bytes(load.trained, load.architecture.weight_bytes, machine.nodes, load.zero_stage)
    hours = (speed.seconds * steps + save_seconds(size) * saves) / 3600
    gpu_hours = rounded(hours * machine.nodes * machine.gpus) if machine.gpus else None
    cost = None
    if budget and budget.gpu_hour_price and gpu_hours is not None:
        cost = str((Decimal(budget.gpu_hour_price) * Decimal(str(gpu_hours))).quantize(Decimal("0.01"), ROUND_HALF_UP))
    return Estimate(
        step_seconds=rounded(speed.seconds),
        hours=rounded(hours),
        gpu_hours=gpu_hours,
        cost=cost,
        how=_how(layout, machine),
    )


def _how(layout: Layout, machine: Machine) -> str:
    speed = layout.speed
    if machine.gpu:
        rate = f"{UTILISATION:.0%} of a {machine.gpu.name}'s {machine.gpu.teraflops:.4g} TFLOP/s"
    else:
        rate = f"60 GFLOP/s on each of {machine.cores:.3g} cores a rank"
    parts = {
        f"arithmetic at {rate}": speed.arithmetic,
        "network": speed.network,
        "optimizer": speed.optimizer,
        "offload": speed.offload,
    }
    shown = ", ".join(f"{name} {seconds:.2g} s" for name, seconds in parts.items() if seconds)
    return f"a rough figure: {shown}; without start, evaluation and export"
