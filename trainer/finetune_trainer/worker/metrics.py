"""Evaluation metrics by task. Logits become predictions batch by batch: those of the whole eval set are never held."""

import numpy as np
import torch
from sklearn.metrics import accuracy_score, f1_score
from transformers import EvalPrediction


def predicted_labels(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """[rows, labels] logits -> [rows] predicted label ids."""
    return logits.argmax(dim=-1)


def classification_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Accuracy and macro-averaged F1 over the labels that occur in truth or prediction."""
    predicted, truth = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
    return {
        "accuracy": float(accuracy_score(truth, predicted)),
        "macro_f1": float(f1_score(truth, predicted, average="macro", zero_division=0.0)),
    }
