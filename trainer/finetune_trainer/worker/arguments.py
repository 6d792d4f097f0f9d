"""Conversion of the plan into transformers.TrainingArguments."""

import copy
import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from finetune_api.errors import Problem, SpecError
from finetune_trainer.process.orders import WorkerOrder

EVAL_BATCH_FACTOR = 2  # an evaluation keeps no gradients
# DeepSpeed's defaults. accelerate requires them to be present, and a user's own configuration may lack them.
DEFAULTS = {
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "zero_optimization": {"stage": 0},
}
# Names of transformers' arguments that were renamed within the range of versions we support: new name -> older name
RENAMED = {
    "activation_checkpointing": "gradient_checkpointing",
    "activation_checkpointing_kwargs": "gradient_checkpointing_kwargs",
}


def training_arguments(order: WorkerOrder) -> TrainingArguments:
    """Return the arguments for one rank; call it after `rendezvous.join`.

    The value must live as long as the model: it keeps the DeepSpeed configuration of transformers alive, which ZeRO-3
    needs while a model is loaded. The precision is the plan's and defaults to float32.
    """
    plan = order.plan
    on_gpu = torch.cuda.is_available()
    options = as_installed(plan.engine.training, {field.name for field in dataclasses.fields(TrainingArguments)})
    if on_gpu and options.get("bf16"):
        check_bfloat16(torch.cuda.get_device_name(), torch.cuda.get_device_capability())
    options.setdefault("per_device_eval_batch_size", plan.layout.micro_batch * EVAL_BATCH_FACTOR)
    return TrainingArguments(
        output_dir=str(Path(order.checkpoints)),
        per_device_train_batch_size=plan.layout.micro_batch,
        gradient_accumulation_steps=plan.layout.gradient_accumulation,
        max_steps=plan.schedule.max_steps,
        learning_rate=plan.schedule.learning_rate,
        warmup_steps=plan.schedule.warmup_steps,
        lr_scheduler_type=plan.schedule.lr_scheduler_type,
        seed=plan.schedule.seed,
        deepspeed=copy.deepcopy({**DEFAULTS, **plan.engine.deepspeed}),
        use_cpu=not on_gpu,
        train_sampling_strategy="sequential",  # sampling.VirtualDataset defines the order
        eval_strategy="no",  # cadence.Cadence decides when to evaluate and save
        save_strategy="no",
        save_on_each_node=True,  # nodes do not share a disk
        logging_steps=1,
        logging_nan_inf_filter=False,  # the filter would hide NaN losses in an average
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=on_gpu,
        **options,
    )


def as_installed(options: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """Return arguments under the names of the installed transformers.

    Args:
        options: arguments by the newest names.
        known: names that the installed version accepts.
    """
    return {RENAMED.get(name, name) if name not in known else name: value for name, value in options.items()}


def check_bfloat16(name: str, capability: tuple[int, int]) -> None:
    """Refuse a GPU that would emulate bfloat16, slowly. It differs from the GPU that the plan names or assumes.

    Raises:
        SpecError: the GPU is older than Ampere (compute capability 8.0).
    """
    if capability < (8, 0):
        raise SpecError(
            Problem(
                code="NoBfloat16",
                field="spec.gpuType",
                message=f"the plan needs GPUs with bfloat16, which a {name} lacks",
                cure="name the GPUs of the nodes, or set spec.training.fp16",
            )
        )


def weight_dtype(args: TrainingArguments) -> torch.dtype:
    """Return the type in which weights are loaded."""
    if args.bf16:
        return torch.bfloat16
    return torch.float16 if args.fp16 else torch.float32
