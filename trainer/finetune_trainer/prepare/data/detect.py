"""Which format a file has: as the job says, or by what it begins with, or by its name. Content beats a name that lies.

The error for a file that is not data (a web page, a Git LFS pointer, an archive) names what it is.
"""

from dataclasses import replace
from pathlib import Path, PurePosixPath

from finetune_api.errors import DataError, Problem, SpecError
from finetune_trainer.prepare.data import sniff, streams
from finetune_trainer.prepare.data.delimited import delimiter_problem, looks_like_pairs
from finetune_trainer.prepare.data.formats import DataFile, DocumentUnit, Format
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
    ".conll": Format.TEXT,
    ".iob": Format.TEXT,
    ".bio": Format.TEXT,
    ".parquet": Format.PARQUET,
    ".pq": Format.PARQUET,
    ".arrow": Format.ARROW,
    ".feather": Format.ARROW,
    ".ipc": Format.ARROW,
}
TAGGED = frozenset({".conll", ".iob", ".bio"})  # a word and its tag on each line, paragraphs between blank lines
SNIFFED = 1 << 16  # bytes
HEAD = 1 << 12  # bytes
ARROW_STREAM = b"\xff\xff\xff\xff"  # the continuation mark of Arrow's streaming format
STRANGERS = {
    b"version https://git-lfs": ("GitLFSPointer", "a pointer of Git LFS, not the data", "fetch it with `git lfs pull`"),
    b"%PDF-": ("NotData", "a PDF document", "export its text, one document per line"),
    b"PK\x03\x04": ("NotData", "a zip archive or an office document", "unpack it, or export it as CSV or JSON lines"),
    b"7z\xbc\xaf\x27\x1c": ("NotData", "a 7z archive", "unpack it"),
    b"\x04\x22\x4d\x18": ("NotData", "compressed with lz4", "compress it with gzip or zstd, or not at all"),
    b"\x80\x04\x95": ("NotData", "a pickle of Python", "write it as JSON lines or Parquet"),
    b"SQLite format 3": ("NotData", "a database of SQLite", "export the table as CSV"),
    b"Obj\x01": ("NotData", "an Avro file", "write it as Parquet or JSON lines"),
}
PAGES = (b"<!doctype html", b"<html")


def suffixes_of(name: str) -> tuple[Format | None, Compression]:
    """Return format and compression by a file's name: `train.jsonl.gz` is JSON lines in gzip."""
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
    """Return a file with its format.

    Args:
        path: where it lies.
        name: its uri, for messages and suffixes.

    Raises:
        SpecError: neither job, name nor content show a format.
        DataError: the file is empty, or no data.
    """
    if TAGGED & set(PurePosixPath(name.lower()).suffixes):
        documents = documents or DocumentUnit.PARAGRAPH
    data = streams.beginning(path, SNIFFED)
    start = sniff.FileStart(data, len(data) < SNIFFED)
    by_name, _ = suffixes_of(name)
    form = Format(declared) if declared else by_name or Format.TEXT
    file = DataFile(path, name, field, form, delimiter, DocumentUnit(documents or DocumentUnit.LINE))
    _refuse_strangers(file, data[:HEAD])
    if declared is None:
        file = replace(file, format=_format_by_content(file, start, by_name, documents))
    return _with_delimiter(_usable(file), start)


def _format_by_content(file: DataFile, start: sniff.FileStart, by_name: Format | None, documents: str | None) -> Format:
    form = _by_content(start, by_name, file.delimiter, documents)
    if form is not None:
        return form
    known = ", ".join(sorted(SUFFIXES))
    raise SpecError(
        Problem(
            code="UnknownFormat",
            field="spec.dataset.format",
            message=f"neither the name nor the content of {file.name} shows its format; the suffixes {known} do",
            cure="set format to jsonl, json, csv, tsv, pairs, text, parquet or arrow",
        )
    )


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


def _with_delimiter(file: DataFile, start: sniff.FileStart) -> DataFile:
    """Return the file with the delimiter that its beginning shows, and whether its fields are quoted."""
    if file.format not in (Format.CSV, Format.TSV):
        return file
    if file.delimiter is None:
        delimiters = sniff.delimiters(start, file.separator)
        if len(delimiters) > 1:
            seen = " or ".join(map(repr, delimiters))
            message = f"the columns may be separated by {seen}: {start.lines[0][:60]!r} can be read with each"
            cure = f"set spec.dataset.delimiter, such as {delimiters[0]!r}"
            raise DataError(file.problem("AmbiguousDelimiter", message, cure))
        file = replace(file, delimiter=delimiters[0] if delimiters else None)
    return replace(file, quotes=file.separator != "\t" or sniff.tabs_are_quoted(start))


def _by_content(
    start: sniff.FileStart, by_name: Format | None, delimiter: str | None, documents: str | None
) -> Format | None:
    if start.data.startswith(b"PAR1"):
        return Format.PARQUET
    if start.data.startswith((b"ARROW1", ARROW_STREAM)):
        return Format.ARROW
    if documents is not None and by_name in (Format.TEXT, None):  # the job declares plain text
        return Format.TEXT
    text = start.text.lstrip()
    if by_name in (Format.JSONL, Format.JSON) and text.startswith((b"{", b"[")):
        return Format.JSON if text.startswith(b"[") else Format.JSONL
    if by_name is None and text.startswith(b"{"):
        return Format.JSONL
    if (form := sniff.json_format(start)) is not None:
        return form
    if by_name in (Format.CSV, Format.TSV):
        return by_name
    if (mark := sniff.table_delimiter(start, delimiter)) is not None:
        return Format.TSV if mark == "\t" else Format.CSV
    if by_name is Format.TEXT and (delimiter is not None or looks_like_pairs(start.text)):
        return Format.PAIRS
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
        message = f"the name says {compression}, but the content is not {compression}"
        raise DataError(file.problem("NotCompressed", message, "compress it again, or correct its name"))
    if start and not start.strip(b"\0"):
        message = f"the file begins with {len(start):,} bytes of 0: it was never written there"
        raise DataError(file.problem("DamagedFile", message, "copy the whole file again"))
    if file.format.is_text and _looks_like_utf16(start):
        message = "the file is in UTF-16 without a byte order mark (ff fe), so its bytes are ambiguous"
        raise DataError(file.problem("NotUTF8", message, "save it as UTF-8"))


def _looks_like_utf16(start: bytes) -> bool:
    """Return whether bytes without a byte order mark look like UTF-16: every other byte of Latin text is 0."""
    head = start[: len(start) // 2 * 2]
    return len(head) >= 8 and (set(head[1::2]) == {0} or set(head[0::2]) == {0})
