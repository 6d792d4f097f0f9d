"""The choices of a plan that say whether vLLM serves what the job exports. Pure."""

from collections.abc import Mapping
from typing import Any

from finetune_api.messages import ExportForm
from finetune_trainer.model.auto_classes import class_of
from finetune_trainer.prepare.plan.choice_log import ChoiceLog
from finetune_trainer.serving.vllm_rules import of_adapter, of_model

SERVED = "servedByVLLM"  # in the names of the choices


def note_serving(
    log: ChoiceLog, forms: tuple[ExportForm, ...], auto_class: str, model_type: str, lora: Mapping[str, Any], new: int
) -> None:
    """Note for each form of the export, but for gguf, whether vLLM serves it.

    Args:
        auto_class: class of transformers that loads the model.
        lora: LoraConfig names and values; empty for full fine-tuning.
        new: number of new tokens.
    """
    name = class_of(auto_class, model_type)
    for form in forms:
        if form is ExportForm.GGUF:
            continue  # llama.cpp serves it, and `check_conversion` asks whether it can be made
        adapter = form is ExportForm.ADAPTER
        answer = of_adapter(name, lora, new) if adapter else of_model(name)
        shown = {True: "yes", False: "no", None: "unknown"}[answer.served]
        log.note(f"{SERVED}.{form}", shown, answer.reason, False)
