"""Scores, shares and questions of an evaluation: plain functions against the libraries and against tables."""

import math
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu import corpus_chrf
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import classification_report, f1_score

from finetune_api.messages import MethodType, ProblemType, Task
from finetune_trainer.worker.evaluation.scores import classification_scores, token_scores
from finetune_trainer.worker.evaluation.shares import share_of
from finetune_trainer.worker.evaluation.similarity import similarity
from finetune_trainer.worker.tasks import task_of
from tests.local.harness import make_plan

LABELS = ("animal", "colour", "number", "never seen")


def test_a_table_holds_every_label_with_scikit_learns_figures() -> None:
    truth, predicted = np.array([0, 0, 1, 2, 2, 2]), np.array([0, 1, 1, 2, 2, 0])
    scores = classification_scores(ProblemType.SINGLE_LABEL, predicted, truth, LABELS)
    report = classification_report(
        truth, predicted, labels=range(4), target_names=LABELS, output_dict=True, zero_division=0.0
    )
    for line in scores.per_class:
        expected = report[line.label]
        assert line.support == expected["support"]
        for ours, theirs in (("precision", "precision"), ("recall", "recall"), ("f1", "f1-score")):
            assert getattr(line, ours) == pytest.approx(expected[theirs]), line
    assert [line.label for line in scores.per_class] == list(LABELS)
    assert scores.metrics["accuracy"] == pytest.approx(4 / 6)
    assert scores.metrics["macro_f1"] == pytest.approx(f1_score(truth, predicted, average="macro"))


def test_a_row_of_several_labels_matches_only_if_all_of_them_do() -> None:
    truth = np.array([[1, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]], bool)
    predicted = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]], bool)
    scores = classification_scores(ProblemType.MULTI_LABEL, predicted, truth, LABELS)
    assert scores.metrics["exact_match"] == pytest.approx(2 / 3)
    assert scores.metrics["micro_f1"] == pytest.approx(2 * 2 / (2 * 2 + 1))  # 2 TP / (2 TP + FP + FN)
    assert scores.metrics["macro_f1"] == pytest.approx(2 / 4)  # labels 0 and 1 of four
    assert [line.support for line in scores.per_class] == [1, 1, 1, 0]


def test_a_regression_is_scored_by_its_distances_and_correlations() -> None:
    truth, predicted = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.5, 2.0, 2.5, 5.0])
    metrics = classification_scores(ProblemType.REGRESSION, predicted, truth).metrics
    assert metrics["mse"] == pytest.approx((0.25 + 0.25 + 1.0) / 4)
    assert metrics["mae"] == pytest.approx(2.0 / 4)
    assert metrics["r2"] == pytest.approx(1 - 1.5 / 5.0)
    assert metrics["pearson"] == pytest.approx(pearsonr(truth, predicted).statistic)
    assert metrics["spearman"] == pytest.approx(spearmanr(truth, predicted).statistic)


@pytest.mark.parametrize("rows", [1, 3])
def test_a_score_that_is_not_defined_is_left_out(rows: int) -> None:
    same = np.full(rows, 2.0)
    metrics = classification_scores(ProblemType.REGRESSION, same, same + 1).metrics
    assert metrics["mse"] == 1.0
    assert not {"pearson", "spearman"} & metrics.keys()
    assert all(math.isfinite(value) for value in metrics.values())


def test_predictions_that_are_no_numbers_have_no_scores() -> None:
    truth, predicted = np.array([1.0, 2.0]), np.array([1.0, math.nan])
    assert classification_scores(ProblemType.REGRESSION, predicted, truth).metrics == {}
    assert not math.isfinite(token_scores(math.nan)["perplexity"])


def test_perplexity_is_the_exponential_of_the_loss() -> None:
    assert token_scores(2.0)["perplexity"] == pytest.approx(math.exp(2))
    assert token_scores(1e4)["perplexity"] == math.inf


