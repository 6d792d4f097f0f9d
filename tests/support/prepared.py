"""Prepared data as one plain Arrow file a split, with labels in place of runs, for readers without our code."""

from pathlib import Path

import pyarrow as pa
import pyarrow.ipc

from finetune_trainer.dataset.shards import LONE, read_shards, shard_name

IGNORED = -100
IDS = pa.list_(pa.int32())


def plain(folder: Path, split: str) -> Path:
    """Write a split as one file beside its shards, if it has any; return the file."""
    path = folder / LONE.format(split=split)
    if read_shards(folder) is not None:
        with pa.OSFile(str(path), "wb") as sink:
            table = plain_table(folder, split)
            with pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)
    return path


def plain_table(folder: Path, split: str) -> pa.Table:
    """Return all rows of a split; for causal models with `labels`: the id where loss is due, else -100."""
    shards = read_shards(folder)
    if shards is None:
        return _read(folder / LONE.format(split=split))
    table = pa.concat_tables(_read(folder / shard_name(split, number)) for number in range(len(shards.of(split))))
    if "trained_runs" not in table.column_names:
        return table
    labels = []
    for ids, runs in zip(table["input_ids"].to_pylist(), table["trained_runs"].to_pylist(), strict=True):
        row = [IGNORED] * len(ids)
        for start, length in zip(runs[::2], runs[1::2], strict=True):
            row[start : start + length] = ids[start : start + length]
        labels.append(row)
    return table.set_column(1, "labels", pa.array(labels, IDS))


def _read(path: Path) -> pa.Table:
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
