"""The loss of a batch of preference rows: log-probabilities of completions, those of the reference, an objective.

The reference is the model before training. With a new adapter that is the model with its adapter switched off: one more
forward pass, and no second model. Otherwise its log-probabilities come with the rows (`losses.reference_values`).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist

from finetune_trainer.worker.batches.completions import Sequences
from finetune_trainer.worker.losses.head import Batch, Summed, inputs
from finetune_trainer.worker.losses.objectives import Objective
from finetune_trainer.worker.losses.output_layer import OutputLayer

Place = Callable[[Any], Any]


class PreferenceHead(ABC):
    """A loss of preference rows, with the number that the rows of a step have in common.

    Args:
        layer: of the model in training.
        objective: the loss of a row from its facts.
        adapter: the PeftModel whose base is the reference; None = batches have `reference`, or the objective has none.
    """

    def __init__(self, layer: OutputLayer, objective: Objective, adapter: Any = None) -> None:
        self.objective = objective
        self._layer = layer
        self._adapter = adapter
        self._shared = objective.shared(1.0, 1.0)

    def __call__(self, model: torch.nn.Module, batch: Batch) -> Summed:
        facts = self.facts(model, batch)
        losses = self.objective.losses(facts, self._shared)
        return Summed(losses.sum(), len(losses), facts=facts.detach())

    @property
    def shared(self) -> float:
        """Return the number in common of the current step."""
        return self._shared

    def begin_step(self, model: torch.nn.Module, batches: Sequence[Batch], place: Place) -> None:
        """Compute the number in common of the rows of a step, on all ranks.

        Args:
            batches: this rank's micro-batches of the step.
            place: moves a batch to the device.
        """
        if not self.objective.shares_step:
            return
        sums = torch.stack([self.summands(model, batch, place) for batch in batches]).sum(0)
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(sums)
        self._shared = self.objective.shared(*sums.tolist())

    @abstractmethod
    def facts(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Return the facts of each row, float32 [rows, columns], with their graph."""

    @abstractmethod
    def reference_pass(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Return what `reference` of a row holds, float32 [rows, 2], of the model as it is; a batch lacks it."""

    def summands(self, model: torch.nn.Module, batch: Batch, place: Place) -> torch.Tensor:
        """Return the objective's summands of a micro-batch, float64 [2], on the device."""
        raise NotImplementedError(f"{type(self.objective).__name__} shares nothing")

    # ------------------------------------------------------------ sequences

    def tokens(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Return the log-probability of each trained token of a batch, float32 [trained]."""
        values = self._layer.log_probs(lambda: model(**inputs(batch)).logits, batch["kept"], batch["targets"])
        documents = batch.get("documents")
        if documents is not None and not documents.kept_apart:
            raise RuntimeError("the model's attention does not keep the documents of a flat batch apart")
        return values

    def sequences(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Return the log-probability of each sequence's completion, float32 [sequences]."""
        return completions(batch, self.tokens(model, batch))

    def reference(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Return the same by the reference; 0 for objectives without one."""
        if "reference" in batch:
            given: torch.Tensor = batch["reference"]
            return given
        if self._adapter is None:
            return torch.zeros(len(batch["sequences"].counts), device=batch["input_ids"].device)
        switched_off: AbstractContextManager[None] = self._adapter.disable_adapter()
        with torch.no_grad(), switched_off:
            return self.sequences(model, batch)


class PairHead(PreferenceHead):
    """A loss of pairs: batches of `PairBatches` or `TaughtPairBatches`."""

    def facts(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Return the columns of `objectives.Pairs`."""
        reference = self.reference(model, batch)
        values = self.tokens(model, batch)
        sequences: Sequences = batch["sequences"]
        device = values.device
        trained = torch.tensor(sequences.tokens, dtype=torch.float32, device=device)
        surprise, surprised, counts = torch.zeros_like(trained), torch.zeros_like(trained), trained
        if "completion" in batch:
            surprise, surprised = -sequences.sums(values), trained
            counts = sequences.sums(batch["completion"])
        columns = [completions(batch, values), reference, counts]
        pairs = [part for column in columns for part in column.view(-1, 2).unbind(1)]
        return torch.stack([*pairs, surprise[0::2], surprised[0::2]], dim=1)

    def reference_pass(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Return the log-probabilities of the chosen and the rejected completion."""
        return self.sequences(model, batch).view(-1, 2)

    def summands(self, model: torch.nn.Module, batch: Batch, place: Place) -> torch.Tensor:
        """Return the tokens of the chosen sequences, and the number of pairs; the batch has them on the host."""
        chosen = batch["sequences"].tokens[0::2]
        return torch.tensor([float(sum(chosen)), float(len(chosen))], dtype=torch.float64, device=device_of(model))


class SingleHead(PreferenceHead):
    """A loss of single completions: batches of `SingleBatches`."""

    def facts(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Return the columns of `objectives.Singles`. In training those of the mismatched completions are 0: they were
        used in `begin_step`."""
        reference = self.reference(model, batch)
        own = self.sequences(model, batch)
        others = (torch.zeros_like(own), torch.zeros_like(own))
        if not torch.is_grad_enabled():
            others = self._mismatched(model, batch["mismatched"])
        return torch.stack([own, reference, *others, batch["desirable"]], dim=1)

    def reference_pass(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Return the log-probabilities of the row's own completion and of the mismatched one."""
        return torch.stack([self.sequences(model, batch), self.sequences(model, batch["mismatched"])], dim=1)

    def summands(self, model: torch.nn.Module, batch: Batch, place: Place) -> torch.Tensor:
        """Return the ratios of the mismatched completions, and the number of rows."""
        with torch.no_grad():
            others = self._mismatched(model, place(batch["mismatched"]))
        nothing = torch.zeros_like(others[0])
        return self.objective.summands(torch.stack([nothing, nothing, *others, nothing], dim=1))

    def _mismatched(self, model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        return self.sequences(model, batch), self.reference(model, batch)


def completions(batch: Mapping[str, Any], values: torch.Tensor) -> torch.Tensor:
    """Return the sum over each sequence's completion, [sequences], of values [trained]."""
    marks = batch.get("completion")
    total: torch.Tensor = batch["sequences"].sums(values if marks is None else values * marks)
    return total


def device_of(model: torch.nn.Module) -> torch.device:
    """Return the device of a model's weights."""
    return next(model.parameters()).device
