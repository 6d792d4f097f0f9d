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
from finetune_trainer.worker.attention import Documents, use_segmented
from finetune_trainer.worker.batches.flat import FlatTokens
from finetune_trainer.worker.batches.padded import IGNORED, PaddedTokens
from finetune_trainer.worker.losses.head import inputs
from tests.support.models import VOCABULARY, make_llama

LENGTHS = (17, 5, 30, 9, 23, 12, 2)  # the last is the shortest: documents are sorted
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


def losses(model: Any, rows: Sequence[dict[str, Any]], *, flat: bool = True) -> torch.Tensor:
    """Loss of every trained token of a batch, in the order of its targets."""
    batch: dict[str, Any] = FlatTokens()(rows) if flat else PaddedTokens(PAD)(rows)
    with torch.no_grad():
        logits = model(**inputs(batch)).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1)[batch["kept"]], batch["targets"], reduction="none")


@pytest.fixture(params=[True, False], ids=["flat", "padded"])
def flat(request: pytest.FixtureRequest, model: Any) -> bool:
    """Flat batches with our attention; or padded ones, for families that it does not serve, with transformers' own."""
    if request.param:
        use_segmented(model)
    else:
        model.set_attn_implementation("sdpa")
    return bool(request.param)


@pytest.mark.parametrize("before", [[0], [2], [0, 3], [0, 1, 2, 3]])
def test_a_document_has_the_same_loss_whatever_stands_before_it(before: list[int], model: Any, flat: bool) -> None:
    rows = documents()
    alone = losses(model, [together(rows[6])], flat=flat)
    packed = losses(model, [together(*(rows[index] for index in before), rows[6])], flat=flat)
    torch.testing.assert_close(packed[-len(alone) :], alone, atol=1e-5, rtol=0)


def test_packed_and_unpacked_rows_have_the_same_loss_per_token(model: Any, flat: bool) -> None:
    rows = documents()
    unpacked = losses(model, rows, flat=flat)
    packed = losses(model, [together(*rows[:3]), together(*rows[3:5]), together(*rows[5:])], flat=flat)  # some padded
    torch.testing.assert_close(packed.sort().values, unpacked.sort().values, atol=1e-5, rtol=0)


def test_a_batch_that_is_flat_has_the_losses_of_a_padded_one(model: Any) -> None:
    rows = documents()
    model.set_attn_implementation("sdpa")
    padded = losses(model, rows, flat=False)
    use_segmented(model)
    torch.testing.assert_close(losses(model, rows).sort().values, padded.sort().values, atol=1e-5, rtol=0)


def test_a_packed_batch_that_is_padded_has_positions_that_begin_again_and_no_mask() -> None:
    rows = documents()
    batch = PaddedTokens(PAD)([together(rows[1], rows[6]), together(rows[3])])
    assert set(batch) == {"input_ids", "position_ids", "kept", "targets"}
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 0, 1, 0, 1], list(range(9))]
    assert batch["input_ids"][0, 7:].tolist() == [PAD, PAD]
    assert 4 not in batch["kept"].tolist(), "the second document does not follow from the first"


def test_a_flat_batch_holds_every_token_once_and_no_padding() -> None:
    rows = documents()
    batch = FlatTokens()([together(rows[1], rows[6]), rows[3], rows[1]])
    assert batch["input_ids"].shape == (1, 5 + 2 + 9 + 5)
    assert batch["documents"] == Documents(((1, 9), (2, 5), (1, 2)), 9)
    assert batch["cu_seq_lens"].tolist() == [0, 9, 14, 19, 21]
    assert batch["position_ids"].tolist() == [[*range(9), *range(5), *range(5), *range(2)]]
    assert "attention_mask" not in batch


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
