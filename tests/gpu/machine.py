"""What the GPU machine already has: Python, CUDA's libraries, and the packages of machine.txt."""

from pathlib import Path

PYTHON = (3, 12)
CUDA = "130"  # CUDA 13.0, as in the names of bitsandbytes' libraries
PLATFORM = "x86_64"
GLIBC = (2, 28)  # wheels for this version of the C library, and for older ones, run there
ARCHIVE_BYTES = 64 << 20  # at most, of sources and wheels together

LISTED = Path(__file__).with_name("machine.txt")
_LINES = (line.strip() for line in LISTED.read_text().splitlines())
PRESENT = frozenset(line.partition("==")[0] for line in _LINES if line and not line.startswith("#"))
# Present there, but in a version that may be another than the one that the figures are for.
CARRIED = frozenset({"peft"})
