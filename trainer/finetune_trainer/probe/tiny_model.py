"""The tiny model of a question, with a tokenizer and rows, on the disk as a run finds them."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, PreTrainedConfig, PreTrainedTokenizerFast

from finetune_api.tasks import Supervision, spec_of
from finetune_trainer.model.auto_classes import writer_of
from finetune_trainer.probe.question import ProbeQuestion
from finetune_trainer.probe.shrunk import fewer_layers, shrunk
from finetune_trainer.worker.arrow_rows import IGNORED

ROWS = {"train": 16, "eval": 6}
TOKENS = (6, 20)  # of a row
LABELS = ("first", "second", "third")
LARGEST = 100_000_000  # parameters of a model that has only fewer layers
IDS = pa.list_(pa.int32())


@dataclass(frozen=True)
class TinyModel:
    """A model of the question's architecture with random weights.

    Attributes:
        folder: with configuration, weights and tokenizer.
        config: as transformers reads it.
        pad, end: ids of the padding token and of the end of a text.
        ordinary: ids without a special meaning.
    """

    folder: Path
    config: PreTrainedConfig
    pad: int
    end: int
    ordinary: tuple[int, ...]


def make_model(question: ProbeQuestion, folder: Path) -> TinyModel:
    """Make and save a tiny model. A checkpoint has the head of its pre-training, as published models do.

    Raises:
        Exception: whatever transformers raises for a configuration that it cannot build.
    """
    config = _small_config(question)
    auto = getattr(transformers, writer_of(str(config.model_type)) or spec_of(question.task).auto_class)
    torch.manual_seed(0)
    auto.from_config(config, dtype=torch.float32).save_pretrained(folder)
    text = config.get_text_config()
    vocabulary = int(text.vocab_size)
    special = sorted({one for one in _special(config) if 0 <= one < vocabulary})
    free = [one for one in range(vocabulary) if one not in special]
    pad, end, mask = (
        _first(config, name, free, vocabulary) for name in ("pad_token_id", "eos_token_id", "mask_token_id")
    )
    _tokenizer(vocabulary, pad, end, mask).save_pretrained(folder)
    return TinyModel(folder, config, pad, end, tuple(one for one in free if one not in (pad, end, mask)))


def _small_config(question: ProbeQuestion) -> PreTrainedConfig:
    kind = str(question.config["model_type"])
    values = {name: value for name, value in question.config.items() if name != "model_type"}
    whole = AutoConfig.for_model(kind, **values).to_dict()
    whole.pop("model_type", None)
    try:
        return _buildable(kind, shrunk(whole), question)
    except Exception:  # a name of a size that `shrunk` does not know: sizes no longer fit each other
        return _buildable(kind, fewer_layers(whole), question)


def _buildable(kind: str, values: Mapping[str, Any], question: ProbeQuestion) -> PreTrainedConfig:
    config = AutoConfig.for_model(kind, **values)
    auto = getattr(transformers, writer_of(kind) or spec_of(question.task).auto_class)
    with torch.device("meta"):
        size = sum(one.numel() for one in auto.from_config(config).parameters())
    if size > LARGEST:
        raise ValueError(f"the smallest model that was found has {size:,} parameters")
    if config.is_encoder_decoder and getattr(config, "decoder_start_token_id", None) is None:
        config.decoder_start_token_id = 0
    return config


def _special(config: Any) -> list[int]:
    found: list[int] = []
    for name, value in config.to_dict().items():
        if str(name).endswith(("_token_id", "_token_ids", "_token_index", "_token_idx")):
            found += [one for one in (value if isinstance(value, list | tuple) else [value]) if isinstance(one, int)]
    text = config.get_text_config()
    return found if text is config else [*found, *_special(text)]


def _first(config: Any, name: str, free: list[int], vocabulary: int) -> int:
    """Return the id of a special token: the configuration's, or one that has no meaning, which is free no longer."""
    for one in (config, config.get_text_config()):
        value = getattr(one, name, None)
        value = value[0] if isinstance(value, list | tuple) and value else value
        if isinstance(value, int) and 0 <= value < vocabulary:
            return value
    return free.pop()


def _tokenizer(vocabulary: int, pad: int, end: int, mask: int) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({f"t{at}": at for at in range(vocabulary)}, unk_token=f"t{pad}"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, pad_token=f"t{pad}", eos_token=f"t{end}", mask_token=f"t{mask}"
    )


def write_rows(question: ProbeQuestion, tiny: TinyModel, folder: Path) -> None:
    """Write the rows of both splits, as prepare writes them (see `messages.DatasetFacts`)."""
    folder.mkdir(parents=True)
    source = random.Random(0)
    kind = spec_of(question.task).supervision
    for split, count in ROWS.items():
        rows = [[*source.choices(tiny.ordinary, k=source.randint(*TOKENS)), tiny.end] for _ in range(count)]
        columns = {"input_ids": pa.array(rows, IDS), **_taught(kind, rows, tiny, source)}
        table = pa.table(columns)
        with pa.OSFile(str(folder / f"{split}.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)


def _taught(
    kind: Supervision, rows: Sequence[Sequence[int]], tiny: TinyModel, source: random.Random
) -> dict[str, pa.Array]:
    if kind is Supervision.LABEL:
        return {"label": pa.array([source.randrange(len(LABELS)) for _ in rows], pa.int32())}
    if kind is Supervision.WORD_LABELS:
        return {"labels": pa.array([[source.randrange(len(LABELS)) for _ in row[1:]] + [IGNORED] for row in rows], IDS)}
    if kind is Supervision.CLOSENESS:  # the halves of a row belong together
        return {"seq_lengths": pa.array([[len(row) // 2, len(row) - len(row) // 2] for row in rows], IDS)}
    if kind is Supervision.SEQUENCE:
        return {"labels": pa.array([[*row[: len(row) // 2], tiny.end] for row in rows], IDS)}
    return {"labels": pa.array(rows, IDS)} if kind is Supervision.CONTINUATION else {}
