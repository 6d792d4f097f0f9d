"""A data file as a stream of plain UTF-8: compression, UTF-16 and old line breaks undone. Memory is bounded.

What the bytes begin with decides, not the name: files are renamed more often than they are written by hand.
"""

import bz2
import codecs
import lzma
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO, Protocol

import zstandard

BLOCK = 1 << 20
# what is fed at a time: one byte of zstd may encode 32 KiB (a block that repeats one byte), so this bounds memory
COMPRESSED_BLOCK = 1 << 11
WIDEST_WINDOW = 128 << 20  # bytes that a zstd or xz decoder keeps; `zstd --ultra --long=27`, `xz -9` needs half
LINE_BREAK_WITHIN = 1 << 16  # bytes: text with a carriage return and no line feed in them has the old Mac's line breaks


class Compression(StrEnum):
    NONE = ""
    GZIP = "gzip"
    ZSTD = "zstd"
    BZIP2 = "bzip2"
    XZ = "xz"


MAGIC = {
    re.compile(rb"\x1f\x8b"): Compression.GZIP,
    re.compile(rb"\x28\xb5\x2f\xfd"): Compression.ZSTD,
    # "BZh" and a level may begin a text; the mark of a block, or of the end, follows
    re.compile(rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)"): Compression.BZIP2,
    re.compile(rb"\xfd7zXZ\x00"): Compression.XZ,
}
LONGEST_MAGIC = 10
SUFFIXES = {
    ".gz": Compression.GZIP,
    ".gzip": Compression.GZIP,
    ".zst": Compression.ZSTD,
    ".zstd": Compression.ZSTD,
    ".bz2": Compression.BZIP2,
    ".xz": Compression.XZ,
}
UTF32_MARKS = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)
UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class StreamError(Exception):
    """The file cannot be read to its end.

    Args:
        code: TruncatedFile or DamagedFile.
        message: what is wrong, as the beginning of a sentence.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class _Decoder(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, /) -> bytes: ...


def compression_of(path: Path) -> Compression:
    """Return the compression by the first bytes."""
    with path.open("rb") as stream:
        return _compression(stream.read(LONGEST_MAGIC))


def _compression(start: bytes) -> Compression:
    return next((kind for magic, kind in MAGIC.items() if magic.match(start)), Compression.NONE)


class Reader:
    """The bytes of a file in blocks.

    Attributes:
        position: how many bytes of the file, as it lies on disk, have been read.
    """

    def __init__(self, stream: BinaryIO, compression: Compression) -> None:
        self._stream = stream
        self._compression = compression
        self.position = 0

    def blocks(self) -> Iterator[bytes]:
        """Yield plain bytes in blocks of no fixed size, none empty. UTF-16 and UTF-32 with their marks become UTF-8.

        Raises:
            StreamError: the file ends early, or is damaged. All that could be read was yielded before.
        """
        blocks = self._plain()
        start = b""
        broken: StreamError | None = None
        try:
            for block in blocks:
                start += block
                if b"\n" in start or len(start) >= LINE_BREAK_WITHIN or (len(start) >= 4 and b"\r" not in start):
                    break
        except StreamError as error:
            broken = error
        yield from _as_utf8(start, blocks)
        if broken is not None:
            raise broken

    def _plain(self) -> Iterator[bytes]:
        if self._compression is Compression.NONE:
            while block := self._read(BLOCK):
                yield block
            return
        decoder = self._decoder()
        while fed := self._read(COMPRESSED_BLOCK):
            while fed:
                if decoder.eof:  # another member, as of two files that were joined
                    if not fed.strip(b"\0"):
                        break  # padding
                    decoder = self._decoder()
                yield from filter(None, self._decompressed(decoder, fed))
                fed = decoder.unused_data if decoder.eof else b""
        if not decoder.eof:
            raise StreamError("TruncatedFile", f"the {self._compression} data ends before its end mark")

    def _read(self, size: int) -> bytes:
        block = self._stream.read(size)
        self.position += len(block)
        return block

    def _decoder(self) -> "_Decoder | bz2.BZ2Decompressor | lzma.LZMADecompressor":
        if self._compression is Compression.GZIP:
            return zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        if self._compression is Compression.BZIP2:
            return bz2.BZ2Decompressor()
        if self._compression is Compression.XZ:
            return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=WIDEST_WINDOW)
        return zstandard.ZstdDecompressor(max_window_size=WIDEST_WINDOW).decompressobj()

    def _decompressed(
        self, decoder: "_Decoder | bz2.BZ2Decompressor | lzma.LZMADecompressor", data: bytes
    ) -> Iterator[bytes]:
        try:
            if not isinstance(decoder, bz2.BZ2Decompressor | lzma.LZMADecompressor):
                yield decoder.decompress(data)
                return
            yield decoder.decompress(data, BLOCK)  # 45 bytes of bzip2 may encode 900 kB: read in blocks
            while not decoder.eof and not decoder.needs_input:
                yield decoder.decompress(b"", BLOCK)
        except (zlib.error, zstandard.ZstdError, lzma.LZMAError, OSError, EOFError) as error:
            message = f"the {self._compression} data is damaged near byte {self.position:,}: {error}"
            raise StreamError("DamagedFile", message) from error


def _as_utf8(start: bytes, blocks: Iterator[bytes]) -> Iterator[bytes]:
    if start.startswith(UTF32_MARKS):
        return _translated("utf-32", start, blocks)
    if start.startswith(UTF16_MARKS):
        return _translated("utf-16", start, blocks)
    return _with_line_feeds(start, blocks)


def _translated(encoding: str, start: bytes, blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Yield UTF-8 of text with the mark of another encoding. Half a character stays: the fault of its row shows it."""
    decoder = codecs.getincrementaldecoder(encoding)("surrogatepass")
    try:
        while True:
            text = decoder.decode(start, final=not start)
            if text:
                yield text.encode("utf-8", "surrogatepass")
            if not start:
                return
            start = next(blocks, b"")
    except UnicodeDecodeError as error:
        raise StreamError("TruncatedFile", f"the {encoding.upper()} text ends within a character") from error


def _with_line_feeds(start: bytes, blocks: Iterator[bytes]) -> Iterator[bytes]:
    old = b"\r" in start[:-1] and b"\n" not in start
    if start:
        yield start.replace(b"\r", b"\n") if old else start
    for block in blocks:
        yield block.replace(b"\r", b"\n") if old else block


@contextmanager
def opened(path: Path) -> Iterator[Reader]:
    """Open a file as plain bytes."""
    with path.open("rb") as stream:
        yield Reader(stream, _compression(stream.peek(LONGEST_MAGIC)))


def beginning(path: Path, size: int) -> bytes:
    """Return the first plain bytes of a file, as far as possible: damage is reported when the file is read."""
    start = bytearray()
    with opened(path) as reader, suppress(StreamError):
        for block in reader.blocks():
            start += block
            if len(start) >= size:
                break
    return bytes(start[:size])
