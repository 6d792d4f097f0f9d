"""The plan in short, and what a pod must be given for it: time to save when told to stop, scratch space. Pure."""

import math

from finetune_api.messages import Choice, DatasetFacts, MethodType, Plan
from finetune_api.results import PlanSummary
from finetune_trainer.prepare.plan.memory import OPTIMIZER_BYTES, Architecture, lora_parameters

UPLOAD_BANDWIDTH = 50_000_000  # bytes a second that any node's way to its object storage should reach
AGREEMENT_SECONDS = 30  # to finish the step at hand, write to the local disk, commit, upload logs
LEAST_GRACE, MOST_GRACE = 60, 1800  # seconds
LOCAL_CHECKPOINTS = 3  # two are kept, and one is being written
MARGIN = 1 << 30  # bytes: logs, caches
ROW_BYTES = 24  # offsets and validity of a row's columns
TOKEN_BYTES = 8  # input_ids and labels


def summary(plan: Plan, architecture: Architecture) -> PlanSummary:
    """What the operator needs of a plan, and what people see of it."""
    checkpoint = checkpoint_bytes(plan, architecture)
    return PlanSummary(
        task=plan.task,
        method=plan.method,
        model=plan.model.name,
        commit=plan.model.commit,
        parameters=plan.model.parameters,
        size_bytes=plan.model.size_bytes,
        nodes=plan.nodes,
        processes_per_node=plan.processes_per_node,
        zero_stage=plan.zero_stage,
        micro_batch=plan.micro_batch,
        gradient_accumulation=plan.gradient_accumulation,
        global_batch=plan.global_batch,
        max_steps=plan.max_steps,
        learning_rate=plan.learning_rate,
        checkpoint_every_steps=plan.checkpoint_every_steps,
        checkpoint_bytes=checkpoint,
        grace_seconds=grace_seconds(checkpoint),
        scratch_bytes=plan.model.size_bytes + dataset_bytes(plan.dataset) + LOCAL_CHECKPOINTS * checkpoint + MARGIN,
        choices=tuple(sentence(choice) for choice in plan.choices if choice.origin == "rule"),
    )


def checkpoint_bytes(plan: Plan, architecture: Architecture) -> int:
    """Bytes of the largest node's share, node 0's: trained weights in Hugging Face's and in DeepSpeed's layout, and the
    optimizer states, which ZeRO shards over the nodes."""
    parameters = plan.model.parameters
    trained = parameters if plan.method is MethodType.FULL else lora_parameters(architecture, int(plan.lora["r"]))
    weight = 2 if plan.training.get("bf16") or plan.training.get("fp16") else 4
    return 2 * trained * weight + trained * OPTIMIZER_BYTES // (plan.nodes if plan.zero_stage else 1)


def grace_seconds(checkpoint: int) -> int:
    """What a pod needs to save a checkpoint of this size and upload it, within bounds."""
    return min(MOST_GRACE, max(LEAST_GRACE, AGREEMENT_SECONDS + math.ceil(checkpoint / UPLOAD_BANDWIDTH)))


def dataset_bytes(facts: DatasetFacts) -> int:
    """Bytes of the prepared data set's files."""
    splits = [facts.train, *([facts.eval] if facts.eval else [])]
    return sum(split.tokens * TOKEN_BYTES + split.rows * ROW_BYTES for split in splits)


def sentence(choice: Choice) -> str:
    """`training.learning_rate = 0.001: adapter and new head of an encoder ...`"""
    return f"{choice.field.removeprefix('spec.')} = {choice.value}: {choice.reason}"
