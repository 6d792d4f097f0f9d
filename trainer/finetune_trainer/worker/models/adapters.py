"""Adapters: low-rank updates beside frozen weights (LoRA, arXiv 2106.09685), new ones and those of an earlier run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, TaskType, get_peft_model
from transformers import PreTrainedModel

from finetune_api.plan import Plan
from finetune_api.tasks import spec_of
from finetune_trainer.model.new_rows import trained_rows
from finetune_trainer.worker.compat import save_without_embeddings


def with_adapter(
    plan: Plan,
    model: PreTrainedModel,
    new_modules: Sequence[str],
    new_ids: Sequence[int] = (),
    adapter: Path | None = None,
) -> torch.nn.Module:
    """The model with an adapter: a new one as the plan has it, or the one in a folder, trained further.

    Args:
        new_modules: modules that the checkpoint lacks: they are trained and saved beside the adapter.
        new_ids: ids of new tokens: their rows of the embeddings are trained and saved beside the adapter.
        adapter: folder of the adapter to start from.
    """
    # float32 adapters on bf16 weights break ZeRO-3's gathering of one dtype
    cast = plan.layout.zero_stage != 3
    if adapter is not None:
        config = PeftConfig.from_pretrained(str(adapter))
        config.modules_to_save = _together(config.modules_to_save, new_modules)
        made: Any = PeftModel.from_pretrained(
            model, str(adapter), is_trainable=True, config=config, autocast_adapter_dtype=cast
        )
        return save_without_embeddings(made)
    options: dict[str, Any] = dict(plan.lora)
    options.pop("task_type", None)
    options["modules_to_save"] = _together(options.get("modules_to_save"), new_modules)
    if new_ids:
        options |= trained_rows(options, model, new_ids, sharded=plan.layout.zero_stage == 3)
    kind = spec_of(plan.task).peft_type
    config = LoraConfig(task_type=TaskType[kind] if kind else None, **options)
    return save_without_embeddings(get_peft_model(model, config, autocast_adapter_dtype=cast))


def _together(given: Sequence[str] | None, new_modules: Sequence[str]) -> list[str] | None:
    """The modules to save; one that the given names cover already (as PEFT reads them: by their end) is not twice."""
    names = list(given or ())
    names += [name for name in new_modules if not any(name == one or name.endswith(f".{one}") for one in names)]
    return names or None
