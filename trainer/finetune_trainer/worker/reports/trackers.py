"""Who else hears of a run: TensorBoard's events in the run's outputs, always, and the trackers that the job names.

They are transformers' own callbacks, on rank 0 only; they see what `Trainer.log` is given and what `Reports` adds.
"""

from pathlib import Path

from tensorboardX import SummaryWriter
from transformers import TrainerCallback
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, TensorBoardCallback

from finetune_api.contract import checkpoint_step
from finetune_trainer.orders import WorkerOrder

FOLDER = "tensorboard"
FLUSH_SECONDS = 5


class Events(SummaryWriter):  # type: ignore[misc]
    """TensorBoard's events of one generation. Written every few seconds: a write a step took 2 % of small steps."""

    def flush(self) -> None:
        """Nothing: transformers asks for it at every log; the writer's own thread does it, and `close`."""


class Trackers:
    """The trackers of one rank.

    Attributes:
        callbacks: for the Trainer, after everything that adds to its logs.
    """

    def __init__(self, order: WorkerOrder) -> None:
        self.callbacks: list[TrainerCallback] = []
        self._events: Events | None = None
        if order.rank:
            return
        self._events = events(Path(order.outputs) / FOLDER, order)
        named = [name for name in order.plan.report_to if name not in {"tensorboard", "none"}]
        board = TensorBoardCallback(self._events)  # type: ignore[no-untyped-call]
        self.callbacks = [board, *(INTEGRATION_TO_CALLBACK[name]() for name in named)]

    def close(self) -> None:
        """Writes what is not written yet; also of a run that ends badly, whose last steps matter most."""
        if self._events is not None:
            self._events.close()


def events(folder: Path, order: WorkerOrder) -> Events:
    """A writer that goes on in `folder`: steps after the point of resumption, of generations before, count no more."""
    resumed = checkpoint_step(Path(order.resume).name) if order.resume else None
    before = any(folder.glob("events.out.tfevents.*"))
    return Events(
        str(folder),
        purge_step=(resumed or 0) + 1 if before else None,
        filename_suffix=f".generation-{order.generation}",
        flush_secs=FLUSH_SECONDS,
    )
