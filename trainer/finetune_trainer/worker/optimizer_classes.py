"""The optimizer of a run that DeepSpeed does not make itself: its class, and what the class gets.

transformers puts the weights into two groups, of which biases and norms get no weight decay. DeepSpeed replaces the
weights of a group by its flat shares (ZeRO 1 to 3).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Adafactor

from finetune_api.plan import Plan
from finetune_trainer.worker.compat import correct_muon, uncover_bitsandbytes
from finetune_trainer.worker.schedule_free import ScheduleFreeAdamW

MUON = "Muon"
Made = type[torch.optim.Optimizer]


@dataclass(frozen=True)
class Maker:
    """The class of an optimizer, and arguments that its name implies.

    Attributes:
        load: returns the class; called in the worker, because bitsandbytes must not be imported in the zygote.
    """

    load: Callable[[], Made]
    implied: Mapping[str, Any]


def _bitsandbytes(name: str) -> Callable[[], Made]:
    def load() -> Made:
        uncover_bitsandbytes()
        import bitsandbytes.optim

        made: Made = getattr(bitsandbytes.optim, name)
        return made

    return load


def _quantized(name: str, bits: int, *, paged: bool = False) -> Maker:
    return Maker(_bitsandbytes(name), {"optim_bits": bits, "is_paged": paged})


MAKERS: Mapping[str, Maker] = {
    "adamw_torch": Maker(lambda: torch.optim.AdamW, {}),
    "adamw_torch_fused": Maker(lambda: torch.optim.AdamW, {"fused": True}),
    "adamw_bnb_8bit": _quantized("AdamW", 8),
    "adamw_8bit": _quantized("AdamW", 8),
    "paged_adamw_32bit": _quantized("AdamW", 32, paged=True),
    "paged_adamw_8bit": _quantized("AdamW", 8, paged=True),
    "lion_32bit": _quantized("Lion", 32),
    "lion_8bit": _quantized("Lion", 8),
    "paged_lion_32bit": _quantized("Lion", 32, paged=True),
    "paged_lion_8bit": _quantized("Lion", 8, paged=True),
    "adafactor": Maker(lambda: Adafactor, {"scale_parameter": False, "relative_step": False}),
    "schedule_free_adamw": Maker(lambda: ScheduleFreeAdamW, {}),
    "sgd": Maker(lambda: torch.optim.SGD, {}),
    "rmsprop": Maker(lambda: torch.optim.RMSprop, {}),
}


def optimizer_of(plan: Plan, model: Any) -> tuple[Made, dict[str, Any]] | None:
    """Return class and arguments of the plan's optimizer, as `Trainer` takes them; None = DeepSpeed makes it.

    Args:
        model: as loaded, with its adapter.
    """
    planned = plan.engine.optimizer
    if plan.engine.deepspeed.get("optimizer", {}).get("type") == MUON:
        # DeepSpeed decorates Muon's update with torch.compile, which needs a compiler; the image has none.
        torch.compiler.set_stance("force_eager")
    if planned is None:
        return None
    if planned.name == MUON.lower():
        correct_muon(beside_matrices, int(model.config.get_text_config().hidden_size))
        return None
    maker = MAKERS[planned.name]
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in planned.arguments.items()}
    return maker.load(), {"lr": plan.schedule.learning_rate, **given, **maker.implied}


def beside_matrices(model: Any) -> Iterator[torch.nn.Parameter]:
    """Yield the weights that Muon is not made for: embeddings, and all heads (Keller Jordan, kellerjordan.github.io,
    `muon`). DeepSpeed (0.19) goes by the names `embed` and `lm_head`, which GPT-2's `wte`, T5's `shared` and no
    classifier have.

    Args:
        model: as loaded, with its adapter.
    """
    whole = model.get_base_model() if hasattr(model, "get_base_model") else model
    body = {id(one) for one in whole.base_model.parameters()}
    yield from (one for one in whole.parameters() if id(one) not in body)
    output = whole.get_output_embeddings()
    for module in (*whole.modules(), *([output] if output is not None else [])):
        if module is output or isinstance(module, torch.nn.Embedding):
            yield from module.parameters(recurse=False)
