"""Embeddings: texts that belong together get similar vectors (see `losses.contrast`)."""

from collections.abc import Mapping
from typing import Any

import torch

from finetune_api.plan import PlannedEmbedding
from finetune_trainer.worker.arrow_rows import ArrowRows
from finetune_trainer.worker.batches.padded_texts import PaddedTexts
from finetune_trainer.worker.evaluation.retrieval import evaluated_loss, retrieval_scores
from finetune_trainer.worker.evaluation.scores import Scores
from finetune_trainer.worker.losses.contrast import ContrastiveLoss
from finetune_trainer.worker.losses.head import Batch, Head
from finetune_trainer.worker.tasks.worker_task import NO_MODELS, Batching, Items, Measured, WorkerTask


class Embedding(WorkerTask):
    """Embeddings, with one loss item for each anchor."""

    @property
    def planned(self) -> PlannedEmbedding:
        """Return how vectors are made and compared."""
        return self.plan.embedding or PlannedEmbedding()

    def batching(self, model: Any, pad_token_id: int) -> Batching:
        """Return padded texts with a hash of each."""
        return Batching(PaddedTexts(pad_token_id, self.planned.texts))

    def items(self, rows: ArrowRows) -> Items:
        """Return 1 for each row: its anchor."""
        return lambda row: 1

    def loss(self, model: torch.nn.Module, further: Mapping[str, torch.nn.Module] = NO_MODELS) -> Head:
        """Return the contrastive loss."""
        return ContrastiveLoss(self.planned)

    def predicted(self, outputs: torch.Tensor) -> torch.Tensor:
        """Return the vectors of a batch, [rows, texts, numbers]."""
        return outputs

    def truth(self, batch: Batch) -> torch.Tensor:
        """Return the hashes of the texts, [rows, texts]."""
        texts: torch.Tensor = batch["texts"]
        return texts

    def scores(self, measured: Measured) -> Scores:
        """Return the loss, and the scores of a search among all rows: all ranks have the same vectors."""
        assert measured.predicted is not None
        assert measured.truth is not None
        vectors, texts, planned = measured.predicted, measured.truth, self.planned
        together = self.plan.layout.micro_batch * self.plan.world_size
        loss = evaluated_loss(vectors, texts, planned.scale, planned.dims, together)
        return Scores({"loss": loss} | retrieval_scores(vectors, texts))


TASK = Embedding
