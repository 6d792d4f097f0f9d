"""transformers.Trainer with our checkpoints: a folder per step, a share per rank, a marker as each last file."""

from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import EvalLoopOutput

from finetune_api.contract import checkpoint_name
from finetune_api.errors import FailureCategory, Problem, RunError
from finetune_api.messages import Task
from finetune_trainer.orders import SavedMarker, WorkerOrder, marker_name
from finetune_trainer.worker.evaluation.metrics import metrics_of
from finetune_trainer.worker.reports.cadence import quality
from finetune_trainer.worker.reports.events import Reporter


class FineTuneTrainer(Trainer):
    """One rank's training loop.

    Args:
        order: who this rank is and where its files lie.
        reporter: where saves are announced.
        model, args, train_dataset, eval_dataset, data_collator, callbacks: as for `Trainer`.
    """

    def __init__(
        self, order: WorkerOrder, reporter: Reporter, model: torch.nn.Module, args: TrainingArguments, **parts: Any
    ):
        reduce, score = metrics_of(order.plan.task)
        super().__init__(model, args, compute_metrics=score, preprocess_logits_for_metrics=reduce, **parts)
        # These losses ignore num_items_in_batch, yet transformers takes **kwargs in forward for support and then
        # multiplies loss and gradients by the world size (seen in 5.17 and 5.23).
        if order.plan.task is Task.CLASSIFICATION:
            self.model_accepts_loss_kwargs = False
        self._order = order
        self._reporter = reporter
        self._evaluated: tuple[int, dict[str, float]] = (-1, {})

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Scores the eval split; remembers the result for the checkpoint of the same step."""
        self._reporter.phase("eval", self.state.global_step)
        metrics = super().evaluate(*args, **kwargs)
        self._evaluated = (self.state.global_step, quality(metrics))
        return metrics

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """One pass over a split; the loss of a language model is per token, however rows are batched."""
        output = super().evaluation_loop(*args, **kwargs)
        metrics = output.metrics or {}
        per_token = metrics.pop("eval_token_loss", None)
        return output if per_token is None else output._replace(metrics={**metrics, "eval_loss": per_token})

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
        return prepared

    def _save_checkpoint(self, model: torch.nn.Module, trial: object) -> None:
        step = self.state.global_step
        self._reporter.phase("save", step)
        folder = Path(self._order.checkpoints) / checkpoint_name(step)
        self.save_model(str(folder), _internal_call=True)
        self._save_optimizer_and_scheduler(str(folder))
        self._save_rng_state(str(folder))
        if self.args.should_save:
            self.state.save_to_json(str(folder / TRAINER_STATE_NAME))
            # DeepSpeed writes its tag on rank 0's node only, also with node-local storage, and reads it on every node.
            (folder / "latest").write_text(f"global_step{self.model_wrapped.global_steps}")
        at, metrics = self._evaluated
        marker = SavedMarker(
            step=step,
            generation=self._order.generation,
            rank=self._order.rank,
            samples=step * self._order.plan.global_batch,
            metrics=metrics if at == step else {},
        )
        (folder / marker_name(self._order.rank)).write_text(marker.to_json())
        self._reporter.saved(step)
        self._reporter.phase("train", step)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        # Every node saves its shards (`save_on_each_node`), but the model itself only once.
        if self.args.process_index == 0:
            super()._save(output_dir, state_dict)
