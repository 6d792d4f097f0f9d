"""Causal attention within the documents of a flat batch (see `batches.flat`), registered with transformers as
`segmented`. It builds no mask, neither for the batch nor in a layer.

On GPUs with a flash kernel it is `torch.nn.attention.varlen.varlen_attn`. Elsewhere, CPUs included, it is PyTorch's
scaled dot product attention, one call for adjacent documents of equal length. A batch without `documents` (evaluation
of padded rows, generation) goes through transformers' own `sdpa` with its masks, so the model keeps one setting for
both.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PretrainedConfig
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from finetune_trainer.model.families import family_of

NAME = "segmented"
FLASH_CAPABILITY = (8, 0)  # Ampere, the oldest that torch's flash kernels support
FLASH_HEAD_DIM = 256


@dataclass
class Documents:
    """The places of the documents in a flat batch, on the host, so that reading them never waits for the device.

    Attributes:
        groups: (documents, tokens of each) for adjacent documents of equal length, in the batch's order.
        longest: tokens of the longest document.
        kept_apart: set by `segmented_attention`. If it stays False, the model never called that attention and would
            mix the documents.
    """

    groups: tuple[tuple[int, int], ...]
    longest: int
    kept_apart: bool = field(default=False, compare=False)


def takes_flat_batches(config: PretrainedConfig) -> bool:
    """Return whether flat batches are correct for a causal language model of this configuration."""
    return family_of(config.model_type).flat_batches and getattr(config, "attn_logit_softcapping", None) is None


def use_segmented(model: Any) -> None:
    """Set `segmented_attention` as the attention of a model."""
    # Its calls differ from batch to batch: torch.compile would compile it for every one.
    AttentionInterface.register(NAME, torch.compiler.disable(segmented_attention))  # type: ignore[no-untyped-call]
    AttentionMaskInterface.register(NAME, segmented_mask)
    model.set_attn_implementation(NAME)


def segmented_mask(batch_size: int, q_length: int, kv_length: int, *args: Any, **kwargs: Any) -> torch.Tensor | None:
    """Return None where segmented attention separates the documents of one line; else the mask of transformers."""
    if batch_size == 1 and kwargs.get("attention_mask") is None and q_length == kv_length:
        return None
    return sdpa_mask(batch_size, q_length, kv_length, *args, **kwargs)


def segmented_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    documents: Documents | None = None,
    cu_seq_lens: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Compute attention, with the signature that the layers of transformers call.

    Args:
        query: [1, heads, tokens, head_dim]; key and value may have fewer heads.
        dropout: probability; the layers pass 0 outside of training.
        sliding_window: number of tokens that a token sees, itself included.

    Returns:
        [1, tokens, heads, head_dim]
    """
    if documents is None or cu_seq_lens is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    documents.kept_apart = True
    window = sliding_window if sliding_window is not None and sliding_window < documents.longest else None
    if dropout == 0.0 and has_flash(query):
        return by_flash(query, key, value, cu_seq_lens, documents.longest, scaling, window), None
    return by_document(query, key, value, documents, dropout, scaling, window), None


def has_flash(query: torch.Tensor) -> bool:
    """Return whether torch's variable-length kernel supports a tensor's device, type and head size."""
    return (
        query.is_cuda
        and torch.version.cuda is not None
        and query.dtype in (torch.bfloat16, torch.float16)
        and query.shape[-1] <= FLASH_HEAD_DIM
        and torch.cuda.get_device_capability(query.device) >= FLASH_CAPABILITY
    )


def by_flash(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    starts: torch.Tensor,
    longest: int,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    """Compute attention of all documents in one kernel; `starts`: int32 [documents + 1]."""
    from torch.nn.attention.varlen import varlen_attn

    output: Any = varlen_attn(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        starts,
        starts,
        longest,
        longest,
        scale=scaling,
        window_size=(-1, 0) if window is None else (window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    attended: torch.Tensor = output
    return attended[None]


def by_document(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    documents: Documents,
    dropout: float,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    """Compute attention with one call for each group of documents of equal length.

    Padding all documents to the longest takes twice as long on CPU (8 documents of 80 to 300 tokens, forward and
    backward: 22 ms against 10).
    """
    shared = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, shared), repeat_kv(value, shared)
    sizes = [count * length for count, length in documents.groups]
    # Not slices: the gradient of each slice is as long as the whole line, and autograd would add all of them up.
    parts = zip(*(torch.split(tensor, sizes, dim=2) for tensor in (query, key, value)), strict=True)
    outputs = []
    for (count, length), (own, others, values) in zip(documents.groups, parts, strict=True):
        narrow = window is not None and length > window
        attended = scaled_dot_product_attention(
            equal_rows(own, count, length),
            equal_rows(others, count, length),
            equal_rows(values, count, length),
            attn_mask=banded(length, window, query.device) if narrow else None,
            dropout_p=dropout,
            scale=scaling,
            is_causal=not narrow,
        )
        outputs.append(attended.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs)[None]


def equal_rows(part: torch.Tensor, count: int, length: int) -> torch.Tensor:
    """Return [1, heads, count x length, head_dim] as [count, heads, length, head_dim]."""
    return part if count == 1 else part.view(part.shape[1], count, length, -1).transpose(0, 1)


def banded(length: int, window: int | None, device: torch.device) -> torch.Tensor:
    """Return [length, length], True where a token sees another: itself and the window - 1 tokens before it."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril().triu(1 - (window or length))
