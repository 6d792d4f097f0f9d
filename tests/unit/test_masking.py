"""Masked language modelling: what is hidden follows from seed and position, how much from the row's length."""

import numpy as np
import pytest

from finetune_trainer.worker.batches.masking import EVALUATED, MaskedRows, Masking

CLS, SEP, MASK, UNK = 2, 3, 4, 1
RULE = Masking(probability=0.15, mask_id=MASK, vocabulary=500, specials=(0, UNK, CLS, SEP, MASK), around=2)


def row(length: int, fill: int | None = None) -> np.ndarray:
    words = np.arange(10, 8 + length, dtype=np.int32) if fill is None else np.full(length - 2, fill, np.int32)
    return np.array([CLS, *words, SEP], np.int32)


@pytest.mark.parametrize("length", [3, 4, 10, 33, 128, 512])
def test_how_many_tokens_are_predicted_follows_from_the_rows_length_alone(length: int) -> None:
    for position in range(20):
        _, labels = RULE.hide(row(length), 42, position)
        assert (labels != -100).sum() == RULE.count(length) >= 1
    assert RULE.count(102) == 15


def test_specials_are_not_predicted_while_there_are_others() -> None:
    for position in range(200):
        ids = row(12)
        ids[4] = UNK
        _, labels = RULE.hide(ids, 42, position)
        assert not np.isin(labels, RULE.specials).any()
    _, labels = RULE.hide(row(12, fill=UNK), 42, 0)
    assert (labels != -100).sum() == RULE.count(12), "a row of nothing else has its share too"


def test_labels_hold_the_tokens_that_were_there_and_the_rest_is_read_as_it_is() -> None:
    ids = row(100)
    read, labels = RULE.hide(ids, 42, 7)
    hidden = labels != -100
    assert (labels[hidden] == ids[hidden]).all()
    assert (read[~hidden] == ids[~hidden]).all()


def test_eight_of_ten_hidden_tokens_read_mask_one_another_token_and_one_itself() -> None:
    kinds = np.zeros(3)
    for position in range(300):
        ids = row(200)
        read, labels = RULE.hide(ids, 42, position)
        hidden = labels != -100
        kinds += [
            (read[hidden] == MASK).sum(),
            ((read[hidden] != MASK) & (read[hidden] != ids[hidden])).sum(),
            (read[hidden] == ids[hidden]).sum(),
        ]
    assert kinds / kinds.sum() == pytest.approx([0.8, 0.1, 0.1], abs=0.01)


def test_every_token_of_a_row_is_hidden_as_often_as_any_other() -> None:
    times = sum((RULE.hide(row(42), 42, position)[1] != -100) for position in range(4000))
    assert np.asarray(times)[1:-1] / 4000 == pytest.approx(np.full(40, 0.15), abs=0.03)


def test_the_same_position_hides_the_same_tokens_and_another_seed_or_position_others() -> None:
    def hidden(seed: int, position: int) -> list[int]:
        return np.flatnonzero(RULE.hide(row(200), seed, position)[1] != -100).tolist()

    assert hidden(42, 7) == hidden(42, 7)
    assert len({tuple(hidden(seed, position)) for seed in (1, 2, EVALUATED) for position in range(5)}) == 15


def test_a_data_set_hides_by_position_and_keeps_what_else_a_row_has() -> None:
    rows = [{"input_ids": row(20), "name": "a"}, {"input_ids": row(30), "name": "b"}]
    masked = MaskedRows(rows, RULE, 42)
    assert len(masked) == 2
    assert masked[1]["name"] == "b"
    assert (masked[1]["labels"] == RULE.hide(row(30), 42, 1)[1]).all()
    assert (rows[1]["input_ids"] == row(30)).all(), "what is mapped from a file is not written to"
