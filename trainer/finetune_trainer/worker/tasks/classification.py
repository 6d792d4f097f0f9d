"""Classification: a label, several labels or a number for each row."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedModel

from finetune_api.messages import ProblemType
from finetune_trainer.model.fitting import classifiers
from finetune_trainer.worker.arrow_rows import ArrowRows
from finetune_trainer.worker.batches.padded import PaddedRows
from finetune_trainer.worker.evaluation.scores import THRESHOLD, Scores, classification_scores
from finetune_trainer.worker.losses.head import Batch, Head, RowLoss
from finetune_trainer.worker.losses.label_loss import LabelLoss
from finetune_trainer.worker.tasks.worker_task import NO_MODELS, Batching, Items, Measured, WorkerTask


class Classification(WorkerTask):
    """Classification, with one loss item a row."""

    @property
    def problem(self) -> ProblemType:
        """Return the kind of the labels."""
        return self.plan.dataset.problem_type or ProblemType.SINGLE_LABEL

    def head_options(self) -> dict[str, Any]:
        """Return number, kind and names of the labels. Regression has one label without a name."""
        if self.problem is ProblemType.REGRESSION:
            return {"num_labels": 1, "problem_type": str(self.problem)}
        labels = self.plan.dataset.labels
        return {
            "num_labels": len(labels),
            "id2label": dict(enumerate(labels)),
            "label2id": {label: index for index, label in enumerate(labels)},
            "problem_type": str(self.problem),
        }

    def set_up(self, model: PreTrainedModel, pad_token_id: int) -> None:
        """Set the model's padding token, because a decoder classifies a row at its last token that is not padding."""
        model.config.pad_token_id = pad_token_id

    def heads(self, model: PreTrainedModel) -> Collection[str]:
        """Return the model's classifiers."""
        return classifiers(model)

    def batching(self, model: Any, pad_token_id: int) -> Batching:
        """Return padded rows with their labels."""
        return Batching(PaddedRows(pad_token_id, self.problem, len(self.plan.dataset.labels)))

    def items(self, rows: ArrowRows) -> Items:
        """Return 1 for each row, or the weight of its label."""
        weights = self.plan.loss.class_weights
        return (lambda row: weights[rows.value("label", row)]) if weights else lambda row: 1

    def loss(self, model: torch.nn.Module, further: Mapping[str, torch.nn.Module] = NO_MODELS) -> Head:
        """Return the loss of a row for the kind of its label."""
        return RowLoss(self.problem, LabelLoss(self.plan.loss))

    def predicted(self, outputs: torch.Tensor) -> torch.Tensor:
        """Turn logits [rows, labels] into label ids [rows], bools [rows, labels], or numbers [rows]."""
        match self.problem:
            case ProblemType.SINGLE_LABEL:
                return outputs.argmax(dim=-1)
            case ProblemType.MULTI_LABEL:
                return outputs.float().sigmoid() > THRESHOLD
            case ProblemType.REGRESSION:
                return outputs.float().squeeze(-1)

    def truth(self, batch: Batch) -> torch.Tensor:
        """Return the labels of a batch: ids [rows], bools [rows, labels], or numbers [rows]."""
        labels: torch.Tensor = batch["labels"]
        return labels > THRESHOLD if self.problem is ProblemType.MULTI_LABEL else labels

    def scores(self, measured: Measured) -> Scores:
        """Return the loss and the scores of the labels."""
        assert measured.predicted is not None
        assert measured.truth is not None
        labels = self.plan.dataset.labels
        scores = classification_scores(self.problem, measured.predicted, measured.truth, labels)
        return replace(
            scores,
            metrics={"loss": measured.loss} | scores.metrics,
            predicted=measured.predicted,
            truth=measured.truth,
        )


TASK = Classification
