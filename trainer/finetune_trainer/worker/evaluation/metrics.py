"""Evaluation metrics by task. Logits are reduced batch by batch: those of the whole eval set are never held."""

import math
from collections.abc import Callable

import numpy as np
import torch
from sklearn.metrics import accuracy_score, f1_score
from transformers import EvalPrediction

from finetune_api.messages import Task
from finetune_trainer.worker.batches.padded import IGNORED

Reduce = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Score = Callable[[EvalPrediction], dict[str, float]]


def metrics_of(task: Task) -> tuple[Reduce, Score]:
    """What `Trainer` takes as preprocess_logits_for_metrics and compute_metrics."""
    return (predicted_labels, classification_scores) if task is Task.CLASSIFICATION else (token_losses, token_loss)


def predicted_labels(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """[rows, labels] logits -> [rows] predicted label ids."""
    return logits.argmax(dim=-1)


def classification_scores(prediction: EvalPrediction) -> dict[str, float]:
    """Accuracy, and F1 averaged over the labels that occur in truth or prediction."""
    predicted, truth = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
    return {
        "accuracy": float(accuracy_score(truth, predicted)),
        "macro_f1": float(f1_score(truth, predicted, average="macro", zero_division=0.0)),
    }


def token_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """[rows, tokens, vocabulary] logits -> [rows, 2]: each row's summed loss and number of trained tokens."""
    targets = labels[:, 1:]
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED, reduction="none"
    ).view(targets.shape)
    return torch.stack([losses.sum(-1), (targets != IGNORED).sum(-1).float()], dim=-1)


def token_loss(prediction: EvalPrediction) -> dict[str, float]:
    """Mean loss per token over the whole split. (transformers' own eval_loss averages batches, so that it changes with
    the batch size and the number of ranks.)"""
    rows = np.asarray(prediction.predictions, dtype=np.float64)
    tokens = rows[:, 1].sum()
    return {"token_loss": float(rows[:, 0].sum() / tokens) if tokens else math.nan}
