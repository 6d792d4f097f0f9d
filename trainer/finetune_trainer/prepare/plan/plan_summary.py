"""The plan in short, and what a pod needs for it: time to save when it is stopped, scratch space. Pure."""

from typing import Any

from finetune_api.messages import Message
from finetune_api.optimizers import state_bytes
from finetune_api.plan import Choice, Plan
from finetune_api.results import PlanSummary
from finetune_trainer.prepare.plan.checkpoint_cost import (
    ADAM,
    checkpoint_bytes,
    grace_seconds,
    scratch_bytes,
    stop_uploads,
)


def summary(plan: Plan) -> PlanSummary:
    """Return what the operator needs of a plan, and what people see of it."""
    checkpoint = planned_checkpoint_bytes(plan)
    estimate, memory = plan.prediction.estimate, plan.prediction.memory
    return PlanSummary(
        **_shared(plan.model),
        **_shared(plan.layout),
        **_shared(plan.schedule),
        task=plan.task,
        method=plan.method,
        model=plan.model.name,
        checkpoint_bytes=checkpoint,
        grace_seconds=grace_seconds(checkpoint, stop_uploads(plan.dataset)),
        scratch_bytes=scratch_bytes(plan.model, plan.dataset, checkpoint),
        estimated_hours=estimate.hours if estimate else None,
        estimated_gpu_hours=estimate.gpu_hours if estimate else None,
        estimated_cost=estimate.cost if estimate else None,
        bytes_per_gpu=memory.bytes if memory else None,
        memory=memory.sentence if memory else "",
        choices=tuple(choice_sentence(choice) for choice in plan.choices if choice.origin == "rule"),
    )


def _shared(part: Message) -> dict[str, Any]:
    """Return the values of a part of the plan that the summary has under the same name."""
    names = PlanSummary.model_fields.keys() & type(part).model_fields.keys()
    return {name: getattr(part, name) for name in names}


def planned_checkpoint_bytes(plan: Plan) -> int:
    """Return the bytes of the largest node's part of a checkpoint."""
    weight = 2 if plan.engine.training.get("bf16") or plan.engine.training.get("fp16") else 4
    trained, layout, optimizer = plan.prediction.trained or plan.model.parameters, plan.layout, plan.engine.optimizer
    states = state_bytes(optimizer.name, optimizer.arguments) if optimizer else ADAM
    return checkpoint_bytes(trained, weight, layout.nodes, layout.zero_stage, states)


def choice_sentence(choice: Choice) -> str:
    """Return `training.learning_rate = 0.001: adapter and new head of an encoder ...`"""
    return f"{choice.field.removeprefix('spec.')} = {choice.value}: {choice.reason}"
