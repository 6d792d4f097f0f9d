"""The common part of the tasks that predict tokens: their loss, and its perplexity."""

from collections.abc import Mapping

import numpy as np
import torch

from finetune_trainer.worker.batches.padded import IGNORED
from finetune_trainer.worker.evaluation.scores import Scores, token_scores
from finetune_trainer.worker.losses.head import Head, TokenLoss
from finetune_trainer.worker.losses.output_layer import OutputLayer
from finetune_trainer.worker.tasks.worker_task import NO_MODELS, Measured, WorkerTask


class TokenTask(WorkerTask):
    """A task whose loss items are tokens."""

    def loss(self, model: torch.nn.Module, further: Mapping[str, torch.nn.Module] = NO_MODELS) -> Head:
        """Return the cross entropy of the trained tokens."""
        return TokenLoss(OutputLayer(model, self.plan.engine.loss_head, self.plan.loss.label_smoothing))

    def scores(self, measured: Measured) -> Scores:
        """Return the mean loss of a token, and its perplexity."""
        return Scores({"loss": measured.loss} | token_scores(measured.loss))


def trained_targets(labels: np.ndarray) -> int:
    """Return how many labels, [tokens], are trained."""
    return int(np.count_nonzero(labels != IGNORED))
