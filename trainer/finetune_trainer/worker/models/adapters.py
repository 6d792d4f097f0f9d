"""Adapters: low-rank updates beside frozen weights (LoRA, arXiv 2106.09685)."""

from typing import Any

import torch
from peft import LoraConfig, TaskType, get_peft_model
from transformers import PreTrainedModel

from finetune_api.messages import Plan, Task

TASK_TYPES = {
    Task.CAUSAL_LM: TaskType.CAUSAL_LM,
    Task.CLASSIFICATION: TaskType.SEQ_CLS,
    Task.SEQ2SEQ: TaskType.SEQ_2_SEQ_LM,
}  # PEFT has none for masked-lm, and needs none


def with_adapter(plan: Plan, model: PreTrainedModel, new_modules: list[str]) -> torch.nn.Module:
    """The model with a new adapter; `new_modules`, which the checkpoint lacks, are trained and saved beside it."""
    options: dict[str, Any] = dict(plan.lora)
    trained = list(dict.fromkeys([*(options.pop("modules_to_save", None) or []), *new_modules]))
    options.pop("task_type", None)
    config = LoraConfig(task_type=TASK_TYPES.get(plan.task), modules_to_save=trained or None, **options)
    # float32 adapters on bf16 weights break ZeRO-3's gathering of one dtype
    return get_peft_model(model, config, autocast_adapter_dtype=plan.zero_stage != 3)
