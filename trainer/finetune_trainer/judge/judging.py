"""One judgement from beginning to end: load each model, let it answer, compare, conclude."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedTokenizerBase

from finetune_api.evaluation_metrics import PREFIX
from finetune_api.messages import ProblemType, Task
from finetune_api.tasks import spec_of
from finetune_trainer.judge.answering import Answering, Scored, general_texts, label_losses, predictions
from finetune_trainer.judge.asked_rows import AskedRows, asked_rows, swapped_prompts
from finetune_trainer.judge.candidates import models_of, tokenizer_of
from finetune_trainer.judge.general_texts import spoken_languages
from finetune_trainer.judge.guesses import guessed_side
from finetune_trainer.judge.judge_question import LONGEST_ANSWER, JudgeQuestion
from finetune_trainer.judge.judge_rules import findings_of
from finetune_trainer.judge.judgement_records import AnswerPair, JudgedMeasure, Judgement
from finetune_trainer.judge.measured_sides import measures_of
from finetune_trainer.judge.memorised import alternatives, exposure
from finetune_trainer.judge.resampling import Reals
from finetune_trainer.judge.sides import NONE, JudgedAnswer, Shared, Side
from finetune_trainer.judge.wrong_languages import wrong_languages
from finetune_trainer.worker.batches.padded import PaddedRows

LABEL_ROWS = 16  # of a batch of a classification
SHOWN = 5  # pairs of answers in the record, beside those to the prompts of the job
Report = Callable[[str], None]


@dataclass(frozen=True)
class _Asked:
    """What is asked of each model.

    Attributes:
        limit: maximum length of an answer in tokens.
        texts, languages: general texts.
        candidates: each canary, and then its alternatives.
    """

    question: JudgeQuestion
    tokenizer: PreTrainedTokenizerBase
    rows: AskedRows
    limit: int
    texts: Sequence[str]
    languages: Sequence[str]
    candidates: Sequence[Sequence[str]]


def judge_models(question: JudgeQuestion, report: Report) -> Judgement:
    """Return the judgement of a causal-lm, seq2seq or classification model.

    Args:
        report: called with a line for each phase.
    """
    plan, settings = question.plan, question.settings
    tokenizer = tokenizer_of(question)
    rows = asked_rows(plan, Path(question.dataset), settings)
    longest = max((len(one.reference) for one in rows.questions), default=0)
    limit = settings.max_new_tokens or min(LONGEST_ANSWER, 2 * longest + 16)
    labelled = spec_of(plan.task).labelled
    texts, languages = ([], []) if labelled else general_texts()
    canaries = settings.canaries if plan.task is Task.CAUSAL_LM else ()
    candidates = [alternatives(text, settings.seed) for text in canaries]
    asked = _Asked(question, tokenizer, rows, limit, texts, languages, candidates)
    sides: dict[str, Side] = {}
    for name, model in models_of(question, tokenizer):
        report(f"{name} model: {len(rows.rows):,} held-out rows, {len(rows.questions):,} answers")
        sides[name] = _labelled_side(asked, model) if labelled else _written_side(asked, model, report)
        del model  # the next model needs its memory
    shared = _shared(asked)
    base, notes = sides.get("base"), _notes(asked)
    stands_in = plan.model.name
    if labelled and base is None:
        base = guessed_side(shared, rows, plan.dataset.problem_type or ProblemType.SINGLE_LABEL)
        stands_in = "a guess by the labels of the training rows, because the base model has no head for them"
    return _concluded(asked, shared, sides["tuned"], base, stands_in, notes)


def _concluded(
    asked: _Asked, shared: Shared, tuned: Side, base: Side | None, stands_in: str, notes: tuple[str, ...]
) -> Judgement:
    question = asked.question
    if base is not None and len(base.general):
        tuned, base, shared = _spoken(asked, tuned, base, shared)
    measures = measures_of(shared, tuned, base, wrong_languages)
    record = question.evaluation
    skews = sum(one.amplified for one in record.amplification) if record else 0
    measures.append(JudgedMeasure(name="amplified", tuned=skews, higher_is_better=False))
    return Judgement(
        step=question.step,
        generation=question.generation,
        settings=question.settings.digest,
        form=question.form,
        rows=len(asked.rows.rows),
        base=stands_in,
        measures=tuple(measures),
        findings=tuple(findings_of(measures, shared.best_metric, record)),
        answers=tuple(_pairs(shared, tuned, base)),
        notes=notes,
    )


def _written_side(asked: _Asked, model: Any, report: Report) -> Side:
    """Return what a model that writes text has answered."""
    rows, answering = asked.rows, Answering(asked.question.plan, model, asked.tokenizer, chat=asked.question.chat)
    scored = [Scored(np.asarray(row["input_ids"], np.int64), np.asarray(row["labels"], np.int64)) for row in rows.rows]
    losses, items = answering.losses(scored)
    report("answers held-out questions")
    answers = answering.answers([one.prompt for one in rows.questions], asked.limit)
    others = swapped_prompts(rows.questions)
    report("general texts, and beginnings of training rows")
    further = answering.answers(answering.prompts(asked.question.settings.prompts), asked.limit or LONGEST_ANSWER)
    return Side(
        losses=losses,
        items=items,
        answers=answers,
        matched=answering.references(rows.questions, [one.prompt for one in rows.questions]) if others else NONE,
        swapped=answering.references(rows.questions, others) if others else NONE,
        general=answering.general(asked.texts),
        trained=answering.continued(rows.trained),
        held=answering.continued(rows.held),
        exposures=[exposure(answering.texts(one).tolist()) for one in asked.candidates],
        further=[one.text for one in further],
    )


def _labelled_side(asked: _Asked, model: Any) -> Side:
    """Return what a classifier has predicted."""
    plan, rows = asked.question.plan, asked.rows.rows
    problem = plan.dataset.problem_type or ProblemType.SINGLE_LABEL
    pad = int(asked.tokenizer.pad_token_id or 0)
    collate = PaddedRows(pad, problem, len(plan.dataset.labels))
    batches = [collate(rows[start : start + LABEL_ROWS]) for start in range(0, len(rows), LABEL_ROWS)]
    logits = Answering(plan, model, asked.tokenizer).labels(batches)
    truth = torch.cat([batch["labels"] for batch in batches])
    return Side(
        losses=label_losses(problem, logits, truth), items=np.ones(len(rows)), predicted=predictions(problem, logits)
    )


def _shared(asked: _Asked) -> Shared:
    plan, rows, text = asked.question.plan, asked.rows, asked.tokenizer.decode
    continues = spec_of(plan.task).continues
    references = [[token for token in one.reference.tolist() if token >= 0] for one in rows.questions]
    return Shared(
        task=plan.task,
        best_metric=plan.evaluation.best_metric.removeprefix(PREFIX),
        problem=plan.dataset.problem_type,
        labels=plan.dataset.labels,
        truth=_truth(asked) if spec_of(plan.task).labelled else None,
        prompts=[str(text(one.prompt.tolist(), skip_special_tokens=not continues)).strip() for one in rows.questions],
        references=[str(text(one, skip_special_tokens=True)).strip() for one in references],
        reference_tokens=[_bare(one, asked.tokenizer) for one in references],
        limit=asked.limit,
        cut=rows.cut,
        general_bytes=np.array([len(one.encode()) for one in asked.texts], np.float64),
        canaries=asked.question.settings.canaries,
        further=asked.question.settings.prompts,
    )


def _truth(asked: _Asked) -> npt.NDArray[np.generic]:
    problem = asked.question.plan.dataset.problem_type or ProblemType.SINGLE_LABEL
    collate = PaddedRows(0, problem, len(asked.question.plan.dataset.labels))
    labels = collate(asked.rows.rows)["labels"]
    if problem is ProblemType.MULTI_LABEL:
        return np.asarray((labels > 0.5).numpy())
    return np.asarray(labels.numpy())


def _bare(tokens: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    special = set(tokenizer.all_special_ids)
    return [token for token in tokens if token not in special]


def _spoken(asked: _Asked, tuned: Side, base: Side, shared: Shared) -> tuple[Side, Side, Shared]:
    """Return both sides with the general texts of the languages that the base model speaks."""
    languages = np.array(asked.languages)
    costs = {
        str(one): float(base.general[languages == one].sum() / shared.general_bytes[languages == one].sum())
        for one in dict.fromkeys(asked.languages)
    }
    kept = np.isin(languages, spoken_languages(costs))

    def with_texts(side: Side) -> Side:
        return Side(**{**vars(side), "general": side.general[kept]})

    own: Reals = shared.general_bytes[kept]
    return with_texts(tuned), with_texts(base), Shared(**{**vars(shared), "general_bytes": own})


def _pairs(shared: Shared, tuned: Side, base: Side | None) -> list[AnswerPair]:
    def of(answers: Sequence[JudgedAnswer], place: int) -> str:
        return answers[place].text if place < len(answers) else ""

    others = base.answers if base else ()
    pairs = [
        AnswerPair(prompt=prompt, reference=reference, base=of(others, place), tuned=of(tuned.answers, place))
        for place, (prompt, reference) in enumerate(zip(shared.prompts, shared.references, strict=True))
    ]
    further = [
        AnswerPair(prompt=prompt, base=base.further[place] if base else "", tuned=tuned.further[place])
        for place, prompt in enumerate(shared.further[: len(tuned.further)])
    ]
    return pairs[:SHOWN] + further


def _notes(asked: _Asked) -> tuple[str, ...]:
    """Return what is not measured, and why."""
    notes, task = [], asked.question.plan.task
    if spec_of(task).labelled:
        notes.append("forgetting and memorised rows are not measured, because the model writes no text")
    elif asked.rows.cut:
        notes.append("the rows have no prompts: the models continue the first half of each text")
    if asked.question.settings.canaries and task is not Task.CAUSAL_LM:
        notes.append("canaries are not measured, because the task is not causal-lm")
    if not spec_of(task).labelled and not asked.rows.trained:
        notes.append("memorised rows are not measured, because the training rows are too short")
    return tuple(notes)
