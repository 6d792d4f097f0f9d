"""Parquet and Arrow files: batches of rows, sent to processes as Arrow's own bytes and turned into Python there.

Numbers of classes (ClassLabel of the library datasets) become the names, which the schema has.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute
import pyarrow.ipc
import pyarrow.parquet

from finetune_api.errors import DataError
from finetune_trainer.prepare.data.calls import without_fillers
from finetune_trainer.prepare.data.detect import ARROW_STREAM
from finetune_trainer.prepare.data.formats import Code, DataFile, Fault, Format, Record, Row
from finetune_trainer.prepare.data.jsonl import not_utf8
from finetune_trainer.prepare.data.lines import PIECE
from finetune_trainer.prepare.data.streams import Compression, compression_of

BUFFER = 1 << 20  # bytes read of a column at a time: a row group may be as large as the file
MOST_ROWS = 10_000  # of one batch


def read_tables(file: DataFile) -> Iterator[tuple[int, bytes, int]]:
    """Yield (number of its first row, a batch as an Arrow stream, bytes of the file so far) of every batch of some MiB.

    Raises:
        DataError: the file is damaged, or compressed as a whole.
    """
    size = file.path.stat().st_size
    if compression_of(file.path) is not Compression.NONE:
        message = f"the file is {file.format} inside {compression_of(file.path)}, which cannot be read in parts"
        raise DataError(file.problem("CompressedTable", message, "store it as it is: it compresses its own columns"))
    try:
        total, batches = _parquet(file) if file.format is Format.PARQUET else _arrow(file)
        done = 0
        for batch in batches:
            rows = max(1, min(MOST_ROWS, batch.num_rows * PIECE // max(1, batch.nbytes)))
            batch = _with_names(batch)
            for start in range(0, batch.num_rows, rows):
                part = batch.slice(start, rows)
                share = (done + start + part.num_rows) / total if total else 1
                yield done + start + 1, _packed(part), min(size, int(size * share))
            done += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        message = f"the file cannot be read as {file.format}: {reason}"
        cure = "copy it again, whole, or set spec.dataset.format"
        raise DataError(file.problem("DamagedFile", message, cure)) from error


def _parquet(file: DataFile) -> tuple[int, Iterator[Any]]:
    table = pa.parquet.ParquetFile(file.path, pre_buffer=False, buffer_size=BUFFER)
    meta = table.metadata
    size = sum(meta.row_group(index).total_byte_size for index in range(meta.num_row_groups))
    rows = max(1, min(MOST_ROWS, meta.num_rows * PIECE // max(1, size)))
    return meta.num_rows, table.iter_batches(batch_size=rows, columns=_read_of(file, table.schema_arrow))


def _read_of(file: DataFile, schema: Any) -> list[str]:
    """Return the columns to read; leave out large ones that no part needs, such as images."""
    if file.columns is None:
        return list(schema.names)
    wanted = {*file.columns, *(path.partition(".")[0] for path in file.columns)}
    return [name for name in schema.names if name in wanted]


def _with_names(batch: Any) -> Any:
    """Return the batch with the names of classes for their numbers; -1, without a class, is null."""
    for name, names in _classes(batch.schema).items():
        index = batch.schema.get_field_index(name)
        if index >= 0 and (found := _named(batch.column(index), pa.array(names, pa.string()))) is not None:
            batch = batch.set_column(index, name, found)
    return batch


def _named(column: Any, names: Any) -> Any:
    if pa.types.is_integer(column.type):
        known = pa.compute.and_(pa.compute.greater_equal(column, 0), pa.compute.less(column, len(names)))
        return names.take(pa.compute.if_else(known, column, None))
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        values = _named(column.flatten(), names)
        offsets = pa.compute.subtract(column.offsets, column.offsets[0])
        if values is not None and offsets[-1].as_py() == len(values):
            kind = pa.LargeListArray if pa.types.is_large_list(column.type) else pa.ListArray
            return kind.from_arrays(offsets, values, mask=column.is_null() if column.null_count else None)
    return None


def _classes(schema: Any) -> dict[str, list[str]]:
    """Return column -> names of its classes, by their numbers, as datasets writes them into the schema."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        found = {name: _class_names(feature) for name, feature in features.items()}
    except (KeyError, TypeError, AttributeError, ValueError):
        return {}
    return {name: names for name, names in found.items() if names}


def _class_names(feature: Any) -> list[str] | None:
    if isinstance(feature, list):  # a list of classes, as older versions write it
        return _class_names(feature[0]) if len(feature) == 1 else None
    if not isinstance(feature, Mapping):
        return None
    if feature.get("_type") == "ClassLabel":
        names = feature.get("names")
        return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None
    return _class_names(feature.get("feature"))


def _arrow(file: DataFile) -> tuple[int, Iterator[Any]]:
    source = pa.memory_map(str(file.path))
    if source.read(4) == ARROW_STREAM:
        source.seek(0)
        stream = pa.ipc.open_stream(source)
        wanted = _read_of(file, stream.schema)
        return 0, (batch.select(wanted) for batch in stream)
    source.seek(0)
    table = pa.ipc.open_file(source)
    batches = range(table.num_record_batches)
    wanted = _read_of(file, table.schema)
    total = sum(table.get_batch(index).num_rows for index in batches)
    return total, (table.get_batch(index).select(wanted) for index in batches)


def _packed(batch: Any) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    packed: bytes = sink.getvalue().to_pybytes()
    return packed


def parse_table(first: int, packed: bytes) -> Iterator[Record]:
    """Yield the rows of a batch."""
    for batch in pa.ipc.open_stream(packed):
        try:
            rows = batch.to_pylist()
        except UnicodeDecodeError:  # Arrow does not check text columns: find the rows that are not UTF-8
            rows = None
        for index in range(batch.num_rows):
            if rows is not None:
                yield Row(first + index, _plain(rows[index]))
            else:
                yield _row(first + index, batch.slice(index, 1))


def _row(number: int, batch: Any) -> Record:
    try:
        (values,) = batch.to_pylist()
    except UnicodeDecodeError as error:
        return Fault(number, Code.BAD_UTF8, f"a text holds the byte {not_utf8(error.object[error.start])}")
    return Row(number, _plain(values))


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: without_fillers(value) if isinstance(value, (dict, list)) else value for name, value in values.items()
    }
