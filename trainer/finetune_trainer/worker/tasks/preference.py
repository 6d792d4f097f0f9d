"""Preference tuning: of two completions of a prompt one is better, or a completion is desirable or not."""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from finetune_api.plan import Plan, PlannedPreference
from finetune_api.preference_losses import PREFERENCE_LOSSES, PreferenceLoss
from finetune_trainer.process.orders import WorkerOrder
from finetune_trainer.worker.arrow_rows import ArrowRows
from finetune_trainer.worker.attention import takes_flat_batches, use_segmented
from finetune_trainer.worker.batches.causal import Tokens, causal_tokens
from finetune_trainer.worker.batches.completions import PairBatches, SingleBatches, TaughtPairBatches
from finetune_trainer.worker.batches.flat import FlatTokens
from finetune_trainer.worker.batches.masking import EVALUATED
from finetune_trainer.worker.batches.preference_rows import InOrder, Mismatched, WithReference
from finetune_trainer.worker.evaluation.scores import Scores
from finetune_trainer.worker.losses.head import Batch, Head
from finetune_trainer.worker.losses.objectives import objective_of
from finetune_trainer.worker.losses.output_layer import OutputLayer
from finetune_trainer.worker.losses.preference_head import PairHead, PreferenceHead, SingleHead
from finetune_trainer.worker.losses.reference_values import FILE, Needed, Passes, ReferenceValues
from finetune_trainer.worker.models.dropout import switch_off
from finetune_trainer.worker.sampling import Dealt, VirtualDataset
from finetune_trainer.worker.tasks.worker_task import (
    NO_MODELS,
    Batching,
    Collator,
    Items,
    Measured,
    Started,
    WorkerTask,
)

logger = logging.getLogger(__name__)


class Preference(WorkerTask):
    """Preference tuning, with one loss item a row. Its batches are flat where the model's attention allows it."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        assert plan.preference is not None, "a plan of preference tuning has its loss"
        self.loss_plan: PlannedPreference = plan.preference
        self.objective = objective_of(plan.preference)
        self._reference = ReferenceValues(plan)
        self._head: PreferenceHead | None = None
        self._collate: Collator | None = None
        self._order: WorkerOrder | None = None

    # ------------------------------------------------------------ model and rows

    def set_up(self, model: PreTrainedModel, pad_token_id: int) -> None:
        """Set the attention that separates the documents of a flat batch, for models that support it."""
        if takes_flat_batches(model.config):
            use_segmented(model)

    def viewed(self, rows: Any, stream: int) -> Any:
        """Return rows with a mismatched completion, if the loss compares it, and with the reference's stored values."""
        prepared: Any = rows.rows if isinstance(rows, VirtualDataset) else rows
        view = prepared if self._paired else Mismatched(prepared, self.plan.max_length)
        if self.loss_plan.reference == "cached":
            split = "eval" if stream == EVALUATED else "train"
            read = rows.numbers_read() if isinstance(rows, VirtualDataset) else range(len(rows))
            self._reference.needed[split] = Needed.of(view, read)
            view = WithReference(view, self._reference.values, split)
        return InOrder(rows, view) if isinstance(rows, VirtualDataset) else view

    def batching(self, model: Any, pad_token_id: int) -> Batching:
        """Return flat batches if the model supports them, else padded ones."""
        tokens = causal_tokens(model, pad_token_id)
        self._collate = self._collator(tokens)
        return Batching(self._collate, Dealt(self.plan.layout.micro_batch) if isinstance(tokens, FlatTokens) else None)

    def _collator(self, tokens: Tokens) -> Collator:
        if not self._paired:
            return SingleBatches(tokens)
        return TaughtPairBatches(tokens) if self.loss_plan.loss_type is PreferenceLoss.ORPO else PairBatches(tokens)

    @property
    def _paired(self) -> bool:
        return PREFERENCE_LOSSES[self.loss_plan.loss_type].paired

    def items(self, rows: ArrowRows) -> Items:
        """Return 1 for each row."""
        return lambda row: 1

    # ------------------------------------------------------------ loss and evaluation

    def loss(self, model: torch.nn.Module, further: Mapping[str, torch.nn.Module] = NO_MODELS) -> Head:
        """Return the loss of completions, of a model without dropout and without noise in its routers."""
        if switch_off(model):
            logger.warning("dropout and noise are switched off: model and reference must differ by training alone")
        adapter = model if self.loss_plan.reference == "adapter-off" else None
        kind = PairHead if self._paired else SingleHead
        self._head = kind(OutputLayer(model, self.plan.engine.loss_head), self.objective, adapter)
        return self._head

    def on_start(self, run: Started) -> None:
        """Fill the reference's stored values, if the loss needs them."""
        self._order = run.order
        if not self._reference.needed:
            return

        def passes() -> Passes:
            assert self._head is not None
            assert self._collate is not None
            run.report("reference")
            values = partial(self._head.reference_pass, run.engine)
            return Passes(values, self._collate, run.place, run.batch_rows)

        self._reference.fill(run.order, passes)

    def on_step(self, engine: torch.nn.Module, batches: Sequence[Batch], place: Callable[[Any], Any]) -> None:
        """Compute the number that the rows of the step have in common."""
        assert self._head is not None
        self._head.begin_step(engine, batches, place)

    def on_save(self, folder: Path) -> None:
        """Write the reference's values into the node's part of a checkpoint."""
        if self._reference.needed and self._order is not None and self._order.local_rank == 0:
            self._reference.save(folder / FILE)

    def sums(self, facts: torch.Tensor) -> torch.Tensor:
        """Return sums of rewards."""
        return self.objective.sums(facts)

    def step_metrics(self, sums: Sequence[float]) -> dict[str, float]:
        """Return the rewards of a step."""
        assert self._head is not None
        return self.objective.metrics(sums, self._head.shared)

    def scores(self, measured: Measured) -> Scores:
        """Return the loss and the rewards of the split."""
        assert measured.facts is not None
        facts = torch.from_numpy(measured.facts).double()
        shared = self.objective.shared(*self.objective.summands(facts).tolist())
        loss = float(self.objective.losses(facts, shared).mean())
        return Scores({"loss": loss} | self.objective.metrics(self.objective.sums(facts).tolist(), shared))


TASK = Preference
