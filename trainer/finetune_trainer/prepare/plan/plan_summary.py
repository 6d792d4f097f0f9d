"""The plan in short, and what a pod must be given for it: time to save when told to stop, scratch space. Pure."""

from finetune_api.plan import Choice, Plan
from finetune_api.results import PlanSummary
from finetune_trainer.prepare.plan.checkpoint_cost import checkpoint_bytes, grace_seconds, scratch_bytes, stop_uploads


def summary(plan: Plan) -> PlanSummary:
    """What the operator needs of a plan, and what people see of it."""
    checkpoint = checkpoint_of(plan)
    estimate, memory = plan.prediction.estimate, plan.prediction.memory
    return PlanSummary(
        task=plan.task,
        method=plan.method,
        model=plan.model.name,
        commit=plan.model.commit,
        parameters=plan.model.parameters,
        size_bytes=plan.model.size_bytes,
        nodes=plan.layout.nodes,
        processes_per_node=plan.layout.processes_per_node,
        zero_stage=plan.layout.zero_stage,
        micro_batch=plan.layout.micro_batch,
        gradient_accumulation=plan.layout.gradient_accumulation,
        global_batch=plan.layout.global_batch,
        max_steps=plan.schedule.max_steps,
        learning_rate=plan.schedule.learning_rate,
        checkpoint_every_steps=plan.schedule.checkpoint_every_steps,
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


def checkpoint_of(plan: Plan) -> int:
    """Bytes of the largest node's share of a checkpoint."""
    weight = 2 if plan.engine.training.get("bf16") or plan.engine.training.get("fp16") else 4
    return checkpoint_bytes(
        plan.prediction.trained or plan.model.parameters, weight, plan.layout.nodes, plan.layout.zero_stage
    )


def choice_sentence(choice: Choice) -> str:
    """`training.learning_rate = 0.001: adapter and new head of an encoder ...`"""
    return f"{choice.field.removeprefix('spec.')} = {choice.value}: {choice.reason}"
