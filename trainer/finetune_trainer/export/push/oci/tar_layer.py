"""A layer of a registry: a tar archive that is never written to a disk. Its bytes are computed where they are read.

Equal files give equal bytes: names are sorted, and owner, mode and time are constants.
"""

import hashlib
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

BLOCK = 512  # of a tar archive
READ = 4 << 20  # bytes of a file that are in memory while it is hashed


@dataclass(frozen=True)
class TarPiece:
    """A part of the archive: a file, or some bytes of its own."""

    size: int
    content: bytes | Path

    def read(self, start: int, end: int) -> bytes:
        """Return the bytes from `start` to before `end`."""
        if isinstance(self.content, bytes):
            return self.content[start:end]
        with self.content.open("rb") as file:
            file.seek(start)
            return file.read(end - start)


@dataclass(frozen=True)
class TarLayer:
    """A tar archive of files.

    Attributes:
        names: of the files, sorted.
        pieces: headers, files and padding, in the order of the archive.
    """

    names: tuple[str, ...]
    pieces: tuple[TarPiece, ...]

    @classmethod
    def of(cls, files: Mapping[str, Path]) -> "TarLayer":
        """Return the archive of files, given as path in the archive -> file on disk."""
        pieces: list[TarPiece] = []
        folders: set[str] = set()
        for name in sorted(files):
            for parent in reversed(PurePosixPath(name).parents[:-1]):
                if str(parent) not in folders:
                    folders.add(str(parent))
                    pieces.append(_bytes(_header(f"{parent}/", 0)))
            size = files[name].stat().st_size
            pieces += [_bytes(_header(name, size)), TarPiece(size, files[name]), _bytes(b"\0" * (-size % BLOCK))]
        pieces.append(_bytes(b"\0" * (2 * BLOCK)))
        return cls(tuple(sorted(files)), tuple(one for one in pieces if one.size))

    @cached_property
    def size(self) -> int:
        """Bytes of the archive."""
        return sum(one.size for one in self.pieces)

    @cached_property
    def digest(self) -> str:
        """`sha256:` and the hash of the archive; the first call reads all files."""
        whole = hashlib.sha256()
        for block in self.blocks(0, READ):
            whole.update(block)
        return f"sha256:{whole.hexdigest()}"

    def read(self, start: int, length: int) -> bytes:
        """Return some bytes of the archive; fewer at its end.

        Raises:
            OSError: a file became shorter.
        """
        found, begin, end = [], 0, min(start + length, self.size)
        for piece in self.pieces:
            low, high = max(start, begin), min(end, begin + piece.size)
            if low < high:
                found.append(piece.read(low - begin, high - begin))
            begin += piece.size
        content = b"".join(found)
        if len(content) != max(0, end - start):
            raise OSError(f"a file of {', '.join(self.names)} changed while it was read")
        return content

    def blocks(self, start: int, length: int) -> Iterator[bytes]:
        """Yield the archive from `start` on, `length` bytes at a time."""
        while start < self.size:
            block = self.read(start, length)
            yield block
            start += len(block)


def _bytes(content: bytes) -> TarPiece:
    return TarPiece(len(content), content)


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name.rstrip("/"))
    info.size, info.mode, info.mtime = size, 0o644, 0
    if name.endswith("/"):
        info.type, info.mode = tarfile.DIRTYPE, 0o755
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8")
