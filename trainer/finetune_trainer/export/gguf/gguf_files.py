"""The files of the form gguf, made from a model in Hugging Face's layout: one for each quantization."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from finetune_api.contract import File
from finetune_api.errors import Problem, StateError
from finetune_api.messages import MethodType, Quantization
from finetune_trainer.export.artifact_files import ExportSource
from finetune_trainer.export.card import card, installed_versions
from finetune_trainer.export.gguf.llama_cpp import fetch_converter
from finetune_trainer.export.layout import CARD, base_of

FIELD = "spec.export.forms"
LOG_LINES = 200  # of the converter, in the log of the export if it fails


def gguf_name(quantization: Quantization) -> str:
    """Return the name of a file."""
    return f"model-{quantization}.gguf"


def convert_artifact(
    model: Path, source: ExportSource, quantizations: Sequence[Quantization], report: Callable[[str], None]
) -> Path:
    """Return a new folder with the GGUF files of a complete artifact, which is deleted.

    Raises:
        StateError: the converter is missing or cannot convert the model.
    """
    folder = model.with_name("gguf-files")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    write_gguf(model, folder, quantizations, model.with_name("gguf.log"), report)
    if (model / File.LABELS).exists():
        shutil.copyfile(model / File.LABELS, folder / File.LABELS)
    add_gguf_card(folder, source, quantizations)
    shutil.rmtree(model)
    return folder


def add_gguf_card(folder: Path, source: ExportSource, quantizations: Sequence[Quantization]) -> None:
    """Write the card of GGUF files."""
    plan = source.plan
    text = card(
        plan,
        base_of(plan.model, source.store),
        source.info.step,
        source.info.metrics,
        installed_versions(),
        source.evaluation,
        merged=plan.method is not MethodType.FULL,
        gguf=[gguf_name(one) for one in quantizations],
        energy=source.energy,
    )
    (folder / CARD).write_text(text, "utf-8")


def write_gguf(
    model: Path, folder: Path, quantizations: Sequence[Quantization], log: Path, report: Callable[[str], None]
) -> None:
    """Convert a model, and write the files to an existing folder. Memory holds a few tensors at a time.

    Args:
        model: folder in Hugging Face's layout, with the tokenizer.
        log: what the converter prints goes to this file.
        report: called with a line before the conversion.

    Raises:
        StateError: the converter is missing or cannot convert the model.
    """
    llama_cpp = converter()
    program = [sys.executable, "-m", "finetune_trainer.export.gguf.gguf_program", str(llama_cpp), str(model)]
    for one in quantizations:
        program += [str(folder / gguf_name(one)), one]
    report(f"gguf: llama.cpp converts the model to {', '.join(quantizations)}")
    with log.open("wb") as output:
        done = subprocess.run(
            program,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            check=False,
        )
    if done.returncode:
        printed = log.read_text("utf-8", errors="replace")
        for line in printed.splitlines()[-LOG_LINES:]:  # the file is removed with the pod's scratch folder
            report(f"gguf: {line}")
        raise _refused(done.returncode, printed)


def converter() -> Path:
    """Return the folder of llama.cpp's converter.

    Raises:
        StateError: it is not on this machine and cannot be fetched.
    """
    try:
        return fetch_converter()
    except (OSError, RuntimeError, subprocess.TimeoutExpired) as error:
        cure = (
            "use the trainer's image, which has the converter; elsewhere install pip in the Python environment, connect"
            " to a package index, and run python -m finetune_trainer.export.gguf.llama_cpp"
        )
        message = f"llama.cpp's converter is not on this machine and cannot be fetched: {error}"
        raise StateError(Problem(code="ConverterMissing", field=FIELD, message=message, cure=cure)) from error


def _refused(code: int, log: str) -> StateError:
    last = next((line for line in reversed(log.splitlines()) if line.strip()), "it printed nothing")
    end = f"exit code {code}" if code > 0 else f"signal {-code}"
    message = f"llama.cpp's converter ended with {end}: {last.strip()[:300]}"
    cure = (
        "export the form merged, or keep the tokenizer of the base model; the log of the export has the last "
        f"{LOG_LINES} lines of the converter"
    )
    return StateError(Problem(code="CannotConvert", field=FIELD, message=message, cure=cure))
