"""One evaluation: loss and predictions of the whole split, generated answers, scores, records.

Every rank evaluates its share of the rows and all ranks get the same numbers, so decisions that depend on them (early
stopping) need no further communication. Of each batch, only sums and one prediction a row are kept.
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
from finetune_api.tasks import spec_of
from finetune_trainer.evaluations.records import Amplification, EvalGroups, EvaluationRecord, Sample
from finetune_trainer.process.orders import WorkerOrder
from finetune_trainer.worker.evaluation.amplification import compare_answers, compare_labels, one_hot
from finetune_trainer.worker.evaluation.answers import Generator
from finetune_trainer.worker.evaluation.questions import Question
from finetune_trainer.worker.evaluation.record_files import write_records
from finetune_trainer.worker.evaluation.scores import Scores
from finetune_trainer.worker.evaluation.shares import share_of
from finetune_trainer.worker.evaluation.similarity import similarity
from finetune_trainer.worker.losses.head import Head
from finetune_trainer.worker.tasks.worker_task import Measured, WorkerTask

Batch = Mapping[str, Any]
Collate = Callable[[Sequence[dict[str, Any]]], dict[str, Any]]


class _Interrupted(Exception):  # noqa: N818 - a stop is not an error
    """An agreed stop between two batches."""


@dataclass
class _RankResult:
    """The results of one rank, which are gathered on all ranks.

    Attributes:
        rows: numbers of the rows in `predicted`, `truth` and `facts`.
    """

    total: float = 0.0
    items: int = 0
    hits: int | None = None
    rows: list[int] = field(default_factory=list)
    predicted: np.ndarray[Any, Any] | None = None
    truth: np.ndarray[Any, Any] | None = None
    facts: np.ndarray[Any, Any] | None = None


@dataclass(frozen=True)
class Engine:
    """The model in training, as an evaluation needs it.

    Attributes:
        model: as loaded, with its adapter.
        wrapped: the model within DeepSpeed's engine; forward passes go through it.
        head: returns the summed loss of a batch.
        place: moves a batch to the device.
    """

    model: torch.nn.Module
    wrapped: torch.nn.Module
    head: Head
    place: Callable[[Any], Any]
    device: torch.device


class Evaluator:
    """The evaluation of a run's eval split.

    Args:
        task: of the plan.
        rows: the eval split in the view of the task, with the columns and `lengths` of `arrow_rows.ArrowRows`.
        collate: makes batches, as in training.
        batch_rows: rows of a batch.
        interrupted: called between two batches, on all ranks alike; True ends the evaluation without a result.
    """

    def __init__(
        self,
        order: WorkerOrder,
        task: WorkerTask,
        tokenizer: PreTrainedTokenizerBase,
        rows: Dataset[dict[str, Any]],
        collate: Collate,
        batch_rows: int,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> None:
        self._order = order
        self._plan = order.plan
        self._task = task
        self._tokenizer = tokenizer
        self._rows: Any = rows
        self._collate = collate
        self._batch_rows = batch_rows
        self._interrupted = interrupted
        self._questions: list[Question] | None = None
        path = Path(order.dataset) / File.EVAL_GROUPS
        self._mentions = EvalGroups.model_validate_json(path.read_text("utf-8")) if path.exists() else None

    def __call__(self, engine: Engine, step: int) -> dict[str, float] | None:
        """Return metrics by name, each prefixed with `eval_`, the same on every rank. Rank 0 writes the records.

        None: the evaluation was interrupted, on every rank.
        """
        was_training = engine.wrapped.training
        engine.wrapped.eval()
        try:
            measured = self._gathered(engine)
            samples = self._samples(engine)
        except _Interrupted:
            return None
        finally:
            engine.wrapped.train(was_training)
        scores = self._task.scores(measured)
        metrics = scores.metrics | similarity([one.answer for one in samples], [one.reference for one in samples])
        named = {f"eval_{name}": value for name, value in metrics.items()}
        if self._order.rank == 0:
            most = self._plan.evaluation.answers.samples
            kept = samples[:most] or self._task.samples(measured, self._rows, most, self._text)
            groups, amplification = self._amplified(scores, samples)
            record = EvaluationRecord(
                step=step,
                metrics={name: value for name, value in named.items() if math.isfinite(value)},  # JSON has no NaN
                generated=len(samples),
                per_class=scores.per_class,
                groups=groups,
                amplification=amplification,
            )
            write_records(Path(self._order.outputs), record, kept)
        return named

    # ------------------------------------------------------------ losses and predictions

    def _gathered(self, engine: Engine) -> Measured:
        parts = _all_ranks(self._measured(engine))
        hits = [part.hits for part in parts if part.hits is not None]
        measured = Measured(
            total=sum(part.total for part in parts),
            items=sum(part.items for part in parts),
            hits=sum(hits) if hits else None,
        )
        if filled := [part for part in parts if part.rows]:
            rows = np.concatenate([part.rows for part in filled])
            order = np.argsort(rows, kind="stable")
            measured = replace(
                measured,
                predicted=_in_order([part.predicted for part in filled], order),
                truth=_in_order([part.truth for part in filled], order),
                facts=_in_order([part.facts for part in filled], order),
                rows=rows[order],
            )
        return measured

    def _amplified(
        self, scores: Scores, samples: Sequence[Sample]
    ) -> tuple[tuple[str, ...], tuple[Amplification, ...]]:
        if self._mentions is None:
            return (), ()
        if samples:
            return compare_answers(self._mentions, samples)
        labels = self._plan.dataset.labels
        if scores.predicted is None or scores.truth is None or not labels:
            return (), ()
        predicted, truth = scores.predicted, scores.truth
        if predicted.ndim == 1:
            predicted, truth = one_hot(predicted, len(labels)), one_hot(truth, len(labels))
        return compare_labels(self._mentions, range(len(predicted)), truth, predicted, labels)

    def _measured(self, engine: Engine) -> _RankResult:
        """Return the results of this rank's share. The host waits for the device once, at the end."""
        order = self._order
        share = share_of(self._rows.lengths, self._batch_rows, order.rank, order.world_size)
        part = _RankResult()
        total = torch.zeros((), dtype=torch.float64, device=engine.device)
        hits: list[torch.Tensor] = []
        predicted: list[torch.Tensor] = []
        truth: list[torch.Tensor] = []
        facts: list[torch.Tensor] = []
        for number, (rows, batch) in enumerate(zip(share.batches, self._batches(share.batches), strict=True)):
            self._check_stop()
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
            if summed.facts is not None:
                facts.append(summed.facts)
            if summed.outputs is not None:
                part.rows += self._task.predicted_rows(rows, batch)
            elif summed.facts is not None:
                part.rows += rows
        part.total = float(total)
        part.hits = int(torch.stack(hits).sum()) if hits else None
        if predicted:
            part.predicted = torch.cat(predicted).cpu().numpy()
            part.truth = torch.cat(truth).numpy()
        part.facts = torch.cat(facts).cpu().numpy() if facts else None
        return part

    def _batches(self, batches: Sequence[Sequence[int]]) -> DataLoader[dict[str, Any]]:
        return DataLoader(
            self._rows,
            batch_sampler=[list(batch) for batch in batches],
            collate_fn=self._collate,
            generator=torch.Generator(),  # otherwise it would draw from the generator that dropout uses
        )

    def _check_stop(self) -> None:
        if self._interrupted():
            raise _Interrupted

    # ------------------------------------------------------------ generated answers

    def _samples(self, engine: Engine) -> list[Sample]:
        questions = self._questions_to_answer()
        if not questions:
            return []
        order = self._order
        generator = Generator(self._plan, self._tokenizer)
        own = generator(engine.model, questions, order.rank, order.world_size, engine.device, self._check_stop)
        answers: dict[int, list[int]] = {}
        for part in _all_ranks(own):
            answers |= part
        return [
            Sample(
                row=question.number,
                prompt=self._text(question.prompt.tolist(), specials=spec_of(self._plan.task).continues),
                reference=self._text([token for token in question.reference.tolist() if token >= 0]),
                answer=self._text(answers[place]),
            )
            for place, question in enumerate(questions)
        ]

    def _questions_to_answer(self) -> list[Question]:
        if self._questions is None:
            self._questions = self._task.questions(self._rows, self._plan.evaluation.answers.generate)
        return self._questions

    def _text(self, ids: Sequence[int], specials: bool = False) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=not specials)).strip()


def _in_order(parts: Sequence[Any], order: np.ndarray[Any, Any]) -> np.ndarray[Any, Any] | None:
    """Return the parts of all ranks in the order of the split's rows; None if they are None."""
    kept = [part for part in parts if part is not None]
    return np.concatenate(kept)[order] if kept else None


def _all_ranks(own: Any) -> list[Any]:
    """Return the value of each rank, by rank."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [own]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, own)
    return values
