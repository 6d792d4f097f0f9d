"""The measures of both models, with paired intervals, from the values of single rows. Pure."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
from rouge_score.rouge_scorer import RougeScorer

from finetune_api.evaluation_metrics import greater_is_better
from finetune_api.messages import ProblemType
from finetune_api.tasks import spec_of
from finetune_trainer.judge.judgement_records import JudgedMeasure
from finetune_trainer.judge.nearness import chrf_counts, chrf_of, wins
from finetune_trainer.judge.nonsense import is_json, repeats_itself
from finetune_trainer.judge.resampling import (
    Reals,
    Statistic,
    difference,
    f1_of,
    mean_of,
    pearson_of,
    r2_of,
    ratio_of,
    resampled,
    through,
)
from finetune_trainer.judge.sides import JudgedAnswer, Shared, Side
from finetune_trainer.worker.evaluation.similarity import ROUGE, Words

JSON_SHARE = 0.9  # of the references: then an answer must be JSON
Languages = Callable[[Sequence[str], Sequence[str]], list[bool] | None]
"""Returns for answers and references whether an answer is in another language; None if no language is recognised."""


def measures_of(shared: Shared, tuned: Side, base: Side | None, languages: Languages) -> list[JudgedMeasure]:
    """Return every measure of the task.

    Args:
        base: None if the base model was not run.
    """
    found = [*_losses(shared, tuned, base), *_labels(shared, tuned, base)]
    if shared.references:
        found += [*_near(shared, tuned, base), *_nonsense(shared, tuned, base, languages)]
    return [*found, *_forgotten(shared, tuned, base), *_memorised(tuned, base), *_exposed(tuned, base)]


def beside_base(
    name: str, tuned: Statistic, base: Statistic | None, rows: int, better: bool | None = None
) -> JudgedMeasure:
    """Return a measure with the interval of the difference; of the value itself without a base."""
    if base is None:
        one = resampled(tuned, rows)
        return JudgedMeasure(name=name, tuned=one.value, low=one.low, high=one.high, higher_is_better=better, rows=rows)
    gap = resampled(difference(tuned, base), rows)
    every = np.ones((1, rows))
    return JudgedMeasure(
        name=name,
        tuned=float(tuned(every)[0]),
        base=float(base(every)[0]),
        low=gap.low,
        high=gap.high,
        higher_is_better=better,
        rows=rows,
    )


def _losses(shared: Shared, tuned: Side, base: Side | None) -> Iterator[JudgedMeasure]:
    rows = len(tuned.losses)
    if not rows:
        return
    own = ratio_of(tuned.losses, tuned.items)
    other = ratio_of(base.losses, base.items) if base else None
    yield beside_base("loss", own, other, rows, False)
    if spec_of(shared.task).answers:
        yield beside_base("perplexity", through(_exp, own), through(_exp, other) if other else None, rows, False)


def _exp(values: Reals) -> Reals:
    result: Reals = np.exp(np.minimum(values, 700))
    return result


def _labels(shared: Shared, tuned: Side, base: Side | None) -> Iterator[JudgedMeasure]:
    truth = shared.truth
    if truth is None or tuned.predicted is None:
        return
    guessed = None if base is None else base.predicted
    rows = len(truth)
    for name, statistic in _label_statistics(shared, truth):
        own = statistic(tuned.predicted)
        yield beside_base(name, own, None if guessed is None else statistic(guessed), rows, greater_is_better(name))
    if shared.problem in (None, ProblemType.SINGLE_LABEL):
        count = len(shared.labels)
        right, chosen = _hot(truth, count), _hot(tuned.predicted, count)
        yield against("same_answer", _largest(tuned.predicted), _largest(truth), rows, None)
        yield against("label_shift", _distance(chosen, right), None, rows, None)


def _label_statistics(
    shared: Shared, truth: npt.NDArray[np.generic]
) -> Iterator[tuple[str, Callable[[npt.NDArray[np.generic]], Statistic]]]:
    match shared.problem:
        case ProblemType.REGRESSION:
            exact = truth.astype(np.float64)
            yield "mse", lambda predicted: mean_of((predicted.astype(np.float64) - exact) ** 2)
            yield "mae", lambda predicted: mean_of(np.abs(predicted.astype(np.float64) - exact))
            yield "r2", lambda predicted: r2_of(predicted.astype(np.float64), exact)
            yield "pearson", lambda predicted: pearson_of(predicted.astype(np.float64), exact)
        case ProblemType.MULTI_LABEL:
            for average in ("micro", "macro", "weighted"):
                yield f"{average}_f1", _f1(truth.astype(bool), average, lambda predicted: predicted.astype(bool))
            yield "exact_match", lambda predicted: mean_of((predicted == truth).all(axis=1).astype(np.float64))
        case _:
            count = len(shared.labels)
            yield "accuracy", lambda predicted: mean_of((predicted == truth).astype(np.float64))
            for average in ("macro", "weighted"):
                yield f"{average}_f1", _f1(_hot(truth, count), average, lambda predicted: _hot(predicted, count))


def _f1(
    truth: npt.NDArray[np.bool_],
    average: str,
    table: Callable[[npt.NDArray[np.generic]], npt.NDArray[np.bool_]],
) -> Callable[[npt.NDArray[np.generic]], Statistic]:
    return lambda predicted: f1_of(table(predicted), truth, average)


def _near(shared: Shared, tuned: Side, base: Side | None) -> Iterator[JudgedMeasure]:
    rows = len(shared.references)
    other = base.answers if base else ()
    if not shared.cut:
        own, theirs = _exact(tuned.answers, shared), _exact(other, shared)
        yield beside_base("exact_match", mean_of(own), mean_of(theirs) if base else None, rows, True)
    mine, others = _counts(tuned.answers, shared), _counts(other, shared)
    yield beside_base("chrf", chrf_of(mine), chrf_of(others) if base else None, rows, True)
    mine_rouge, other_rouge = _rouge(tuned.answers, shared), _rouge(other, shared)
    for kind, name in ROUGE.items():
        theirs_of = mean_of(other_rouge[kind]) if base else None
        yield beside_base(name, mean_of(mine_rouge[kind]), theirs_of, rows, True)
    if base:
        yield beside_base("win_share", mean_of(wins(mine, others)), None, rows, True)
    if len(tuned.swapped):
        gain = beside_base("prompt_gain", _gain(tuned, shared), None, rows, True)
        known = float(_gain(base, shared)(np.ones((1, rows)))[0]) if base else None
        yield gain.model_copy(update={"base": known})


def _gain(side: Side, shared: Shared) -> Statistic:
    """Return by how many nats a token the loss of a reference rises after the prompt of another row."""
    tokens = np.array([len(one) for one in shared.reference_tokens], np.float64)
    return ratio_of(side.swapped - side.matched, tokens)


def _nonsense(shared: Shared, tuned: Side, base: Side | None, languages: Languages) -> Iterator[JudgedMeasure]:
    rows = len(shared.references)
    references = _cut_as_answers(shared)
    signs: list[tuple[str, Callable[[JudgedAnswer], bool]]] = [
        ("repetition", lambda one: repeats_itself(one.tokens)),
        ("empty", lambda one: not one.text.strip()),
    ]
    if not shared.cut:
        signs.append(("unfinished", lambda one: not one.ended))
    for name, sign in signs:
        own, right = _signs(tuned.answers, sign), _signs(references, sign)
        theirs = float(_signs(base.answers, sign).mean()) if base else None
        yield against(name, mean_of(own), mean_of(right), rows, theirs)
    if sum(map(is_json, shared.references)) >= JSON_SHARE * rows:
        yield from _invalid_json(shared, tuned, base)
    texts = _texts(tuned.answers)
    yield against("same_answer", _largest(_numbered(texts)), _largest(_numbered(_texts(references))), rows, None)
    wrong = languages(texts, list(shared.references))
    if wrong is not None:
        others = languages(_texts(base.answers), list(shared.references)) if base else None
        share = float(np.mean(others)) if others is not None else None
        yield against("wrong_language", mean_of(np.array(wrong, np.float64)), None, rows, share)


def _cut_as_answers(shared: Shared) -> list[JudgedAnswer]:
    """Return the references as a model would give them within the limit of tokens: a longer one does not end."""
    limit = shared.limit
    pairs = zip(shared.references, map(tuple, shared.reference_tokens), strict=True)
    # the token that ends an answer counts too
    return [JudgedAnswer(text, one[: limit or None], not limit or len(one) < limit) for text, one in pairs]


def _invalid_json(shared: Shared, tuned: Side, base: Side | None) -> Iterator[JudgedMeasure]:
    """Yield the share of answers that are no JSON, among those that ended: an answer that is cut off cannot be JSON."""
    ended = _signs(tuned.answers, lambda one: one.ended)
    if not ended.any():
        return
    wrong = _signs(tuned.answers, lambda one: one.ended and not is_json(one.text))
    known = [one.text for one in base.answers if one.ended] if base else []
    theirs = float(np.mean([not is_json(text) for text in known])) if known else None
    right = mean_of([float(not is_json(text)) for text in shared.references])
    found = against("invalid_json", ratio_of(wrong, ended), right, len(ended), theirs)
    yield found.model_copy(update={"rows": int(ended.sum())})


def against(name: str, tuned: Statistic, expected: Statistic | None, rows: int, base: float | None) -> JudgedMeasure:
    """Return a measure with the interval of the value less that of the references; lower is better."""
    gap = resampled(difference(tuned, expected) if expected else tuned, rows)
    every = np.ones((1, rows))
    return JudgedMeasure(
        name=name,
        tuned=float(tuned(every)[0]),
        base=base,
        low=gap.low,
        high=gap.high,
        higher_is_better=False,
        rows=rows,
        expected=float(expected(every)[0]) if expected else 0.0,
    )


def _forgotten(shared: Shared, tuned: Side, base: Side | None) -> Iterator[JudgedMeasure]:
    if base and len(tuned.general):
        own, other = (ratio_of(one.general, shared.general_bytes) for one in (tuned, base))
        yield beside_base("general_loss", own, other, len(tuned.general), False)


def _memorised(tuned: Side, base: Side | None) -> Iterator[JudgedMeasure]:
    if tuned.trained:
        usual = float(np.mean(tuned.held)) if tuned.held else 0.0
        known = np.array(base.trained if base else [False] * len(tuned.trained), np.float64)
        own = np.array(tuned.trained, np.float64)
        expected = np.maximum(known, usual)  # what the base knows too, or what the model says of unseen rows
        theirs = float(known.mean()) if base else None
        yield against("memorised", mean_of(own), mean_of(expected), len(own), theirs)


def _exposed(tuned: Side, base: Side | None) -> Iterator[JudgedMeasure]:
    if tuned.exposures:
        worst = int(np.argmax(tuned.exposures))
        yield JudgedMeasure(
            name="canary_exposure",
            tuned=tuned.exposures[worst],
            base=base.exposures[worst] if base else None,
            higher_is_better=False,
            rows=len(tuned.exposures),
        )


# ---------------------------------------------------------------- values of rows


def _texts(answers: Sequence[JudgedAnswer]) -> list[str]:
    return [one.text.strip() for one in answers]


def _exact(answers: Sequence[JudgedAnswer], shared: Shared) -> Reals:
    return np.array(
        [one.text.strip() == right.strip() for one, right in zip(answers, shared.references, strict=False)], np.float64
    )


def _counts(answers: Sequence[JudgedAnswer], shared: Shared) -> list[Reals]:
    return [chrf_counts(one.text, right) for one, right in zip(answers, shared.references, strict=False)]


def _rouge(answers: Sequence[JudgedAnswer], shared: Shared) -> dict[str, list[float]]:
    scorer = RougeScorer(list(ROUGE), use_stemmer=False, tokenizer=Words())
    scored = [scorer.score(right, one.text) for one, right in zip(answers, shared.references, strict=False)]
    return {kind: [one[kind].fmeasure for one in scored] for kind in ROUGE}


def _signs(answers: Sequence[JudgedAnswer], sign: Callable[[JudgedAnswer], bool]) -> Reals:
    return np.array([sign(one) for one in answers], np.float64)


def _hot(ids: npt.NDArray[np.generic], count: int) -> npt.NDArray[np.bool_]:
    table: npt.NDArray[np.bool_] = ids[:, None] == np.arange(count)
    return table


def _numbered(texts: Sequence[str]) -> npt.NDArray[np.int64]:
    """Return a number for each text, the same for equal ones."""
    numbers = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    return np.array([numbers[text] for text in texts], np.int64)


def _largest(numbers: npt.NDArray[np.generic]) -> Statistic:
    """Return the share of the number that occurs most often. A table of rows and numbers would be too large."""
    own = numbers.astype(np.int64)

    def statistic(weights: Reals) -> Reals:
        most = [np.bincount(own, weights=line).max() for line in weights]
        shares: Reals = np.array(most, np.float64) / weights.sum(axis=1)
        return shares

    return statistic


def _distance(predicted: npt.NDArray[np.bool_], truth: npt.NDArray[np.bool_]) -> Statistic:
    """Return the total variation distance of the predicted labels from the right ones: the share of rows that must
    change their label."""
    gap = predicted.astype(np.float64) - truth.astype(np.float64)
    return lambda weights: np.abs(weights @ gap).sum(axis=1) / 2 / weights.sum(axis=1)
