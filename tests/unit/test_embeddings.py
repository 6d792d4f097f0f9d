"""Embeddings: the loss is that of the papers and of sentence-transformers, the scores are those of a search."""

import math

import numpy as np
import pytest
import torch
from sentence_transformers.sentence_transformer import losses

from finetune_trainer.worker.batches.padded_texts import ABSENT, PaddedTexts, content
from finetune_trainer.worker.evaluation.retrieval import evaluated_loss, retrieval_scores
from finetune_trainer.worker.losses.contrast import placed, pooled, summed_loss, wrong_choices

EXACT = 1e-5
SCALE = 20.0


def vectors(rows: int, texts: int, seed: int = 1, width: int = 8) -> torch.Tensor:
    return torch.randn(rows, texts, width, generator=torch.Generator().manual_seed(seed))


def different(rows: int, texts: int) -> torch.Tensor:
    """Hashes of texts that are all different."""
    return 1 + torch.arange(rows * texts).view(rows, texts)


@pytest.mark.parametrize("texts", [2, 3, 4], ids=["pairs", "a negative", "two negatives"])
def test_the_loss_and_its_gradient_are_those_of_sentence_transformers(texts: int) -> None:
    ours, theirs = (vectors(6, texts).requires_grad_() for _ in range(2))
    summed = summed_loss(ours, different(6, texts), SCALE)
    peer = losses.MultipleNegativesRankingLoss(torch.nn.Identity(), scale=SCALE)
    expected = peer.compute_loss_from_embeddings(list(theirs.unbind(1)), torch.zeros(6))
    (summed / 6).backward()
    expected.backward()
    assert summed.item() / 6 == pytest.approx(expected.item(), abs=EXACT)
    assert torch.allclose(ours.grad, theirs.grad, atol=EXACT)


def test_the_loss_is_the_negative_logarithm_of_the_positives_share() -> None:
    """Equation 4 of arXiv 1807.03748, with the exponential of the scaled cosine as its density ratio."""
    made, total = vectors(5, 3), 0.0
    unit = (made / made.norm(dim=-1, keepdim=True)).tolist()
    for row in range(5):
        ratios = {
            (other, text): math.exp(SCALE * sum(a * b for a, b in zip(unit[row][0], unit[other][text], strict=True)))
            for other in range(5)
            for text in (1, 2)
        }
        total -= math.log(ratios[row, 1] / sum(ratios.values()))
    assert float(summed_loss(made, different(5, 3), SCALE)) == pytest.approx(total, rel=EXACT)


def test_the_loss_of_several_sizes_is_the_sum_of_sentence_transformers() -> None:
    made = vectors(6, 2)
    peer = losses.MultipleNegativesRankingLoss(torch.nn.Identity(), scale=SCALE)
    expected = sum(
        float(peer.compute_loss_from_embeddings(list(made[..., :size].unbind(1)), torch.zeros(6))) for size in (8, 4, 2)
    )
    assert float(summed_loss(made, different(6, 2), SCALE, (8, 4, 2))) / 6 == pytest.approx(expected, abs=EXACT)


def test_texts_that_are_right_answers_too_are_no_wrong_choices() -> None:
    """Rows: a -> p; b -> p; a -> q; c -> a. Of both rows of a, each other text is p, q or a itself; of the last,
    nothing is left out."""
    a, b, c, p, q = range(1, 6)
    compared, own = wrong_choices(torch.tensor([[a, p], [b, p], [a, q], [c, a]]))
    assert own.tolist() == [0, 1, 2, 3]
    assert compared.int().tolist() == [[1, 0, 0, 0], [0, 1, 1, 1], [0, 0, 1, 0], [1, 1, 1, 1]]


def test_an_answer_of_an_equal_anchor_is_no_wrong_choice_in_another_row_either() -> None:
    """Rows: a -> p, not n; a -> q, not m; b -> q, not p. The first row's q stands in the third row too, and the
    second row's p is the third row's negative."""
    a, b, p, q, n, m = range(1, 7)
    compared, _ = wrong_choices(torch.tensor([[a, p, n], [a, q, m], [b, q, p]]))
    assert compared.int().tolist() == [[1, 0, 0, 1, 1, 0], [0, 1, 0, 1, 1, 0], [1, 0, 1, 1, 1, 1]]


def test_rows_with_fewer_negatives_have_no_further_choice() -> None:
    made, hashes = vectors(3, 3), different(3, 3)
    hashes[1, 2] = ABSENT
    made[1, 2] = 0
    compared, _ = wrong_choices(hashes)
    assert compared[:, 3:].all(0).tolist() == [True, False, True]
    nan = made.clone()
    nan[1, 2] = 7.0
    assert float(summed_loss(nan, hashes, SCALE)) == float(summed_loss(made, hashes, SCALE))


