"""Which format a file has: as the job says, or by its name, or by what it begins with. Content beats a name that lies.

A file that is no data at all (a web page, a Git LFS pointer, an archive) is told as what it is.
"""

from dataclasses import replace
from pathlib import Path, PurePosixPath

from finetune_api.errors import DataError, Problem, SpecError
from finetune_trainer.prepare.data import streams
from finetune_trainer.prepare.data.delimited import delimiter_problem, looks_like_pairs
from finetune_trainer.prepare.data.formats import UTF8_BOM, DataFile, Documents, Format
from finetune_trainer.prepare.data.streams import Compression

SUFFIXES = {
    ".jsonl": Format.JSONL,
    ".ndjson": Format.JSONL,
    ".jsonlines": Format.JSONL,
    ".json": Format.JSON,
    ".csv": Format.CSV,
    ".tsv": Format.TSV,
    ".tab": Format.TSV,
    ".txt": Format.TEXT,
    ".text": Format.TEXT,
    ".parquet": Format.PARQUET,
    ".pq": Format.PARQUET,
    ".arrow": Format.ARROW,
    ".feather": Format.ARROW,
    ".ipc": Format.ARROW,
}
UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")
ARROW_STREAM = b"\xff\xff\xff\xff"  # the continuation mark of Arrow's streaming format
STRANGERS = {
    b"version https://git-lfs": ("GitLFSPointer", "a pointer of Git LFS, not the data", "fetch it with `git lfs pull`"),
    b"%PDF-": ("NotData", "a PDF document", "export its text, one document per line"),
    b"PK\x03\x04": ("NotData", "a zip archive or an office document", "unpack it, or export it as CSV or JSON lines"),
    b"BZh91AY&SY": ("NotData", "compressed with bzip2", "compress it with gzip or zstd, or not at all"),
    b"\xfd7zXZ\x00": ("NotData", "compressed with xz", "compress it with gzip or zstd, or not at all"),
    b"7z\xbc\xaf\x27\x1c": ("NotData", "a 7z archive", "unpack it"),
    b"\x04\x22\x4d\x18": ("NotData", "compressed with lz4", "compress it with gzip or zstd, or not at all"),
    b"\x80\x04\x95": ("NotData", "a pickle of Python", "write it as JSON lines or Parquet"),
    b"SQLite format 3": ("NotData", "a database of SQLite", "export the table as CSV"),
    b"Obj\x01": ("NotData", "an Avro file", "write it as Parquet or JSON lines"),
}
PAGES = (b"<!doctype html", b"<html")


def suffixes_of(name: str) -> tuple[Format | None, Compression]:
    """What a file's name says: `train.jsonl.gz` is JSON lines in gzip."""
    path = PurePosixPath(name.lower())
    compression = streams.SUFFIXES.get(path.suffix, Compression.NONE)
    if compression:
        path = path.with_suffix("")
    return SUFFIXES.get(path.suffix), compression


def open_file(
    path: Path,
    name: str,
    field: str,
    declared: str | None = None,
    delimiter: str | None = None,
    documents: str | None = None,
) -> DataFile:
    """A file with its format.

    Args:
        path: where it lies.
        name: its uri, for messages and suffixes.

    Raises:
        SpecError: neither job, name nor content tell a format.
        DataError: the file is empty, or no data.
    """
    start = streams.beginning(path, 4096)
    by_name, _ = suffixes_of(name)
    file = DataFile(
        path,
        name,
        field,
        Format(declared) if declared else by_name or Format.TEXT,
        delimiter,
        Documents(documents or Documents.LINE),
    )
    _refuse_strangers(file, start)
    if declared is not None:
        return _usable(file)
    form = _by_content(start, by_name) or (Format.TEXT if documents is not None else None)
    if form is None:
        known = ", ".join(sorted(SUFFIXES))
        raise SpecError(
            Problem(
                code="UnknownFormat",
                field="spec.dataset.format",
                message=f"neither the name nor the content of {name} tells a format; the suffixes {known} do",
                cure="set format to jsonl, json, csv, tsv, pairs, text, parquet or arrow",
            )
        )
    if form is Format.TEXT and documents is None and (delimiter is not None or looks_like_pairs(start)):
        form = Format.PAIRS
    return _usable(replace(file, format=form))


def _usable(file: DataFile) -> DataFile:
    if (wrong := delimiter_problem(file)) is not None:
        raise SpecError(
            Problem(
                code="InvalidDelimiter",
                field="spec.dataset.delimiter",
                message=wrong,
                cure="leave it out, or set format to csv, tsv or pairs",
            )
        )
    return file


def _by_content(start: bytes, by_name: Format | None) -> Format | None:
    if start.startswith(b"PAR1"):
        return Format.PARQUET
    if start.startswith((b"ARROW1", ARROW_STREAM)):
        return Format.ARROW
    if by_name in (Format.JSONL, Format.JSON, None):
        text = start.removeprefix(UTF8_BOM).lstrip()
        if text.startswith(b"[") and by_name is not None:
            return Format.JSON
        if text.startswith(b"{"):
            return Format.JSONL
        if text.startswith(b"[{") or text.startswith(b"[\n"):
            return Format.JSON
    return by_name


def _refuse_strangers(file: DataFile, start: bytes) -> None:
    if not start and file.path.stat().st_size == 0:
        raise DataError(file.problem("EmptyFile", "the file is empty", "name a file with at least one row"))
    for magic, (code, what, cure) in STRANGERS.items():
        if start.startswith(magic):
            raise DataError(file.problem(code, f"the file is {what}", cure))
    if start.lstrip().lower().startswith(PAGES) and file.format is not Format.TEXT:
        message = "the file is a web page: the address leads to a page about the data, or to a login"
        raise DataError(file.problem("WebPage", message, "use the address of the file itself (on a hub: resolve, raw)"))
    _, compression = suffixes_of(file.name)
    if compression and streams.compression_of(file.path) is Compression.NONE and b"\0" in start:
        message = f"the name says {compression}, and the content is not"
        raise DataError(file.problem("NotCompressed", message, "compress it again, or give it its own name"))
    if start and not start.strip(b"\0"):
        message = f"the file begins with {len(start):,} bytes of 0: it was never written there"
        raise DataError(file.problem("DamagedFile", message, "copy the file again, whole"))
    if file.format.is_text and (start.startswith(UTF16_BOMS) or _looks_like_utf16(start)):
        raise DataError(file.problem("NotUTF8", "the file is in UTF-16; data files are UTF-8", "save it as UTF-8"))


def _looks_like_utf16(start: bytes) -> bool:
    """Without a byte order mark: every other byte of text in a Latin script is 0."""
    head = start[: len(start) // 2 * 2]
    return len(head) >= 8 and (set(head[1::2]) == {0} or set(head[0::2]) == {0})
