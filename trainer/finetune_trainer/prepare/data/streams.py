"""A data file as a stream of plain bytes: gzip and zstd undone, whatever the file is called. Memory is bounded.

What the bytes begin with decides, not the name: files are renamed more often than they are written by hand.
"""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO, Protocol

import zstandard

BLOCK = 1 << 20
# what is fed at a time: one byte of zstd may stand for 32 KiB (a block that repeats one byte), so this bounds memory
COMPRESSED_BLOCK = 1 << 11
WIDEST_WINDOW = 128 << 20  # bytes that a zstd decoder keeps; `zstd --ultra --long=27`


class Compression(StrEnum):
    NONE = ""
    GZIP = "gzip"
    ZSTD = "zstd"


MAGIC = {b"\x1f\x8b": Compression.GZIP, b"\x28\xb5\x2f\xfd": Compression.ZSTD}
SUFFIXES = {".gz": Compression.GZIP, ".gzip": Compression.GZIP, ".zst": Compression.ZSTD, ".zstd": Compression.ZSTD}


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
    """By the first bytes."""
    with path.open("rb") as stream:
        start = stream.read(4)
    return next((kind for magic, kind in MAGIC.items() if start.startswith(magic)), Compression.NONE)


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
        """Plain bytes, in blocks of no fixed size; none is empty.

        Raises:
            StreamError: the compressed data ends early, or is damaged. All that could be read was yielded before.
        """
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
                block = self._decompressed(decoder, fed)
                if block:
                    yield block
                fed = decoder.unused_data if decoder.eof else b""
        if not decoder.eof:
            raise StreamError("TruncatedFile", f"the {self._compression} data ends before its end mark")

    def _read(self, size: int) -> bytes:
        block = self._stream.read(size)
        self.position += len(block)
        return block

    def _decoder(self) -> _Decoder:
        if self._compression is Compression.GZIP:
            return zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        return zstandard.ZstdDecompressor(max_window_size=WIDEST_WINDOW).decompressobj()

    def _decompressed(self, decoder: _Decoder, data: bytes) -> bytes:
        try:
            return decoder.decompress(data)
        except (zlib.error, zstandard.ZstdError) as error:
            message = f"the {self._compression} data is damaged near byte {self.position:,}: {error}"
            raise StreamError("DamagedFile", message) from error


@contextmanager
def opened(path: Path) -> Iterator[Reader]:
    """The file as plain bytes."""
    compression = compression_of(path)
    with path.open("rb") as stream:
        yield Reader(stream, compression)


def beginning(path: Path, size: int) -> bytes:
    """The first plain bytes of a file, as far as they can be had: what is damaged is told when it is read."""
    start = bytearray()
    with opened(path) as reader, suppress(StreamError):
        for block in reader.blocks():
            start += block
            if len(start) >= size:
                break
    return bytes(start[:size])
