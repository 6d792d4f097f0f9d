"""The worker's side of a task: rows to batches, a batch to its loss, an evaluation to its scores.

`worker.main` asks for it once. A task overrides what it does differently; what most tasks share stands here.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from finetune_api.plan import Plan
from finetune_trainer.worker.data import ArrowRows
from finetune_trainer.worker.evaluation.questions import Question
from finetune_trainer.worker.evaluation.scores import Scores, Values
from finetune_trainer.worker.losses.head import Batch, Head
from finetune_trainer.worker.sampling import Dealt

Collator = Callable[[Sequence[dict[str, Any]]], dict[str, Any]]
Items = Callable[[int], int]
NO_MODELS: Mapping[str, torch.nn.Module] = MappingProxyType({})


@dataclass(frozen=True)
class Batching:
    """How a run's rows become batches.

    Attributes:
        collate: makes a batch, as the task's loss takes it, of rows as the task views them.
        dealt: how `VirtualDataset` deals the rows of a step; None = grouped by length, for batches that are padded.
    """

    collate: Collator
    dealt: Dealt | None = None


@dataclass(frozen=True)
class Measured:
    """What an evaluation saw of the whole split, over all ranks.

    Attributes:
        total: sum of the losses of all items.
        hits: how many tokens had the highest logit; None where the loss does not count them.
        predicted, truth: by the rows' order in the split; None where no row has a label.
    """

    total: float
    items: int
    hits: int | None = None
    predicted: Values | None = None
    truth: Values | None = None

    @property
    def loss(self) -> float:
        """The mean loss of an item; NaN without items."""
        return self.total / self.items if self.items else float("nan")


class WorkerTask(ABC):
    """One task, for one plan.

    Attributes:
        continues: whether an answer goes on from its prompt; else a decoder begins it with its start token.
    """

    continues = True

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    # ------------------------------------------------------------ the model

    def head_options(self) -> dict[str, Any]:
        """Return what `from_pretrained` needs to know of the head."""
        return {}

    def set_up(self, model: PreTrainedModel, pad_token_id: int) -> None:
        """Set values of the loaded model's configuration."""
        return  # most tasks have none

    def heads(self, model: PreTrainedModel) -> Collection[str]:
        """Return names of modules that are trained beside an adapter, whether or not the checkpoint has them."""
        return ()

    def further_models(self, folder: Path, dtype: torch.dtype) -> Mapping[str, torch.nn.Module]:
        """Return models that the loss needs beside the one in training, such as a reference, by name.

        The loss gets them on the rank's device. They are not trained and not saved.

        Args:
            folder: of the base model.
            dtype: of the run's weights.
        """
        return {}

    # ------------------------------------------------------------ rows

    def use_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Take what the rows need of the tokenizer."""
        return  # most tasks have rows of ids

    def viewed(self, rows: Any, stream: int) -> Any:
        """Return rows as the model reads them.

        Args:
            rows: with `lengths`; in training an index is a position of the run.
            stream: the run's seed; EVALUATED of `batches.masking` for evaluation.
        """
        return rows

    @abstractmethod
    def batching(self, model: Any, pad_token_id: int) -> Batching:
        """Return how rows become batches for a model, which is as loaded, with its adapter."""

    @abstractmethod
    def items(self, rows: ArrowRows) -> Items:
        """Return the number of items of loss of a row, by its number, from the prepared data alone.

        Each rank then knows what the loss of a step is divided by, without asking the others and without a look at what
        its device computes. The `items` of a batch's loss are the sum over its rows.
        """

    # ------------------------------------------------------------ loss and evaluation

    @abstractmethod
    def loss(self, model: torch.nn.Module, further: Mapping[str, torch.nn.Module] = NO_MODELS) -> Head:
        """Return the loss.

        Args:
            further: what `further_models` returned.
            model: as loaded, with its adapter, before an engine wraps it: its output layer is watched from here on. The
                loss takes the model, or what wraps it, and a batch.
        """

    def predicted(self, outputs: torch.Tensor) -> torch.Tensor:
        """Return predictions, one a row, from `Summed.outputs`."""
        raise NotImplementedError(f"{self.plan.task} predicts no labels")

    def truth(self, batch: Batch) -> torch.Tensor:
        """Return what `predicted` is compared with, of the same shape, on the CPU."""
        raise NotImplementedError(f"{self.plan.task} predicts no labels")

    @abstractmethod
    def scores(self, measured: Measured) -> Scores:
        """Return the scores of an evaluation, the loss among them."""

    def questions(self, rows: Any, most: int) -> list[Question]:
        """Return the first questions of a split whose answers are generated, `most` at most."""
        return []


def count(items: npt.NDArray[np.int32] | None) -> Items | None:
    """Return the items of a row as the index of the data has them; None for data without an index."""
    return None if items is None else lambda row: int(items[row])
