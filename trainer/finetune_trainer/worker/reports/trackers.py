"""The trackers of a run: TensorBoard's events in the outputs, always, and the trackers that the job names.

They are transformers' own callbacks, on rank 0 only. They receive the logs of `Trainer.log` and the additions of
`Reports`.
"""

from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter
from tensorboardX.proto.summary_pb2 import Summary
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, TensorBoardCallback, rewrite_logs

from finetune_api.contract import checkpoint_step
from finetune_trainer.process.orders import WorkerOrder

FOLDER = "tensorboard"
FLUSH_SECONDS = 5


class Charts(TensorBoardCallback):
    """A TensorBoard callback that writes one record a step, in the writer's thread. A record and a flush for each of
    ten figures took 0.4 ms a step; one record takes 0.07.
    """

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        named = rewrite_logs(logs or {}).items()  # type: ignore[no-untyped-call]
        values = [
            Summary.Value(tag=name, simple_value=value) for name, value in named if isinstance(value, int | float)
        ]
        if self.tb_writer is not None:
            self.tb_writer.file_writer.add_summary(Summary(value=values), state.global_step)


class Trackers:
    """The trackers of one rank.

    Attributes:
        callbacks: for the Trainer, after all callbacks that add to its logs.
    """

    def __init__(self, order: WorkerOrder) -> None:
        self.callbacks: list[TrainerCallback] = []
        self._events: SummaryWriter | None = None
        if order.rank:
            return
        self._events = event_writer(Path(order.outputs) / FOLDER, order)
        named = [name for name in order.plan.engine.report_to if name not in {"tensorboard", "none"}]
        board = Charts(self._events)  # type: ignore[no-untyped-call]
        self.callbacks = [board, *(INTEGRATION_TO_CALLBACK[name]() for name in named)]

    def close(self) -> None:
        """Write the pending events, also at the end of a failed run, whose last steps matter most."""
        if self._events is not None:
            self._events.close()


def event_writer(folder: Path, order: WorkerOrder) -> SummaryWriter:
    """Return a writer that continues in `folder` and discards the steps of earlier generations after the point of
    resumption.
    """
    resumed = checkpoint_step(Path(order.resume).name) if order.resume else None
    before = any(folder.glob("events.out.tfevents.*"))
    return SummaryWriter(
        str(folder),
        purge_step=(resumed or 0) + 1 if before else None,
        filename_suffix=f".generation-{order.generation}",
        flush_secs=FLUSH_SECONDS,
    )
