"""Noise on the embeddings in training (NEFTune, arXiv 2310.05914, section 2).

Each number of a document's embeddings, [tokens, width], gets uniform noise between -1 and 1, times
alpha / sqrt(tokens x width). A flat batch holds many documents; the tokens of each one count, not those of the line.

The noise of a document depends on the seed of the run, the step and the document's own tokens alone. So it is the same
for every layout and after a restart, and it takes no number from the generators of dropout. Evaluation, generation and
passes without gradients have no noise.
"""

import hashlib
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from finetune_api.plan import Plan

SEEDS = 1 << 63  # torch's generators take seeds below it


@dataclass(frozen=True)
class Span:
    """One document of a batch: its row, its tokens in that row, and the seed of its noise."""

    row: int
    start: int
    length: int
    seed: int


class EmbeddingNoise:
    """A hook on the input embeddings of a model.

    Args:
        model: as loaded, with its adapter; no engine wraps it yet.
        alpha: amount of noise.
        seed: seed of the run.
    """

    def __init__(self, model: Any, alpha: float, seed: int) -> None:
        self._alpha = alpha
        self._seed = seed
        self._spans: tuple[Span, ...] = ()
        input_embedding(model).register_forward_hook(self._add)

    def arm(self, batch: Mapping[str, Any], step: int) -> None:
        """Add noise in the next forward pass. Call it while the batch is on the host, so that no device waits."""
        self._spans = tuple(_spans(batch, self._seed, step))

    def disarm(self) -> None:
        """Add no noise any more.

        Raises:
            RuntimeError: the forward pass did not use the embeddings.
        """
        if self._spans:
            self._spans = ()
            raise RuntimeError("the model did not use its input embeddings: it was trained without the planned noise")

    def _add(self, layer: torch.nn.Module, arguments: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor | None:
        if not self._spans or not torch.is_grad_enabled():
            return None
        spans, self._spans = self._spans, ()  # a decoder may read the same layer after the encoder
        noise = torch.zeros(output.shape, dtype=torch.float32, device=output.device)
        generator = torch.Generator(device=output.device)
        for span in spans:
            most = self._alpha / math.sqrt(span.length * output.shape[-1])
            part = noise[span.row, span.start : span.start + span.length]
            part.uniform_(-most, most, generator=generator.manual_seed(span.seed))
        return output + noise.to(output.dtype)


def noise_of(plan: Plan, model: Any) -> EmbeddingNoise | None:
    """Return the plan's noise for a model as loaded, with its adapter; None = no noise."""
    alpha = plan.engine.neftune_noise_alpha
    return None if alpha is None else EmbeddingNoise(model, alpha, plan.schedule.seed)


def input_embedding(model: Any) -> torch.nn.Module:
    """Return the layer that embeds the tokens of a row; that of the encoder, if there is one."""
    config = getattr(model, "config", None)
    reader = model.get_encoder() if getattr(config, "is_encoder_decoder", False) else model
    layer: torch.nn.Module = reader.get_input_embeddings()
    return layer


def _spans(batch: Mapping[str, Any], seed: int, step: int) -> Iterator[Span]:
    ids, salt = np.asarray(batch["input_ids"]), struct.pack("<QQ", seed, step)
    for row, start, length in _places(batch):
        tokens = np.ascontiguousarray(ids[row, start : start + length], np.int64)
        digest = hashlib.blake2b(tokens.tobytes(), digest_size=8, salt=salt).digest()
        yield Span(row, start, length, int.from_bytes(digest) % SEEDS)


def _places(batch: Mapping[str, Any]) -> Iterator[tuple[int, int, int]]:
    """Yield row, first token and number of tokens of each document; padding at the end of a row belongs to none."""
    documents = batch.get("documents")
    if documents is not None:
        start = 0
        for count, length in documents.groups:
            for _ in range(count):
                yield 0, start, length
                start += length
        return
    mask = batch.get("attention_mask")
    if mask is not None:
        for row, length in enumerate(np.asarray(mask).sum(axis=1).tolist()):
            yield row, 0, int(length)
        return
    for row, positions in enumerate(np.asarray(batch["position_ids"])):
        starts = [*np.flatnonzero(positions == 0).tolist(), len(positions)]
        for start, end in pairwise(starts):
            yield row, start, end - start
