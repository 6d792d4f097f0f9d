"""QLoRA's base model: bitsandbytes makes the linear layers 4 bits wide while the weights are loaded (arXiv 2305.14314).

bitsandbytes queries CUDA when it is imported, and PEFT imports it where it is installed. A process that has initialised
CUDA cannot fork workers, so the zygote hides the package, and only a worker that needs it uncovers it after the fork.
"""

from typing import Any

import torch

from finetune_api.messages import MethodType
from finetune_api.plan import Plan
from finetune_trainer.model.families import FAMILIES
from finetune_trainer.worker.compat import uncover_bitsandbytes

# Heads are not quantized: heads that a checkpoint lacks are trained, and small errors in the others cause wrong tokens.
# transformers itself leaves out the last layer and the output embedding, but not BERT's pooler; this list replaces its
# own. It holds the heads of all families, since a name that a model lacks has no effect.
HEADS = tuple(dict.fromkeys(name for family in FAMILIES.values() for name in family.heads))


def loading(plan: Plan, dtype: torch.dtype) -> dict[str, Any]:
    """Return the additional options for `from_pretrained`: none, or the quantization to 4 bits.

    Args:
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
    config = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=[*HEADS, *saved],
    )
    return {"quantization_config": config}
