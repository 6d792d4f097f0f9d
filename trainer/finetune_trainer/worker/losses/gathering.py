"""Tensors of all ranks on each rank, with gradients: the loss of a rank's rows depends on those of the others."""

from typing import Any

import torch
import torch.distributed as dist


def gathered(own: torch.Tensor) -> torch.Tensor:
    """Return the tensors of all ranks [ranks, ...], of equal shapes; gradients flow back to the rank of each.

    A collective, in the forward pass and in the backward pass. The gradient of a rank's tensor is the sum over what all
    ranks have computed with it.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return own.unsqueeze(0)
    whole: torch.Tensor = _Gathered.apply(own)  # type: ignore[no-untyped-call]
    return whole


def own_rank() -> int:
    """Return the place of this rank in `gathered`."""
    return dist.get_rank() if dist.is_initialized() else 0


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty_like(own, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, own.contiguous())
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        [whole] = grads
        summed = whole.contiguous().clone()
        dist.all_reduce(summed)
        return summed[dist.get_rank()]
