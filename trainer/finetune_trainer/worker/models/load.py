"""Loading of the model from the mirrored files, with a head for the task and, for LoRA, an adapter.

Modules that the checkpoint lacks are newly initialised. LoRA would leave them frozen at random values, so they are
always trained. (PEFT adds a classifier by itself, but not BERT's pooler: 0.77 instead of 0.86 accuracy on a small
task.)
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from finetune_api.errors import ModelError
from finetune_api.messages import MethodType
from finetune_api.tasks import spec_of
from finetune_trainer.model.fitting import check_body, other_model, unused_pooler
from finetune_trainer.worker.models.adapters import with_adapter
from finetune_trainer.worker.models.expert_leaves import gather_experts_as_one
from finetune_trainer.worker.models.freezing import freeze
from finetune_trainer.worker.models.heads import auto_class, new_modules, trained_wholly
from finetune_trainer.worker.models.new_token_rows import add_rows
from finetune_trainer.worker.models.quantized import loading
from finetune_trainer.worker.tasks.worker_task import WorkerTask


def load_padding_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer of the base model. Without a padding token it pads with its end-of-text token, which is
    masked anyway.
    """
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(
    task: WorkerTask,
    folder: Path,
    dtype: torch.dtype,
    pad_token_id: int,
    new_ids: Sequence[int] = (),
    adapter: Path | None = None,
) -> torch.nn.Module:
    """Return the model to train: a PreTrainedModel, wrapped in a PeftModel for LoRA.

    Args:
        task: of the plan.
        new_ids: ids of the plan's new tokens.
        adapter: folder of the adapter to start from.

    Raises:
        ModelError: the weights do not match the configuration beside them.

    The caller seeds torch first and, for ZeRO-3, keeps the DeepSpeed configuration of transformers alive.
    """
    plan = task.plan
    model, missing = _load_base(task, folder, dtype)
    check_body(model, missing)
    task.set_up(model, pad_token_id)
    model.config.use_cache = False
    add_rows(model, new_ids)
    gather_experts_as_one(model)
    if plan.method is MethodType.FULL:
        freeze(model, plan.freeze, new_modules(missing))
        return model
    beside = trained_wholly(model, missing, task.heads(model))
    return with_adapter(plan, model, beside, new_ids, adapter)


def _load_base(task: WorkerTask, folder: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, set[str]]:
    config = AutoConfig.from_pretrained(folder)
    pooler = unused_pooler(spec_of(task.plan.task).auto_class, config)
    options = task.head_options() | loading(task.plan, config, dtype) | pooler
    try:
        model, info = auto_class(task.plan.task).from_pretrained(
            folder, dtype=dtype, output_loading_info=True, **options
        )
    except RuntimeError as error:
        if "mismatch" in str(error):  # no retry with ignore_mismatched_sizes, which sets those weights at random
            raise ModelError(other_model("have other shapes (the log names them)")) from error
        raise
    return model, set(info["missing_keys"])
