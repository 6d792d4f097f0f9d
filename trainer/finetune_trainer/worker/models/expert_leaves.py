"""Leaf modules of ZeRO-3: it gathers the weights of a block of experts as one, when the block is entered.

Without leaves, ZeRO-3 hooks every module inside the block, expects the order of the modules of the step before, and
prefetches by it. Which modules run depends on the experts that a rank's own tokens choose, so the ranks would gather
other weights at the same time. An adapter of experts reads weights of modules that it never calls; ZeRO-3 gathers
them one by one, without prefetching, unless the block is a leaf. DeepSpeed (0.19) knows three families by name.
"""

from typing import Any

from deepspeed.utils import set_z3_leaf_modules

from finetune_trainer.model.mixture import routed_blocks


def gather_experts_as_one(model: Any) -> None:
    """Mark every block of experts as a leaf, before an adapter wraps its parts. Other ZeRO stages ignore the mark."""
    if classes := list({type(block) for block in routed_blocks(model).values()}):
        set_z3_leaf_modules(model, classes)
