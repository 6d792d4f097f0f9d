"""Token classification: a label for each word of a row, predicted at the first token of the word."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from finetune_trainer.dataset.tagging import TagScheme
from finetune_trainer.evaluations.records import Sample
from finetune_trainer.model.fitting import classifiers
from finetune_trainer.worker.arrow_rows import ArrowRows
from finetune_trainer.worker.batches.padded import IGNORED, PaddedTokens
from finetune_trainer.worker.evaluation.entity_scores import entity_scores
from finetune_trainer.worker.evaluation.scores import Scores
from finetune_trainer.worker.losses.head import Batch, Head, WordLoss
from finetune_trainer.worker.losses.label_loss import LabelLoss
from finetune_trainer.worker.tasks.token_task import trained_targets
from finetune_trainer.worker.tasks.worker_task import (
    NO_MODELS,
    Batching,
    Items,
    Measured,
    Text,
    WorkerTask,
    indexed_items,
)


class TokenClassification(WorkerTask):
    """Token classification, with one loss item a word."""

    def head_options(self) -> dict[str, Any]:
        """Return number and names of the labels."""
        labels = self.plan.dataset.labels
        return {
            "num_labels": len(labels),
            "id2label": dict(enumerate(labels)),
            "label2id": {label: index for index, label in enumerate(labels)},
        }

    def heads(self, model: PreTrainedModel) -> Collection[str]:
        """Return the model's classifiers."""
        return classifiers(model)

    def batching(self, model: Any, pad_token_id: int) -> Batching:
        """Return padded batches, in which the first token of a word predicts the word's label."""
        return Batching(PaddedTokens(pad_token_id, shifted=False))

    def items(self, rows: ArrowRows) -> Items:
        """Return the number of labelled words, or the sum of the weights of their labels."""
        if weights := self.plan.loss.class_weights:
            return lambda row: sum(weights[label] for label in rows.value("labels", row).tolist() if label != IGNORED)
        return indexed_items(rows.items) or (lambda row: trained_targets(rows.value("labels", row)))

    def loss(self, model: torch.nn.Module, further: Mapping[str, torch.nn.Module] = NO_MODELS) -> Head:
        """Return the cross entropy of the words' labels."""
        return WordLoss(LabelLoss(self.plan.loss))

    def predicted(self, outputs: torch.Tensor) -> torch.Tensor:
        """Turn logits [words, labels] into label ids [words]."""
        return outputs.argmax(dim=-1)

    def truth(self, batch: Batch) -> torch.Tensor:
        """Return the label ids of a batch [words]."""
        targets: torch.Tensor = batch["targets"]
        return targets

    def predicted_rows(self, rows: Sequence[int], batch: Batch) -> Sequence[int]:
        """Return the row of each labelled word."""
        lines = batch["kept"] // batch["input_ids"].shape[1]
        return [rows[line] for line in lines.tolist()]

    def scores(self, measured: Measured) -> Scores:
        """Return the loss, and the scores of whole entities."""
        assert measured.predicted is not None
        assert measured.truth is not None
        assert measured.rows is not None
        labels = self.plan.dataset.labels
        scores = entity_scores(measured.predicted, measured.truth, measured.rows, labels)
        return Scores({"loss": measured.loss} | scores.metrics, scores.per_class)

    def samples(self, measured: Measured, rows: Any, most: int, text: Text) -> list[Sample]:
        """Return the entities of the first rows beside those that the model finds."""
        assert measured.predicted is not None
        assert measured.truth is not None
        labels, made = self.plan.dataset.labels, []
        for row in range(min(most, len(rows))):
            ids, starts = rows[row]["input_ids"], np.flatnonzero(rows[row]["labels"] != IGNORED)
            tags, found = (side[measured.rows == row].tolist() for side in (measured.truth, measured.predicted))
            made.append(
                Sample(
                    row=row,
                    prompt=text(ids.tolist()),
                    reference=shown_entities([labels[tag] for tag in tags], labels, ids, starts, text),
                    answer=shown_entities([labels[tag] for tag in found], labels, ids, starts, text),
                )
            )
        return made


def shown_entities(tags: Sequence[str], labels: Sequence[str], ids: np.ndarray, starts: np.ndarray, text: Text) -> str:
    """Return the entities of a row for people, such as `Anna Li [PER]; Oslo [LOC]`.

    Args:
        tags: of the words of the row.
        labels: all labels of the data.
        ids: tokens of the row.
        starts: first token of each word.
        text: decodes token ids.
    """
    ends = [*starts[1:].tolist(), len(ids)]
    named = [
        f"{text(ids[starts[one.start] : ends[one.stop - 1]].tolist())} [{one.kind}]"
        for one in TagScheme.of(labels).entities(tags)
    ]
    return "; ".join(named) or "(none)"


TASK = TokenClassification
