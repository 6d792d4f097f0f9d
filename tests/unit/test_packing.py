"""Documents that share a sequence neither see nor predict one another; TRL packs them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from finetune_trainer.prepare.tokens.packing import pack
from finetune_trainer.worker.batches.padded import IGNORED, PaddedBatch
from tests.models import VOCABULARY, make_llama

LENGTHS = (17, 5, 30, 9, 23, 12, 2)
PAD = 2


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = make_llama(tmp_path_factory.mktemp("models") / "llama")
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    loaded.config.use_cache = False
    return loaded.eval()


def documents(lengths: Sequence[int] = LENGTHS, seed: int = 0) -> list[dict[str, Any]]:
    draw = np.random.default_rng(seed)
    rows = [draw.integers(3, VOCABULARY - 1, length, dtype=np.int32) for length in lengths]
    return [{"input_ids": ids, "labels": np.where(np.arange(len(ids)) < len(ids) // 3, IGNORED, ids)} for ids in rows]


def together(*rows: dict[str, Any]) -> dict[str, Any]:
    return {
        "input_ids": np.concatenate([row["input_ids"] for row in rows]),
        "labels": np.concatenate([row["labels"] for row in rows]),
        "seq_lengths": np.array([len(row["input_ids"]) for row in rows], np.int32),
    }


def losses(model: Any, rows: Sequence[dict[str, Any]]) -> torch.Tensor:
    """Loss of every trained token of a batch."""
    batch = PaddedBatch(PAD)(rows)
    with torch.no_grad():
        logits = model(**{name: value for name, value in batch.items() if name != "labels"}).logits
    targets = batch["labels"][:, 1:]
    each = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return each[targets.flatten() != IGNORED]


@pytest.mark.parametrize("before", [[0], [2], [0, 3]])
def test_a_document_has_the_same_loss_whatever_stands_before_it(before: list[int], model: Any) -> None:
    rows = documents()
    alone = losses(model, [together(rows[4])])
    packed = losses(model, [together(*(rows[index] for index in before), rows[4])])
    torch.testing.assert_close(packed[-len(alone) :], alone, atol=1e-5, rtol=0)


def test_packed_and_unpacked_rows_have_the_same_loss_per_token(model: Any) -> None:
    rows = documents()
    unpacked = losses(model, rows)
    packed = losses(model, [together(*rows[:3]), together(*rows[3:5]), together(*rows[5:])])  # two need padding
    assert len(packed) == len(unpacked)
    torch.testing.assert_close(packed.mean(), unpacked.mean(), atol=1e-5, rtol=0)


def test_the_models_own_loss_is_that_of_the_documents(model: Any) -> None:
    rows = documents()
    packed = PaddedBatch(PAD)([together(*rows)])
    apart = PaddedBatch(PAD)(rows)
    with torch.no_grad():
        assert model(**packed).loss.item() == pytest.approx(model(**apart).loss.item(), abs=1e-5)


def test_a_packed_batch_has_positions_that_begin_again_and_no_mask() -> None:
    rows = documents()
    batch = PaddedBatch(PAD)([together(rows[1], rows[6]), together(rows[3])])
    assert set(batch) == {"input_ids", "position_ids", "labels"}
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 0, 1, 0, 1], list(range(9))]
    assert batch["labels"][0, 5] == IGNORED
    assert batch["labels"][0, 7:].tolist() == [IGNORED, IGNORED]
    assert batch["input_ids"][0, 7:].tolist() == [PAD, PAD]


# ---------------------------------------------------------------- packing itself


def lists(lengths: Sequence[int]) -> pa.Table:
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    ids = pa.ListArray.from_arrays(offsets, pa.array(np.arange(sum(lengths)), pa.int32()))
    return pa.table({"input_ids": ids, "labels": ids})


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=60), st.integers(50, 80))
def test_every_document_is_in_one_sequence_and_whole(lengths: list[int], limit: int) -> None:
    rows = pack(lists(lengths), limit).to_pylist()
    found = []
    for row in rows:
        assert len(row["input_ids"]) <= limit
        assert row["input_ids"] == row["labels"]
        start = 0
        for length in row["seq_lengths"]:
            found.append(row["input_ids"][start : start + length])
            start += length
        assert start == len(row["input_ids"])
    assert sorted(found) == sorted(lists(lengths)["input_ids"].to_pylist())
    assert len(rows) <= 2 * (1 + sum(lengths) // limit)


def test_no_library_is_left_replaced_after_packing() -> None:
    import sys

    import transformers

    pack(lists([3, 4]), 8)
    assert sys.modules["transformers"] is transformers
    assert hasattr(transformers, "AutoTokenizer")


@pytest.mark.matrix
def test_packs_are_those_of_trl(tmp_path: Path) -> None:
    """Matrix, because importing TRL takes half a minute."""
    from datasets import Dataset
    from trl import pack_dataset

    draw = np.random.default_rng(1)
    table = lists(draw.integers(1, 300, 900).tolist())
    expected = pack_dataset(Dataset(table), seq_length=512, strategy="bfd").with_format("arrow")[:]
    found = pack(table, 512)
    assert found.to_pylist() == expected.select(found.column_names).to_pylist()
