"""QLoRA's base model: linear layers in 4 bits, made by bitsandbytes while the weights are loaded (arXiv 2305.14314).

bitsandbytes asks CUDA for its devices when it is imported, and PEFT imports it where it is installed, so the zygote
hides it: a process that knows CUDA cannot fork workers. Only a worker that needs it uncovers it, after the fork.
"""

import sys
from typing import Any

import torch

from finetune_api.messages import MethodType
from finetune_api.plan import Plan
from finetune_trainer.model.families import FAMILIES

# Heads stay in the type of the run: those that a checkpoint lacks are trained, and the others turn small errors into
# wrong tokens. transformers leaves out the last layer and the output embedding by itself, but not a BERT's pooler; this
# list replaces its own. It holds the heads of all families: a name that a model lacks has no effect.
HEADS = tuple(dict.fromkeys(name for family in FAMILIES.values() for name in family.heads))


def loading(plan: Plan, dtype: torch.dtype) -> dict[str, Any]:
    """What `from_pretrained` has to be told beside the usual: nothing, or how the weights become 4 bits.

    Args:
        dtype: of the run; products are computed in it.

    The model's norms are not cast to float32, as PEFT's `prepare_model_for_kbit_training` does: DeepSpeed turns every
    floating-point weight into the type of the run anyway. Embeddings' outputs need no gradients where activations are
    recomputed: transformers recomputes without re-entering autograd.
    """
    if plan.method is not MethodType.QLORA:
        return {}
    uncover()
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


def uncover() -> None:
    """Make bitsandbytes importable in a worker: the zygote has put None in its place."""
    import peft.import_utils
    from transformers.utils import import_utils

    if sys.modules.get("bitsandbytes", sys) is None:
        del sys.modules["bitsandbytes"]
    for known in (
        peft.import_utils.is_bnb_available,
        peft.import_utils.is_bnb_4bit_available,
        import_utils.is_bitsandbytes_available,
    ):
        known.cache_clear()
