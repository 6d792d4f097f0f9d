"""A rank reads the rows that it trains, wherever they lie; what a step holds is known without any row."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pytest

from finetune_api.messages import Task
from finetune_trainer.agent import inputs as fetching
from finetune_trainer.agent.inputs import fetch_first
from finetune_trainer.dataset.shards import Shards, index_name, shard_name, shard_order
from finetune_trainer.prepare.observed.encoded import IGNORED, Encoded
from finetune_trainer.prepare.tokens.split_writer import SplitWriter
from finetune_trainer.prepare.tokens.token_rows import TokenRows
from finetune_trainer.storage import FolderStore, download_files, upload_tree
from finetune_trainer.worker import arrow_rows
from finetune_trainer.worker.arrow_rows import ArrowRows
from finetune_trainer.worker.sampling import Dealt, VirtualDataset
from finetune_trainer.worker.tasks.causal_lm import trained_following

ROWS = 200


def row(number: int) -> Encoded:
    draw = np.random.default_rng(number)
    ids = draw.integers(1, 100, draw.integers(2, 30)).astype(np.int32)
    return Encoded(ids, draw.random(len(ids)) < 0.5, None, len(ids))


def written(folder: Path) -> list[Encoded]:
    """Train data of many shards, as prepare writes it."""
    folder.mkdir()
    rows = [row(number) for number in range(ROWS)]
    with SplitWriter(folder, "train", Task.CAUSAL_LM, batch_tokens=100, shard_bytes=900) as writer:
        writer.add(TokenRows.of(rows))
    assert len(writer.written.shards) > 10
    (folder / "shards.json").write_text(Shards(train=writer.written.shards).to_json())
    return rows


def test_rows_and_what_they_train_are_those_that_were_written(tmp_path: Path) -> None:
    expected = written(tmp_path / "data")
    rows = ArrowRows(tmp_path / "data", "train")
    assert len(rows) == ROWS
    assert rows.lengths.tolist() == [len(one.ids) for one in expected]
    for number, one in enumerate(expected):
        assert one.trained is not None
        found = rows[number]
        assert set(found) == {"input_ids", "labels"}
        assert found["input_ids"].tolist() == one.ids.tolist()
        assert found["labels"].tolist() == np.where(one.trained, one.ids, IGNORED).tolist()
        assert rows.value("labels", number).tolist() == found["labels"].tolist()
        assert rows.items is not None
        assert rows.items[number] == trained_following(rows, number)


def test_data_that_was_prepared_before_there_were_shards_is_read(tmp_path: Path) -> None:
    ids = pa.array([[1, 2, 3], [4, 5]], pa.list_(pa.int32()))
    table = pa.table({"input_ids": ids, "labels": ids})
    with pa.OSFile(str(tmp_path / "train.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    rows = ArrowRows(tmp_path, "train")
    assert (len(rows), rows.packed, rows.items, rows.by_shard) == (2, False, None, None)
    assert rows[1]["labels"].tolist() == [4, 5]


def test_a_rank_opens_only_the_shards_of_its_own_rows(tmp_path: Path) -> None:
    written(tmp_path / "data")
    rows = ArrowRows(tmp_path / "data", "train")
    items = rows.items
    assert items is not None
    run = VirtualDataset(rows, 1, 100, 8, items=lambda number: int(items[number]), dealt=Dealt(2))
    run.prepare(1)
    assert run.step_items(1) > 0
    assert run.step_tokens(1) > 0
    assert not any(shard._columns for shard in rows._shards)  # the index was enough
    own = [run.row(run.position(slot)) for slot in (0, 1)]  # one micro-batch
    for number in own:
        _ = rows[number]
    assert sum(bool(shard._columns) for shard in rows._shards) <= 2


def test_a_large_data_set_is_fetched_in_the_order_in_which_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = written(tmp_path / "data")
    count = len(list((tmp_path / "data").glob("train-*.index.arrow")))
    store, node = FolderStore(tmp_path / "store"), tmp_path / "node"
    upload_tree(store, tmp_path / "data", "datasets/x", "dataset")
    assert fetch_first(store, "datasets/x/", tmp_path / "small", 3) == []  # at once
    assert (tmp_path / "small" / shard_name("train", count - 1)).exists()
    monkeypatch.setattr(fetching, "WINDOWED_ABOVE", 4)
    monkeypatch.setattr(fetching, "WINDOW", 2)
    later = fetch_first(store, "datasets/x/", node, 3)
    order = shard_order(count, 3, 0)
    assert {path.name for path in node.glob("train-*.arrow") if "index" not in path.name} == {
        shard_name("train", number) for number in order[:2]
    }
    assert all((node / index_name("train", number)).exists() for number in range(count))
    assert [entry.path for part in later for entry in part] == [shard_name("train", number) for number in order[2:]]

    def fetch_instead_of_waiting(seconds: float) -> None:
        download_files(store, "datasets/x/", later.pop(0), node)

    monkeypatch.setattr(arrow_rows.time, "sleep", fetch_instead_of_waiting)
    rows = ArrowRows(node, "train")
    assert [rows[number]["input_ids"].tolist() for number in range(ROWS)] == [one.ids.tolist() for one in expected]
    assert later == []
