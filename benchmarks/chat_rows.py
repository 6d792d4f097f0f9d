"""Conversations as prepared rows: token ids, labels on the assistant's turns, lengths distributed as in real chats.

Sentences of the standard library's docstrings, tokenised by a small byte-level BPE; ChatML around every turn.
"""

import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from benchmarks.chats import sentences
from finetune_trainer.worker.batches.padded import IGNORED

VOCABULARY = 4096
MEDIAN, SPREAD, LONGEST = 120, 0.7, 512  # tokens of a row, log-normal, cut
SPECIALS = ("<pad>", "<|im_start|>", "<|im_end|>", "<unk>")
PAD = 0
ANSWERED = 0.7  # share of a turn's words: answers are longer than questions


@dataclass(frozen=True)
class ChatRow:
    """One conversation: ids, and labels that equal them but are -100 where no loss is due."""

    input_ids: list[int]
    labels: list[int]


def tokenizer_of(texts: list[str]) -> Tokenizer:
    """Return a byte-level BPE tokenizer of VOCABULARY tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=list(SPECIALS), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def chat_rows(count: int, seed: int = 0) -> tuple[Tokenizer, list[ChatRow]]:
    """Return `count` conversations, and their tokenizer."""
    texts = sentences()
    tokenizer = tokenizer_of(texts)
    pool = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    roles = {role: tokenizer.encode(f"{role}\n").ids for role in ("user", "assistant")}
    start, end = tokenizer.token_to_id(SPECIALS[1]), tokenizer.token_to_id(SPECIALS[2])
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        length = min(LONGEST, max(16, round(draw.lognormvariate(math.log(MEDIAN), SPREAD))))
        ids: list[int] = []
        labels: list[int] = []
        turn = 0
        while len(ids) < length:
            role = ("user", "assistant")[turn % 2]
            size = length * (1 - ANSWERED if turn % 2 == 0 else ANSWERED) / draw.choice((1, 1, 2))
            words: list[int] = []
            while len(words) < size:
                words += draw.choice(pool)
            head, body = [start, *roles[role]], [*words[: int(size) + 1], end]
            ids += head + body
            labels += [IGNORED] * len(head) + (body if role == "assistant" else [IGNORED] * len(body))
            turn += 1
        rows.append(ChatRow(ids[:length], labels[:length]))
    return tokenizer, rows


def write_arrow(path: Path, rows: list[ChatRow]) -> None:
    """Write the rows in the format of prepare."""
    kind = pa.list_(pa.int32())
    columns: dict[str, Any] = {
        "input_ids": pa.array([row.input_ids for row in rows], kind),
        "labels": pa.array([row.labels for row in rows], kind),
    }
    table = pa.table(columns)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
