"""Schedule-free AdamW (Defazio et al. 2024, arXiv 2405.15682, algorithm 1): averaging in place of a decaying rate.

Gradients are taken at weights y, which the model holds in training. The optimizer keeps z, which takes the steps, and y
lies between z and the average x of all z. Evaluation and artifacts need x. DeepSpeed's float32 copies hold y, and its
checkpoints too, so a resumed run goes on from y.

Every number is treated on its own, and counters stand with each share of the weights, because ZeRO-3 steps one share
after the other.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from deepspeed.runtime.zero import GatheredParameters
from deepspeed.utils import safe_get_full_fp32_param


class ScheduleFreeAdamW(torch.optim.Optimizer):
    """The optimizer; its weights are y.

    Args:
        params, lr, betas, eps, weight_decay: as of AdamW. The first beta is the share of x in y.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Step all weights that have a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, group)

    def _update(self, weight: torch.Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if not state:
            zeros = torch.zeros_like(weight, memory_format=torch.preserve_format)
            state |= {"step": 0, "largest_rate": 0.0, "total": 0.0, "z": weight.detach().clone(), "exp_avg_sq": zeros}
        state["step"] += 1
        rate, (first, second) = group["lr"], group["betas"]
        state["largest_rate"] = max(rate, state["largest_rate"])
        counted = state["largest_rate"] ** 2  # steps of the warm-up count less in the average
        state["total"] += counted
        share = counted / state["total"] if state["total"] else 0.0
        squares = state["exp_avg_sq"].mul_(second).addcmul_(weight.grad, weight.grad, value=1 - second)
        scale = (squares / (1 - second ** state["step"])).sqrt_().add_(group["eps"])
        update = (weight.grad / scale).add_(weight, alpha=group["weight_decay"])
        weight.lerp_(state["z"], share)
        weight.add_(update, alpha=rate * (first * (1 - share) - 1))
        state["z"].sub_(update, alpha=rate)


@contextmanager
def averaged(engine: Any) -> Iterator[None]:
    """Give the model its averaged weights x for the time of an evaluation or a save, if this optimizer makes them.

    Every rank enters it. After an exception the weights stay as they are: to bring them back is a collective.

    Args:
        engine: DeepSpeed's engine, with ZeRO 1 to 3.
    """
    optimizer = engine.basic_optimizer
    if not isinstance(optimizer, ScheduleFreeAdamW):
        yield
        return
    with _shares_of_x(optimizer):
        _refresh(engine.module)
    yield
    _refresh(engine.module)


@contextmanager
def _shares_of_x(optimizer: ScheduleFreeAdamW) -> Iterator[None]:
    """Let the float32 shares hold x in place of y; then the same bits of y again."""
    beta = optimizer.param_groups[0]["betas"][0]
    # The keys of the states are the shares themselves. DeepSpeed makes empty states before a share's first step.
    shares = {share: share.detach().clone() for share, state in optimizer.state.items() if "z" in state}
    with torch.no_grad():
        for share in shares:
            share.lerp_(optimizer.state[share]["z"], 1 - 1 / beta)
        yield
        for share, held in shares.items():
            share.copy_(held)


@torch.no_grad()
def _refresh(model: torch.nn.Module) -> None:
    """Set each trained weight of the model from the float32 shares of all ranks."""
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        value = safe_get_full_fp32_param(parameter)
        if hasattr(parameter, "ds_id"):
            with GatheredParameters([parameter], modifier_rank=0):
                parameter.copy_(value)
        else:
            parameter.copy_(value)
