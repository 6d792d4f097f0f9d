"""transformers.Trainer with our checkpoints: a folder per step, a share per rank, a marker as each last file."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from finetune_api.contract import checkpoint_name
from finetune_api.errors import FailureCategory, Problem, RunError
from finetune_trainer.checkpoints.marker import Marker, marker_name
from finetune_trainer.process.orders import WorkerOrder
from finetune_trainer.worker.evaluation.evaluator import Engine, Evaluator
from finetune_trainer.worker.losses.head import Head
from finetune_trainer.worker.reports.cadence import quality
from finetune_trainer.worker.reports.diverged import Guard
from finetune_trainer.worker.reports.events import Reporter
from finetune_trainer.worker.reports.meter import Meter
from finetune_trainer.worker.sampling import VirtualDataset
from finetune_trainer.worker.saving import save_weights


class FineTuneTrainer(Trainer):
    """One rank's training loop.

    The loss of a step is the sum over all its items, on all ranks, divided by their number: the same for any world
    size, micro-batch and accumulation. transformers' own is multiplied by the world size for models that take
    `**kwargs` for support but ignore `num_items_in_batch` (BERT, T5; seen in 5.17 and 5.23).

    Args:
        order: who this rank is and where its files lie.
        reporter: where saves are announced.
        head: from a batch to its summed loss.
        data: the rows in their order; knows the items of a step. `train_dataset` may be a view on it.
        evaluator: scores the eval split; None without one.
        meter: times the steps; a new one if left out.
        model, args, train_dataset, data_collator, callbacks: as for `Trainer`.

    Attributes:
        head: from a batch to its summed loss.
        meter: times the steps.
    """

    loss_is_scaled_for_ga = True  # by us, over the whole step

    def __init__(
        self,
        order: WorkerOrder,
        reporter: Reporter,
        model: torch.nn.Module,
        args: TrainingArguments,
        *,
        head: Head,
        data: VirtualDataset,
        evaluator: Evaluator | None = None,
        meter: Meter | None = None,
        **parts: Any,
    ):
        self.head = head
        super().__init__(model, args, **parts)
        self.meter = meter or Meter(order.plan)
        self._data = data
        self._evaluator = evaluator
        self._order = order
        self._reporter = reporter
        self._evaluated: tuple[int, dict[str, float]] = (-1, {})

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], int]:
        """The micro-batches of the next step, and the items of the whole step on all ranks."""
        with self.meter.waiting():
            batches = list(islice(epoch_iterator, num_batches))
            return batches, self._data.step_items(self.state.global_step + 1)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """This micro-batch's share of the step's loss, times the world size: DeepSpeed averages over the ranks. Without
        a number of items: the mean of the batch."""
        summed = self.head(model, inputs)
        share = 1 / max(1, summed.items)
        if num_items_in_batch is not None:
            share = self.args.world_size / max(1, num_items_in_batch)
        return summed.total * share

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """A micro-batch forward and backward. transformers' own tells every module each time that it trains, which
        takes as long as a twentieth of a step that only calls small operations."""
        if not model.training:
            model.train()
        loss = self.compute_loss(model, self._prepare_inputs(inputs), num_items_in_batch=num_items_in_batch)
        self._data.prepare(self.state.global_step + 3)  # the device is at work; the loader is a batch ahead of the step
        every = self.args.torch_empty_cache_steps
        if every is not None and self.state.global_step % every == 0:
            torch.cuda.empty_cache()
        self.accelerator.backward(loss, scale_wrt_gas=False)
        return loss.detach()

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """None: transformers counts all parameters for every micro-batch; the plan knows a token's operations."""
        return 0

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Scores the eval split; remembers the result for the checkpoint of the same step."""
        assert self._evaluator is not None
        assert self.model is not None
        step = self.state.global_step
        self._reporter.phase("eval", step)
        engine = Engine(self.model, self.model_wrapped, self.head, self._prepare_inputs, self.args.device)
        metrics = self._evaluator(engine, step)
        if metrics is None:  # given up for a stop: the checkpoint is what matters now
            self.control.should_evaluate = False
            self.control.should_save = self.control.should_training_stop = True
            return {}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self._evaluated = (step, quality(metrics))
        return metrics

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        prepared = super()._prepare_for_training(*args, **kwargs)  # type: ignore[no-untyped-call]
        engine = type(self.model_wrapped).__name__
        if engine != "DeepSpeedEngine":  # with a wrong setting transformers trains with DDP and says nothing
            raise RunError(
                Problem(
                    code="NotOnDeepSpeed",
                    field="spec.deepspeed",
                    message=f"the training engine is {engine}, not DeepSpeedEngine",
                    cure="report this: transformers fell back to another engine without saying so",
                ),
                FailureCategory.UNKNOWN,
            )
        self._guard = Guard(self.model_wrapped)
        wrapped: Any = self.model_wrapped
        # Models are loaded in evaluation mode, and an engine around one says that it trains: without dropout, that is.
        wrapped.train()
        if wrapped.zero_optimization():
            # ZeRO's optimizer has done so in its step; transformers asks again, for a walk over all parameters
            wrapped.zero_grad = lambda: None
        return prepared

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        """The gradient's norm before clipping; without ZeRO and clipping DeepSpeed has none."""
        norm = super()._get_grad_norm(model, grad_norm)  # type: ignore[no-untyped-call]
        return self._guard.norm if norm is None else norm

    def _save_checkpoint(self, model: torch.nn.Module, trial: object) -> None:
        step = self.state.global_step
        self._reporter.phase("save", step)
        folder = Path(self._order.checkpoints) / checkpoint_name(step, self._order.generation)
        folder.mkdir(parents=True, exist_ok=True)
        # every node saves its shards (`save_on_each_node`), but the model itself only once
        save_weights(self.model, self.model_wrapped, folder, writes=self.args.process_index == 0)
        self._save_optimizer_and_scheduler(str(folder))
        self._save_rng_state(str(folder))
        if self.args.should_save:
            self.state.save_to_json(str(folder / TRAINER_STATE_NAME))
            # DeepSpeed writes its tag on rank 0's node only, also with node-local storage, and reads it on every node.
            (folder / "latest").write_text(f"global_step{self.model_wrapped.global_steps}")
        at, metrics = self._evaluated
        marker = Marker(
            step=step,
            generation=self._order.generation,
            rank=self._order.rank,
            samples=step * self._order.plan.layout.global_batch,
            metrics=metrics if at == step else {},
        )
        (folder / marker_name(self._order.rank)).write_text(marker.to_json())
        self._reporter.saved(step)
        self._reporter.phase("train", step)
