"""QLoRA's base model: bitsandbytes makes the linear layers 4 bits wide while the weights are loaded (arXiv 2305.14314).

bitsandbytes queries CUDA when it is imported, and PEFT imports it where it is installed. A process that has initialised
CUDA cannot fork workers, so the zygote hides the package, and only a worker that needs it uncovers it after the fork.
"""

import copy
from typing import Any

import torch
from transformers import PretrainedConfig

from finetune_api.messages import MethodType, Task
from finetune_api.plan import Plan
from finetune_trainer.model.fitting import beside_body
from finetune_trainer.worker.compat import uncover_bitsandbytes
from finetune_trainer.worker.models.heads import auto_class


def heads_of(config: PretrainedConfig, task: Task) -> list[str]:
    """Return the linear layers of a model's head and pooler, by name: they are not quantized.

    Layers that a checkpoint lacks are trained, and small errors in the others cause wrong tokens. transformers itself
    leaves out the last layer and the output embedding, but not BERT's pooler.
    """
    with torch.device("meta"):
        model = auto_class(task).from_config(copy.deepcopy(config))
    linear = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    return [name for name in beside_body(model) if name in linear]


def loading(plan: Plan, config: PretrainedConfig, dtype: torch.dtype) -> dict[str, Any]:
    """Return the additional options for `from_pretrained`: none, or the quantization to 4 bits.

    Args:
        config: of the base model.
        dtype: type of the run, in which products are computed.

    The model's norms are not cast to float32, as PEFT's `prepare_model_for_kbit_training` would do, because DeepSpeed
    casts every floating-point weight to the type of the run anyway. The outputs of the embeddings need no gradients
    where activations are recomputed, because transformers recomputes without re-entering autograd.
    """
    if plan.method is not MethodType.QLORA:
        return {}
    uncover_bitsandbytes()
    from transformers import BitsAndBytesConfig

    saved = plan.lora.get("modules_to_save") or ()
    four = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=[*heads_of(config, plan.task), *saved],
    )
    return {"quantization_config": four}