def test_the_parts_of_ranks_add_up_to_the_whole() -> None:
    made, hashes = vectors(8, 3), different(8, 3)
    parts = [summed_loss(made, hashes, SCALE, (), slice(start, start + 4)) for start in (0, 4)]
    assert float(sum(parts)) == pytest.approx(float(summed_loss(made, hashes, SCALE)), rel=EXACT)


def test_a_batch_has_all_anchors_then_all_positives_then_the_negatives() -> None:
    rows = [
        {"input_ids": np.array([1, 2, 3, 4, 5, 6]), "seq_lengths": np.array([1, 2, 3])},
        {"input_ids": np.array([7, 8, 2, 3]), "seq_lengths": np.array([2, 2])},
    ]
    batch = PaddedTexts(0, 3)(rows)
    assert batch["input_ids"].tolist() == [[1, 0, 0], [7, 8, 0], [2, 3, 0], [2, 3, 0], [4, 5, 6]]
    assert batch["attention_mask"].sum(1).tolist() == [1, 2, 2, 2, 3]
    assert batch["texts"][0, 1] == batch["texts"][1, 1] == content(np.array([2, 3]))
    assert batch["texts"][1, 2] == ABSENT
    sequences = torch.arange(5.0)[:, None]
    assert placed(sequences, batch["texts"]).squeeze(-1).tolist() == [[0, 2, 4], [1, 3, 0]]


def test_vectors_are_the_mean_the_first_or_the_last_of_the_tokens() -> None:
    hidden = torch.tensor([[[1.0], [3.0], [9.0]], [[2.0], [4.0], [6.0]]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert pooled(hidden, mask, "mean").flatten().tolist() == [2, 4]
    assert pooled(hidden, mask, "cls").flatten().tolist() == [1, 2]
    assert pooled(hidden, mask, "last").flatten().tolist() == [3, 6]


# ---------------------------------------------------------------- search


def test_scores_are_those_of_ranks_that_are_known() -> None:
    """Twelve texts on a circle; the anchors of three rows lie nearest to their positive, second and twelfth."""
    angles = torch.arange(12) / 12 * torch.pi
    circle = torch.stack([angles.cos(), angles.sin()], dim=1)
    anchors = circle.clone()
    anchors[1] = circle[2] * 0.6 + circle[1] * 0.4  # its own text is second
    anchors[0] = circle[11]  # its own text is last
    made = torch.stack([anchors, circle], dim=1).numpy()
    scores = retrieval_scores(made, different(12, 2).numpy())
    assert scores["recall_at_1"] == pytest.approx(10 / 12)
    assert scores["recall_at_10"] == pytest.approx(11 / 12)
    assert scores["mrr_at_10"] == pytest.approx((10 + 1 / 2) / 12)
    assert scores["ndcg_at_10"] == pytest.approx((10 + 1 / math.log2(3)) / 12)


def test_an_anchor_with_two_answers_is_one_question() -> None:
    east, north, between = [1.0, 0.0], [0.0, 1.0], [0.8, 0.6]
    made = np.array([[east, east], [east, north], [north, between]], np.float32)
    texts = np.array([[1, 11], [1, 12], [2, 13]])
    scores = retrieval_scores(made, texts)
    first = (1 + 1 / math.log2(4)) / (1 + 1 / math.log2(3))  # answers at ranks 1 and 3
    assert scores["ndcg_at_10"] == pytest.approx((first + 1 / math.log2(3)) / 2)
    assert scores["recall_at_1"] == pytest.approx((1 / 2 + 0) / 2)
    assert scores["margin"] == pytest.approx(((1 - 0.8) + (0.6 - 1)) / 2, abs=EXACT)


def test_equal_vectors_for_all_texts_find_nothing() -> None:
    scores = retrieval_scores(np.ones((40, 2, 4), np.float32), different(40, 2).numpy())
    assert scores == {"recall_at_1": 0, "recall_at_10": 0, "mrr_at_10": 0, "ndcg_at_10": 0, "margin": 0}


def test_a_text_that_is_the_anchor_itself_is_not_looked_at() -> None:
    made = vectors(4, 2).numpy()
    made[1, 1] = made[0, 0]
    texts = different(4, 2).numpy()
    texts[1, 1] = texts[0, 0]
    made[0, 1] = made[0, 0] + 0.01
    assert retrieval_scores(made[:1], texts[:1])["recall_at_1"] == 1
    assert retrieval_scores(made, texts)["recall_at_1"] >= 1 / 4


def test_the_evaluated_loss_compares_as_many_rows_as_training() -> None:
    made, hashes = vectors(8, 2), different(8, 2)
    halves = [float(summed_loss(made[start : start + 4], hashes[start : start + 4], SCALE)) for start in (0, 4)]
    assert evaluated_loss(made.numpy(), hashes.numpy(), SCALE, (), 4) == pytest.approx(sum(halves) / 8, rel=EXACT)
