"""Whether llama.cpp's converter knows what a job exports as GGUF, known before it trains. Pure but for its table."""

import tomllib
from functools import cache
from importlib.resources import files
from typing import Any

from finetune_api.errors import SpecError
from finetune_api.messages import ExportForm
from finetune_trainer.model.auto_classes import class_of
from finetune_trainer.prepare.plan.choice_log import problem


def check_conversion(forms: tuple[ExportForm, ...], auto_class: str, model_type: str) -> None:
    """Check that the form gguf can be made.

    Args:
        auto_class: class of transformers that loads the model.

    Raises:
        SpecError: the job exports gguf, and the converter has no such model.
    """
    if ExportForm.GGUF not in forms:
        return
    name, known = class_of(auto_class, model_type), _known()
    if name in known["models"]:
        return
    what = name or f"the architecture {model_type} for this task"
    message = f"is gguf, and llama.cpp's converter ({known['version']}) has no {what}"
    cure = "write merged in its place, or choose a base model that llama.cpp runs"
    raise SpecError(problem("NoConversion", "spec.export.forms", message, cure))


@cache
def _known() -> dict[str, Any]:
    text = files("finetune_trainer.prepare.plan").joinpath("gguf_models.toml").read_text("utf-8")
    return tomllib.loads(text)
