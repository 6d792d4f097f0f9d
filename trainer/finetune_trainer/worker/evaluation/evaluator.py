"""One evaluation from beginning to end: loss and predictions of the whole split, generated answers, scores, records.

Every rank takes its share of the rows and all of them learn the same numbers, so that what follows from them (early
stopping) needs no further word. Of a batch nothing is kept but sums and one prediction a row.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedTokenizerBase

from finetune_api.contract import File
from finetune_trainer.evaluations.records import Amplification, EvalGroups, EvaluationRecord, Sample
from finetune_trainer.process.orders import WorkerOrder
from finetune_trainer.worker.evaluation.amplification import of_answers, of_labels, one_hot
from finetune_trainer.worker.evaluation.answers import Generator
from finetune_trainer.worker.evaluation.questions import Question
from finetune_trainer.worker.evaluation.records import write_records
from finetune_trainer.worker.evaluation.scores import Scores
from finetune_trainer.worker.evaluation.shares import share_of
from finetune_trainer.worker.evaluation.similarity import similarity
from finetune_trainer.worker.losses.head import Head
from finetune_trainer.worker.tasks.base import Measured, WorkerTask

Batch = Mapping[str, Any]
Collate = Callable[[Sequence[dict[str, Any]]], dict[str, Any]]


class _GivenUp(Exception):  # noqa: N818 - no error
    """A stop was agreed on between two batches."""


@dataclass
class _Part:
    """What one rank has seen; travels to all others.

    Attributes:
        rows: numbers of the rows in `predicted` and `truth`.
    """

    total: float = 0.0
    items: int = 0
    hits: int | None = None
    rows: list[int] = field(default_factory=list)
    predicted: np.ndarray[Any, Any] | None = None
    truth: np.ndarray[Any, Any] | None = None


@dataclass(frozen=True)
class Engine:
    """The model in training, as an evaluation needs it.

    Attributes:
        model: as loaded, with its adapter.
        wrapped: what DeepSpeed made of it; forward passes go through it.
        head: from a batch to its summed loss.
        place: moves a batch to the device.
    """

    model: torch.nn.Module
    wrapped: torch.nn.Module
    head: Head
    place: Callable[[Any], Any]
    device: torch.device


class Evaluator:
    """Evaluates the split of a run.

    Args:
        task: of the plan.
        rows: the eval split as the task views it, with the columns and `lengths` of `data.ArrowRows`.
        collate: makes batches, as in training.
        batch_rows: rows of a batch.
        gives_up: asked between two batches, by all ranks alike: whether to end without a result.
    """

    def __init__(
        self,
        order: WorkerOrder,
        task: WorkerTask,
        tokenizer: PreTrainedTokenizerBase,
        rows: Dataset[dict[str, Any]],
        collate: Collate,
        batch_rows: int,
        gives_up: Callable[[], bool] = lambda: False,
    ) -> None:
        self._order = order
        self._plan = order.plan
        self._task = task
        self._tokenizer = tokenizer
        self._rows: Any = rows
        self._collate = collate
        self._batch_rows = batch_rows
        self._gives_up = gives_up
        self._questions: list[Question] | None = None
        path = Path(order.dataset) / File.EVAL_GROUPS
        self._mentions = EvalGroups.model_validate_json(path.read_text("utf-8")) if path.exists() else None

    def __call__(self, engine: Engine, step: int) -> dict[str, float] | None:
        """Metrics by name, each with `eval_` before it, the same on every rank; rank 0 writes the records.

        None: the evaluation was given up, on every rank.
        """
        was_training = engine.wrapped.training
        engine.wrapped.eval()
        try:
            scores = self._scores(engine)
            answered = self._answers(engine)
        except _GivenUp:
            return None
        finally:
            engine.wrapped.train(was_training)
        metrics = scores.metrics | similarity([one.answer for one in answered], [one.reference for one in answered])
        named = {f"eval_{name}": value for name, value in metrics.items()}
        if self._order.rank == 0:
            kept = answered[: self._plan.evaluation.answers.samples]
            groups, amplification = self._amplified(scores, answered)
            record = EvaluationRecord(
                step=step,
                metrics={name: value for name, value in named.items() if math.isfinite(value)},  # JSON has no NaN
                generated=len(answered),
                per_class=scores.per_class,
                groups=groups,
                amplification=amplification,
            )
            write_records(Path(self._order.outputs), record, kept)
        return named

    # ------------------------------------------------------------ losses and predictions

    def _scores(self, engine: Engine) -> Scores:
        parts = _everyone(self._measured(engine))
        hits = [part.hits for part in parts if part.hits is not None]
        measured = Measured(
            total=sum(part.total for part in parts),
            items=sum(part.items for part in parts),
            hits=sum(hits) if hits else None,
        )
        if seen := [part for part in parts if part.rows]:
            order = np.argsort(np.concatenate([part.rows for part in seen]), kind="stable")
            measured = replace(
                measured,
                predicted=np.concatenate([part.predicted for part in seen if part.predicted is not None])[order],
                truth=np.concatenate([part.truth for part in seen if part.truth is not None])[order],
            )
        return self._task.scores(measured)

    def _amplified(
        self, scores: Scores, answered: Sequence[Sample]
    ) -> tuple[tuple[str, ...], tuple[Amplification, ...]]:
        if self._mentions is None:
            return (), ()
        if answered:
            return of_answers(self._mentions, answered)
        labels = self._plan.dataset.labels
        if scores.predicted is None or scores.truth is None or not labels:
            return (), ()
        predicted, truth = scores.predicted, scores.truth
        if predicted.ndim == 1:
            predicted, truth = one_hot(predicted, len(labels)), one_hot(truth, len(labels))
        return of_labels(self._mentions, range(len(predicted)), truth, predicted, labels)

    def _measured(self, engine: Engine) -> _Part:
        """This rank's share. The device is waited for once, at the end."""
        order = self._order
        share = share_of(self._rows.lengths, self._batch_rows, order.rank, order.world_size)
        part = _Part()
        total = torch.zeros((), dtype=torch.float64, device=engine.device)
        hits: list[torch.Tensor] = []
        predicted: list[torch.Tensor] = []
        truth: list[torch.Tensor] = []
        for number, (rows, batch) in enumerate(zip(share.batches, self._batches(share.batches), strict=True)):
            self._go_on()
            with torch.no_grad():
                summed = engine.head(engine.wrapped, engine.place(batch))
            if number >= share.counted:
                continue
            total += summed.total.double()
            part.items += summed.items
            if summed.hits is not None:
                hits.append(summed.hits)
            if summed.outputs is not None:
                predicted.append(self._task.predicted(summed.outputs))
                truth.append(self._task.truth(batch))
                part.rows += rows
        part.total = float(total)
        part.hits = int(torch.stack(hits).sum()) if hits else None
        if predicted:
            part.predicted = torch.cat(predicted).cpu().numpy()
            part.truth = torch.cat(truth).numpy().reshape(part.predicted.shape)
        return part

    def _batches(self, batches: Sequence[Sequence[int]]) -> DataLoader[dict[str, Any]]:
        return DataLoader(
            self._rows,
            batch_sampler=[list(batch) for batch in batches],
            collate_fn=self._collate,
            generator=torch.Generator(),  # else it draws from the generator that dropout draws from
        )

    def _go_on(self) -> None:
        if self._gives_up():
            raise _GivenUp

    # ------------------------------------------------------------ answers

    def _answers(self, engine: Engine) -> list[Sample]:
        asked = self._asked()
        if not asked:
            return []
        order = self._order
        generator = Generator(self._plan, self._tokenizer, continues=self._task.continues)
        own = generator(engine.model, asked, order.rank, order.world_size, engine.device, self._go_on)
        said: dict[int, list[int]] = {}
        for part in _everyone(own):
            said |= part
        return [
            Sample(
                row=question.number,
                prompt=self._text(question.prompt.tolist(), specials=self._task.continues),
                reference=self._text([token for token in question.reference.tolist() if token >= 0]),
                answer=self._text(said[place]),
            )
            for place, question in enumerate(asked)
        ]

    def _asked(self) -> list[Question]:
        if self._questions is None:
            self._questions = self._task.questions(self._rows, self._plan.evaluation.answers.generate)
        return self._questions

    def _text(self, ids: Sequence[int], specials: bool = False) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=not specials)).strip()


def _everyone(own: Any) -> list[Any]:
    """What each rank holds, by rank."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [own]
    held: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(held, own)
    return held
