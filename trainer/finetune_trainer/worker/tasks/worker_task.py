"""The worker's side of a task: collation, loss, and scores of an evaluation.

`worker.rank_run` creates it once. A task overrides the methods in which it differs from most tasks.
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
from finetune_trainer.evaluations.records import Sample
from finetune_trainer.process.orders import WorkerOrder
from finetune_trainer.worker.arrow_rows import ArrowRows
from finetune_trainer.worker.evaluation.questions import Question
from finetune_trainer.worker.evaluation.scores import Scores, Values
from finetune_trainer.worker.losses.head import Batch, Head
from finetune_trainer.worker.sampling import Dealt

Collator = Callable[[Sequence[dict[str, Any]]], dict[str, Any]]
Items = Callable[[int], float]
Text = Callable[[Sequence[int]], str]
NO_MODELS: Mapping[str, torch.nn.Module] = MappingProxyType({})


@dataclass(frozen=True)
class Batching:
    """The collation of a run's rows into batches.

    Attributes:
        collate: makes a batch for the task's loss of rows in the task's view.
        dealt: assignment of a step's rows in `VirtualDataset`; None = grouped by length, for padded batches.
    """

    collate: Collator
    dealt: Dealt | None = None


@dataclass(frozen=True)
class Measured:
    """The results of an evaluation on the whole split, over all ranks.

    Attributes:
        total: sum of the losses of all items.
        hits: number of tokens with the highest logit; None where the loss does not count them.
        predicted, truth: in the order of the split's rows; None where rows have no label.
        facts: `Summed.facts` of all rows, in their order; None where the loss has none.
        rows: the row of each prediction, ascending.
    """

    total: float
    items: int
    hits: int | None = None
    predicted: Values | None = None
    truth: Values | None = None
    facts: Values | None = None
    rows: Values | None = None

    @property
    def loss(self) -> float:
        """Return the mean loss of an item; NaN without items."""
        return self.total / self.items if self.items else float("nan")


@dataclass(frozen=True)
class Started:
    """A run whose engine has the starting weights; those of a checkpoint are not loaded yet.

    Attributes:
        engine: the model within DeepSpeed's engine.
        place: moves a batch to the device.
        batch_rows: rows of a batch without gradients.
        report: reports a phase to the agent.
    """

    order: WorkerOrder
    engine: torch.nn.Module
    place: Callable[[Any], Any]
    batch_rows: int
    report: Callable[[str], None]


class WorkerTask(ABC):
    """One task, for one plan."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    # ------------------------------------------------------------ the model

    def head_options(self) -> dict[str, Any]:
        """Return the options of `from_pretrained` for the head."""
        return {}

    def set_up(self, model: PreTrainedModel, pad_token_id: int) -> None:
        """Change the loaded model, before it gets an adapter."""
        return  # most tasks change nothing

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
        """Keep the properties of the tokenizer that the rows need."""
        return  # the rows of most tasks need nothing

    def viewed(self, rows: Any, stream: int) -> Any:
        """Return rows as the model reads them.

        Args:
            rows: with `lengths`; in training an index is a position of the run.
            stream: the run's seed; for evaluation EVALUATED of `batches.masking`.
        """
        return rows

    @abstractmethod
    def batching(self, model: Any, pad_token_id: int) -> Batching:
        """Return the collation for a model, which is as loaded, with its adapter."""

    @abstractmethod
    def items(self, rows: ArrowRows) -> Items:
        """Return a function from a row's number to its loss items, computed from the prepared data alone.

        Where the loss weighs its items, it is the sum of their weights.

        So each rank knows the divisor of a step's loss without communication and without waiting for its device.
        Without weights, the `items` of a batch's loss are the sum over its rows.
        """

    # ------------------------------------------------------------ loss and evaluation

    @abstractmethod
    def loss(self, model: torch.nn.Module, further: Mapping[str, torch.nn.Module] = NO_MODELS) -> Head:
        """Return the loss, which takes the model, or its wrapper, and a batch.

        Args:
            model: as loaded, with its adapter, before an engine wraps it, because the loss adds hooks to its output
                layer.
            further: the models of `further_models`.
        """

    def on_start(self, run: Started) -> None:
        """Compute what the run needs of the starting weights. All ranks call it, once."""
        return  # most tasks need nothing

    def on_step(self, engine: torch.nn.Module, batches: Sequence[Batch], place: Callable[[Any], Any]) -> None:
        """Compute what the rows of a step have in common. All ranks call it, before the first micro-batch.

        Args:
            engine: the model within DeepSpeed's engine.
            batches: this rank's micro-batches, on the CPU.
            place: moves a batch to the device.
        """
        return  # the rows of most tasks have nothing in common

    def on_save(self, folder: Path) -> None:
        """Write further files of a checkpoint. All ranks call it."""
        return  # most tasks have none

    def sums(self, facts: torch.Tensor) -> torch.Tensor:
        """Return sums over `Summed.facts`, float64 [n], which add up over the ranks."""
        raise NotImplementedError(f"{self.plan.task} has no facts")

    def step_metrics(self, sums: Sequence[float]) -> dict[str, float]:
        """Return the metrics of a step in addition to its loss, of the `sums` of its global batch."""
        raise NotImplementedError(f"{self.plan.task} has no facts")

    def predicted(self, outputs: torch.Tensor) -> torch.Tensor:
        """Return predictions, as many as `predicted_rows` says, from `Summed.outputs`."""
        raise NotImplementedError(f"{self.plan.task} predicts no labels")

    def truth(self, batch: Batch) -> torch.Tensor:
        """Return the values that `predicted` is compared with, of the same shape, on the CPU."""
        raise NotImplementedError(f"{self.plan.task} predicts no labels")

    def predicted_rows(self, rows: Sequence[int], batch: Batch) -> Sequence[int]:
        """Return the row of each prediction of a batch of rows, in the order of `predicted`."""
        return rows

    @abstractmethod
    def scores(self, measured: Measured) -> Scores:
        """Return the scores of an evaluation, the loss among them."""

    def samples(self, measured: Measured, rows: Any, most: int, text: Text) -> list[Sample]:
        """Return predictions for the first rows of a split to be read by people, `most` at most.

        Args:
            rows: of the split, in the task's view.
            text: decodes token ids.
        """
        return []

    def questions(self, rows: Any, most: int) -> list[Question]:
        """Return the first questions of a split whose answers are generated, `most` at most."""
        return []


def indexed_items(items: npt.NDArray[np.int32] | None) -> Items | None:
    """Return the items of a row from the index of the data; None for data without an index."""
    return None if items is None else lambda row: int(items[row])
