"""What the files of sentence-transformers say of a base model: how its vectors are made, and from what texts."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.errors import ModelError
from finetune_trainer.model.files import MODULES, POOLING, PROMPTS, TEXT_LENGTH, model_problem

MADE = ("Transformer", "Pooling", "Normalize")  # in every version, the types of modules end with their classes
POOLINGS = {"mean": "mean", "cls": "cls", "lasttoken": "last"}
FLAGS = {  # before version 6
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
QUERY, DOCUMENT = ("query", "search_query"), ("document", "passage", "corpus", "search_document")


@dataclass(frozen=True)
class SentenceModel:
    """A base model as sentence-transformers describes it.

    Attributes:
        pooling: mean, cls or last; empty if the files name none of them.
        strange: what of it is not trained here, such as a dense layer behind the pooling; empty if nothing is.
        max_seq_length: tokens at which it cuts texts; 0 = unknown.
    """

    pooling: str = ""
    query_prompt: str = ""
    document_prompt: str = ""
    max_seq_length: int = 0
    strange: str = ""


PLAIN = SentenceModel()


def read_sentence_model(files: Mapping[str, Path]) -> SentenceModel:
    """Return what the small files of a model, by name, say of its vectors.

    Raises:
        ModelError: one of them is not JSON.
    """
    modules, pooling = _read(files, MODULES, []), _read(files, POOLING, {})
    settings = _read(files, PROMPTS, {})
    modes = pooling.get("pooling_mode") or [name for flag, name in FLAGS.items() if pooling.get(flag)]
    modes = [modes] if isinstance(modes, str) else list(modes)
    strange = [str(one.get("type")).rpartition(".")[2] for one in modules if not str(one.get("type")).endswith(MADE)]
    strange += [f"pooling {mode}" for mode in modes if mode not in POOLINGS or len(modes) > 1]
    strange += ["a pooling without the prompt"] if pooling.get("include_prompt") is False else []
    return SentenceModel(
        pooling=POOLINGS[modes[0]] if modes and not strange else "",
        query_prompt=_prompt(settings, QUERY),
        document_prompt=_prompt(settings, DOCUMENT),
        max_seq_length=int(_read(files, TEXT_LENGTH, {}).get("max_seq_length") or 0),
        strange=" and ".join(strange),
    )


def _prompt(settings: Mapping[str, Any], names: tuple[str, ...]) -> str:
    """Return the prompt of the first name that has one; without such a name, that of every text. An empty prompt is
    one: it says that these texts have none."""
    prompts = settings.get("prompts") or {}
    found = next((name for name in names if prompts.get(name) is not None), settings.get("default_prompt_name"))
    return str(prompts.get(found) or "")


def _read(files: Mapping[str, Path], name: str, none: Any) -> Any:
    """Return the JSON in a file; `none` without the file, and for JSON of another kind."""
    if name not in files:
        return none
    try:
        value = json.loads(files[name].read_bytes())
    except ValueError as error:
        message = f"{name} is not JSON: {error}"
        raise ModelError(model_problem("ModelInvalid", message, "save the model again")) from error
    return value if isinstance(value, type(none)) else none
