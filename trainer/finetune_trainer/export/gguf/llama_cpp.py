"""llama.cpp's converter on this machine. pip fetches it once, by version and hash; the trainer's image has it.

    python llama_cpp.py [FOLDER]      # fetch it; the image's build runs this file alone

PyPI's package `gguf` has the library that writes files, but not the converter. The source distribution of
llama-cpp-python has both. It is unpacked and not built: no compiler is needed.
"""

import os
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from pathlib import Path
from typing import Any

SECONDS = 600  # for 77 MB


def converter_folder() -> Path:
    """Return the folder of the converter, which need not exist. It is a part of the Python environment."""
    return Path(sys.prefix) / "share" / f"finetune-llama.cpp-{_pinned()['version']}"


def fetch_converter(folder: Path | None = None) -> Path:
    """Return the folder of the converter; fetch it if it is missing.

    Args:
        folder: None = that of this Python environment.

    Raises:
        RuntimeError: pip cannot fetch it; the text is the end of pip's output.
        OSError: the folder cannot be written.
    """
    folder = folder or converter_folder()
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as given:
        work = Path(given)
        _unpack(_download(work), work / "kept")
        try:
            (work / "kept").rename(folder)
        except OSError:
            if not folder.exists():  # otherwise another process was faster
                raise
    return folder


def _download(work: Path) -> Path:
    """Return the source distribution, whose hash pip has checked."""
    pinned, backend = _pinned(), work / "backend"
    (work / "build.txt").write_text("\n".join(pinned["build"]) + "\n")
    line = f"{pinned['package']}=={pinned['version']} --hash=sha256:{pinned['sha256']}\n"
    (work / "package.txt").write_text(line)
    hashed = ["--quiet", "--disable-pip-version-check", "--no-deps", "--require-hashes", "--requirement"]
    _pip(["install", *hashed, str(work / "build.txt"), "--target", str(backend)], {})
    source = ["--no-binary", pinned["package"], "--no-build-isolation", "--dest", str(work)]
    _pip(["download", *hashed, str(work / "package.txt"), *source], {"PYTHONPATH": str(backend)})
    return next(work.glob("*.tar.gz"))


def _pip(arguments: list[str], environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "pip", *arguments]
    environ = {**os.environ, **environment}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=SECONDS, check=False)
    if done.returncode:
        raise RuntimeError("\n".join((done.stdout + done.stderr).strip().splitlines()[-3:]))


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack the parts of llama.cpp that the converter needs."""
    kept = tuple(_pinned()["kept"])
    with tarfile.open(archive) as opened:
        for member in opened:
            name = member.name.partition("/vendor/llama.cpp/")[2]
            if name.startswith(kept) and member.isfile():
                member.name = name
                opened.extract(member, folder, filter="data")


def _pinned() -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_name("llama_cpp.toml").read_text("utf-8"))


if __name__ == "__main__":
    print(fetch_converter(*(Path(argument) for argument in sys.argv[1:2])))
