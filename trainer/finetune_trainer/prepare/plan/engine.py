"""DeepSpeed's configuration, and the sizes of its buffers, which the memory model counts with. Pure."""

import copy
import math
from collections.abc import Mapping
from typing import Any

from finetune_trainer.prepare.plan.optimizer_choice import ChosenOptimizer

BUCKET = 50_000_000  # numbers per collective: 100 MB in 16 bits fill a network; DeepSpeed's own 500 million fill a GPU
LIVE = 100_000_000  # numbers that ZeRO-3 keeps gathered at a time, beside what the layer at work needs
SUB_GROUP = 100_000_000  # numbers that ZeRO-3's optimizer steps at a time
MUON_MOMENTUM = 0.95  # Keller Jordan's; also Moonlight's (arXiv 2502.16982)
MUON_SCALE = 0.2  # of the root mean square of AdamW's updates; Moonlight, section 2.2
# torch_adam: DeepSpeed's own is compiled at the first start, half a minute
ADAMW: Mapping[str, Any] = {
    "type": "AdamW",
    "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto", "torch_adam": True},
}


def deepspeed_config(
    stage: int,
    user: Mapping[str, Any] | None,
    training: Mapping[str, Any],
    offload_optimizer: bool = False,
    offload_parameters: bool = False,
    optimizer: Mapping[str, Any] | None = ADAMW,
) -> dict[str, Any]:
    """Return DeepSpeed's configuration: the user's as it is, or ours, with "auto" where transformers fills in.

    Args:
        optimizer: its block for the optimizer; None = the worker makes the optimizer.
    """
    if user is not None:
        return dict(user)
    zero: dict[str, Any] = {"stage": stage}
    if stage in (1, 2):
        zero |= {"reduce_bucket_size": BUCKET, "allgather_bucket_size": BUCKET}
    if stage == 3:
        zero |= {
            "reduce_bucket_size": BUCKET,
            "stage3_prefetch_bucket_size": BUCKET,
            "stage3_max_live_parameters": LIVE,
            "stage3_max_reuse_distance": LIVE,
            "sub_group_size": SUB_GROUP,
            # Without gathering, a checkpoint of stage 3 holds shards only, and nothing that export could use.
            "stage3_gather_16bit_weights_on_model_save": True,
        }
    config: dict[str, Any] = {
        "zero_optimization": zero,
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "train_batch_size": "auto",
        "gradient_clipping": "auto",
    }
    if optimizer is not None:
        config["optimizer"] = copy.deepcopy(dict(optimizer))
        if optimizer["type"] == "Muon":
            zero["reduce_scatter"] = False  # it needs the whole gradient of a matrix on every rank
    if offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu"}
        config["zero_force_ds_cpu_optimizer"] = False  # torch's AdamW steps on the host too, and needs no compiler
    if offload_parameters:
        zero["offload_param"] = {"device": "cpu"}
    for kind in ("bf16", "fp16"):
        if training.get(kind):
            config[kind] = {"enabled": "auto"}
    return config


def optimizer_block(chosen: ChosenOptimizer, rate: float, hidden: int) -> Mapping[str, Any] | None:
    """Return DeepSpeed's block for an optimizer; None = the worker makes it.

    Args:
        rate: learning rate.
        hidden: width of the model.
    """
    if not chosen.spec.deepspeed:
        return ADAMW if chosen.planned is None else None
    matrices = float(f"{rate * MUON_SCALE * math.sqrt(hidden):.2e}")
    momentum = chosen.arguments.get("momentum", MUON_MOMENTUM)
    params = {**ADAMW["params"], "muon_lr": matrices, "adam_lr": rate, "momentum": momentum}
    return {"type": chosen.spec.deepspeed, "params": params}
