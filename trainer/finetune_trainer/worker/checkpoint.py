"""The checkpoints of a rank: the seam between the training loop and a format of checkpoints.

Another engine, such as an asynchronous one, is another `Saver` in a module of its own; `saver_of` chooses it. Whatever
the engine, a checkpoint's folder holds `trainer_state.json`, part 0 holds the weights in Hugging Face's layout, and a
rank's marker is the last file that it writes.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from transformers.trainer import TRAINER_STATE_NAME

from finetune_api.contract import checkpoint_name
from finetune_trainer.checkpoints.marker import Marker, marker_name
from finetune_trainer.checkpoints.trained_on import TRAINED_ON
from finetune_trainer.process.orders import WorkerOrder
from finetune_trainer.worker.compat import HookedTrainer
from finetune_trainer.worker.reports.events import Reporter
from finetune_trainer.worker.saving import save_weights
from finetune_trainer.worker.schedule_free import averaged
from finetune_trainer.worker.this_machine import this_machine


class Saver(Protocol):
    """Saves the state of one rank, and resumes it."""

    def save(self, trainer: HookedTrainer, metrics: Mapping[str, float]) -> None:
        """Save a checkpoint of the step at hand. Every rank calls it.

        When the files are on the disk, perhaps after this call has returned, the saver writes the marker and reports
        the save.

        Args:
            metrics: of an evaluation at this very step; empty without one.
        """

    def resume(self, trainer: HookedTrainer, folder: str | None) -> None:
        """Train from a checkpoint to the end. Loading is a part of this call, because transformers (5.17 to 5.23) loads
        a checkpoint in the middle of its set-up.

        Args:
            folder: of the checkpoint, complete on this node; None = train from the base model.
        """


def saver_of(order: WorkerOrder, reporter: Reporter) -> Saver:
    """Return the saver of a rank."""
    return DeepSpeedSaver(order, reporter)


class DeepSpeedSaver:
    """The synchronous saver: DeepSpeed's shards and transformers' states, with our own weights.

    Args:
        order: the rank, and the folder of its checkpoints.
        reporter: the pipe to the agent.
    """

    def __init__(self, order: WorkerOrder, reporter: Reporter) -> None:
        self._order = order
        self._reporter = reporter

    def save(self, trainer: HookedTrainer, metrics: Mapping[str, float]) -> None:
        """Save a checkpoint; the loop waits for it."""
        step = trainer.state.global_step
        self._reporter.phase("save", step)
        folder = Path(self._order.checkpoints) / checkpoint_name(step, self._order.generation)
        folder.mkdir(parents=True, exist_ok=True)
        # Every node saves its shards (`save_on_each_node`), but only one rank the weights.
        with averaged(trainer.model_wrapped):
            save_weights(trainer.model, trainer.model_wrapped, folder, writes=trainer.args.process_index == 0)
        trainer.save_engine_state(folder)
        if trainer.args.should_save:
            trainer.state.save_to_json(str(folder / TRAINER_STATE_NAME))
            # DeepSpeed writes its tag on rank 0's node only, also with node-local storage, but every node reads it.
            (folder / "latest").write_text(f"global_step{trainer.model_wrapped.global_steps}")
            (folder / TRAINED_ON).write_text(this_machine(self._order.threads).to_json())
        self._mark(folder, step, metrics)
        self._reporter.saved(step)
        self._reporter.phase("train", step)

    def resume(self, trainer: HookedTrainer, folder: str | None) -> None:
        """Train from a checkpoint to the end."""
        trainer.train(resume_from_checkpoint=folder)

    def _mark(self, folder: Path, step: int, metrics: Mapping[str, float]) -> None:
        marker = Marker(
            step=step,
            generation=self._order.generation,
            rank=self._order.rank,
            samples=step * self._order.plan.layout.global_batch,
            metrics=dict(metrics),
        )
        (folder / marker_name(self._order.rank)).write_text(marker.to_json())
