"""llama.cpp's own server, built once from the source distribution that the converter comes from."""

import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from finetune_trainer.export.gguf import llama_cpp
from tests.real.packages import make_once, say
from tests.tools import cache

OPTIONS = {
    "CMAKE_BUILD_TYPE": "Release",
    "BUILD_SHARED_LIBS": "OFF",
    "GGML_NATIVE": "OFF",
    "GGML_OPENMP": "OFF",
    "LLAMA_OPENSSL": "OFF",
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
    "LLAMA_BUILD_APP": "OFF",
    "LLAMA_USE_PREBUILT_UI": "OFF",  # it would be downloaded
}


def llama_server() -> Path:
    """Return the program; a test without a C++ compiler or CMake skips, but never where CI=true."""
    place = cache() / f"llama-server-{llama_cpp._pinned()['version']}"
    if not place.exists() and not (shutil.which("cmake") and shutil.which("c++")):
        if os.environ.get("CI") == "true":
            raise RuntimeError("there is no CMake or no C++ compiler on PATH: install cmake and g++")
        pytest.skip("there is no CMake or no C++ compiler on PATH, which build llama.cpp's server")
    return make_once(place, _build) / "llama-server"


def _build(folder: Path) -> None:
    say("llama.cpp", "its server is built, 10 minutes on 2 cores (once)")
    work = folder / "work"
    work.mkdir()
    with tarfile.open(llama_cpp._download(work)) as opened:
        opened.extractall(work, filter="data")
    [source] = work.glob("*/vendor/llama.cpp")
    given = [f"-D{name}={value}" for name, value in OPTIONS.items()]
    subprocess.run(["cmake", "-S", source, "-B", work / "build", *given], check=True)
    target = ["--target", "llama-server", "--parallel", str(os.cpu_count() or 1)]
    subprocess.run(["cmake", "--build", work / "build", *target], check=True)
    shutil.copyfile(work / "build" / "bin" / "llama-server", folder / "llama-server")
    (folder / "llama-server").chmod(0o755)
    shutil.rmtree(work)
