"""The training loop of one rank: transformers.Trainer with our losses, data, evaluation and checkpoints."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainingArguments

from finetune_api.errors import FailureCategory, Problem, RunError
from finetune_trainer.process.orders import WorkerOrder
from finetune_trainer.worker.checkpoint import saver_of
from finetune_trainer.worker.compat import HookedTrainer, skip_zero_grad
from finetune_trainer.worker.compiled_layers import not_compiled
from finetune_trainer.worker.embedding_noise import EmbeddingNoise
from finetune_trainer.worker.evaluation.evaluator import Engine, Evaluator
from finetune_trainer.worker.losses.head import Head, Summed
from finetune_trainer.worker.reports.cadence import ROUTER_LOSS, quality
from finetune_trainer.worker.reports.diverged import Guard
from finetune_trainer.worker.reports.events import Reporter
from finetune_trainer.worker.reports.meter import Meter
from finetune_trainer.worker.sampling import VirtualDataset
from finetune_trainer.worker.schedule_free import averaged
from finetune_trainer.worker.tasks.worker_task import Started, WorkerTask


class FineTuneTrainer(HookedTrainer):
    """One rank's training loop.

    The loss of a step is the sum over all its items, on all ranks, divided by their number: the same for any world
    size, micro-batch and accumulation. transformers' own is multiplied by the world size for models that take
    `**kwargs` for support but ignore `num_items_in_batch` (BERT, T5; seen in 5.17 and 5.23).

    Args:
        order: the rank, the plan, and the folders.
        reporter: the pipe to the agent.
        task: of the plan.
        head: from a batch to its summed loss.
        data: the rows in their order; knows the items of a step. `train_dataset` may be a view on it.
        evaluator: scores the eval split; None without one.
        meter: times the steps; None = a new one.
        noise: on the embeddings in training; None = no noise.
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
        task: WorkerTask,
        head: Head,
        data: VirtualDataset,
        evaluator: Evaluator | None = None,
        meter: Meter | None = None,
        noise: EmbeddingNoise | None = None,
        **parts: Any,
    ):
        self.head = head
        super().__init__(model, args, **parts)
        self.meter = meter or Meter(order.plan)
        self._order = order
        self._task = task
        self._facts: list[torch.Tensor] = []
        self._data = data
        self._evaluator = evaluator
        self._noise = noise
        self._saver = saver_of(order, reporter)
        self._reporter = reporter
        self._evaluated: tuple[int, dict[str, float]] = (-1, {})
        self._router_loss = order.plan.engine.router_loss
        self._balance: torch.Tensor | None = None  # of the step at hand, this rank's share times the world size

    def get_batch_samples(  # type: ignore[override] # weights of items have fractions, which a division does not mind
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], float]:
        """Return the micro-batches of the next step, and the items of the whole step on all ranks, or their weight."""
        with self.meter.waiting():
            batches = list(islice(epoch_iterator, num_batches))
        self._task.on_step(self.model_wrapped, batches, self.to_device)
        return batches, self._data.step_items(self.state.global_step + 1)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Return the mean loss of a batch. A step does not call it: its items are those of all ranks."""
        summed = self.head(model, inputs)
        mean: torch.Tensor = summed.total / max(1, summed.items)
        return mean

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Compute a micro-batch forward and backward. transformers' own method sets every module to training mode each
        time, which takes a twentieth of a step of small operations."""
        if not model.training:
            model.train()
        if self._noise:
            self._noise.arm(inputs, self.state.global_step)
        summed = self.head(model, self.to_device(inputs))
        if self._noise:
            self._noise.disarm()
        if summed.facts is not None:
            self._facts.append(summed.facts)
        # its share of the step's loss, times the world size, since DeepSpeed averages over the ranks
        loss: torch.Tensor = summed.total * (self.args.world_size / (num_items_in_batch or 1))
        # while the device computes; the loader is a batch ahead of the step
        self._data.prepare(self.state.global_step + 3)
        every = self.args.torch_empty_cache_steps
        if every is not None and self.state.global_step % every == 0:
            torch.cuda.empty_cache()
        self.accelerator.backward(self._balanced(loss, summed), scale_wrt_gas=False)
        return loss.detach()

    def _balanced(self, loss: torch.Tensor, summed: Summed) -> torch.Tensor:
        """Return the loss with the router's auxiliary loss, if there is one, and keep the latter for the logs."""
        if summed.balance is None:
            return loss
        tokens = self._data.step_tokens(self.state.global_step + 1)
        balance = summed.balance * (self.args.world_size / max(1, tokens))
        self._balance = self._balance + balance.detach() if self._balance is not None else balance.detach()
        balanced: torch.Tensor = loss + self._router_loss * balance
        return balanced

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log values; to those of a step, add the task's metrics of the global batch and the mean of the router's
        auxiliary loss. All ranks call it."""
        if "loss" in logs and self._facts:
            sums = self._task.sums(torch.cat(self._facts))
            self._facts.clear()
            if self.args.world_size > 1:
                dist.all_reduce(sums)
            logs |= self._task.step_metrics(sums.tolist())
        if "loss" in logs and self._balance is not None:
            dist.all_reduce(self._balance)
            logs[ROUTER_LOSS] = float(self._balance) / self.args.world_size
            self._balance = None
        super().log(logs, start_time)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Return 0: transformers would count all parameters for every micro-batch, but the plan has the number."""
        return 0

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Score the eval split, and keep the metrics for a checkpoint of the same step."""
        assert self._evaluator is not None
        assert self.model is not None
        step = self.state.global_step
        self._reporter.phase("eval", step)
        engine = Engine(self.model, self.model_wrapped, self.head, self.to_device, self.args.device)
        with not_compiled(), averaged(self.model_wrapped):
            metrics = self._evaluator(engine, step)
        if metrics is None:  # interrupted by a stop: only the checkpoint is due
            self.control.should_evaluate = False
            self.control.should_save = self.control.should_training_stop = True
            return {}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self._evaluated = (step, quality(metrics))
        return metrics

    def on_starting_weights(self, engine: Any) -> None:
        """Let the task compute what it needs of the starting weights."""

        def report(phase: str) -> None:
            self._reporter.phase(phase)

        rows = self.args.per_device_eval_batch_size
        self._task.on_start(Started(self._order, engine, self.to_device, rows, report))

    def save_engine_state(self, folder: Path) -> None:
        """Write this rank's shard of the engine's state, and the task's files."""
        super().save_engine_state(folder)
        self._task.on_save(folder)

    def on_engine(self, engine: Any) -> None:
        """Check DeepSpeed's engine and set it up.

        Raises:
            RunError: the engine is not DeepSpeed's.
        """
        name = type(engine).__name__
        if name != "DeepSpeedEngine":  # with a wrong setting transformers silently trains with DDP
            raise RunError(
                Problem(
                    code="NotOnDeepSpeed",
                    field="spec.deepspeed",
                    message=f"the training engine is {name}, not DeepSpeedEngine",
                    cure="report this: transformers silently chose another engine",
                ),
                FailureCategory.UNKNOWN,
            )
        self._guard = Guard(engine)
        # Models are loaded in evaluation mode, and a new engine does not change that: dropout would be off.
        engine.train()
        if engine.zero_optimization():
            skip_zero_grad(engine)

    def known_norm(self, norm: Any) -> Any:
        """Return the gradient's norm before clipping; without ZeRO and clipping, the guard has computed it."""
        return self._guard.norm if norm is None else norm

    def resume(self, folder: str | None) -> None:
        """Train from a checkpoint, or from the base model (None), to the end."""
        self._saver.resume(self, folder)

    def save_checkpoint(self) -> None:
        """Save a checkpoint of the step at hand, with the metrics of an evaluation at the same step."""
        step, metrics = self._evaluated
        self._saver.save(self, metrics if step == self.state.global_step else {})