def test_answers_are_scored_as_sacrebleu_and_rouge_score_do() -> None:
    answers = ["the cat sat on the mat", "a dog_barks, loudly!", "", "same "]
    references = ["the cat lay on a mat", "the dog barks loudly", "nothing was said", "same"]
    scores = similarity(answers, references)
    assert scores["exact_match"] == pytest.approx(1 / 4)
    assert scores["chrf"] == pytest.approx(corpus_chrf(answers, [references]).score)
    rouge = RougeScorer(["rouge1", "rouge2", "rougeL"])
    for ours, theirs in (("rouge_1", "rouge1"), ("rouge_2", "rouge2"), ("rouge_l", "rougeL")):
        means = [
            rouge.score(reference, answer)[theirs].fmeasure
            for answer, reference in zip(answers, references, strict=True)
        ]
        assert scores[ours] == pytest.approx(sum(means) / 4), ours


@pytest.mark.parametrize("text", ["Мама мыла раму", "año nuevo", "東京 は 大きい"])
def test_words_of_other_scripts_count(text: str) -> None:
    assert similarity([text], [text])["rouge_l"] == 1.0


def test_nothing_generated_has_no_score() -> None:
    assert similarity([], []) == {}


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=40),
    batch_rows=st.integers(1, 8),
    world_size=st.integers(1, 5),
)
def test_every_row_is_evaluated_once_and_all_ranks_make_equally_many_passes(
    lengths: list[int], batch_rows: int, world_size: int
) -> None:
    shares = [share_of(lengths, batch_rows, rank, world_size) for rank in range(world_size)]
    rows = [row for share in shares for batch in share.batches[: share.counted] for row in batch]
    assert sorted(rows) == list(range(len(lengths)))
    assert len({len(share.batches) for share in shares}) == 1
    assert all(0 < len(batch) <= batch_rows for share in shares for batch in share.batches)


class Rows:
    def __init__(self, *rows: dict[str, Any]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._rows[index]


def asked(task: Task, *rows: dict[str, Any], most: int = 9) -> list[tuple[int, list[int], list[int]]]:
    questions = task_of(make_plan(task, MethodType.FULL)).questions(Rows(*rows), most)
    return [(q.number, q.prompt.tolist(), q.reference.tolist()) for q in questions]


def test_the_last_trained_span_is_the_answer_to_all_before_it() -> None:
    two_turns = {"input_ids": [1, 2, 3, 4, 5, 6], "labels": [-100, 2, -100, -100, 5, 6]}
    assert asked(Task.CAUSAL_LM, two_turns) == [(0, [1, 2, 3, 4], [5, 6])]


def test_what_follows_the_answer_is_no_part_of_it() -> None:
    assert asked(Task.CAUSAL_LM, {"input_ids": [1, 2, 3], "labels": [-100, 2, -100]}) == [(0, [1], [2])]


def test_a_text_that_is_trained_from_its_beginning_asks_nothing() -> None:
    assert asked(Task.CAUSAL_LM, {"input_ids": [1, 2, 3], "labels": [1, 2, 3]}) == []


def test_packed_rows_are_unpacked() -> None:
    pack = {"input_ids": [1, 2, 3, 4, 5], "labels": [-100, 2, -100, -100, 5], "seq_lengths": [2, 3]}
    assert asked(Task.CAUSAL_LM, pack, pack) == [(0, [1], [2]), (1, [3, 4], [5]), (2, [1], [2]), (3, [3, 4], [5])]


def test_an_encoder_decoder_is_asked_its_input() -> None:
    row = {"input_ids": [1, 2], "labels": [7, 8, 9]}
    assert asked(Task.SEQ2SEQ, row, row, most=1) == [(0, [1, 2], [7, 8, 9])]


@pytest.mark.parametrize("task", [Task.CLASSIFICATION, Task.MASKED_LM])
def test_other_tasks_ask_nothing(task: Task) -> None:
    assert asked(task, {"input_ids": [1, 2]}) == []


def test_the_order_of_rows_does_not_change_a_score() -> None:
    source = random.Random(3)
    truth = np.array([source.randrange(3) for _ in range(50)])
    predicted = np.array([source.randrange(3) for _ in range(50)])
    order = np.array(source.sample(range(50), 50))
    one = classification_scores(ProblemType.SINGLE_LABEL, predicted, truth, LABELS)
    other = classification_scores(ProblemType.SINGLE_LABEL, predicted[order], truth[order], LABELS)
    assert one.metrics == pytest.approx(other.metrics)
