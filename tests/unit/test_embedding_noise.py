"""Noise on embeddings: its size goes by the document, and it depends on seed, step and tokens alone."""

import math
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from finetune_trainer.worker.batches.flat import FlatTokens
from finetune_trainer.worker.batches.padded import PaddedTokens
from finetune_trainer.worker.embedding_noise import EmbeddingNoise

ALPHA, WIDTH, SEED = 5.0, 16, 3
SHORT, LONG = np.arange(1, 5), np.arange(10, 50)


class Model(torch.nn.Module):
    """Embeddings of zeros: what it returns is the noise."""

    config = SimpleNamespace(is_encoder_decoder=False)

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Embedding(64, WIDTH)
        torch.nn.init.zeros_(self.layer.weight)

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.layer

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.layer(ids)


def noise_on(batch: Mapping[str, Any], seed: int = SEED, step: int = 0, model: Model | None = None) -> torch.Tensor:
    """The noise [rows, tokens, width] of a batch."""
    model = model or Model()
    noise = EmbeddingNoise(model, ALPHA, seed)
    noise.arm(batch, step)
    made: torch.Tensor = model(batch["input_ids"])
    noise.disarm()
    return made.detach()


def rows(*documents: np.ndarray, packed: bool = False) -> list[dict[str, Any]]:
    if not packed:
        return [{"input_ids": ids, "labels": ids} for ids in documents]
    whole = np.concatenate(documents)
    return [{"input_ids": whole, "labels": whole, "seq_lengths": [len(ids) for ids in documents]}]


def test_the_noise_of_a_document_is_the_same_in_every_batch_and_as_large_as_its_own_length_says() -> None:
    flat = noise_on(FlatTokens()(rows(SHORT, LONG)))[0]  # the longest document comes first
    long, short = flat[: len(LONG)], flat[len(LONG) :]
    for document, seen in ((SHORT, short), (LONG, long)):
        most = ALPHA / math.sqrt(len(document) * WIDTH)
        assert seen.abs().max() <= most
        assert seen.std().item() == pytest.approx(most / math.sqrt(3), rel=0.2)
    padded = noise_on(PaddedTokens(0)(rows(SHORT, LONG)))
    assert torch.equal(padded[0, : len(SHORT)], short)
    assert torch.equal(padded[1], long)
    assert not padded[0, len(SHORT) :].any(), "padding gets no noise and counts as no token"
    packed = noise_on(PaddedTokens(0)(rows(SHORT, LONG, packed=True)))[0]
    assert torch.equal(packed[: len(SHORT)], short)
    assert torch.equal(packed[len(SHORT) :], long)


def test_another_step_or_seed_gives_other_noise() -> None:
    batch = FlatTokens()(rows(SHORT, LONG))
    first = noise_on(batch)
    assert torch.equal(first, noise_on(batch))
    assert not torch.equal(first, noise_on(batch, step=1))
    assert not torch.equal(first, noise_on(batch, seed=SEED + 1))


def test_dropout_draws_what_it_drew_without_noise() -> None:
    model = Model()
    torch.manual_seed(1)
    expected = torch.rand(4)
    torch.manual_seed(1)
    noise_on(FlatTokens()(rows(SHORT, LONG)), model=model)
    assert torch.equal(torch.rand(4), expected)


def test_passes_without_gradients_and_passes_that_are_not_armed_have_no_noise() -> None:
    model, batch = Model(), FlatTokens()(rows(SHORT, LONG))
    noise = EmbeddingNoise(model, ALPHA, SEED)
    assert not model(batch["input_ids"]).any()
    noise.arm(batch, 0)
    with torch.no_grad():
        assert not model(batch["input_ids"]).any(), "a reference pass within the step"
    assert model(batch["input_ids"]).any()
    assert not model(batch["input_ids"]).any(), "once a step"


def test_a_model_that_does_not_use_its_embeddings_is_noticed() -> None:
    noise = EmbeddingNoise(Model(), ALPHA, SEED)
    noise.arm(FlatTokens()(rows(SHORT)), 0)
    with pytest.raises(RuntimeError, match="without the planned noise"):
        noise.disarm()
