"""Held-out rows for the program of a suite: JSON lines of what the model was evaluated with, in token ids."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc

from finetune_api.contract import File, dataset_prefix
from finetune_api.plan import Plan
from finetune_trainer.dataset.shards import LONE, Shards, shard_name
from finetune_trainer.storage import ObjectStore, download_files, read_manifest

MOST_ROWS = 10_000  # the first ones of the split
NOT_TRAINED = -100  # label of a token without loss, as in transformers
RUNS = "trained_runs"
ROWS_FILE = "eval-rows.jsonl"


def write_held_out_rows(store: ObjectStore, plan: Plan, folder: Path) -> Path | None:
    """Write the first rows of the eval split, a JSON object on each line; return None if there are none.

    A causal model's row has `labels` beside `input_ids`: the ids that the model must write, and -100 for the others.
    """
    prefix = dataset_prefix(plan.dataset.sha256)
    manifest = read_manifest(store, prefix) if plan.dataset.eval else None
    if manifest is None:
        return None
    entries = {one.path: one for one in manifest.files}
    names = _shards(store, prefix) if File.SHARDS in entries else [LONE.format(split="eval")]
    written, path = 0, folder / ROWS_FILE
    with path.open("w", encoding="utf-8") as file:
        for name in names:
            if written == MOST_ROWS or name not in entries:
                break
            download_files(store, prefix, [entries[name]], folder)
            for row in _rows(folder / name, MOST_ROWS - written):
                file.write(json.dumps(row) + "\n")
                written += 1
            (folder / name).unlink()
    return path if written else None


def _shards(store: ObjectStore, prefix: str) -> list[str]:
    shards = Shards.model_validate_json(store.get(prefix + File.SHARDS))
    return [shard_name("eval", number) for number in range(len(shards.eval))]


def _rows(path: Path, most: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of a shard one by one; a shard may hold a quarter of a gigabyte."""
    table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    for at in range(min(most, table.num_rows)):
        [row] = table.slice(at, 1).to_pylist()
        yield _with_labels(row)


def _with_labels(row: dict[str, Any]) -> dict[str, Any]:
    if RUNS not in row:
        return row
    ids, runs = row["input_ids"], row.pop(RUNS)
    labels = [NOT_TRAINED] * len(ids)
    for start, length in zip(runs[::2], runs[1::2], strict=True):
        labels[start : start + length] = ids[start : start + length]
    return {**row, "labels": labels}
