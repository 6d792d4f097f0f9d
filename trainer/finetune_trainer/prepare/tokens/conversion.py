"""A tokenizer.json made of an older tokenizer: of SentencePiece's model or of a list of words.

Many published models have no other (DeBERTa-v3, mT5, forks of BERT). transformers converts them whenever it loads
them; here that is done once, so that every later reader finds the same file.
"""

import sys
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from finetune_api.errors import ModelError
from finetune_trainer.model.files import TOKENIZER, TOKENIZER_FILES, VOCABULARIES, model_problem


def converted_tokenizer(files: Mapping[str, Path], folder: Path, source: str) -> dict[str, Path]:
    """Return the files of a fast tokenizer, by name, in a folder that also holds the model's other small files.

    Args:
        files: configuration and tokenizer of the model, by name; none of them is changed.
        folder: for the new files.
        source: the model as the user wrote it, for errors.

    Raises:
        ModelError: transformers cannot convert the tokenizer.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, path in files.items():
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(path.resolve())
    if "torch" in sys.modules:  # paid for already
        refusal = _convert(folder)
    else:
        with ProcessPoolExecutor(1, get_context("spawn")) as other:
            refusal = other.submit(_convert, folder).result()
    if refusal:
        vocabulary = ", ".join(sorted(files.keys() & VOCABULARIES))
        message = f"{source} has no {TOKENIZER}, and none can be made of its {vocabulary}: {refusal}"
        cure = "save a fast tokenizer beside the model: AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        if "sentencepiece" in refusal.lower() or "protobuf" in refusal.lower():
            cure = f"install the packages sentencepiece and protobuf where the job is prepared, or {cure}"
        raise ModelError(model_problem("NoTokenizer", message, cure))
    return {path.name: path for path in folder.iterdir() if path.name in TOKENIZER_FILES and not path.is_symlink()}


def _convert(folder: Path) -> str:
    """Save a fast tokenizer beside the older one; return why it cannot be made, or nothing."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # whatever malformed files make the library raise
        lines = str(error).strip().splitlines()
        return lines[0][:300] if lines else type(error).__name__
    if not tokenizer.is_fast:
        return f"transformers has no fast version of {type(tokenizer).__name__}"
    made = folder.with_name(f"{folder.name}-made")
    tokenizer.save_pretrained(made)
    for path in made.iterdir():
        (folder / path.name).unlink(missing_ok=True)  # a link to the model's own file
        path.rename(folder / path.name)
    return ""
