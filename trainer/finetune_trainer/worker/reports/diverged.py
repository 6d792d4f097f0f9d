"""Diagnosis of a diverged run: the step, whether loss or gradient became NaN or infinite first, and the rows of the
batch.

DeepSpeed skips an update by a NaN or infinite gradient (ZeRO 1 to 3), so the weights are still those before the step,
and each row of the batch can be evaluated alone.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from deepspeed import DeepSpeedEngine

from finetune_api.errors import FailureCategory, Problem, RunError
from finetune_trainer.worker.compat import HookedTrainer
from finetune_trainer.worker.sampling import VirtualDataset

MOST_ROWS = 64  # rows named in the message; an event of a worker must be a short line


def diverged(step: int, loss: float, norm: float, rows: Sequence[int], guilty: Sequence[int]) -> RunError:
    """Return the error that ends the run.

    Args:
        step: the step with a NaN or infinite loss or gradient, counted from 1.
        loss: mean loss of the step.
        norm: norm of its gradient, before clipping.
        rows: rows of the prepared data in the step's global batch.
        guilty: rows whose loss alone is NaN or infinite.
    """
    what = f"the loss became {loss}" if not math.isfinite(loss) else f"the norm of the gradient became {norm}"
    alone = ""
    if len(guilty) == len(rows):
        alone = "; every row of the batch has such a loss: the weights are already damaged"
    elif guilty:
        alone = f"; alone, {_named(guilty)} of the prepared data gives it, the others of the batch do not"
    cure = "lower learning_rate, add warmup_steps, or look at the rows of that batch"
    if guilty and len(guilty) < len(rows):
        cure = f"look at {_named(guilty)} of the prepared data: its tokens, or the model's weights for them"
    return RunError(
        Problem(
            code="Diverged",
            field="spec.training.learning_rate",
            message=f"{what} at step {step}{alone}; in the batch: {_named(rows)} of the prepared data",
            cure=cure,
        ),
        FailureCategory.DIVERGED,
    )


def diagnosed(
    step: int, loss: float, norm: float, data: VirtualDataset, batch: int, loss_of: Callable[[int], float]
) -> RunError:
    """Find the rows at fault, with one forward pass a row, shared among the ranks, and return the error.

    All ranks must call it at the same step. They do, because all read the same mean loss; under ZeRO-3 their passes run
    in step.

    Args:
        batch: rows of a step.
        loss_of: returns the loss of the row that an index of the loader selects.
    """
    positions = range((step - 1) * batch, step * batch)
    guilty: list[int] = []
    if not math.isfinite(loss):
        rank, world = dist.get_rank(), dist.get_world_size()
        own = [data.row(data.position(at)) for at in positions[rank::world] if not math.isfinite(loss_of(at))]
        by_rank: list[list[int]] = [[] for _ in range(world)]
        dist.all_gather_object(by_rank, own)
        guilty = sorted({row for rows in by_rank for row in rows})
    return diverged(step, loss, norm, sorted({data.row(at) for at in positions}), guilty)


@torch.no_grad()
def loss_alone(trainer: HookedTrainer, position: int) -> float:
    """Return the loss of the row at one position of the run, in a batch of its own, without dropout."""
    assert trainer.train_dataset is not None
    batch = trainer.to_device(trainer.data_collator([trainer.train_dataset[position]]))
    trainer.model_wrapped.eval()
    loss = trainer.compute_loss(trainer.model_wrapped, batch)
    return float(loss[0] if isinstance(loss, tuple) else loss)


class Guard:
    """A hook that keeps the weights unchanged at a NaN or infinite gradient where DeepSpeed does not: without ZeRO.

    Attributes:
        norm: norm of the last gradient; None under ZeRO, which checks the gradient itself.
    """

    def __init__(self, engine: DeepSpeedEngine) -> None:
        self.norm: float | None = None
        if engine.zero_optimization_stage() == 0:
            optimizer = engine.optimizer
            while not isinstance(optimizer, torch.optim.Optimizer):  # DeepSpeed wraps torch's optimizer
                optimizer = optimizer.optimizer
            optimizer.register_step_pre_hook(self._check)

    def _check(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        trained = [weight for group in optimizer.param_groups for weight in group["params"] if weight.grad is not None]
        self.norm = float(torch.nn.utils.get_total_norm([weight.grad for weight in trained]))
        if not math.isfinite(self.norm):
            for weight in trained:
                weight.grad = None  # torch's optimizers skip weights without a gradient


def _named(rows: Sequence[int]) -> str:
    shown = ", ".join(str(row) for row in rows[:MOST_ROWS])
    more = f" and {len(rows) - MOST_ROWS} more" if len(rows) > MOST_ROWS else ""
    return f"row{'s' if len(rows) > 1 else ''} {shown}{more}"
