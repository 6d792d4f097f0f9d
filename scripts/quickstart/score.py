"""Scores the adapter and the baselines on the held-out rows, with vanilla transformers, peft and scikit-learn only.

Runs in a process of its own and imports nothing of this project: what it loads is what any user could load.
"""

import argparse
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from data import read_csv
from peft import AutoPeftModelForSequenceClassification
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

BATCH = 64
EVERY = 16  # batches between two lines of progress
Scores = dict[str, float]


def main() -> None:
    """Writes {"tuned": scores, "probe": scores, "majority": scores}, as far as asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of train.csv and eval.csv")
    parser.add_argument("--max-length", type=int, required=True, help="tokens at which texts are cut")
    parser.add_argument("--adapter", type=Path, help="score this adapter")
    parser.add_argument("--encoder", type=Path, help="score the baselines, on this frozen encoder")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    texts, labels = read_csv(options.data / "eval.csv")
    scores: dict[str, Scores] = {}
    if options.adapter:
        say(f"the adapter on {len(texts):,} held-out texts")
        scores["tuned"] = score(labels, predict(options.adapter, texts, options.max_length))
    if options.encoder:
        train_texts, train_labels = read_csv(options.data / "train.csv")
        majority = Counter(train_labels).most_common(1)[0][0]
        scores["majority"] = score(labels, [majority] * len(labels))
        probe = Probe(options.encoder, options.max_length)
        say(f"the frozen encoder on {len(train_texts) + len(texts):,} texts, for the logistic regression")
        probe.fit(train_texts, train_labels)
        scores["probe"] = score(labels, probe.predict(texts))
    options.out.write_text(json.dumps(scores))


def say(text: str) -> None:
    """One line of progress."""
    print(f"scores    {text}", flush=True)


def score(labels: Sequence[str], predicted: Sequence[str]) -> Scores:
    """Accuracy, and F1 averaged over the labels, each counting the same."""
    return {
        "accuracy": float(accuracy_score(labels, predicted)),
        "macro_f1": float(f1_score(labels, predicted, average="macro", zero_division=0.0)),
    }


def predict(adapter: Path, texts: Sequence[str], max_length: int) -> list[str]:
    """The labels that an exported adapter gives to texts."""
    names = json.loads((adapter / "labels.json").read_text("utf-8"))
    model = AutoPeftModelForSequenceClassification.from_pretrained(adapter, num_labels=len(names)).eval()
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    rows = in_batches(tokenizer, texts, max_length, lambda batch: model(**batch).logits)
    return [names[index] for index in rows.argmax(axis=1)]


class Probe:
    """Logistic regression on the mean of a frozen encoder's last hidden states: what the encoder knows untrained.

    The embeddings are of length 1 and C is 10: the best on the held-out rows of C = 0.1, 1, 10, 100 with embeddings of
    length 1 and as they are. (The tuned model had no such advantage.)
    """

    def __init__(self, encoder: Path, max_length: int) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(encoder)
        self._encoder = AutoModel.from_pretrained(encoder).eval()
        self._max_length = max_length
        self._regression = LogisticRegression(C=10, max_iter=2000)

    def fit(self, texts: Sequence[str], labels: Sequence[str]) -> None:
        """Train on the embeddings of texts."""
        self._regression.fit(self._embed(texts), labels)

    def predict(self, texts: Sequence[str]) -> list[str]:
        """The label of each text."""
        return [str(label) for label in self._regression.predict(self._embed(texts))]

    def _embed(self, texts: Sequence[str]) -> np.ndarray[Any, np.dtype[np.float32]]:
        def mean(batch: dict[str, torch.Tensor]) -> torch.Tensor:
            mask = batch["attention_mask"].unsqueeze(-1)
            states: torch.Tensor = self._encoder(**batch).last_hidden_state
            return torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1))

        return in_batches(self._tokenizer, texts, self._max_length, mean)


def in_batches(
    tokenizer: Any, texts: Sequence[str], max_length: int, compute: Callable[[dict[str, torch.Tensor]], torch.Tensor]
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """[texts, ...] results in the order of the texts; batches are of like length, so that little is padding."""
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    parts = []
    with torch.inference_mode():
        for start in range(0, len(order), BATCH):
            chosen = [texts[index] for index in order[start : start + BATCH]]
            batch = tokenizer(chosen, truncation=True, max_length=max_length, padding=True, return_tensors="pt")
            parts.append(compute(dict(batch)).numpy())
            if (start // BATCH) % EVERY == EVERY - 1:
                say(f"{start + len(chosen):,} of {len(order):,} texts")
    rows = np.concatenate(parts)
    restored = np.empty_like(rows)
    restored[order] = rows
    return restored


if __name__ == "__main__":
    main()
